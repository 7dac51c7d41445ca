"""A long step on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import Progress, TaskID

from xdplab.process import Line

if TYPE_CHECKING:
    from xdplab.view import View


class Stage:
    """One long step on the screen, phase by phase; off a terminal, a line for each phase."""

    def __init__(self, view: View, title: str, progress: Progress) -> None:
        self._view = view
        self._title = title
        self._progress = progress
        self.errors: list[Line] = []  # what make and the compilers complained of
        self._phase = ""
        self._task: TaskID | None = None

    def report(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """A source's news: see sources.Report."""
        if phase != self._phase and not self._view.err.is_terminal:
            self._view.say(f"  {phase}")
        self._show(phase, done, total, note)

    def line(self, line: Line) -> None:
        """What make is at, in its own short words."""
        if line.stream == "err":
            self.errors.append(line)
        elif line.text.startswith("  "):
            self._show(self._title, note=line.text.strip()[:48])

    def _show(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        if phase != self._phase or self._task is None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._phase = phase
            self._task = self._progress.add_task(phase, total=None, note="")
        self._progress.update(self._task, completed=done, total=total or None, note=note)
