"""What became of packet cases, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from xdplab.cases import Met
from xdplab.testbed import Place

SCHEMA = 1  # of `cases --json`, described in docs/readings.md


def rows(met: Sequence[Met]) -> Iterator[tuple[str, str, str]]:
    """A line a case: its name, what was expected, what was found."""
    for one in met:
        frames = f" ({len(one.found)} frames)" if len(one.found) > 1 else ""
        yield one.case.name, one.expected, f"{one.words}{frames}"


def to_json(met: Sequence[Met], file: str, place: Place, *, wire: bool) -> str:
    """An object, see docs/readings.md."""
    cases = [
        {
            "name": one.case.name,
            "expected": one.expected,
            "held": one.held,
            "why": one.case.why,
            "frames": [{"length": length, "found": what} for length, what in one.found],
        }
        for one in met
    ]
    facts = {"file": file, "on": place.where, "release": place.release, "wire": wire}
    return json.dumps({"schema": SCHEMA, **facts, "cases": cases}, indent=2)
