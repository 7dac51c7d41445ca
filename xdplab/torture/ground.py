"""Where commands are tormented, and how to see what one of them has left.

Network and mounts are namespaces of our own, temporary files go to a directory of our own,
and all that is started has a mark in its environment, which its children inherit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xdplab import bpf
from xdplab.bench import place
from xdplab.bench.measure import Means
from xdplab.errors import NeedsRoot
from xdplab.process import Running, parent
from xdplab.testbed.local import LocalBench
from xdplab.torture.ordeal import Finding
from xdplab.workspace import PROJECT, Workspace

PATIENCE = 30.0  # seconds for all to be gone: for watchdogs, on a busy machine
_LOOK = 0.05  # seconds between two looks
_MARK = "XDPLAB_TORTURE"
_TRACING = Path("/sys/kernel/tracing")

# what stays in a workspace by design: records, logs, what was compiled once for all
_KEPT = re.compile(
    r"(builds|tools|kernels|locks|runs|matrix)/.*|(compilers|foreign-trees|kvm)\.json|current"
)

Wrap = Callable[[Sequence[str]], Sequence[str]]
Traces = Mapping[str, frozenset[str]]  # by kind


@dataclass(frozen=True, slots=True)
class Subject:
    """A command that is tormented."""

    running: Running
    ground: Ground
    said: list[str]

    def wait_for(self, word: re.Pattern[str], patience: float) -> bool:
        """Wait until it says that, or `patience` is over; whether it did."""
        with contextlib.suppress(TimeoutError):
            for line in self.running.lines(patience):
                self.said.append(line.text)
                if word.search(line.text):
                    return True
        return False

    @property
    def harness(self) -> int | None:
        """The process that is `invoke`, behind whatever it was started by."""
        return min((pid for pid, words in self.ground.processes().items() if "invoke" in words),
                   default=None)  # fmt: skip

    def children(self) -> list[int]:
        """What the harness has started, and runs now."""
        harness = self.harness
        return [pid for pid in self.ground.processes() if harness and _parent(pid) == harness]

    def last_words(self) -> str:
        """What it printed; call this when it has ended."""
        with contextlib.suppress(TimeoutError):
            self.said.extend(line.text for line in self.running.lines(1.0))
        return "\n".join(self.said)


@dataclass(frozen=True, slots=True)
class Ground:
    """A place for commands, in which nothing is anybody else's."""

    bench: LocalBench
    workspace: Workspace
    scratch: Path  # for temporary files
    mark: str
    programs: frozenset[str] = frozenset()  # the names of those that nobody else loads

    @contextlib.contextmanager
    def started(
        self, *command: str, wrap: Wrap = lambda argv: argv, cwd: Path = PROJECT
    ) -> Iterator[Subject]:
        """A command here; what is left of it at the end of the block is killed.

        `wrap` may have another command start it, from outside.
        """
        argv = wrap([*map(str, self.bench.enter), f"--wd={cwd}", *command])
        environment = {
            "INVOKE_WORKSPACE": str(self.workspace.root),
            "TMPDIR": str(self.scratch),
            "INVOKE_AS_ROOT": "1",  # trees here are of our making
            _MARK: self.mark,
        }
        with self.bench.shell.start(argv, cwd=cwd, env=environment) as running:
            try:
                yield Subject(running, self, [])
            finally:
                self.kill()

    def processes(self) -> dict[int, list[str]]:
        """What runs here, each with its command line."""
        mark, found = f"{_MARK}={self.mark}".encode(), {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    words = (process / "cmdline").read_bytes().decode(errors="replace")
                    found[int(process.name)] = words.split("\0")
        return found

    def wait(self) -> list[str]:
        """Wait until nothing runs here any more; gives what does when patience is over."""
        deadline = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(_LOOK)
        return [" ".join(words) for words in left.values()]

    def kill(self) -> None:
        """Kill all that runs here."""
        while found := self.processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_LOOK)

    # ---- what is left

    def traces(self) -> Traces:
        """All that a command could leave, or take away."""
        return {what: frozenset(look(self)) for what, look in _LOOKS.items()}

    def compare(self, before: Traces, said: Callable[[], str]) -> Finding | None:
        """What is not as it was before: once it is, or patience is over."""
        deadline = time.monotonic() + PATIENCE
        while changed := list(_changed(before, self.traces())):
            if time.monotonic() > deadline:
                return Finding(f"{changed[0].partition(':')[0]}", tuple(changed), said())
            time.sleep(_LOOK)
        return None


def _changed(before: Traces, now: Traces) -> Iterator[str]:
    for what in now:
        yield from (f"{what} is left: {one}" for one in sorted(now[what] - before[what]))
        gone = before[what] - now[what] if what in _THEIRS else ()
        yield from (f"{what} is gone: {one}" for one in sorted(gone))


# ---- how to look


def _running(ground: Ground) -> Iterator[str]:
    for pid, words in ground.processes().items():
        yield f"{pid} {' '.join(words)}"


def _attached(ground: Ground) -> Iterator[str]:
    for dev in ground.bench.interfaces():
        for one in ground.bench.attached(dev):
            yield f"{one.program} on {dev}, {one.mode}"


def _loaded(ground: Ground) -> Iterator[str]:
    return (f"id {one}" for one in bpf.programs() if bpf.name_of(one) in ground.programs)


def _named(_: Ground) -> Iterator[str]:
    place = Path("/run/netns")
    return (one.name for one in (place.iterdir() if place.exists() else ()))


def _pinned(ground: Ground) -> Iterator[str]:
    yield from _below(Path(f"/proc/{ground.bench.netns}/root{place.BPFFS}"))


def _temporary(ground: Ground) -> Iterator[str]:
    yield from _below(ground.scratch)


def _in_workspace(ground: Ground) -> Iterator[str]:
    return (one for one in _below(ground.workspace.root) if not _KEPT.fullmatch(one))


def _locked(ground: Ground) -> Iterator[str]:
    for lock in ground.workspace.root.glob("locks/*/lock"):
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield str(lock)


def _instances(ground: Ground) -> Iterator[str]:
    place = Path(f"/proc/{ground.bench.netns}/root{_TRACING}/instances")
    for one in place.glob("xdplab-*"):
        if not Path(f"/proc/{one.name.rpartition('-')[2]}").exists():  # else it is another's
            yield one.name


def _below(directory: Path) -> Iterator[str]:
    """The files below a directory; one that goes meanwhile is none."""
    for where, _, names in os.walk(directory):
        yield from (str((Path(where) / name).relative_to(directory)) for name in names)


_LOOKS: Mapping[str, Callable[[Ground], Iterator[str]]] = {
    "a process": _running,
    "an XDP program on an interface": _attached,
    "a loaded program": _loaded,
    "an interface": lambda ground: iter(ground.bench.interfaces()),
    "a named network namespace": _named,
    "a pin": _pinned,
    "a temporary file": _temporary,
    "a file in the workspace": _in_workspace,
    "a lock": _locked,
    "a tracefs instance": _instances,
}


_THEIRS = ("an XDP program on an interface", "an interface")  # nobody may take these away


def _parent(pid: int) -> int:
    try:
        return parent(pid)
    except OSError:
        return 0


# ---- made


@contextlib.contextmanager
def made(means: Means, programs: frozenset[str] = frozenset()) -> Iterator[Ground]:
    """A ground that goes with the block, for programs of these names; raises NeedsRoot."""
    if os.geteuid():
        raise NeedsRoot("invoke torture", "it looks into all that runs")
    with (
        tempfile.TemporaryDirectory(prefix="xdplab-torture-") as directory,
        place.namespace(means, ()) as bench,
    ):
        here = Path(directory)
        (here / "tmp").mkdir()
        bench.shell.run([*bench.enter, "mount", "-t", "tracefs", "tracefs", _TRACING], check=False)
        yield Ground(bench, Workspace(here / "workspace"), here / "tmp", here.name, programs)


def invoke(*words: str) -> list[str]:
    """The command line of a task."""
    return [sys.executable, "-m", "invoke", *words]
