"""What the views share: aligned lines, output whose reader may leave."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def drawable(console: Console) -> bool:
    """Whether what is on it can be drawn anew: FORCE_COLOR makes no terminal of a log."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


@contextlib.contextmanager
def as_long_as_read() -> Iterator[None]:
    """Write to standard output, to its end or until nobody reads any more."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # or else Python complains once more when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines, their columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pairs = (zip(row, widths, strict=True) for row in rows)
    lines = ("  ".join(cell.ljust(width) for cell, width in pair) for pair in pairs)
    return "\n".join(line.rstrip() for line in lines)
