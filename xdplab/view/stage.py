"""A long step on the screen."""

from __future__ import annotations

import contextlib
import re
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from xdplab.process import Line
    from xdplab.sample import Sample
    from xdplab.view import View

_MAKES = r" -o (\S+)"  # in a compiler's command
_WIDEST = 48  # characters of a note


class Stage(contextlib.ExitStack):
    """One long step on the screen, phase by phase; off a terminal, a line for each phase.

    Shown as soon as there is news, until the `with` block is left.
    """

    def __init__(self, view: View, title: str) -> None:
        super().__init__()
        self._view = view
        self._title = title
        self.errors: list[Line] = []  # what make and the compilers complained of
        self._phase = ""
        self._task: TaskID | None = None

    @cached_property
    def _progress(self) -> Progress:
        return self.enter_context(_progress(self._view.err))

    def report(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """A source's news: see sources.Report."""
        if phase != self._phase and not self._view.err.is_terminal:
            self._view.say(f"  {phase}")
        self._show(phase, done, total, note)

    def line(self, line: Line) -> None:
        """What make is at: the file of a command, or its own short words."""
        if line.stream == "err":
            self.errors.append(line)
        elif line.text.startswith("  "):
            made = re.search(_MAKES, line.text)
            self._show(self._title, note=(made[1] if made else line.text.strip())[-_WIDEST:])

    def about(self, pair: Sample | None) -> list[str]:
        """What they complained of that pair, in their words."""
        if not pair or not self.errors:
            return []
        from xdplab.making import about_pair

        return about_pair(pair, self.errors)

    def _show(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        if phase != self._phase or self._task is None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._phase = phase
            self._task = self._progress.add_task(phase, total=None, note="")
        self._progress.update(self._task, completed=done, total=total or None, note=note)


def _progress(console: Console) -> Progress:
    """What is under way, how far, and for how long; nothing off a terminal."""
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
