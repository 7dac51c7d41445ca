"""A matrix on the screen, while it runs and afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from xdplab.view.marks import MARKS

if TYPE_CHECKING:  # only a matrix needs them
    from xdplab.cell import Cell, Result
    from xdplab.matrix import Plan


class Board:
    """A matrix under way: what each cell is at, since when, and what became of it."""

    def __init__(self, plan: Plan, on_result: Callable[[Result], None]) -> None:
        self._plan = plan
        self._on_result = on_result
        self._at: dict[Cell, tuple[str, float]] = {}
        self.found: list[Result] = []  # whoever gives the results puts them there

    def at(self, cell: Cell, what: str) -> None:
        """A cell begins with something; called by the threads that cells are proved in."""
        if self._at.get(cell, ("",))[0] != what:
            self._at[cell] = what, time.monotonic()

    def follow(self, results: Generator[Result]) -> list[Result]:
        """Show results as they come, to the end; Ctrl-C ends what gives them first."""
        try:
            with contextlib.closing(results):
                for result in results:
                    self._on_result(result)
        finally:
            self._at.clear()  # nothing is under way any more
        return self.found

    def table(self) -> Table:
        """The table as it is now."""
        heads, *rows = self.rows()
        table = Table(*heads, title=self._plan.name)
        styles = {mark.strip(): style for mark, style in MARKS.values()}
        for row in rows:
            table.add_row(
                *(Text(cell, style=styles.get(cell.partition(" ")[0], "")) for cell in row)
            )
        return table

    def rows(self) -> list[list[str]]:
        """A line of heads, then one for each kernel: what each cell is at, or its outcome."""
        cells = self._plan.cells
        width = len(cells) // len(self._plan.kernels)
        heads = [" ".join(filter(None, (one.compiler, one.mode))) for one in cells[:width]]
        return [
            ["kernel", *heads],
            *(
                [cells[start].kernel, *map(self._words, cells[start : start + width])]
                for start in range(0, len(cells), width)
            ),
        ]

    def _words(self, cell: Cell) -> str:
        result = next((one for one in self.found if one.cell == cell), None)
        if result:
            spent = f"{result.spent:.1f} s" if result.spent else ""
            words = (MARKS[result.outcome][0].strip(), "earlier" if result.taken_from else spent)
            return " ".join(filter(None, words))
        what, since = self._at.get(cell, ("", 0.0))
        return f"{what}, {time.monotonic() - since:.1f} s" if what else "not run"
