"""The ways in which a command can end before its time."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from xdplab.files import mounted
from xdplab.torture.ground import Subject, Wrap

_CTRL_C = "\x03"
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class End:
    """A way to end a command: `how` does it, once `wrap` has put the command where it can."""

    name: str
    how: Callable[[Subject], None]
    wrap: Callable[[Random], Wrap] = lambda _: lambda argv: argv


def _to(number: signal.Signals, *, harness: bool = False, children: bool = False) -> End:
    whom = {(True, False): "Python", (False, True): "what it started", (True, True): "both"}

    def how(subject: Subject) -> None:
        victims = subject.children() if children else []  # who they are is asked first
        victims += [subject.harness] if harness and subject.harness else []
        for pid in victims:
            _kill(pid, number)

    return End(f"{number.name} to {whom[harness, children]}", how)


def _to_groups(subject: Subject) -> None:
    victims = [*subject.children(), *([subject.harness] if subject.harness else [])]
    groups = set()
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    for group in groups - {os.getpgid(0)}:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def _on_terminal(_: Random) -> Wrap:
    """With a terminal of its own: it is closed when script(1) ends, which passes on keys."""
    return lambda argv: [
        "script",
        "--quiet",
        "--return",
        "--flush",
        "--command",
        shlex.join(argv),
        os.devnull,
    ]


def _type_ctrl_c(subject: Subject) -> None:
    subject.running.write(_CTRL_C)


def _close(subject: Subject) -> None:
    _kill(subject.running.pid, signal.SIGKILL)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(pid, number)


ENDS: Sequence[End] = (
    *(_to(number, harness=True) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
    *(_to(number, children=True) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
    _to(signal.SIGKILL, harness=True),
    _to(signal.SIGKILL, children=True),
    _to(signal.SIGKILL, harness=True, children=True),
    End("SIGKILL to their process groups", _to_groups),
    End("Ctrl-C on its terminal", _type_ctrl_c, _on_terminal),
    End("its terminal is closed", _close, _on_terminal),
)


# ---- out of memory

_LIMITS = {"cgroup": "memory.limit_in_bytes", "cgroup2": "memory.max"}  # by file system


@contextlib.contextmanager
def out_of_memory(name: str) -> Iterator[End | str]:
    """An end by the OOM killer, in a control group (cgroups(7)) of that name; or why not."""
    why = "no control group with a memory controller can be made"
    for kind, limit in _LIMITS.items():
        for place in mounted(kind):
            directory = Path(place) / name
            try:
                directory.mkdir()
            except OSError as error:
                why = str(error)
                continue
            try:
                if (directory / limit).exists():
                    yield _starved(directory, limit)
                    return
            finally:
                _remove(directory)
    yield why


def _starved(directory: Path, limit: str) -> End:
    def wrap(rng: Random) -> Wrap:
        (directory / limit).write_text(str(rng.randrange(6 * _MIB, 64 * _MIB)))
        return lambda argv: [
            "sh",
            "-c",
            f'echo $$ >{directory}/cgroup.procs && exec "$@"',
            "sh",
            *argv,
        ]

    return End("out of memory", lambda _: None, wrap)


def _remove(directory: Path) -> None:
    """Remove a control group once the last of its processes is reaped."""
    for _ in range(100):
        try:
            directory.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
