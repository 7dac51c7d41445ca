"""Pictures of a run's readings: in a terminal, and as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xdplab.counters import Reading, busiest
from xdplab.errors import NoReadings, NotReadings, NotWritable
from xdplab.formats import load
from xdplab.workspace import KEPT, RunRecord, Workspace

_MOST = 8  # CPUs that get a line of their own
_RATE = "packets counted a second"
Line = tuple[str, list[float], list[float]]  # its name, seconds since the first reading, rates


def find(wanted: str | None, workspace: Workspace) -> Path:
    """The readings of a run by name or path, or else of the newest that has left any.

    Raises NoReadings.
    """
    kept = {run.path.parent.name: run.readings for run in workspace.runs()}
    kept = {name: path for name, path in kept.items() if path.exists()}
    if wanted is None and kept:
        return next(iter(kept.values()))
    if wanted and wanted in kept:
        return kept[wanted]
    path = Path(wanted or "").expanduser()
    if wanted and path.exists():
        return path / KEPT if path.is_dir() else path
    raise NoReadings(wanted, kept)


def read(path: Path) -> list[Reading]:
    """A file's readings, enough of them to draw; raises NotReadings."""
    readings = load(path)
    if not any(reading.rates for reading in readings):
        raise NotReadings(path, f"a rate needs two readings, and it has {len(readings)}")
    return readings


def title(path: Path) -> str:
    """What the readings of a file are of: what its run has noted, or the file's name."""
    facts = RunRecord(path.with_name("run.json")).read()
    if path.name != KEPT or not facts:
        return path.name
    what = f"drops {facts['ip']}" if facts["ip"] else f"runs {facts['build']['sample']}"
    return "{dev}, {mode} mode, {what}, on {on}, Linux {release}".format(**facts, what=what)


def summary(readings: Sequence[Reading]) -> str:
    """What there is to see, in words."""
    most = max(readings, key=lambda reading: reading.rate or 0.0)
    first, last = readings[0], readings[-1]
    return (
        f"{len(readings)} readings in {last.at - first.at:.1f} s, {last.total:,} packets counted,"
        f" at most {most.rate or 0.0:,.1f} a second, {most.at - first.at:.1f} s from the first"
    )


def lines_of(readings: Sequence[Reading]) -> list[Line]:
    """The rate of all CPUs, and of each that has counted: of many the busiest."""
    rated = [reading for reading in readings if reading.rates]
    times = [reading.at - readings[0].at for reading in rated]
    return [
        ("all", times, [reading.rate or 0.0 for reading in rated]),
        *(
            (f"cpu {cpu}", times, [reading.rates.get(cpu, 0.0) for reading in rated])
            for cpu in busiest(readings[-1].per_cpu, _MOST)
        ),
    ]


def in_terminal(
    readings: Sequence[Reading], title: str, size: tuple[int, int], *, colour: bool
) -> str:
    """A drawing of characters, so many columns wide and lines high.

    A CPU's points are the last digit of its number: they can be told apart without colour.
    """
    from plotext import figure

    figure.clear()
    figure.plot_size(*size)
    figure.title(title)
    figure.label("seconds")
    figure.label(_RATE, axis="y")
    lines = lines_of(readings)
    figure.ruler("y").lim(0, max([1.0, *lines[0][2]]))  # no CPU has more than all have
    for name, times, rates in lines:
        signal = figure.signal(times, rates, marker="braille" if name == "all" else name[-1])
        signal.label(name)
        signal.lines()
        figure.draw(signal)
    return str(figure.build().string(colorless=not colour))


def to_png(readings: Sequence[Reading], title: str, path: Path) -> None:
    """The same as a picture of 1200 by 675 points; raises NotWritable."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.75), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel="seconds", ylabel=_RATE)
    for number, (name, times, rates) in enumerate(lines_of(readings)):
        axes.plot(times, rates, label=name, linewidth=1 if number else 2.5)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, format="png", dpi=100)
    except OSError as error:
        raise NotWritable("--png", path, error.strerror or str(error)) from None
