"""Where another terminal asks for something to be done in a guest that this process runs.

Only who runs a guest can talk to it.  So it listens on a UNIX socket beside the
guest's logs, and answers whenever it waits for the program's output.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdplab.errors import SessionLost

_NAME = "door.sock"
_PATIENCE = 30.0  # seconds for an answer
_READING = 1.0  # seconds for a question to come whole

Deeds = Mapping[str, Callable[..., Any]]  # what can be asked for; JSON in, JSON out


@dataclass(frozen=True, slots=True)
class Door:
    """The listening end."""

    _socket: socket.socket
    _deeds: Deeds

    @classmethod
    @contextlib.contextmanager
    def opened(cls, directory: Path, deeds: Deeds) -> Iterator[Door]:
        """A door in a guest's directory, closed and removed with the block."""
        with short_name(directory) as place, socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{place}/{_NAME}")
            try:
                listening.listen()
                listening.setblocking(False)
                yield cls(listening, deeds)
            finally:
                (directory / _NAME).unlink(missing_ok=True)

    def answer(self) -> None:
        """Do what is asked for, if somebody waits; who leaves or is rude gets no answer."""
        with contextlib.suppress(BlockingIOError):
            caller, _ = self._socket.accept()
            with caller, contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                caller.settimeout(_READING)
                deed, *arguments = json.loads(_line(caller))
                answer = self._deeds[deed](*arguments)
                caller.sendall(json.dumps(answer).encode() + b"\n")


def knock(directory: Path, deed: str, *arguments: object) -> Any:
    """Have something done by who runs the guest of a directory; raises SessionLost."""
    try:
        with short_name(directory) as place, socket.socket(socket.AF_UNIX) as calling:
            calling.settimeout(_PATIENCE)
            calling.connect(f"{place}/{_NAME}")
            calling.sendall(json.dumps([deed, *arguments]).encode() + b"\n")
            return json.loads(_line(calling))
    except (OSError, ValueError) as error:
        raise SessionLost("the virtual machine", str(error)) from error


@contextlib.contextmanager
def short_name(directory: Path) -> Iterator[str]:
    """A short name for a directory.

    That of a UNIX socket has 107 bytes at most (unix(7)), and a directory's may be longer.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _line(connection: socket.socket) -> str:
    with connection.makefile() as lines:
        return lines.readline()
