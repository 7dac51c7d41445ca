"""Exercises that extend the tutorial's pair, checked by frames that run through the program.

The learner's pair is in exercises/NAME/, made once from the tutorial's, and
never written to again.  Its texts are in templates/exercises.*.toml.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdplab import TUTORIAL, language
from xdplab.build import Build
from xdplab.counters import Reading
from xdplab.errors import DidNotAttach, NotAChoice, NotBegun
from xdplab.files import read_json, write_json, write_whole
from xdplab.process import Shell, pasteable
from xdplab.runner import Job, Run, started
from xdplab.sample import Sample
from xdplab.testbed.local import LocalBench
from xdplab.testbed.netns import NEAR, arrivals
from xdplab.verify import Check
from xdplab.workspace import PROJECT, RunRecord, Workspace

if TYPE_CHECKING:  # scapy makes them
    from xdplab.drills import Case, Trial

_PLACE = PROJECT / "exercises"

_INTERVAL = 0.03  # seconds between two readings
_PATIENCE = 5.0  # seconds for the program to print its counters
_PASSED = re.compile(r"passed (\d{1,20})")  # the line that the exercise of that name asks for


@dataclass(frozen=True, slots=True)
class Exercise:
    """An exercise in one language."""

    name: str
    title: str
    task: str
    contract: tuple[str, ...]  # what the program takes and prints: the check relies on it
    hints: tuple[str, ...]
    words: dict[str, Any]  # all texts of the language

    @property
    def sample(self) -> str:
        """The pair's name: an own one, as all pairs meet in samples/bpf."""
        return f"xdp_{self.name}"

    @property
    def files(self) -> tuple[Path, Path]:
        """The learner's files: the kernel half and the user half."""
        place = _PLACE / self.name
        return place / f"{self.sample}_kern.c", place / f"{self.sample}_user.c"

    @property
    def begun(self) -> bool:
        """Whether the learner's files are there."""
        return all(file.is_file() for file in self.files)

    def pair(self) -> Sample:
        """The learner's pair; raises NotBegun."""
        if not self.begun:
            raise NotBegun(self.name)
        return Sample.find(str(self.files[0]))

    def digest(self) -> str:
        """What tells the learner's pair, as it is now, from others."""
        return hashlib.sha256(b"".join(file.read_bytes() for file in self.files)).hexdigest()


def every(tongue: str) -> list[Exercise]:
    """All exercises, in the order in which they are best done."""
    words = language.texts("exercises", tongue)
    return [
        Exercise(
            name, text["title"], text["task"], tuple(text["contract"]), tuple(text["hints"]), words
        )
        for name, text in words["exercises"].items()
    ]


def named(name: str, tongue: str) -> Exercise:
    """The exercise of that name; raises NotAChoice."""
    known = {exercise.name: exercise for exercise in every(tongue)}
    if name not in known:
        raise NotAChoice("exercise", name, known)
    return known[name]


def begin(exercise: Exercise, shell: Shell) -> None:
    """Make the learner's files from the tutorial's pair, those that aren't there yet."""
    start = Sample.find(TUTORIAL)
    for source, target in zip((start.kern, start.user), exercise.files, strict=True):
        if target.exists():
            continue
        old, new = start.object, f"{exercise.sample}_kern.o"
        shell.echo(f"{pasteable(['sed', f's/{old}/{new}/', source])} > {target}")
        if not shell.dry:
            write_whole(target, source.read_text().replace(old, new).encode())


# ---- what is solved


def _state(workspace: Workspace) -> Path:
    return workspace.root / "exercises.json"


def solved(exercise: Exercise, workspace: Workspace) -> bool | None:
    """Whether the pair, as it is now, has passed its check; None if there is no pair yet."""
    if not exercise.begun:
        return None
    known = read_json(_state(workspace)) or {}
    return bool(known.get(exercise.name) == exercise.digest())


def remember(exercise: Exercise, digest: str, workspace: Workspace) -> None:
    """The pair of that digest has passed."""
    known = read_json(_state(workspace)) or {}
    write_json(_state(workspace), known | {exercise.name: digest})


# ---- the check


@dataclass(frozen=True, slots=True)
class Trying(Job):
    """A job whose address may be a prefix: what it is, only the program knows."""

    def __post_init__(self) -> None:
        """Take whatever is given."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the program says that it counted."""

    dropped: int = 0
    passed: int = 0

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.dropped - other.dropped, self.passed - other.passed)


def jobs(exercise: Exercise) -> list[Trying]:
    """The runs of a check.  In native mode XDP sees a frame before the kernel has touched it."""
    from xdplab.drills import TRIALS

    trials = TRIALS[exercise.name]
    return [Trying(one.given, NEAR, "native", _INTERVAL, rounds=0) for one in trials]


def check(
    exercise: Exercise, build: Build, bench: LocalBench, record: RunRecord
) -> Iterator[Check]:
    """Send each frame through the program; what is wrong is told with the reason.

    Raises what runner.started raises.
    """
    from xdplab.drills import TRIALS

    numbers = itertools.count(1)
    trials = TRIALS[exercise.name]
    for trial, job in zip(trials, jobs(exercise), strict=True):
        try:
            with started(build, job, bench, record) as run:
                if trial.cases:
                    yield from _frames(exercise.words, trial, bench, run, numbers)
                else:
                    yield _option(exercise.words, trial, "taken")
        except DidNotAttach as refusal:
            if trial is trials[0]:  # with an address, as ever: it isn't what is given
                raise
            yield _option(exercise.words, trial, "refused", refusal.cure)


def _option(words: dict[str, Any], trial: Trial, how: str, said: str = "") -> Check:
    """What became of a -i that was refused, or should have been."""
    is_right = not trial.cases and how == "refused"
    found = words["options"]["right" if is_right else how].format(said=said)
    return Check(f"-i {trial.given}", is_right, found)


def _frames(
    words: dict[str, Any], trial: Trial, bench: LocalBench, run: Run, numbers: Iterator[int]
) -> Iterator[Check]:
    """What becomes of each frame, and what the program counts.

    What it counts of the frame that follows the others is learnt first, from it
    alone.  Where counting is the exercise, each frame is counted on its own.
    """
    from xdplab.drills import LAST

    parts = [[case] for case in trial.cases] if trial.counts_passed else [[*trial.cases]]
    before, of_last = _counts(run), Counts()
    for part in [[LAST], *parts]:
        follower = [] if part == [LAST] else [LAST.frame]
        arrived = arrivals(bench, [*(case.frame for case in part), *follower])
        after = _counts(run)
        if before is None or after is None:
            yield Check(words["counters"]["claim"], False, words["counters"]["none"])
            return
        counted, before = after - before - of_last, after
        if part == [LAST]:
            of_last = counted
        for case, came, number in zip(part, arrived, numbers, strict=False):
            yield _met(words, trial, case, came, number)
        if all(case.passes == came for case, came in zip(part, arrived, strict=False)):
            yield _counted(words, trial, part, counted)


def _met(words: dict[str, Any], trial: Trial, case: Case, came: bool, number: int) -> Check:
    """Whether a frame met its fate, or why it should have met the other."""
    fields = {"source": case.source, "given": trial.given}
    what, why = (words["frames"][case.text][key].format(**fields) for key in ("what", "why"))
    verdict, is_right = words["verdicts"][case.verdict], came == case.passes
    claim = words["claim"].format(number=number, what=what)
    return Check(
        claim, is_right, verdict["right"] if is_right else verdict["wrong"].format(why=why)
    )


def _counted(words: dict[str, Any], trial: Trial, part: Sequence[Case], counted: Counts) -> Check:
    """Whether frames that met their fate are counted so."""
    texts, passes = words["counters"], sum(case.passes for case in part)
    pairs = {"dropped": (counted.dropped, len(part) - passes)}
    if trial.counts_passed:
        pairs["passed"] = (counted.passed, passes)
    for name, (found, expected) in pairs.items():
        if found != expected:
            return Check(texts["claim"], False, texts[name].format(found=found, expected=expected))
    return Check(texts["claim"], True, ", ".join(f"{name} +{n}" for name, (n, _) in pairs.items()))


def _counts(run: Run) -> Counts | None:
    """What the program counted up to now; None if it doesn't say, or has ended.

    Of what it prints from now on the third reading is new for certain: the first
    may have been in the pipe, and the second under way.
    """
    with contextlib.suppress(TimeoutError):
        for _ in run.output(0):  # what was printed before
            pass
    rounds = passed = 0
    with contextlib.suppress(TimeoutError):
        for item in run.output(_PATIENCE):
            if not isinstance(item, Reading):
                found = _PASSED.fullmatch(item)
                passed = int(found[1]) if found else passed
                continue
            rounds += 1
            if rounds == 3:
                return Counts(item.total, passed)
    return None
