"""What a bench found, as tables: the ratio first."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xdplab.bench.measure import Measured, Spread, Taken, Verdict
from xdplab.bench.record import Record, between, figure, said, to_json
from xdplab.view.text import aligned

_HEADS = ("times the floor", "figure", "middle half", "of", "way")
_STYLES = {Verdict.MET: "green", Verdict.MISSED: "bold red", Verdict.UNCLEAR: "yellow"}


def show(out: Console, measured: Measured) -> None:
    """A comparison: a table on a terminal, aligned lines elsewhere, and below it its goals."""
    title = f"{measured.stage}: {measured.name}, {measured.rounds} rounds"
    rows = list(_rows(measured))
    if out.is_terminal:
        table = Table(*_HEADS, title=title, title_justify="left", box=None)
        for row in rows:
            table.add_row(*row)
        out.print(table, soft_wrap=False)
    else:
        out.print(Text(f"{title}\n{aligned([_HEADS, *rows])}"))
    for line in _remarks(measured):
        out.print(line)
    out.print()


def _rows(measured: Measured) -> Iterator[tuple[str, ...]]:
    for way in measured.ways:
        if not way.figures:
            why = f"skipped: {way.skipped}" if way.skipped else f"failed: {way.failed}"
            yield "", "", "", "", f"{way.name} ({why})"
        for quantity, figures in way.figures.items():
            spread = Spread.of(figures)
            yield (
                _ratio(measured, way, quantity), figure(spread.median), between(spread), quantity,
                way.name,
            )  # fmt: skip


def _ratio(measured: Measured, way: Taken, quantity: str) -> str:
    ratio = measured.ratio(way, quantity)
    if not ratio:
        return ""
    if way is measured.ways[0]:
        return "floor"
    wide = ", wide" if ratio.wide else ""
    return f"{figure(ratio.median)} ({between(ratio)}{wide})"


def _remarks(measured: Measured) -> Iterator[Text]:
    for goal in measured.goals:
        verdict = measured.verdict(goal)
        yield Text(f"goal: {said(measured, goal)}", style=_STYLES.get(verdict, ""))
    if any(ratio.wide for ratio in _ratios(measured)):
        yield Text("wide: the middle half of the rounds is too far apart to tell much", "yellow")
    if measured.note:
        yield Text(measured.note, style="dim")


def _ratios(measured: Measured) -> Iterator[Spread]:
    for way in measured.ways:
        for quantity in way.figures:
            if ratio := measured.ratio(way, quantity):
                yield ratio


def as_json(record: Record) -> str:
    """All of it as a JSON object."""
    return json.dumps(to_json(record), indent=2)
