"""The packet filter's rules and counters, for people and as JSON: docs/filter.md has the names."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from xdplab.filtering import Counted, Stats
from xdplab.view.live import columns, sparkline

SCHEMA = 1
_WINDOW = 60  # readings in the sparkline, at most
_ASCII = "_.-=+*#@"


# ---- words


def about(stats: Stats) -> str:
    """What it does, and where."""
    devs = ", ".join(f"{one.dev} ({one.mode} mode)" for one in stats.devices) or "no interface"
    return f"policy {stats.policy} on {devs}; {stats.rules:,} of {stats.max_rules:,} rules"


def sentence(stats: Stats, before: Stats | None) -> str:
    """Its counters in one line of words."""
    rates = _rates(stats, before)
    return "; ".join(
        f"{name} {one.packets:,} packets, {one.bytes:,} bytes"
        + (f", {rates[name]:,.1f} a second" if name in rates else "")
        for name, one in stats.actions.items()
        if one.packets or name != "aborted"
    )


def rule_lines(counted: Iterable[Counted]) -> Iterator[str]:
    """A line a rule, such as a file of rules has them: what each counted is a comment."""
    for one in counted:
        yield f"{one.rule}  # {one.packets:,} packets, {one.bytes:,} bytes"


def _rates(stats: Stats, before: Stats | None) -> dict[str, float]:
    """Packets a second since a reading before, by action; none if there is none."""
    seconds = stats.at - before.at if before else 0.0
    if not before or seconds <= 0:
        return {}
    return {
        name: max(0, one.packets - before.actions[name].packets) / seconds
        for name, one in stats.actions.items()
        if name in before.actions
    }


# ---- JSON


def stats_json(stats: Stats) -> str:
    """Its counters as an object, on one line."""
    fields = asdict(stats)
    return json.dumps({"schema": SCHEMA, **fields, "at": round(stats.at, 6)})


def rules_json(counted: Iterable[Counted]) -> str:
    """Its rules as an object."""
    return json.dumps({"schema": SCHEMA, "rules": [_row(one) for one in counted]})


def _row(one: Counted) -> dict[str, Any]:
    mode, _, address = one.rule.partition(" ")
    return {"mode": mode, "address": address, "packets": one.packets, "bytes": one.bytes}


# ---- the picture


class Picture:
    """The filter as it is now; the sparkline is of drops."""

    def __init__(self) -> None:
        self._stats: Stats | None = None
        self._before: Stats | None = None
        self._drops: deque[float] = deque(maxlen=_WINDOW)

    def take(self, stats: Stats) -> None:
        """Show this from now on."""
        self._before, self._stats = self._stats, stats
        rates = _rates(stats, self._before)
        if "drop" in rates:
            self._drops.append(rates["drop"])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Its lines, none longer than there is room for."""
        for line in self.lines(options.max_width, ascii_only=options.ascii_only):
            yield Text(line, no_wrap=True, overflow="ellipsis", end="\n")

    def lines(self, width: int, *, ascii_only: bool = False) -> list[str]:
        """What is seen."""
        stats = self._stats
        if not stats:
            return []
        rates = _rates(stats, self._before)
        rows = [["", "packets", "bytes", "per second"]] + [
            [name, f"{one.packets:,}", f"{one.bytes:,}",
             f"{rates[name]:,.1f}" if name in rates else "-"]
            for name, one in stats.actions.items()
        ]  # fmt: skip
        drops = list(self._drops)[-width:]
        return [
            about(stats),
            *columns(rows, width),
            sparkline(drops, _ASCII) if ascii_only else sparkline(drops),
        ]


def draw(console: Console, readings: Iterable[Stats | str]) -> None:
    """Draw the filter anew with each reading; what it says itself goes above."""
    picture = Picture()
    with Live(console=console, get_renderable=lambda: picture, auto_refresh=False) as live:
        for item in readings:
            if isinstance(item, str):
                live.console.print(Text(item))
            else:
                picture.take(item)
                live.refresh()


def write(readings: Iterable[Stats | str], *, json: bool, tell: Callable[[str], None]) -> None:
    """Print a line a reading; `tell` hears what the filter says itself."""
    before: Stats | None = None
    for item in readings:
        if isinstance(item, str):
            tell(item)
            continue
        if not (json or before):
            print(about(item), flush=True)
        print(stats_json(item) if json else sentence(item, before), flush=True)
        before = item
