"""Kills, full disks and two at once, by chance: the short form of `invoke torture`.

The tries are the same ones each time; the moments at which they strike never quite are.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from conftest import Invoke, means_of

from xdplab.bench.measure import Means
from xdplab.torture import Name, session
from xdplab.torture.disks import Disk, Quota
from xdplab.torture.ground import PATIENCE, Ground, made
from xdplab.workspace import Workspace

pytestmark = [pytest.mark.tree, pytest.mark.root]

TRIES = {Name.EXIT: 16, Name.HALFWAY: 8, Name.TOGETHER: 4}


@pytest.fixture
def means(lab: Invoke) -> Means:
    return means_of(Workspace(lab.workspace))


@pytest.mark.parametrize("name", TRIES)
def test_no_promise_is_broken(name: Name, means: Means) -> None:
    with session.ORDEALS[name](means) as ordeal:
        for seed in range(TRIES[name]):
            tried = ordeal.once(Random(f"{name} {seed}"))  # noqa: S311
            assert not tried.finding, f"invoke torture --only {name} --seed {seed}: {tried}"


@pytest.mark.parametrize(
    ("kind", "refusal"), [(Disk, errno.ENOSPC), (Quota, errno.EDQUOT)], ids=["full", "quota"]
)
def test_a_disk_takes_no_more_than_it_is_let(
    kind: type[Disk], refusal: int, means: Means, tmp_path: Path
) -> None:
    with made(means) as ground:
        disk = kind("a disk", ground, ground.scratch / "place")
        if isinstance(disk, Quota) and (why := disk.why_not()):
            pytest.skip(why)
        with disk.mounted(tmp_path) as seen:
            disk.limit(seen, 100 * 1024)
            with pytest.raises(OSError, match=os.strerror(refusal)):
                (seen / "much").write_bytes(os.urandom(300 * 1024))
            disk.lift()
            (seen / "much").write_bytes(os.urandom(300 * 1024))
            disk.forbid()
            with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                (seen / "more").touch()
            disk.allow()
            (seen / "more").touch()


# ---- that the ground sees what is left: a check that can't fail is none


@pytest.fixture
def ground(means: Means, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    monkeypatch.setattr("xdplab.torture.ground.PATIENCE", 0.3)
    with made(means) as place:
        yield place


LEAVES = {
    "a process is left": "setsid sleep 1000 & exec true",
    "an interface is left": "ip link add left0 type veth peer left1",
    "a temporary file is left": "touch $TMPDIR/left",
    "a file in the workspace is left": "mkdir $INVOKE_WORKSPACE; touch $INVOKE_WORKSPACE/.left",
}


@pytest.mark.parametrize(("what", "script"), LEAVES.items(), ids=LEAVES)
def test_what_is_left_is_seen(ground: Ground, what: str, script: str) -> None:
    before = ground.traces()
    with ground.started("sh", "-c", script) as subject:
        subject.running.wait(PATIENCE)
        found = ground.compare(before, subject.last_words)
    assert found, "nothing was found"
    assert found.what == what
