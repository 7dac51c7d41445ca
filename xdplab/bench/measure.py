"""Several ways to do one thing, measured in turn, and how they compare.

A figure by itself says little on a machine that does other work too.  So all ways of
a comparison are taken in the same rounds, in another order each time,
and what is compared is what belongs to one round: two ways under the same weather.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from statistics import median, quantiles

from xdplab.errors import LabError
from xdplab.process import Shell
from xdplab.sources import Report
from xdplab.toolchain import Toolchain
from xdplab.tree import Tree
from xdplab.workspace import Workspace

Figures = Mapping[str, float]  # by quantity: {"s": 5.8, "MB on the wire": 8.3}

_WIDE = 0.25  # of the median: from there on a ratio's middle half is no news


def _nothing() -> None:
    """Nothing has to be made ready."""


# ---- what is compared


@dataclass(frozen=True, slots=True)
class Way:
    """One of several ways to do the same thing."""

    name: str
    read: Callable[[], Figures]  # takes one reading
    how: str = ""  # the command by which anybody can do it
    ready: Callable[[], object] = _nothing  # before each reading, and not measured
    skipped: str = ""  # why it can't be measured here; then it isn't tried


class By(StrEnum):
    """How a goal is put."""

    RATIO = "ratio"
    DIFFERENCE = "difference"
    FIGURE = "figure"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a way must reach: at most so much."""

    way: str
    quantity: str
    most: float
    by: By = By.RATIO
    than: str = ""  # the way it is held against; empty: the floor


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ways to do one thing; the first is the floor, which the others are held against."""

    name: str
    ways: tuple[Way, ...]
    goals: tuple[Goal, ...] = ()
    rounds: int = 5
    point: tuple[str, float] | None = None  # of a growth curve: ("entries", 1000.0)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Means:
    """What a stage of the bench may use."""

    workspace: Workspace
    shell: Shell
    toolchain: Callable[..., Toolchain]
    tree: Callable[[], Tree]  # the current one; raises what trees.find raises
    say: Callable[[str], None]


# ---- what was read


@dataclass(frozen=True, slots=True)
class Spread:
    """Readings as three figures: half of them lie from `low` to `high`."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The quartiles of one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(low, median(values), high)

    @property
    def wide(self) -> bool:
        """Whether the middle half is so far apart that the median is little worth."""
        return self.high - self.low > _WIDE * abs(self.median)


@dataclass(frozen=True, slots=True)
class Taken:
    """What was read of a way, a figure for each round; or why nothing was."""

    name: str
    how: str
    skipped: str = ""
    failed: str = ""
    figures: dict[str, list[float]] = field(default_factory=dict)


class Verdict(StrEnum):
    """What became of a goal."""

    MET = "met"
    MISSED = "missed"
    UNCLEAR = "too close to tell"  # the middle half of the rounds lies on both sides
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Measured:
    """A comparison that was made."""

    stage: str
    name: str
    rounds: int
    point: tuple[str, float] | None
    note: str
    ways: tuple[Taken, ...]
    goals: tuple[Goal, ...]

    def ratio(self, way: Taken, quantity: str) -> Spread | None:
        """How many times the floor a way is, by rounds; None if either wasn't measured."""
        return self._against(way, self.ways[0], quantity, By.RATIO)

    def reached(self, goal: Goal) -> Spread | None:
        """What there is of what a goal is put on; None if it wasn't measured."""
        ways = {way.name: way for way in self.ways}
        than = ways[goal.than] if goal.than else self.ways[0]
        return self._against(ways[goal.way], than, goal.quantity, goal.by)

    def verdict(self, goal: Goal) -> Verdict:
        """Whether a goal was reached, in three quarters of the rounds or more."""
        reached = self.reached(goal)
        if not reached:
            return Verdict.SKIPPED
        if reached.high <= goal.most:
            return Verdict.MET
        return Verdict.MISSED if reached.low > goal.most else Verdict.UNCLEAR

    @staticmethod
    def _against(way: Taken, than: Taken, quantity: str, by: By) -> Spread | None:
        own, others = way.figures.get(quantity), than.figures.get(quantity)
        if not own or (by is not By.FIGURE and not others):
            return None
        if by is By.FIGURE:
            return Spread.of(own)
        pairs = list(zip(own, others or [], strict=True))
        if by is By.DIFFERENCE:
            return Spread.of([one - other for one, other in pairs])
        return Spread.of([one / other for one, other in pairs]) if all(others or []) else None


# ---- measuring


def measure(stage: str, comparison: Comparison, rounds: int | None, tell: Report) -> Measured:
    """Take all readings of a comparison, `rounds` of each way; `tell` hears how far it is.

    A way that fails is noted as such, and the others go on without it.
    """
    rounds = comparison.rounds if rounds is None else rounds
    taken = [Taken(way.name, way.how, way.skipped) for way in comparison.ways]
    failed: dict[int, str] = {}
    chance = Random(comparison.name)  # noqa: S311  # the same order in each bench
    for number in range(rounds):
        for at in chance.sample(range(len(taken)), len(taken)):
            if comparison.ways[at].skipped or at in failed:
                continue
            tell(f"{stage}: {comparison.name}", number, rounds, taken[at].name)
            try:
                _read(comparison.ways[at], taken[at])
            except LabError as error:
                failed[at] = error.message
    return Measured(
        stage, comparison.name, rounds, comparison.point, comparison.note,
        tuple(
            Taken(way.name, way.how, failed=failed[at]) if at in failed else way
            for at, way in enumerate(taken)
        ),
        comparison.goals,
    )  # fmt: skip


def timed(deed: Callable[[], object]) -> Callable[[], Figures]:
    """A reading of a deed: seconds by the clock, and of the processors for it and its processes."""

    def read() -> Figures:
        before, began = os.times(), time.monotonic()
        deed()
        took, after = time.monotonic() - began, os.times()
        return {"s": took, "cpu s": sum(after[:4]) - sum(before[:4])}

    return read


def _read(way: Way, taken: Taken) -> None:
    way.ready()
    for quantity, figure in way.read().items():
        taken.figures.setdefault(quantity, []).append(float(figure))
