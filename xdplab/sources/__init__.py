"""Where trees come from: git, the distribution's source package, a tarball."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Tell = Callable[[str], None]  # hears of what was done, a sentence each


class Report(Protocol):
    """Hears how far something is: what is done now, and how many bytes or objects of how many."""

    def __call__(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """Take the news; `total` 0 means that nobody knows."""
