"""Pictures of what a bench found: how many times the floor, and how it grows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from xdplab.bench.measure import Measured
from xdplab.bench.record import Curve, curves, figure

_BAR, _CURVE = 0.32, 3.6  # inches a bar, and a curve's panel


def svg(stage: str, measured: Sequence[Measured]) -> bytes:
    """One picture of a stage: a panel of bars a comparison, one of curves a growing quantity."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    bars = [one for one in measured if _ratios(one) and not one.point]
    panels = _panels(curves(measured))
    heights = [0.7 + _BAR * len(_ratios(one)) for one in bars] + [_CURVE] * len(panels)
    if not heights:
        heights = [1.0]  # an empty picture, where nothing could be measured
    # text stays text, and the same figures make the same file
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": stage}):
        drawing = Figure(figsize=(9, sum(heights)), layout="constrained")
        canvas: Any = FigureCanvasSVG(drawing)  # it has no types
        grid = drawing.add_gridspec(len(heights), 1, height_ratios=heights)
        for at, one in enumerate(bars):
            _draw_bars(drawing.add_subplot(grid[at]), one)
        for at, panel in enumerate(panels, len(bars)):
            _draw_curves(drawing.add_subplot(grid[at]), panel)
        picture = io.BytesIO()
        canvas.print_svg(picture, metadata={"Date": None})
    return picture.getvalue()


def _ratios(one: Measured) -> list[tuple[str, Any, str]]:
    """Name, ratio and figure of each way and quantity that can be drawn."""
    return [
        (f"{way.name}, {quantity}", ratio, figure(sorted(figures)[len(figures) // 2]))
        for way in one.ways
        for quantity, figures in way.figures.items()
        if (ratio := one.ratio(way, quantity)) and ratio.low > 0
    ]


def _draw_bars(axes: Any, one: Measured) -> None:
    rows = _ratios(one)
    medians = [ratio.median for _, ratio, _ in rows]
    below = [max(ratio.median - ratio.low, 0) for _, ratio, _ in rows]
    above = [max(ratio.high - ratio.median, 0) for _, ratio, _ in rows]
    colours = ["0.6" if name.startswith(one.ways[0].name) else "tab:blue" for name, _, _ in rows]
    axes.barh(range(len(rows)), medians, xerr=(below, above), color=colours, height=0.6)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.set_title(f"{one.name}: times {one.ways[0].name}", fontsize="medium", loc="left")
    if max(medians) > 20 * min(medians):
        axes.set_xscale("log")
    for at, (_, ratio, middle) in enumerate(rows):
        words = f"  {figure(ratio.median)}  ({middle})"
        axes.annotate(words, (ratio.high, at), va="center", fontsize="small")
    axes.margins(x=0.2)


def _panels(found: list[Curve]) -> list[list[Curve]]:
    """Curves that share their axes."""
    key = lambda curve: (curve.axis, curve.quantity)  # noqa: E731
    return [list(members) for _, members in groupby(sorted(found, key=key), key)]


def _draw_curves(axes: Any, panel: Sequence[Curve]) -> None:
    for curve in panel:
        at = [point for point, _ in curve.points]
        middle = [spread.median for _, spread in curve.points]
        (line,) = axes.plot(at, middle, marker="o", label=curve.name)
        low, high = ([getattr(s, end) for _, s in curve.points] for end in ("low", "high"))
        axes.fill_between(at, low, high, alpha=0.2, color=line.get_color())
    axes.set(xlabel=panel[0].axis, ylabel=panel[0].quantity, xscale="log", yscale="log")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
