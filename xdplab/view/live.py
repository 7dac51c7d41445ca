"""A run's counters while they rise: a live table, a line or a JSON object a reading."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from xdplab.counters import Reading
from xdplab.runner import Program

SCHEMA = 1  # of `run --json`, described in docs/readings.md
_ONLINE = Path("/sys/devices/system/cpu/online")


class Counters:
    """The counters as they come: CPUs that are online, their counts and rates, the total."""

    def __init__(self) -> None:
        self._previous: Reading | None = None
        self._online = _online_cpus()

    def rates(self, reading: Reading) -> tuple[dict[int, float], float | None]:
        """Packets a second since the reading before, for each CPU and in all."""
        before, self._previous = self._previous, reading
        if not before or reading.at <= before.at:
            return {}, None
        seconds = reading.at - before.at
        each = {
            cpu: (count - before.per_cpu.get(cpu, 0)) / seconds
            for cpu, count in reading.per_cpu.items()
        }
        return each, (reading.total - before.total) / seconds

    def table(self, reading: Reading, program: Program) -> RenderableType:
        """A picture of one reading."""
        each, total = self.rates(reading)
        table = Table(
            title=f"{program.dev}: prog/xdp id {program.program} tag {program.tag}, "
            f"{program.mode} mode, round {reading.round}"
        )
        for name in ("cpu", "packets dropped", "per second"):
            table.add_column(name, justify="right")
        for cpu, count in reading.per_cpu.items():
            # a CPU that could be plugged in and isn't has nothing to show
            if self._online is None or cpu in self._online or count:
                table.add_row(str(cpu), f"{count:,}", _rate(each.get(cpu)))
        table.add_section()
        table.add_row("all", f"{reading.total:,}", _rate(total), style="bold")
        return table

    def json(self, reading: Reading) -> str:
        """One reading as a line of JSON."""
        _, rate = self.rates(reading)
        return json.dumps(
            {
                "schema": SCHEMA,
                "at": round(reading.at, 6),
                "round": reading.round,
                "per_cpu": {str(cpu): count for cpu, count in reading.per_cpu.items()},
                "total": reading.total,
                "rate": None if rate is None else round(rate, 3),
            }
        )


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.1f}"


def _online_cpus() -> set[int] | None:
    """The CPUs of /sys/devices/system/cpu/online, "0-3,6"; None where there is no such file."""
    try:
        ranges = [part.split("-") for part in _ONLINE.read_text().strip().split(",")]
        return {
            cpu for low, *high in ranges for cpu in range(int(low), int((high or [low])[0]) + 1)
        }
    except (OSError, ValueError):
        return None


def follow_live(console: Console, program: Program, items: Iterable[Reading | str]) -> None:
    """Readings as a table that is drawn anew on a terminal; elsewhere a line a reading."""
    counters = Counters()
    if not console.is_terminal:
        for item in items:
            if isinstance(item, Reading):
                _, rate = counters.rates(item)
                print(f"round {item.round}: total {item.total}, {_rate(rate)} a second", flush=True)
            else:
                print(item, flush=True)
        return
    with Live(console=console, auto_refresh=False) as live:
        for item in items:
            if isinstance(item, Reading):
                live.update(counters.table(item, program), refresh=True)
            else:
                live.console.print(Text(item))


def follow_json(items: Iterable[Reading | str]) -> None:
    """Readings as JSON, one object a line; other lines are in the run's log."""
    counters = Counters()
    for item in items:
        if isinstance(item, Reading):
            print(counters.json(item), flush=True)


def follow_plain(lines: Iterable[str]) -> None:
    """The binary's own output, line for line."""
    for line in lines:
        print(line, flush=True)
