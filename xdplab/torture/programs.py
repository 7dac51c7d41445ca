"""What is run on a ground: samples of ours, and beside them a program of somebody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from xdplab import TUTORIAL, filtering
from xdplab import build as building
from xdplab.bench.measure import Means
from xdplab.build import Build
from xdplab.sample import ATTACH, OURS, Sample
from xdplab.torture.ground import Ground
from xdplab.version import KernelVersion

FILTER = filtering.SAMPLE
MINE, OLD, TRACED = "tort_filter", "old_filter", "traced_filter"  # copies of the tutorial's pair
NAMES = frozenset(f"_{name}"[:15] for name in (MINE, OLD, TRACED))  # of their programs
# copies that print the verifier's log of what they load; an object's name begins its maps' names
LOUD_SINCE = KernelVersion(5, 17)  # libbpf v0.7: kernel_log_level of bpf_object_open_opts
LOUD = {f"{TUTORIAL}_loud": TUTORIAL, f"{FILTER}_loud": FILTER}
IP = "127.0.0.9"
NEAR, FAR = "xdp0", "wire0"  # a cable; somebody else's program is on its far end

_PATIENCE = 60.0  # seconds for a program to be attached

# what is changed in a copy's xdp_attach.h, which only user halves include
_CAPS = '#include "xdp_caps.h"\n'
_OPEN_LOUDLY = """
static int print_all(enum libbpf_print_level level, const char *format, va_list args)
{
	return vfprintf(stderr, format, args);
}

static struct bpf_object *open_loudly(const char *path)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .kernel_log_level = 4); /* BPF_LOG_STATS */

	libbpf_set_print(print_all);
	return bpf_object__open_file(path, &options);
}
#define bpf_object__open open_loudly
"""
_CHANGED = {
    OLD: ("xdp_link_create(ifindex, prog_fd, mode)", "-EINVAL"),  # it gets EINVAL for a bpf_link
    **dict.fromkeys(LOUD, (_CAPS, f"{_CAPS}{_OPEN_LOUDLY}")),
}


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
    """A sample of ours under another name; beside it what any pair may include."""
    directory = ground.scratch.with_name(name)
    directory.mkdir()
    original = Sample.find(LOUD.get(name, TUTORIAL))
    old, new = _CHANGED.get(name, ("", ""))
    for source in {*original.sources, *OURS, original.cases}:
        text = source.read_text().replace(original.name, name)
        if source.name == ATTACH.name and old:
            text = text.replace(old, new)
        (directory / source.name.replace(original.name, name)).write_text(text)
    return directory
