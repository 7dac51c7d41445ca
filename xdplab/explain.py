"""What known messages of make, compilers, libbpf, the verifier and the kernel mean.

The table is templates/explanations.toml.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xdplab.errors import NotALog, NothingKnown
from xdplab.workspace import PROJECT

TABLE = PROJECT / "templates" / "explanations.toml"
_MOST = 2**21  # bytes of a log that are read: its end


@dataclass(frozen=True, slots=True)
class Known:
    """A kind of message that is known."""

    name: str
    says: re.Pattern[str]  # what a line says
    means: str  # cause and cure, filled in with the pattern's named groups


@dataclass(frozen=True, slots=True)
class Explanation:
    """A message that was seen, and what it means."""

    name: str
    line: str
    means: str  # a paragraph


@functools.cache
def table() -> dict[str, Known]:
    """All that are known, the special before the general, by name."""
    rows = tomllib.loads(TABLE.read_text())
    return {
        name: Known(name, re.compile(row["says"]), row["means"].strip())
        for name, row in rows.items()
    }


def explain(said: str) -> list[Explanation]:
    """What a text has of known messages, each kind once, in its order."""
    found: dict[str, Explanation] = {}
    for line in said.splitlines():
        one = _of_line(line)
        if one:
            found.setdefault(one.name, one)
    return list(found.values())


def cause(said: str) -> Explanation | None:
    """What speaks most clearly in a text of what went wrong, if anything does."""
    order = list(table())
    return min(explain(said), key=lambda one: order.index(one.name), default=None)


def _of_line(line: str) -> Explanation | None:
    for known in table().values():
        found = known.says.search(line)
        if found:
            groups = {name: text or "?" for name, text in found.groupdict().items()}
            return Explanation(known.name, line.strip(), known.means.format(**groups))
    return None


def read(path: str | None) -> str:
    """A log's end: of the file at a path, or of standard input.

    Whatever it holds is text.  Raises NotALog.
    """
    if path is None:
        return sys.stdin.buffer.read()[-_MOST:].decode(errors="replace")
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _MOST))
            return file.read().decode(errors="replace")
    except OSError as error:
        raise NotALog(path, str(error.strerror)) from error


def require_known(found: Iterable[Explanation]) -> None:
    """Raise NothingKnown if there is nothing."""
    if not list(found):
        raise NothingKnown
