"""What a bench found, as it is kept: JSON, pictures, and docs/performance.md."""

from __future__ import annotations

import math
import platform
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from xdplab.bench.measure import By, Goal, Means, Measured, Spread, Taken
from xdplab.errors import Wrecked
from xdplab.files import read_json, write_json, write_whole
from xdplab.process import find
from xdplab.templates import render
from xdplab.workspace import PROJECT

SCHEMA = 1  # described in docs/readings.md
KEPT = PROJECT / "docs" / "performance.json"
PAGE = PROJECT / "docs" / "performance.md"
PICTURES = "bench-{stage}.svg"
_FURTHER = 100  # times the last point of a curve: what is reckoned there


@dataclass(frozen=True, slots=True)
class Record:
    """The comparisons that were made on a machine."""

    machine: dict[str, str]  # what it is and has, by name
    started: str  # local time, ISO 8601
    measured: tuple[Measured, ...]

    def stages(self) -> Iterator[tuple[str, list[Measured]]]:
        """The comparisons by their stages, in the order they were made."""
        for stage, members in groupby(self.measured, lambda one: one.stage):
            yield stage, list(members)


def machine(means: Means) -> dict[str, str]:
    """What figures depend on: the kernel, the processors, the compilers."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    models = [line.partition(": ")[2] for line in cpuinfo.splitlines() if "model name" in line]
    tools = means.toolchain()
    git = means.shell.ask(["git", "--version"]).text().strip().removeprefix("git version ")
    return {
        "Linux": platform.release().partition("-")[0],  # what follows is the machine's own affair
        "CPUs": f"{len(models)} of {models[0]}" if models else platform.machine(),
        "gcc": tools.gcc,
        "clang": tools.clang,
        "Python": platform.python_version(),
        "git": git,
        **dict(_peers(means)),
    }


def _peers(means: Means) -> Iterator[tuple[str, str]]:
    """The versions of others' filters, as far as they are here."""
    for name, words in {"nft": [], "iptables": [], "xdp-filter": ["load"]}.items():
        if command := find(name):
            said = means.shell.ask([command, *words, "--version"]).text()
            yield name, said.lstrip(string.ascii_letters + " -").strip()


# ---- JSON


def to_json(record: Record) -> dict[str, Any]:
    """The record as an object, see docs/readings.md."""
    return {
        "schema": SCHEMA,
        "machine": record.machine,
        "started": record.started,
        "comparisons": [_row(one) for one in record.measured],
    }


def _row(measured: Measured) -> dict[str, Any]:
    ratios = {
        way.name: {
            quantity: asdict(ratio) for quantity in way.figures
            if (ratio := measured.ratio(way, quantity))
        } for way in measured.ways
    }  # fmt: skip
    goals = [
        asdict(goal) | {"reached": reached and asdict(reached), "verdict": measured.verdict(goal)}
        for goal in measured.goals
        for reached in (measured.reached(goal),)
    ]
    ways = [asdict(way) | {"ratios": ratios[way.name]} for way in measured.ways]
    return asdict(measured) | {"ways": ways, "goals": goals}


def of_json(read: dict[str, Any]) -> Record:
    """The record that an object holds."""
    return Record(read["machine"], read["started"], tuple(map(_measured, read["comparisons"])))


def _measured(row: dict[str, Any]) -> Measured:
    ways = tuple(_only(Taken, way) for way in row["ways"])
    goals = tuple(_only(Goal, goal | {"by": By(goal["by"])}) for goal in row["goals"])
    point = tuple(row["point"]) if row["point"] else None
    return Measured(**row | {"ways": ways, "goals": goals, "point": point})


def _only(kind: type[Any], row: dict[str, Any]) -> Any:
    """An object of that kind; what was reckoned from its fields is reckoned anew."""
    return kind(**{name: value for name, value in row.items() if name in kind.__slots__})


# ---- growth


@dataclass(frozen=True, slots=True)
class Curve:
    """How a figure grows: what it was at the points that were measured."""

    name: str  # of the way
    quantity: str
    axis: str
    points: tuple[tuple[float, Spread], ...]

    @property
    def further(self) -> tuple[float, float]:
        """A point far beyond the last, on the straight line that the last two give (log, log)."""
        (x, y), (last_x, last_y) = ((at, spread.median) for at, spread in self.points[-2:])
        slope = math.log(last_y / y) / math.log(last_x / x)
        return last_x * _FURTHER, last_y * _FURTHER**slope


def curves(measured: Iterable[Measured]) -> list[Curve]:
    """The growth of each way that was measured at two points or more, by quantity."""
    found: dict[tuple[str, str, str], dict[float, Spread]] = {}
    for one in measured:
        if one.point:
            axis, at = one.point
            for way in one.ways:
                for quantity, figures in way.figures.items():
                    key = (way.name, quantity, axis)
                    found.setdefault(key, {})[at] = Spread.of(figures)
    return [
        Curve(name, quantity, axis, tuple(sorted(points.items())))
        for (name, quantity, axis), points in found.items()
        if len(points) > 1
    ]


# ---- files


def write(record: Record, directory: Path) -> None:
    """Put bench.json into a directory."""
    write_json(directory / "bench.json", to_json(record))


def draw(record: Record, directory: Path) -> None:
    """Put a picture for each stage into a directory."""
    from xdplab.bench.picture import svg  # here: matplotlib takes long to import

    for stage, measured in record.stages():
        write_whole(directory / PICTURES.format(stage=stage), svg(stage, measured))


def keep(record: Record, order: Sequence[str]) -> list[str]:
    """Replace what docs/performance.json has of the record's stages; gives what was written."""
    known = _known()
    new = {stage for stage, _ in record.stages()}
    kept = [one for one in known.measured if one.stage not in new] if known else []
    measured = sorted([*kept, *record.measured], key=lambda one: order.index(one.stage))
    whole = replace(record, measured=tuple(measured))
    write_json(KEPT, to_json(whole))
    draw(whole, KEPT.parent)
    return [f"wrote {KEPT}", *write_page()]


def _known() -> Record | None:
    """What is kept; raises Wrecked."""
    read = read_json(KEPT)
    try:
        return of_json(read) if read else None
    except (KeyError, TypeError) as error:
        raise Wrecked(KEPT) from error


def write_page(*, dry: bool = False) -> list[str]:
    """Write docs/performance.md if that changes it; gives what was written."""
    known = _known()
    if not known:
        return []
    text = render(
        "performance.md.j2",
        record=known, stages=list(known.stages()), curves=curves, spread=Spread.of,
        pictures=PICTURES, figure=figure, further=_FURTHER, said=said,
    ).encode()  # fmt: skip
    if PAGE.exists() and PAGE.read_bytes() == text:
        return []
    if not dry:
        write_whole(PAGE, text)
    return [f"wrote {PAGE}"]


# ---- words


def figure(value: float) -> str:
    """A figure with three digits that count."""
    if not value:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def said(measured: Measured, goal: Goal) -> str:
    """A goal, and what became of it, in words."""
    than = goal.than or measured.ways[0].name
    against = {
        By.RATIO: f" times {than} ({goal.quantity})",
        By.DIFFERENCE: f" {goal.quantity} above {than}",
        By.FIGURE: f" {goal.quantity}",
    }[goal.by]
    reached = measured.reached(goal)
    found = f"{figure(reached.median)} ({between(reached)}), " if reached else ""
    aim = f"{goal.way} at most {figure(goal.most)}{against}"
    return f"{aim}: {found}{measured.verdict(goal)}"


def between(spread: Spread) -> str:
    """Where the middle half of the rounds lies."""
    return f"{figure(spread.low)} to {figure(spread.high)}"
