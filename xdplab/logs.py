"""Logs that don't grow without end: of more than three parts the first and the last are kept.

output-first.log    what was written first: how it began is there for good
output-before.log   the part before the one that is written now
output.log          that one, and all of it as long as it is no more than a part
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PART = 4 * 2**20  # bytes
_GAP = "... what was here is no longer kept"


class LogFile:
    """A log that lines are added to."""

    def __init__(self, path: Path, part: int = PART) -> None:
        self._path, self._part = path, part
        self._file = path.open("ab")
        self._size = self._file.tell()

    def write(self, text: str) -> None:
        """Add a line."""
        line = text.encode(errors="backslashreplace") + b"\n"
        if self._size and self._size + len(line) > self._part:
            self._begin_anew()
        self._file.write(line)
        self._file.flush()
        self._size += len(line)

    def _begin_anew(self) -> None:
        self._file.close()
        first, before, current = parts(self._path)
        current.replace(before if first.exists() else first)
        self._file, self._size = current.open("ab"), 0

    def close(self) -> None:
        """Nothing more will come."""
        self._file.close()


def parts(path: Path) -> tuple[Path, Path, Path]:
    """The files of a log, in the order in which they were written; not all need be there."""
    return path.with_stem(f"{path.stem}-first"), path.with_stem(f"{path.stem}-before"), path


def read(path: Path) -> str:
    """All that is left of a log; a line tells where something is not kept.

    Raises FileNotFoundError if there is none.
    """
    first, before, current = parts(path)
    texts = []
    for one in (first, before):
        with contextlib.suppress(FileNotFoundError):
            texts.append(one.read_text(errors="replace"))
    if len(texts) == 2:
        texts.insert(1, f"{_GAP}\n")
    return "".join([*texts, current.read_text(errors="replace")])


class Tail:
    """A file that somebody else writes to, line by line as it grows, and as it is begun anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._rest = b""

    def lines(self, *, last: bool) -> list[str]:
        """The lines since the last time; with `last` also one without its newline."""
        new = self._file.read()
        with contextlib.suppress(FileNotFoundError):  # just now it is begun anew
            while not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                new += self._file.read()  # what came since
                self._file.close()
                self._file = self._path.open("rb")
                new += self._file.read()
        *whole, self._rest = (self._rest + new).split(b"\n")
        if last and self._rest:
            whole.append(self._rest)
            self._rest = b""
        return [raw.decode(errors="backslashreplace") for raw in whole]


class Drain(Tail):
    """A tail of a file that nobody else reads: what was read of it takes no room any more."""

    def __init__(self, path: Path, part: int = PART) -> None:
        super().__init__(path)
        self._part, self._drained = part, 0

    def lines(self, *, last: bool) -> list[str]:
        """As of Tail."""
        found = super().lines(last=last)
        read = self._file.tell()
        if read - self._drained >= self._part:
            with self._path.open("rb+") as file:
                _punch(file.fileno(), read)
            self._drained = read
        return found


def _punch(descriptor: int, size: int) -> None:
    """Make the first bytes of a file a hole, by fallocate(2); not all file systems can."""
    import ctypes  # here: few commands need it

    nought, length = ctypes.c_longlong(0), ctypes.c_longlong(size)
    ctypes.CDLL(None).fallocate(descriptor, _PUNCH_HOLE, nought, length)


_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, without which it is refused
