"""A run's counters while they rise: a picture that is drawn anew, or a line a reading."""

from __future__ import annotations

import textwrap
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from xdplab import formats
from xdplab.counters import Reading, busiest
from xdplab.hints import hinted
from xdplab.runner import Run
from xdplab.tracing import Logged

_ONLINE = Path("/sys/devices/system/cpu/online")
_PLACES = {
    "host": "on this machine",
    "netns": "in a network namespace",
    "vm": "in a virtual machine",
}
_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_WINDOW = 60  # readings in the sparkline, at most
_SMALL = 8  # CPUs that are all shown, also those that count nothing
_NAMED = 4  # CPUs that are named in a sentence
_REFRESH = 2.0  # times a second that the clock moves


# ---- words


def about(run: Run) -> str:
    """What runs where."""
    one, place = run.program, run.place
    what = f"drops {run.ip}" if run.ip else f"runs {run.sample}"
    return (
        f"{one.dev}: {one.mode} mode, program {one.program}, tag {one.tag}, {what}"
        f" {_PLACES[place.where]}, Linux {place.release}"
    )


def sentence(reading: Reading) -> str:
    """A reading in one line of words: the CPUs that have counted most are named."""
    named = busiest(reading.per_cpu, _NAMED)
    more = sum(map(bool, reading.per_cpu.values())) - len(named)
    each = [f"cpu {cpu}: {reading.per_cpu[cpu]}" for cpu in named]
    each += [f"{more} more"] if more else []
    cpus = f" ({', '.join(each)})" if each else ""
    rate = "" if reading.rate is None else f", {_rate(reading.rate)} a second"
    return f"round {reading.round}: total {reading.total}{cpus}{rate}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.1f}"


# ---- the picture


def folded(counts: Mapping[int, int], room: int) -> tuple[list[int], list[int]]:
    """The CPUs that get a line, and those that share the last one, in `room` lines."""
    if len(counts) <= min(room, _SMALL):
        return list(counts), []
    shown = busiest(counts, room - 1)
    return shown, [cpu for cpu in counts if cpu not in shown]


def sparkline(rates: Collection[float], ramp: str = _BLOCKS) -> str:
    """A character for each rate; the highest of them is the ramp's last."""
    top = max(rates, default=0.0)
    return "".join(ramp[round(rate / top * (len(ramp) - 1))] if top else ramp[0] for rate in rates)


class Picture:
    """A run as it is now; rich draws it in the size that the terminal has now."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.time) -> None:
        self._run = run
        self._clock = clock
        self._rates: deque[float] = deque(maxlen=_WINDOW)
        self._reading: Reading | None = None
        # what is online is known of this machine alone
        self._online = _online_cpus() if run.place.where != "vm" else None

    def take(self, reading: Reading) -> None:
        """Show this reading from now on."""
        self._reading = reading
        if reading.rate is not None:
            self._rates.append(reading.rate)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Its lines; that of the sum is the one to look at."""
        ramp = _ASCII if options.ascii_only else _BLOCKS
        for line in self.lines(options.max_width, console.size.height, ramp):
            style = "bold" if line.startswith("all") else ""
            yield Text(line, style, no_wrap=True, overflow="crop", end="\n")

    def lines(self, width: int, height: int, ramp: str = _BLOCKS) -> list[str]:
        """What is seen, none longer and not more than there is room for."""
        ran = timedelta(seconds=max(0, int(self._clock() - self._run.since)))
        head = textwrap.wrap(f"{about(self._run)}, for {ran}", max(1, width))
        reading = self._reading
        if not reading:
            return head[: height - 1]
        # besides the CPUs: the heads, the sum, the sparkline, and the line that the cursor is in
        room = height - len(head) - 4
        if room < 2:
            head, room = [], height - 4
        counted = "dropped" if self._run.ip else "counted"
        rows = _rows(counted, reading, self._present(reading), max(1, room))
        rates = list(self._rates)[-width:]
        body = [*columns(rows, width), sparkline(rates, ramp)]
        return [_cut(line, width) for line in [*head, *body][: max(1, height - 1)]]

    def _present(self, reading: Reading) -> dict[int, int]:
        """The counts of CPUs that are there: one that could be plugged in and isn't is not."""
        return {
            cpu: count
            for cpu, count in reading.per_cpu.items()
            if self._online is None or cpu in self._online or count
        }


def _rows(counted: str, reading: Reading, counts: Mapping[int, int], room: int) -> list[list[str]]:
    """The table: heads, the sum, a line for a CPU, one for all that have none of their own."""
    shown, rest = folded(counts, room)
    rates = reading.rates

    def row(name: str, cpus: Sequence[int]) -> list[str]:
        rate = sum(rates.get(cpu, 0.0) for cpu in cpus) if rates else None
        return [name, f"{sum(counts[cpu] for cpu in cpus):,}", _rate(rate)]

    return [
        ["", counted, "per second"],
        ["all", f"{reading.total:,}", _rate(reading.rate)],
        *(row(f"cpu {cpu}", [cpu]) for cpu in shown),
        *([row(f"{len(rest)} more", rest)] if rest else []),
    ]


def columns(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Names to the left, numbers to the right; where it is narrow, without the last column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    if len(lines[0]) > width and len(rows[0]) > 2:
        return columns([row[:-1] for row in rows], width)
    return lines


def _cut(line: str, width: int) -> str:
    """A line that ends where the terminal does, and shows that it was longer."""
    return line if len(line) <= width else f"{line[: max(0, width - 1)]}~"


def _online_cpus() -> set[int] | None:
    """The CPUs of /sys/devices/system/cpu/online, "0-3,6"; None where there is no such file."""
    try:
        ranges = [part.split("-") for part in _ONLINE.read_text().strip().split(",")]
        return {
            cpu for low, *high in ranges for cpu in range(int(low), int((high or [low])[0]) + 1)
        }
    except (OSError, ValueError):
        return None


# ---- following


def draw(console: Console, run: Run, items: Iterable[Reading | str]) -> None:
    """Draw the run anew with each reading, at each tick of the clock, and where it was resized."""
    picture, size = Picture(run), console.size

    def current() -> Picture:
        nonlocal size
        if console.size != size:  # the terminal has broken the lines that are there anew
            size = console.size
            console.clear()
        return picture

    with Live(console=console, get_renderable=current, refresh_per_second=_REFRESH) as live:
        for item in hinted(items, run, lambda hint: live.console.print(Text(hint))):
            if isinstance(item, Reading):
                picture.take(item)
                live.refresh()
            else:
                live.console.print(Text(item))


def _plain(items: Iterable[Reading | str]) -> Iterator[str]:
    for item in items:
        yield sentence(item) if isinstance(item, Reading) else item


def _json(items: Iterable[Reading | str]) -> Iterator[str]:
    return map(formats.to_json, _readings(items))


def _csv(items: Iterable[Reading | str]) -> Iterator[str]:
    return formats.to_csv(_readings(items))


def _raw(items: Iterable[Reading | str]) -> Iterator[str]:
    """Nothing: the binary's own lines were printed before they were read."""
    for _ in items:
        yield from ()


def _readings(items: Iterable[Reading | str]) -> Iterator[Reading]:
    return (item for item in items if isinstance(item, Reading))


PLAIN, RAW = "plain", "raw"
FORMS = {PLAIN: _plain, RAW: _raw, "json": _json, "csv": _csv}  # items into lines, by option


def write(run: Run, seconds: float | None, form: str, tell: Callable[[str], None]) -> None:
    """Print the run in a form of FORMS, line by line; `tell` hears hints."""
    if form == PLAIN:
        _print(about(run))
    items = run.output(seconds, _print) if form == RAW else run.output(seconds)
    for line in FORMS[form](hinted(items, run, tell)):
        _print(line)


def _print(line: str) -> None:
    print(line, flush=True)


def log_line(line: Logged) -> Text:
    """What a kernel half logged, and dimmed before it when, on which CPU, and in whose midst."""
    if line.at is None:
        return Text(f"cpu {line.cpu}: {line.text}", style="bold yellow")
    return Text.assemble((f"{line.at:.6f} cpu {line.cpu} {line.task}: ", "dim"), line.text)
