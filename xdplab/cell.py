"""One cell of a matrix: a sample on one kernel in one mode, proved, and what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from xdplab import verify
from xdplab.build import Build
from xdplab.errors import (
    BuildFailed,
    CannotRun,
    CommandFailed,
    GuestHangs,
    GuestLost,
    InputError,
    LabError,
    NoBoot,
    SampleFailed,
    WorkerLost,
)
from xdplab.process import Shell
from xdplab.runner import Job
from xdplab.testbed import vm
from xdplab.testbed.vm import Parcel
from xdplab.verifier import refusals
from xdplab.verify import Check, Outcome
from xdplab.workspace import RunRecord, Workspace

# The modes as a matrix has them, and as the binary does.
MODES = {"generic": "skb", "native": "native"}

# What an error says of the sample; the first class that fits counts.
JUDGEMENTS: tuple[tuple[type[Exception], Outcome], ...] = (
    (NoBoot, Outcome.ERROR),
    (GuestHangs, Outcome.ERROR),
    (GuestLost, Outcome.ERROR),
    (WorkerLost, Outcome.ERROR),
    (CommandFailed, Outcome.ERROR),
    (SampleFailed, Outcome.FAILED),
    (BuildFailed, Outcome.FAILED),
    (CannotRun, Outcome.SKIPPED),
    (InputError, Outcome.SKIPPED),  # a driver without the mode, a guest without the interface
    (Exception, Outcome.ERROR),
)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is proved: one kernel, one compiler, one mode."""

    kernel: str  # as --kernels has it
    compiler: str  # as --compilers has it; empty: the machine's own
    mode: str  # of MODES

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kernel, self.compiler, self.mode)))


@dataclass(frozen=True, slots=True)
class Trial:
    """All that it takes to prove a cell.

    Only the parcel is read from the disk: the build is in it, and is here for what it says
    of itself.
    """

    cell: Cell
    release: str  # of the kernel
    parcel: Parcel
    build: Build
    job: Job


class Judgement(NamedTuple):
    """An outcome and why."""

    outcome: Outcome
    reason: str = ""  # why it isn't passed
    said: tuple[str, ...] = ()  # what a compiler, the binary or the harness say of that


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a cell; the first fields are a Judgement's."""

    cell: Cell
    outcome: Outcome
    reason: str = ""
    said: tuple[str, ...] = ()
    release: str = ""  # of the kernel that ran
    tree: str = ""  # the version of the tree that the pair was built in
    compilers: dict[str, str] = field(default_factory=dict)  # what they say of themselves
    checks: tuple[Check, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)  # by phase: build, boot, prove
    logs: dict[str, str] = field(default_factory=dict)  # their files, by name
    commands: tuple[str, ...] = ()  # that were run for it
    again: tuple[str, ...] = ()  # the commands that prove it once more
    workers: tuple[str, ...] = ()  # of a cluster that it was tried on: all but the last were lost
    taken_from: str = ""  # the earlier matrix that found this

    @property
    def spent(self) -> float:
        """Seconds for the cell itself: its build is shared with others."""
        return sum(taken for phase, taken in self.seconds.items() if phase != "build")


def prove(
    trial: Trial, directory: Path, workspace: Workspace, shell: Shell, tell: Tell, at: Tell
) -> Result:
    """Boot the kernel, verify the sample on it, and judge.

    The kernel's log, the binary's output and the commands are kept in `directory`;
    `workspace` knows how this machine runs guests.  `tell` hears what vm.opened tells, `at`
    what the cell is at.  Whatever goes wrong is the result, not an error.
    """
    directory.mkdir(parents=True, exist_ok=True)
    commands: list[str] = []
    checks: list[Check] = []
    phases: dict[str, float] = {"boot": time.monotonic()}
    failure: Exception | None = None
    shell = replace(shell, echo=commands.append)
    at("booting")
    try:
        with vm.opened(trial.parcel, directory, workspace, shell, tell) as bench:
            at("proving")
            phases["prove"] = time.monotonic()
            record = RunRecord(directory / "run.json")
            for check in verify.verify(trial.build, trial.job, bench, record, lambda _: None):
                checks.append(check)  # one by one: those before an error are kept
    except Exception as error:  # one cell's fault is no other's
        failure = error
    (directory / "commands.log").write_text("".join(f"$ {command}\n" for command in commands))
    return Result(
        trial.cell,
        *judge(checks, failure),
        trial.release,
        str(trial.build.facts["version"]),
        trial.build.facts["compilers"],
        tuple(checks),
        {"build": trial.build.facts["seconds"]} | _durations(phases),
        {path.name: str(path) for path in sorted(directory.glob("*.log"))},
        tuple(commands),
    )


def _durations(begun: dict[str, float]) -> dict[str, float]:
    """Seconds from each phase's begin to the next one's, the last until now."""
    ends = [*list(begun.values())[1:], time.monotonic()]
    return {
        phase: round(end - start, 3)
        for (phase, start), end in zip(begun.items(), ends, strict=True)
    }


def judge(checks: Iterable[Check], failure: Exception | None) -> Judgement:
    """What checks and an error come to."""
    broken = "; ".join(f"{check.claim}: {check.found}" for check in checks if not check.held)
    if failure is None:
        return Judgement(Outcome.FAILED if broken else Outcome.PASSED, broken)
    if isinstance(failure, OSError):
        failure = _foreseen(failure)
    outcome = next(outcome for kind, outcome in JUDGEMENTS if isinstance(failure, kind))
    if not isinstance(failure, LabError):
        return Judgement(outcome, f"{type(failure).__name__}: {failure}")
    said = tuple((failure.said or failure.cure).splitlines())
    told = filter(None, [broken, failure.message, *_refused(said)])
    return Judgement(outcome, "; ".join(told), said)


def _foreseen(error: OSError) -> Exception:
    try:
        return LabError.of(error)
    except OSError:
        return error


def _refused(said: Iterable[str]) -> list[str]:
    """Why the verifier refused, its last line of each log."""
    return list(dict.fromkeys(one.reason[-1] for one in refusals(said)))
