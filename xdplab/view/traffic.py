"""Frames that are sent, while they are, and in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from xdplab.traffic import Order, Sent
from xdplab.view.text import drawable

_EACH = 10.0  # seconds between two lines where nothing can be drawn anew


def follow(console: Console, news: Iterable[Sent], say: Callable[[str], None]) -> Sent:
    """Show how far it is: a line that changes, or one now and then; gives the last news."""
    if not drawable(console):
        return _told(news, say)
    last = Sent(0, 0.0, "")
    with Live(Text(""), console=console, transient=True) as live:
        for last in news:
            live.update(Text(f"{sentence(last)} (Ctrl-C ends it)"))
    return last


def _told(news: Iterable[Sent], say: Callable[[str], None]) -> Sent:
    last, told = Sent(0, 0.0, ""), time.monotonic()
    for last in news:
        if time.monotonic() >= told + _EACH:
            told = time.monotonic()
            say(sentence(last))
    return last


def sentence(progress: Sent) -> str:
    """How many, and how fast."""
    return f"{progress.sent:,} sent in {progress.seconds:.1f} s, {progress.rate:,.1f} a second"


def outcome(order: Order, frames: list[bytes], dev: str, progress: Sent) -> str:
    """What was sent in the end, and at what rate."""
    sizes = sorted({len(frame) for frame in frames})
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    asked = f"; {order.rate:,g} were asked for" if order.rate else ""
    rate = f", {progress.rate:,.1f} a second{asked}" if progress.sent > 1 else ""
    return (
        f"{progress.sent:,} frames of {size} bytes into {dev} in {progress.seconds:.2f} s{rate};"
        f" by {progress.how}"
    )
