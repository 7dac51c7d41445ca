"""A bench from its first stage to its last, each comparison on record once it is made."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

from xdplab.bench import Stage, build, matrix, packet, path, setup, start
from xdplab.bench import record as recording
from xdplab.bench.measure import Comparison, Means, Measured, measure
from xdplab.bench.record import Record
from xdplab.errors import NotANumber, NotMeasured
from xdplab.options import choice, whole_number
from xdplab.sources import Report

_COMPARISONS: dict[Stage, Callable[[Means], Generator[Comparison]]] = {
    Stage.SETUP: setup.comparisons,
    Stage.BUILD: build.comparisons,
    Stage.PACKET: packet.comparisons,
    Stage.PATH: path.comparisons,
    Stage.MATRIX: matrix.comparisons,
    Stage.START: start.comparisons,
}


def named(names: list[str]) -> list[Stage]:
    """The stages of these names, or all; raises NotAChoice."""
    wanted = {choice("--only", name, Stage) for name in names} or set(Stage)
    return [stage for stage in Stage if stage in wanted]


def rounds(given: str | None) -> int | None:
    """How many readings of each way --rounds asks for; raises NotANumber."""
    number = None if given is None else whole_number("--rounds", given)
    if number == 0:
        raise NotANumber("--rounds", number, "1 or more")
    return number


def once(echo: Callable[[str], None]) -> Callable[[str], None]:
    """Echo each command the first time only: a bench runs the same ones again and again."""
    return functools.cache(echo)


def disturbed() -> str:
    """A warning if this machine is busy with something else; empty if it isn't."""
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load < cpus / 2:
        return ""
    return f"{load:.1f} processes want this machine's {cpus} CPUs: expect wide spreads"


def run(
    wanted: list[Stage], rounds: int | None, means: Means, directory: Path,
    tell: Report,
) -> Generator[Record]:  # fmt: skip
    """Measure the stages; gives, and keeps in the directory, what there is after each comparison.

    Raises what a stage raises that can't begin; what was measured before is on record then.
    """
    found = Record(recording.machine(means), time.strftime("%F %T"), ())
    try:
        for stage in wanted:
            for measured in _measured(stage, rounds, means, tell):
                found = Record(found.machine, found.started, (*found.measured, measured))
                recording.write(found, directory)
                yield found
    finally:  # an early end too: once, and not between what is measured
        recording.draw(found, directory)


def _measured(stage: Stage, rounds: int | None, means: Means, tell: Report) -> Iterator[Measured]:
    with closing(_COMPARISONS[stage](means)) as comparisons:
        for comparison in comparisons:
            yield measure(stage, comparison, rounds, tell)


def require_measured(record: Record) -> None:
    """Raise NotMeasured if a way failed: what is skipped has its reason beside it."""
    failed = [
        f"{one.stage}, {one.name}: {way.name}: {way.failed}"
        for one in record.measured
        for way in one.ways
        if way.failed
    ]
    if failed:
        raise NotMeasured(failed)
