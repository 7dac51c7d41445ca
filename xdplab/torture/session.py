"""Ordeals in turn until the time is over, each with a seed that can be given again."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from xdplab.bench.measure import Means
from xdplab.errors import Broken, CannotRun, NotANumber
from xdplab.files import write_json
from xdplab.options import choice, number, whole_number
from xdplab.sources import Report, Tell
from xdplab.torture import Name, endurance, exits, frames, guest, halfway, parsers, together
from xdplab.torture.ordeal import Ordeal, Record, Tally

# each is there for a while, or raises CannotRun
ORDEALS: dict[Name, Callable[[Means], AbstractContextManager[Ordeal]]] = {
    Name.EXIT: exits.opened,
    Name.GUEST: guest.opened,
    Name.HALFWAY: halfway.opened,
    Name.TOGETHER: together.opened,
    Name.FRAMES: frames.opened,
    Name.PARSER: parsers.opened,
    Name.ENDURANCE: endurance.opened,
}

SCHEMA = 1  # of torture.json
REPORT = "torture.json"
_MINUTE = 60.0


def named(names: Sequence[str]) -> list[Name]:
    """The ordeals of these names, or all; raises NotAChoice."""
    wanted = {choice("--only", name, Name) for name in names} or set(Name)
    return [name for name in Name if name in wanted]


def seed(given: str | None) -> int:
    """What --seed says, or one by chance; raises NotANumber."""
    return secrets.randbelow(10**6) if given is None else whole_number("--seed", given)


def seconds(minutes: str) -> float:
    """The time that --minutes gives; raises NotANumber."""
    given = number("--minutes", minutes)
    if not given > 0:
        raise NotANumber("--minutes", minutes, "a number of minutes, above 0")
    return given * _MINUTE


def run(
    names: Sequence[Name], seed: int, means: Means, directory: Path, tell: Report, *,
    seconds: float = math.inf, tries: int | None = None,
) -> Generator[Record]:  # fmt: skip
    """Try the ordeals until the time is over, or so many tries of each were made.

    Each time it is the turn of the one that has had the least time.  Gives the record after
    each try, and keeps it in the directory at the end and with each finding, which is said
    at once.  A try's chances come from `seed` and its number: the seed of a finding makes
    the same try the first one.
    """
    record = Record(seed, time.strftime("%F %T"), [])
    with ExitStack() as stack:
        ordeals: dict[str, Ordeal] = {}
        for name in names:
            try:
                ordeals[name] = stack.enter_context(ORDEALS[name](means))
            except CannotRun as error:
                why = f"{error.message}: {error.cure}"
                record.ordeals.append(Tally(name, 0, {"all of it": why}))
            else:
                one = ordeals[name]
                record.ordeals.append(Tally(name, one.promise, one.skipped))
        began = time.monotonic()
        try:
            known = 0
            for _ in _turns(ordeals, record, tries, tell, means.say):
                record.seconds = round(time.monotonic() - began, 1)
                if len(record.found) > known:
                    known = len(record.found)
                    write_json(directory / REPORT, to_json(record))
                yield record
                if record.seconds >= seconds:
                    return
        finally:
            write_json(directory / REPORT, to_json(record))


def _turns(
    ordeals: Mapping[str, Ordeal], record: Record, tries: int | None, tell: Report, say: Tell
) -> Iterator[None]:
    """A turn each time, at the first none, so that what can't be tried is on record too."""
    yield
    while turn := [one for one in record.ordeals if one.name in ordeals and one.tries != tries]:
        tally = min(turn, key=lambda one: one.seconds)
        tell("trying", note=f"{tally.name}, {tally.tries}; {len(record.found)} found")
        seed, began = record.seed + tally.tries, time.monotonic()
        tried = ordeals[tally.name].once(Random(f"{tally.name} {seed}"))  # noqa: S311
        tally.take(tried, seed, time.monotonic() - began)
        if tried.finding:
            say(f"found: {tally.name}, seed {seed}: {tried.kind}: {tried.finding.what}")
        yield


def to_json(record: Record) -> dict[str, Any]:
    """The report: see docs/readings.md."""
    return {"schema": SCHEMA, **asdict(record)}


def require_unbroken(record: Record) -> None:
    """Raise Broken if anything was found."""
    if record.found:
        raise Broken(
            [f"{one.tried.kind}: {one.tried.finding.what}" for _, one in record.found
             if one.tried.finding],
            [f"invoke torture --only {name} --seed {one.seed}" for name, one in record.found],
        )  # fmt: skip
