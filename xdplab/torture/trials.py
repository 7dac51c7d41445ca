"""The filters against their models: the same frames through both, and no disagreement.

A trial is made without a kernel, in whatever process; then a sample's own program, loaded and
attached by its user half, here or in a guest, is given its frames, and must give its answers.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network
from itertools import islice
from random import Random
from typing import Protocol

from xdplab import TUTORIAL
from xdplab.boot import initramfs
from xdplab.build import Build
from xdplab.counters import Reading
from xdplab.errors import CommandFailed
from xdplab.filtering import Stats
from xdplab.model import Action, Policy, Rule, Rules, Side, xdp_filter, xdp_ip_filter
from xdplab.process import Argv, pasteable
from xdplab.runner import Run
from xdplab.testbed import prog_run, tools
from xdplab.testbed.local import LocalBench
from xdplab.testbed.vm import GuestBench
from xdplab.torture import chance
from xdplab.torture.ordeal import Finding
from xdplab.torture.programs import LOUD

ADDRESS = "192.168.1.78"  # that the tutorial's pair is to filter
_PATIENCE = 60.0  # seconds for a count to be told
_SHOWN = 10  # frames of a finding
# what libbpf prints of the verifier's log, and what is in that by BPF_LOG_STATS alone
_LOG = re.compile(r"-- BEGIN PROG LOAD LOG --\n(.*?)-- END PROG LOAD LOG --", re.DOTALL)
_STATISTICS = re.compile(
    r"verification time \d+ usec|stack depth [\d+]+( max \d+)?|insns processed [\d+]+"
    r"|processed \d+ insns .*"
)

Counters = dict[str, tuple[int, int]]  # packets and bytes, of a rule or an action


@dataclass(frozen=True, slots=True)
class Trial:
    """Frames for a sample, and what its model says of them."""

    sample: str
    policy: Policy
    rules: tuple[Rule, ...]  # the tutorial's has none
    frames: tuple[bytes, ...]
    verdicts: str  # the action's digit for each frame
    counted: Counters  # by which rule or action; the tutorial's counts drops

    @classmethod
    def of(
        cls, sample: str, frames: Sequence[bytes], policy: Policy, rules: Sequence[Rule] = ()
    ) -> Trial:
        """Ask the model."""
        if sample == TUTORIAL:
            address = IPv4Address(ADDRESS)
            digits = "".join(str(int(xdp_ip_filter(frame, address))) for frame in frames)
            return cls(sample, policy, (), tuple(frames), digits, {})
        model, counted = Rules(rules), {one: [0, 0] for one in (*rules, *Action)}
        digits = ""
        for frame in frames:
            action, rule = xdp_filter(frame, policy, model)
            digits += _DIGITS[action]
            for one in (action, rule):
                if one is not None:
                    counted[one][0] += 1
                    counted[one][1] += len(frame)
        told = {_name(one): (packets, size) for one, (packets, size) in counted.items()}
        return cls(sample, policy, tuple(rules), tuple(frames), digits, told)

    @classmethod
    def by_chance(cls, sample: str, seed: str, number: int) -> Trial:
        """So many frames, and for the filter rules and a policy, which come from a seed.

        Few rules and many in turn: each kind of place that the filter keeps them in is used.
        """
        random = Random(seed)  # noqa: S311
        most = random.choice((3, 8, 40, 300, 0))
        rules = chance.rules(random, most) if most else chance.addresses(random)
        frames = list(islice(chance.frames(random), number))
        return cls.of(sample, frames, random.choice(list(Policy)), rules)

    @property
    def about(self) -> str:
        """What the program is told."""
        if self.sample == TUTORIAL:
            return f"address {ADDRESS}"
        return f"policy {self.policy}: {', '.join(map(str, self.rules))}"

    def against(self, digits: str) -> Finding | None:
        """What is wrong with these verdicts of a program's, if anything is."""
        if digits == self.verdicts:
            return None
        pairs = enumerate(zip(self.verdicts, digits.ljust(len(self.verdicts), "?"), strict=False))
        wrong = [
            f"{self.frames[number].hex()}: returned {returned}, the model says {said}"
            for number, (said, returned) in pairs
            if said != returned
        ] or ["more verdicts than frames"]
        what = f"a program and its model disagree on {len(wrong)} of {len(self.frames)} frames"
        return Finding(what, tuple(wrong[:_SHOWN]), self.about)

    def against_counted(self, counted: Counters) -> Finding | None:
        """What is wrong with these counters of a program's, if anything is."""
        wrong = [
            f"{one}: counted {counted.get(one)}, the model says {self.counted.get(one)}"
            for one in self.counted.keys() | counted.keys()
            if counted.get(one) != self.counted.get(one)
        ]
        return Finding("counters are not the model's", tuple(wrong), self.about) if wrong else None


def _name(one: Rule | Action) -> str:
    return one.name.lower() if isinstance(one, Action) else str(one)


_DIGITS = {action: str(int(action)) for action in Action}


# ---- where programs are


class Ground(Protocol):
    """Where a sample's program can be called, and frames run through what it has loaded."""

    def call(self, build: Build, arguments: Sequence[str], text: str = "") -> str:
        """Call a user half, with lines for its input; gives what it printed, on both streams."""

    def verdicts(self, program: int, trial: Trial) -> str:
        """What the program of an id returns for a trial's frames, a digit for each."""


@dataclass(frozen=True, slots=True)
class Here:
    """This kernel, in a network namespace of a bench."""

    bench: LocalBench

    def call(self, build: Build, arguments: Sequence[str], text: str = "") -> str:
        """In the directory of the build; raises CommandFailed."""
        place = f"--wd={build.directory}"
        return self._feed([*self.bench.enter, place, build.program, *arguments], text)

    def verdicts(self, program: int, trial: Trial) -> str:
        """Through a pipe."""
        tool = tools.compiled(tools.TEST_RUN, self.bench.workspace, self.bench.shell)
        argv = [*self.bench.enter, *prog_run.command(tool, program)]
        return "".join(self._feed(argv, "\n".join(prog_run.request(trial.frames))).split())

    def _feed(self, argv: Argv, text: str) -> str:
        fed = self.bench.shell.feed(argv, text)
        if fed.code:
            raise CommandFailed(pasteable(argv), fed.code, fed.err)
        return fed.out + fed.err


@dataclass(frozen=True, slots=True)
class Inside:
    """A guest, with its trials' frames in files: a terminal is slow."""

    bench: GuestBench
    trials: Sequence[Trial]

    def call(self, build: Build, arguments: Sequence[str], text: str = "") -> str:
        """A command is one line: its input is printed in it."""
        command = shlex.join([str(initramfs.SAMPLE / build.name), *arguments])
        given = shlex.join(["printf", r"%s\n", *text.splitlines()])
        return self.bench.guest.tell(f"cd {initramfs.SAMPLE}; {given} | {command} 2>&1")

    def verdicts(self, program: int, trial: Trial, cpu: int | None = None) -> str:
        """The digits alone: the terminal is slow that way too."""
        tool = pasteable(prog_run.command(str(initramfs.TOOLS / tools.TEST_RUN), program))
        file = initramfs.SAMPLE / str(self.trials.index(trial))
        pinned = "" if cpu is None else f"taskset {1 << cpu:x} "
        return self.bench.guest.tell(f"{pinned}{tool} <{file} | tr -d '\\n'")


# ---- the samples' programs


@dataclass(frozen=True, slots=True)
class Filter:
    """samples/xdp_filter on a ground."""

    ground: Ground
    build: Build

    def agrees(self, trial: Trial) -> Finding | None:
        """Load it as the trial wants it, try it, and look at its counters."""
        with self.loaded(trial.policy, trial.rules) as program:
            found = trial.against(self.ground.verdicts(program, trial))
            return found or trial.against_counted(self.counted())

    @contextlib.contextmanager
    def loaded(self, policy: Policy, rules: Sequence[Rule]) -> Iterator[int]:
        """Load it with these rules; gives the program's id.  Raises CommandFailed."""
        room = str(max(1, len(rules)))  # no more than is needed: its tables are crowded
        options = ["load", "-d", "lo", "-m", "skb", "-p", policy, "-n", room, "-s", "-r"]
        text = "".join(f"{rule}\n" for rule in rules)
        said = self._call(*options, text=f"{text}end\n")
        try:
            require_quiet(said)
            (on,) = self._stats().devices
            yield on.program
        finally:
            self._call("unload")

    def counted(self) -> Counters:
        """What it has counted so far."""
        counted: Counters = {}
        for line in self._call("list").splitlines():
            side, network, packets, size = line.split()
            counted[str(Rule(Side(side), ip_network(network)))] = int(packets), int(size)
        for name, count in self._stats().actions.items():
            counted[name] = count.packets, count.bytes
        return counted

    def _stats(self) -> Stats:
        return Stats.of(self._call("stats").splitlines(), time.time())

    def _call(self, *arguments: str, text: str = "") -> str:
        return self.ground.call(self.build, arguments, text)


@dataclass(slots=True)
class Tutorial:
    """The tutorial's pair at work, and how many frames it must have dropped so far."""

    run: Run
    verdicts: Callable[[int, Trial], str]
    dropped: int = 0

    def agrees(self, trial: Trial) -> Finding | None:
        """Try it."""
        self.dropped += trial.verdicts.count(_DIGITS[Action.DROP])
        return trial.against(self.verdicts(self.run.program.program, trial))

    def counted(self) -> Finding | None:
        """What is wrong with its count, which it tells sooner or later."""
        last = None
        with contextlib.suppress(TimeoutError):
            for last in self.run.output(_PATIENCE):
                if isinstance(last, Reading) and last.total == self.dropped:
                    return None
        return Finding(f"{self.dropped} frames were dropped, the last reading is {last}")


# ---- words of warning


def remarks(ground: Ground, build: Build) -> Finding | None:
    """What the verifier says of a loud copy's program beside its statistics, if anything.

    Such as that its own bounds of a register are at odds, which it tells nobody else: see
    reg_bounds_sanity_check() of kernel/bpf/verifier.c.  Raises CommandFailed, and Loud if
    it says nothing at all.
    """
    if LOUD[build.name] == TUTORIAL:
        options = ["-i", ADDRESS, "-d", "lo", "-m", "skb", "-n", "1", "-t", "0.1"]
        said = ground.call(build, options)
    else:
        said = ground.call(build, ["load", "-d", "lo", "-m", "skb", "-s"])
        ground.call(build, ["unload"])
    return remarked(said)


def remarked(said: str) -> Finding | None:
    """What the verifier says in what libbpf prints; see `remarks`."""
    logs = _LOG.findall(said)
    if not logs:
        raise Loud("the verifier said nothing, not even its statistics")
    lines = [line for log in logs for line in log.splitlines()]
    if not any(line.startswith("processed ") for line in lines):
        raise Loud("the verifier's log is cut off")
    other = tuple(line for line in lines if not _STATISTICS.fullmatch(line))
    return Finding("the verifier remarks something", other, said) if other else None


class Loud(Exception):
    """A word of warning while a program was loaded."""


def require_quiet(said: str) -> None:
    """Raise Loud if libbpf, or a user half, had anything to say beside what it does."""
    for line in said.splitlines():
        if line.startswith(("libbpf:", "warning:")):
            raise Loud(line)
