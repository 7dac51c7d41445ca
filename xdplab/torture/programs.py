"""What is run on a ground: samples of ours, and beside them a program of somebody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from xdplab import build as building
from xdplab import filtering
from xdplab.bench.measure import Means
from xdplab.build import Build
from xdplab.sample import OURS, Sample
from xdplab.torture.ground import Ground
from xdplab.workspace import PROJECT

TUTORIAL, FILTER = "xdp_ip_filter", filtering.SAMPLE
MINE, OLD, TRACED = "tort_filter", "old_filter", "traced_filter"  # copies of the tutorial's pair
NAMES = frozenset(f"_{name}"[:15] for name in (MINE, OLD, TRACED))  # of their programs
IP = "127.0.0.9"
NEAR, FAR = "xdp0", "wire0"  # a cable; somebody else's program is on its far end

_ATTACHING = "xdp_link_create(ifindex, prog_fd, mode)"  # of xdp_attach.h
_PATIENCE = 60.0  # seconds for a program to be attached


def built(
    means: Means, ground: Ground, names: Iterable[str] = (MINE, OLD, TRACED, FILTER)
) -> dict[str, Build]:
    """The samples, built in the current tree; raises what building does."""
    return {
        name: _built(Sample.find(name), means, ground)
        if name in (TUTORIAL, FILTER)
        else copied(name, means, ground)
        for name in names
    }


def copied(name: str, means: Means, ground: Ground) -> Build:
    """A copy of the tutorial's pair under another name, built."""
    return _built(Sample.find(str(_copy(name, ground))), means, ground)


def _built(sample: Sample, means: Means, ground: Ground) -> Build:
    tree = means.tree()
    ground.workspace.set_current_tree(tree.path)
    return building.build(
        tree, sample, means.toolchain(), ground.workspace, means.shell,
        lambda _: None, lambda _: None, trace=sample.name == TRACED,
    )  # fmt: skip


@contextlib.contextmanager
def somebody_elses(ground: Ground, builds: dict[str, Build]) -> Iterator[None]:
    """A cable with somebody else's program on its far end."""
    ground.bench.ask("lay_cable", ends=(NEAR, FAR))
    theirs = builds[MINE]
    argv = [*ground.bench.enter, theirs.program, "-i", IP, "-d", FAR, "-n", "0", "-t", "1000"]
    with ground.bench.shell.start(argv, cwd=theirs.directory) as running:
        for line in running.lines(_PATIENCE):
            if line.text.startswith("attached:"):
                break
        yield


def _copy(name: str, ground: Ground) -> Path:
    """The tutorial's pair under another name; the old one gets EINVAL for a bpf_link."""
    directory = ground.scratch.with_name(name)
    directory.mkdir()
    ending = ("_kern.c", "_user.c", "_cases.toml")
    for source in (*(PROJECT / f"{TUTORIAL}{one}" for one in ending), *OURS):
        text = source.read_text().replace(TUTORIAL, name)
        if name == OLD:
            text = text.replace(_ATTACHING, "-EINVAL")
        (directory / source.name.replace(TUTORIAL, name)).write_text(text)
    return directory
