"""Readings as JSON and as CSV, written and read back: docs/readings.md has the names."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xdplab.counters import Reading
from xdplab.errors import NotReadings
from xdplab.files import write_whole

SCHEMA = 1
MOST = 10_000  # readings that a run keeps
_CPU = "cpu_"  # and the CPU's number: a column's name
# what reading a line that is none ends in; the last by brackets in brackets
_NO_READING = (ValueError, KeyError, TypeError, AttributeError, OverflowError, csv.Error,
               RecursionError)  # fmt: skip
_LATEST = 1e11  # seconds since the epoch: some thousand years from now


def to_json(reading: Reading) -> str:
    """A reading as a line."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "at": round(reading.at, 6),
            "round": reading.round,
            "per_cpu": {str(cpu): count for cpu, count in reading.per_cpu.items()},
            "total": reading.total,
            "rates": {str(cpu): round(rate, 3) for cpu, rate in reading.rates.items()},
            "rate": None if reading.rate is None else round(reading.rate, 3),
        }
    )


def to_csv(readings: Iterable[Reading]) -> Iterator[str]:
    """A header, and a line for each reading, as it comes; the CPUs are those of the first."""
    cpus: list[int] = []
    for reading in readings:
        if not cpus:
            cpus = list(reading.per_cpu)
            yield _row(["at", "round", "total", "rate", *(f"{_CPU}{cpu}" for cpu in cpus)])
        rate = "" if reading.rate is None else round(reading.rate, 3)
        counts = [reading.per_cpu.get(cpu, "") for cpu in cpus]
        yield _row([round(reading.at, 6), reading.round, reading.total, rate, *counts])


def _row(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def keeper(path: Path, most: int = MOST) -> Callable[[Reading], None]:
    """What adds readings to a file, a line each, and of a long run ever fewer.

    When there are `most`, an even number, every second one is left out, and from then on each
    second of those that come: the file spans the whole run, and is never longer.
    """
    came, every, kept = 0, 1, 0

    def keep(reading: Reading) -> None:
        nonlocal came, every, kept
        came += 1
        if (came - 1) % every:
            return
        if kept == most:
            with path.open("rb") as file:
                left = list(itertools.islice(file, 0, None, 2))
            write_whole(path, b"".join(left))
            every, kept = every * 2, len(left)
        with path.open("a") as file:
            file.write(to_json(reading) + "\n")
        kept += 1

    return keep


def load(path: Path) -> list[Reading]:
    """The readings of a file that `run --json` or `run --csv` wrote, or that a run has kept.

    A last line that was cut off is left out.  Raises NotReadings.
    """
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise NotReadings(path, getattr(error, "strerror", None) or "it is no text") from None
    lines = text.splitlines()
    if not lines:
        raise NotReadings(path, "it is empty")
    is_json = lines[0].startswith("{")
    rows: Iterable[Mapping[str, Any]]
    rows = (json.loads(line) for line in lines) if is_json else csv.DictReader(lines, strict=True)
    parse = _of_json if is_json else _of_csv
    readings: list[Reading] = []
    try:
        for row in rows:
            readings.append(Reading.after(readings[-1] if readings else None, *parse(row)))
    except _NO_READING:
        number = len(readings) + (1 if is_json else 2)
        if number < len(lines) or text.endswith("\n"):
            raise NotReadings(path, f"line {number} is no reading") from None
    return readings


def _of_json(row: Mapping[str, Any]) -> tuple[float, int, dict[int, int]]:
    return _checked(row, row["per_cpu"])


def _of_csv(row: Mapping[str, Any]) -> tuple[float, int, dict[int, int]]:
    return _checked(row, {name: count for name, count in row.items() if name.startswith(_CPU)})


def _checked(
    row: Mapping[str, Any], per_cpu: Mapping[str, Any]
) -> tuple[float, int, dict[int, int]]:
    """Its time, number and counts; raises ValueError if they can't be true."""
    counts = {int(cpu.removeprefix(_CPU)): int(count) for cpu, count in per_cpu.items()}
    at = float(row["at"])
    if not counts or min(counts.values()) < 0 or not 0 <= at < _LATEST:
        raise ValueError
    if int(row["total"]) != sum(counts.values()):  # such as in a line that was cut off
        raise ValueError
    return at, int(row["round"]), counts
