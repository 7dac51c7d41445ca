"""The kernel's log on this machine, which only root can read: read_log.sh does it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xdplab.errors import NoTracing, SessionLost
from xdplab.process import Argv, Line, Running, Shell

_SCRIPT = Path(__file__).with_name("read_log.sh")
_WHY = "reading what BPF programs log"
_PATIENCE = 10.0  # seconds for the reader to begin
_POLL = 0.1  # seconds between two looks at what was logged


def reader(shell: Shell, *arguments: str) -> Argv:
    """The command that reads the log, as root; with "sweep" it removes what killed ones left."""
    return shell.as_root(["unshare", "--mount", "sh", _SCRIPT, *arguments], _WHY)


@dataclass(slots=True)
class KernelLog:
    """The log while it is read, from when it was opened."""

    running: Running
    remarks: list[str]

    @classmethod
    def opened(cls, shell: Shell) -> KernelLog:
        """Begin to read; raises NoTracing where it can't be done."""
        running = shell.start(reader(shell))
        said: list[str] = []
        with contextlib.suppress(TimeoutError):
            for line in running.lines(_PATIENCE):
                if line.text == "reading":
                    return cls(running, said)
                said.append(line.text)
        running.end()
        raise NoTracing("\n".join(said))

    def new(self) -> list[str]:
        """The lines since the last time; raises SessionLost when the reader is gone."""
        lines = []
        try:
            for line in self.running.lines(0):
                lines.append(line.text)
        except TimeoutError:
            return lines
        if lines:
            return lines
        raise SessionLost("the reader of the kernel's log", "")


@dataclass(frozen=True, slots=True)
class Traced:
    """A program of this machine with the kernel's log among its lines: see testbed.Process."""

    program: Running
    log: KernelLog

    @property
    def pid(self) -> int:
        """The program's process."""
        return self.program.pid

    def lines(self, timeout: float | None = None) -> Iterator[Line]:
        """Lines as they come, to the program's end; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout if timeout is not None else math.inf
        remarks, self.log.remarks[:] = [*self.log.remarks], []
        yield from (Line("err", text) for text in remarks)
        while True:
            try:
                yield from self.program.lines(min(_POLL, max(0, deadline - time.monotonic())))
            except TimeoutError:
                yield from self._logged()
                if time.monotonic() >= deadline:
                    raise
            else:
                yield from self._logged()
                return

    def _logged(self) -> Iterator[Line]:
        with contextlib.suppress(SessionLost):  # somebody ended the reader: the program goes on
            yield from [Line("log", text) for text in self.log.new()]

    def end_input(self) -> None:
        """Ask the program to end."""
        self.program.end_input()

    def wait(self, timeout: float | None = None) -> int:
        """The program's exit code; TimeoutError if it hasn't ended after `timeout` seconds."""
        return self.program.wait(timeout)

    def end(self) -> None:
        """End both, whatever they say."""
        self.program.end()
        self.log.running.end()


def followed(
    new: Callable[[], list[str]], alive: Callable[[], bool], seconds: float | None
) -> Iterator[str]:
    """What `new` gives, over and over, as long as something is alive, and so many seconds."""
    deadline = time.monotonic() + (math.inf if seconds is None else seconds)
    while time.monotonic() < deadline:
        going = alive()
        yield from new()
        if not going:
            return
        time.sleep(_POLL)
