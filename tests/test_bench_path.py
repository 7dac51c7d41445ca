"""The path stage of invoke bench: all that is sent is accounted for, and nothing stays behind."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Invoke, means_of, wait_until

from xdplab.bench import path
from xdplab.bench.measure import Means, Measured, Taken, measure
from xdplab.bench.place import namespace
from xdplab.errors import FramesAstray
from xdplab.workspace import PROJECT, Workspace

pytestmark = pytest.mark.root

DROPPED, SENT = "million packets/s", "million sent/s"


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> Means:
    return means_of(Workspace(tmp_path_factory.mktemp("path")))


@contextlib.contextmanager
def cable(means: Means, tmp_path: Path) -> Iterator[path._Line]:
    with namespace(means, path._RIGHTS) as bench:
        yield path._cable(bench, sorted(os.sched_getaffinity(0)), tmp_path)


@pytest.mark.tree
def test_each_way_drops_all_that_arrives(lab: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path, "_SECONDS", 0.02)
    means = means_of(Workspace(lab.workspace))
    with closing(path.comparisons(means)) as comparisons:
        found = [measure("path", one, 1, lambda *_, **__: None) for one in comparisons]
    assert {one.name for one in found} >= {"veth, native mode", "veth, generic mode"}
    for one in found:
        for way in one.ways:
            assert not way.failed, f"{one.name}: {way.name}: {way.failed}"
            assert bool(way.figures) != bool(way.skipped)
            dropped = way.figures.get(DROPPED, [])
            assert all(dropped)
            if SENT in way.figures:  # the rest was lost
                assert all(a <= b for a, b in zip(dropped, way.figures[SENT], strict=True))
    points = [one.point[1] for one in found if one.point]
    assert points == [n for n in (1, 2, 4, 8) if n <= len(os.sched_getaffinity(0))]
    # what is the harness's own is measured wherever this runs
    assert all(way.figures for way in of(found) if "XDP_DROP" in way.name or "samples" in way.name)


def of(found: list[Measured]) -> Iterator[Taken]:
    return (way for one in found for way in one.ways)


def test_a_filter_that_lets_something_through_has_no_reading(
    means: Means, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def idle(place: path._Line) -> Iterator[path.Dropped]:
        yield lambda: 0

    monkeypatch.setattr(path, "_PATIENCE", 0.1)
    with (
        cable(means, tmp_path) as place,
        pytest.raises(FramesAstray, match="were sent to xdp0, and 0 were dropped"),
    ):
        path._reading(path._Filter("idle", idle, ""), place, [0])


def test_another_core_receives(means: Means, tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with cable(means, tmp_path) as place:
        before = set(path._napi_threads(place.dev))
        assert path._handed_over(place, cpus[-1]).handed_over
        threads = set(path._napi_threads(place.dev)) - before
        assert len(threads) == cpus[-1] + 1  # one for each queue
        for thread in threads:
            assert os.sched_getaffinity(thread) == {cpus[-1]}
            assert os.sched_getscheduler(thread) == os.SCHED_FIFO
    wait_until(lambda: not threads & set(path._napi_threads(place.dev)))


def test_a_namespace_has_nothing_of_this_machine(means: Means, tmp_path: Path) -> None:
    with cable(means, tmp_path) as place:
        devices = place.run("ls", "/sys/class/net").split()
        assert devices == ["lo", "wire0", "xdp0"]
        # what every BPF file system has
        assert set(place.run("ls", "/sys/fs/bpf").split()) <= {"maps.debug", "progs.debug"}


FLOODING = """\
import sys
from pathlib import Path
from xdplab.bench import path
from xdplab.bench.measure import Means
from xdplab.bench.place import namespace
from xdplab.process import Shell
from xdplab.workspace import Workspace
scratch = Path(sys.argv[1])
means = Means(Workspace(scratch), Shell(), lambda: None, lambda: None, print)
with namespace(means, path._RIGHTS) as bench:
    place = path._cable(bench, [0], scratch)
    path._handed_over(place, 0)
    print(bench.netns, flush=True)
    frame, seconds = place.frame.hex(), float(sys.argv[2])
    sent = bench.ask("flood", dev=place.into, frame=frame, cpus=[0], seconds=seconds)
    print(f"{sent['sent']} sent in {sent['seconds']} seconds")
"""


def test_kill_9_leaves_nothing(tmp_path: Path) -> None:
    """A bench that is killed while it floods."""
    command = [sys.executable, "-c", FLOODING, str(tmp_path), "20"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as bench:
        assert bench.stdout
        agent = Path("/proc", bench.stdout.readline().strip())
        namespace = (agent / "ns/net").readlink()
        assert "wire0" in (agent / "net/dev").read_text()
        assert namespace in namespaces()
        bench.kill()
    wait_until(lambda: namespace not in namespaces())


def test_an_ordinary_user_borrows_what_it_takes(
    nobody: Path, with_sudo: tuple[str | Path, ...]
) -> None:
    command = [*with_sudo, sys.executable, "-c", FLOODING, nobody, "0.01"]
    home = {**os.environ, "HOME": str(nobody)}
    ended = subprocess.run(
        command, cwd=nobody / "checkout", env=home, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^\d+ sent in 0\.0", ended.stdout, re.MULTILINE)


def namespaces() -> set[Path]:
    """Network namespaces that a process is in."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.add((process / "ns/net").readlink())
    return found
