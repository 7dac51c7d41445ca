"""Promise 1: whatever ends a command, nothing of it is left, and nobody else's is touched."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from xdplab import build as building
from xdplab.bench.measure import Means
from xdplab.build import Build
from xdplab.sample import OURS, Sample
from xdplab.torture import Name, ends
from xdplab.torture.ends import ENDS, End
from xdplab.torture.ground import PATIENCE, Ground, Subject, Traces, invoke, made
from xdplab.torture.ordeal import Finding, Ordeal, Try
from xdplab.workspace import PROJECT

TUTORIAL, FILTER = "xdp_ip_filter", "xdp_filter"
OLD, TRACED = "old_filter", "traced_filter"  # copies of the tutorial's pair
IP = "127.0.0.9"
NEAR, FAR = "xdp0", "wire0"  # a cable; somebody else's program is on its far end
_ATTACHING = "xdp_link_create(ifindex, prog_fd, mode)"  # of xdp_attach.h
_PATIENCE = 60.0  # seconds for a command to come to a moment
_NEVER = re.compile("(?!)")

Moments = dict[str, re.Pattern[str] | None]
_ANY: Moments = {"from its start": None}
_RUN: Moments = _ANY | {
    "its program starts": re.compile(r"^\$ .*_filter (-i|load) "),
    "attached": re.compile(r"attached: dev|mode (skb|native)|round 0|^0$"),
    "at its end": re.compile(r"^(end|stopping)$|detached:|round 3"),
}
_ALONE: Moments = _ANY | {
    "loading": re.compile("^the ip to filter"),
    "attached": re.compile("^attached:"),
    "at its end": re.compile("^(3|end)$"),
}
_VERIFY: Moments = _RUN | {"proving": re.compile(r"^ok ")}


@dataclass(frozen=True, slots=True)
class Command:
    """What is ended before its time."""

    kind: str
    argv: Sequence[str]
    moments: Moments
    spread: float = 0.4  # seconds after a moment, at most, when its end comes
    seconds: float = 1.5  # that it takes, on a machine that has nothing else to do
    then: Sequence[str] = ()  # what takes it back where it is meant to stay
    cwd: Path = PROJECT


@dataclass(frozen=True, slots=True)
class Exits:
    """Commands that end, on a ground."""

    ground: Ground
    commands: Sequence[Command]
    ends: Sequence[End]
    before: Traces

    def once(self, rng: Random) -> Try:
        """A command that is ended at a moment, and what is left of it."""
        often = [1 / one.seconds for one in self.commands]  # all have the same time
        (command,), end = rng.choices(self.commands, often), rng.choice(self.ends)
        moment, word = rng.choice(list(command.moments.items()))
        # a moment is most worth where it begins; from the start the whole command is one
        delay = command.spread * rng.random() ** 2 if word else command.seconds * rng.random()
        with self.ground.started(*end.wrap(command.argv, rng), cwd=command.cwd) as subject:
            if word and not subject.wait_for(word, _PATIENCE):
                moment = "after its end"
            time.sleep(delay)
            end.how(subject)
            finding = self._left(command, subject)
        return Try(f"{command.kind}: {end.name}", moment, finding)

    def _left(self, command: Command, subject: Subject) -> Finding | None:
        if command.then:
            deadline = time.monotonic() + PATIENCE
            while self.ground.processes() and time.monotonic() < deadline:
                time.sleep(0.05)
            with self.ground.started(*command.then) as undone:
                undone.wait_for(_NEVER, _PATIENCE)
        return self.ground.compare(self.before, subject.last_words)


@contextlib.contextmanager
def opened(means: Means) -> Iterator[Ordeal]:
    """Runs on the host's `lo`, which is a private namespace's here, in namespaces, and alone."""
    with made(means) as ground, somebody_elses(means, ground) as pairs:
        starved = contextlib.ExitStack()
        with starved:
            end = starved.enter_context(ends.out_of_memory(ground.mark))
            every = ENDS if isinstance(end, str) else (*ENDS, end)
            skipped = {"out of memory": end} if isinstance(end, str) else {}
            exits = Exits(ground, list(_commands(pairs)), every, ground.traces())
            yield Ordeal(Name.EXIT, 1, exits.once, skipped)


def _commands(builds: Mapping[str, Build]) -> Iterator[Command]:
    """What is tried: the harness's commands, and its programs without it."""
    short = ["--interval=0.05", "--rounds=4", f"--ip={IP}"]
    old = f"--sample={builds[OLD].facts['sources'][0]}"
    traced = f"--sample={builds[TRACED].facts['sources'][0]}"
    yield Command("run on the host", invoke("run", *short), _RUN)
    yield Command("run on a cable, native", invoke("run", f"--dev={NEAR}", *short), _RUN)
    yield Command("run without a bpf_link", invoke("run", old, *short), _RUN)
    yield Command("run where there is a program", invoke("run", f"--dev={FAR}", *short), _ANY)
    yield Command("run on netns", invoke("run", "--on=netns", *short), _RUN)
    yield Command("run --trace", invoke("run", "--trace", traced, *short), _RUN)
    yield Command("verify on netns", invoke("verify"), _VERIFY, seconds=4.0)
    yield Command("cases on netns", invoke("cases"), _RUN, seconds=4.0)
    yield Command("log", invoke("log", "--all", "--duration=0.5"), _ANY | {
        "it reads": re.compile("following it")})  # fmt: skip
    yield Command("lab", invoke("lab", "--command=sleep 0.5"), _ANY | {
        "it is laid out": re.compile(r"^\$ nsenter")}, seconds=3.0)  # fmt: skip
    load = ["filter.load", "lo", "--rules=10.0.0.0/8,2001:db8::/32"]
    yield Command("filter.load", invoke(*load, "--for=2s"), _RUN, seconds=3.0)
    yield Command("filter.load --stay", invoke(*load, "--stay", "--for=60s"), _RUN, seconds=2.0,
                  then=invoke("filter.unload"))  # fmt: skip
    for name in (TUTORIAL, OLD):
        argv = [str(builds[name].program), "-i", IP, "-t", "0.01", "-n", "4"]
        for dev in ("lo", NEAR):
            yield Command(f"{name} by itself on {dev}", [*argv, "-d", dev], _ALONE,
                          spread=0.05, seconds=0.1, cwd=builds[name].directory)  # fmt: skip


@contextlib.contextmanager
def somebody_elses(means: Means, ground: Ground) -> Iterator[dict[str, Build]]:
    """What is to be run, built; and a cable with somebody else's program on its far end."""
    tree = means.tree()
    ground.workspace.set_current_tree(tree.path)
    builds = {}
    for name, trace in {TUTORIAL: False, FILTER: False, OLD: False, TRACED: True}.items():
        sample = Sample.find(name if name in (TUTORIAL, FILTER) else str(_copy(name, ground)))
        builds[name] = building.build(
            tree, sample, means.toolchain(), ground.workspace, means.shell,
            lambda _: None, lambda _: None, trace=trace,
        )  # fmt: skip
    ground.bench.ask("lay_cable", ends=(NEAR, FAR))
    theirs = builds[TUTORIAL]
    argv = [*ground.bench.enter, theirs.program, "-i", IP, "-d", FAR, "-n", "0", "-t", "1000"]
    with ground.bench.shell.start(argv, cwd=theirs.directory) as running:
        for line in running.lines(_PATIENCE):
            if line.text.startswith("attached:"):
                break
        yield builds


def _copy(name: str, ground: Ground) -> Path:
    """The tutorial's pair under another name; the old one gets EINVAL for a bpf_link."""
    directory = ground.scratch.with_name(name)
    directory.mkdir()
    halves = (PROJECT / f"{TUTORIAL}{half}" for half in ("_kern.c", "_user.c"))
    for source in (*halves, *OURS):
        text = source.read_text().replace(TUTORIAL, name)
        if name == OLD:
            text = text.replace(_ATTACHING, "-EINVAL")
        (directory / source.name.replace(TUTORIAL, name)).write_text(text)
    return directory
