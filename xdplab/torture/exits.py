"""Promise 1: whatever ends a command, nothing of it is left, and nobody else's is touched."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from xdplab.bench.measure import Means
from xdplab.build import Build
from xdplab.torture import Name, ends, programs
from xdplab.torture.ends import ENDS, End
from xdplab.torture.ground import Ground, Subject, Traces, invoke, made
from xdplab.torture.ordeal import Finding, Ordeal, Try
from xdplab.torture.programs import (
    FAR,
    IP,
    MINE,
    NEAR,
    OLD,
    TRACED,
    built,
    somebody_elses,
)
from xdplab.workspace import PROJECT

_PATIENCE = 60.0  # seconds for a command to come to a moment
_NEVER = re.compile("(?!)")

Moments = dict[str, re.Pattern[str] | None]
ANY: Moments = {"from its start": None}
RUN: Moments = ANY | {
    "its program starts": re.compile(r"^\$ .*_filter (-i|load) "),
    "attached": re.compile(r"attached: dev|mode (skb|native)|round 0|^0$"),
    "at its end": re.compile(r"^(end|stopping)$|detached:|round 3"),
}
_ALONE: Moments = ANY | {
    "loading": re.compile("^the ip to filter"),
    "attached": re.compile("^attached:"),
    "at its end": re.compile("^(3|end)$"),
}
_VERIFY: Moments = RUN | {"proving": re.compile(r"^ok ")}


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

    def once(self, rng: Random) -> Try:
        """A command that is ended at a moment, and what is left of it."""
        often = [1 / one.seconds for one in self.commands]  # all have the same time
        (command,), end = rng.choices(self.commands, often), rng.choice(self.ends)
        moment, word = rng.choice(list(command.moments.items()))
        # a moment is most worth where it begins; from the start the whole command is one
        before = self.ground.traces()
        delay = command.spread * rng.random() ** 2 if word else command.seconds * rng.random()
        with self.ground.started(*command.argv, wrap=end.wrap(rng), cwd=command.cwd) as subject:
            if word and not subject.wait_for(word, _PATIENCE):
                moment = "after its end"
            time.sleep(delay)
            end.how(subject)
            finding = self._left(command, before, subject)
        return Try(f"{command.kind}: {end.name}", moment, finding)

    def _left(self, command: Command, before: Traces, subject: Subject) -> Finding | None:
        if command.then:
            self.ground.wait()
            with self.ground.started(*command.then) as undone:
                undone.wait_for(_NEVER, _PATIENCE)
        return self.ground.compare(before, subject.last_words)


@contextlib.contextmanager
def opened(means: Means) -> Iterator[Ordeal]:
    """Runs on the host's `lo`, which is a private namespace's here, in namespaces, and alone."""
    with (
        made(means, programs.NAMES) as ground,
        somebody_elses(ground, builds := built(means, ground)),
        ends.out_of_memory(ground.mark) as starved,
    ):
        skipped = {"out of memory": starved} if isinstance(starved, str) else {}
        every = ENDS if isinstance(starved, str) else (*ENDS, starved)
        exits = Exits(ground, list(_commands(builds)), every)
        yield Ordeal(Name.EXIT, 1, exits.once, skipped)


def _commands(builds: Mapping[str, Build]) -> Iterator[Command]:
    """What is tried: the harness's commands, and its programs without it."""
    few = ["--interval=0.05", "--rounds=4", f"--ip={IP}"]
    mine, old, traced = (
        f"--sample={builds[name].facts['sources'][0]}" for name in (MINE, OLD, TRACED)
    )
    short = [mine, *few]
    yield Command("run on the host", invoke("run", *short), RUN)
    yield Command("run on a cable, native", invoke("run", f"--dev={NEAR}", *short), RUN)
    yield Command("run without a bpf_link", invoke("run", old, *few), RUN)
    yield Command("run where there is a program", invoke("run", f"--dev={FAR}", *short), ANY)
    yield Command("run on netns", invoke("run", "--on=netns", *short), RUN)
    yield Command("run --trace", invoke("run", "--trace", traced, *few), RUN)
    yield Command("verify on netns", invoke("verify", mine), _VERIFY, seconds=4.0)
    yield Command("cases on netns", invoke("cases", mine), RUN, seconds=4.0)
    yield Command("log", invoke("log", "--all", "--duration=0.5"), ANY | {
        "it reads": re.compile("following it")})  # fmt: skip
    yield Command("lab", invoke("lab", "--command=sleep 0.5"), ANY | {
        "it is laid out": re.compile(r"^\$ nsenter")}, seconds=3.0)  # fmt: skip
    load = ["filter.load", "lo", "--rules=10.0.0.0/8,2001:db8::/32"]
    yield Command("filter.load", invoke(*load, "--for=2s"), RUN, seconds=3.0)
    yield Command("filter.load --stay", invoke(*load, "--stay", "--for=60s"), RUN, seconds=2.0,
                  then=invoke("filter.unload"))  # fmt: skip
    for name in (MINE, OLD):
        argv = [str(builds[name].program), "-i", IP, "-t", "0.01", "-n", "4"]
        for dev in ("lo", NEAR):
            yield Command(f"{name} by itself on {dev}", [*argv, "-d", dev], _ALONE,
                          spread=0.05, seconds=0.1, cwd=builds[name].directory)  # fmt: skip
