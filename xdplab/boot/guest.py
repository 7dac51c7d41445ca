"""A guest: a kernel that was booted, a shell in it, and one program that runs there."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xdplab.boot import qemu
from xdplab.boot.qemu import Engine
from xdplab.errors import (
    CommandFailed,
    GuestHangs,
    GuestLost,
    GuestPanic,
    KernelSplat,
    LabError,
    NoBoot,
)
from xdplab.files import require_space
from xdplab.logs import Drain, LogFile
from xdplab.process import Line, Running, Shell, Stream

_BOOT_PATIENCE = {qemu.KVM.name: 10.0, qemu.TCG.name: 120.0}  # seconds
_PATIENCE = 30.0  # seconds for an answer: emulated, on a busy machine
_PULSE = 10.0  # seconds without a word after which it is asked whether it lives
_POLL = 0.005  # seconds between two looks at what the program printed

_ANSWER = re.compile(r"answer (\d+) (\d+)")
_ENDED = re.compile(r"ended (\d+)")

# of testbed/init.c: what starts to read the kernel half's log, and how its lines begin
READ_LOG, LOGGED = "read_log", "trace_pipe: "

_PANIC = re.compile(r"Kernel panic - not syncing: .*")
# What a kernel in trouble starts its report with: lib/bug.c, mm/kasan/report.c,
# kernel/locking/lockdep.c, lib/ubsan.c, arch/x86/kernel/traps.c.  Stalls are left
# out: an emulated guest on a busy machine has them for no fault of its own.
_SPLAT = re.compile(
    r"WARNING: (?:CPU|possible|bad|suspicious|inconsistent).*"
    r"|BUG: (?!workqueue lockup|soft lockup).*|kernel BUG at .*|UBSAN: .*"
    r"|Oops(?:: |\[).*|general protection fault.*|Internal error: .*"
)
_STAMP = re.compile(r"^\[ *[\d.]+\](?:\[ *[TC]\d+\])? ")
_LAST = 12  # lines of the kernel's log in an error


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command in the guest printed, and its exit code."""

    code: int
    text: str


@dataclass(slots=True)
class Guest:
    """A booted kernel that does what it is told."""

    directory: Path  # where QEMU runs, and writes to
    shell: Shell
    _qemu: Running
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _heard: list[str] = field(default_factory=list)  # of an answer that isn't whole yet
    _answers: dict[int, Answer] = field(default_factory=dict)
    _complaints: list[str] = field(default_factory=list)  # QEMU's own
    _fault: LabError | None = None  # why there will be no more answers
    heard: float = field(default_factory=time.monotonic)  # when it last said something
    meanwhile: Callable[[], None] = lambda: None  # done between two looks at the output
    ready: bool = False
    ended: int | None = None  # the program's exit code, once it has ended

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._qemu.pid

    def kernel_log(self) -> list[str]:
        """What the kernel has logged so far."""
        return _text(self.directory / qemu.KERNEL_LOG).splitlines()

    # ---- commands

    def ask(self, command: str, given: Sequence[str] = ()) -> Answer:
        """Run a shell command in the guest; it reads the lines `given`, and must know their end.

        Raises GuestHangs without an answer, GuestPanic, GuestLost.
        """
        self.shell.echo(in_guest(command))
        return self._ask(command, given)

    def _ask(self, command: str, given: Sequence[str] = ()) -> Answer:
        if self._fault:
            raise self._fault
        number = next(self._numbers)
        self._qemu.write("\n".join([f"{number} {command}", *given]))
        deadline = time.monotonic() + _PATIENCE
        while number not in self._answers:
            if time.monotonic() > deadline:
                self._fault = GuestHangs(command, _PATIENCE, self._last_words())
                raise self._fault
            self.listen(1.0)
        return self._answers.pop(number)

    def require_pulse(self) -> None:
        """Ask for a sign of life if there was none for a while; raises GuestHangs."""
        if time.monotonic() > self.heard + _PULSE:
            self._ask(":")

    def tell(self, command: str, given: Sequence[str] = ()) -> str:
        """Run a command that must work, for what it prints; raises CommandFailed too."""
        answer = self.ask(command, given)
        if answer.code:
            raise CommandFailed(in_guest(command), answer.code, answer.text)
        return answer.text

    def listen(self, seconds: float) -> None:
        """Take in what the guest has to say, for so long or until it has said a line.

        Raises GuestPanic or GuestLost if QEMU has ended.
        """
        try:
            for line in self._qemu.lines(seconds):
                if line.stream == "out":
                    self._hear(line.text)
                    return
                self._complaints.append(line.text)
        except TimeoutError:
            return
        self._fault = self._lost()
        raise self._fault

    def _hear(self, text: str) -> None:
        self.heard = time.monotonic()
        self._heard.append(text)
        head = _ANSWER.fullmatch(self._heard[0])
        if head and text == f"end {head[1]}":
            self._answers[int(head[1])] = Answer(int(head[2]), "\n".join(self._heard[1:-1]))
        elif head:
            return
        elif ended := _ENDED.fullmatch(text):
            code = int(ended[1])
            self.ended = 128 - code if code > 128 else code  # a signal's, as the shell says it
        elif text == "ready":
            self.ready = True
        self._heard.clear()

    def _lost(self) -> LabError:
        panic = next(filter(None, map(_PANIC.search, self.kernel_log())), None)
        if panic:
            return GuestPanic(panic[0], self._last_words())
        return GuestLost(self._qemu.wait(), self._complaints, self._last_words())

    def _last_words(self) -> str:
        return last_words(self.kernel_log())

    # ---- the program

    def start(self, argv: list[str], log: Path) -> GuestProcess:
        """Start the sample's program in its directory."""
        command = shlex.join(argv)
        log.parent.mkdir(parents=True, exist_ok=True)
        process = GuestProcess(self, LogFile(log))
        process.log.write(f"$ {in_guest(command)}")
        self.tell(f"start {command}")
        return process

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask the program to end, by a signal; one that has ended doesn't mind."""
        if self.ended is None:
            self.ask(f"stop {number:d}")

    def require_no_splat(self) -> None:
        """Raise KernelSplat if the kernel has reported trouble of its own."""
        found = splats(self.kernel_log())
        if found:
            raise KernelSplat(found, self.directory / qemu.KERNEL_LOG)


class GuestProcess:
    """The sample's program in the guest, as process.Running is one on this machine."""

    def __init__(self, guest: Guest, log: LogFile) -> None:
        self._guest = guest
        self.log = log
        self._tails: dict[Stream, Drain] = {
            "out": Drain(guest.directory / qemu.OUTPUT),
            "err": Drain(guest.directory / qemu.ERRORS),
        }

    @property
    def pid(self) -> int:
        """The process that it lives in: QEMU."""
        return self._guest.pid

    def lines(self, timeout: float | None = None) -> Iterator[Line]:
        """Lines as they come, to the end; TimeoutError after `timeout` seconds in all."""
        deadline = time.monotonic() + timeout if timeout is not None else math.inf
        while True:
            ended = self._guest.ended is not None  # then all that it printed is there
            yield from self._new_lines(last=ended)
            if ended:
                return
            if time.monotonic() >= deadline:
                raise TimeoutError
            try:
                self._guest.listen(_POLL)
                self._guest.meanwhile()
                self._guest.require_pulse()
            except LabError:
                yield from self._new_lines(last=True)
                raise

    def _new_lines(self, *, last: bool) -> Iterator[Line]:
        for stream, tail in self._tails.items():
            for text in tail.lines(last=last):
                self.log.write(text)
                logged = text.startswith(LOGGED)
                yield Line("log", text.removeprefix(LOGGED)) if logged else Line(stream, text)

    def end_input(self) -> None:
        """Ask it to end."""
        self._guest.stop()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; TimeoutError if it hasn't ended after `timeout` seconds."""
        for _ in self.lines(timeout):
            pass
        assert self._guest.ended is not None  # noqa: S101  # or lines() would go on
        return self._guest.ended

    def end(self) -> None:
        """End it, whatever it says."""
        self._guest.stop(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            self.wait(_PATIENCE)


@contextlib.contextmanager
def booted(
    image: Path, initramfs: Path, directory: Path, engine: Engine, shell: Shell, *, card: bool
) -> Iterator[Guest]:
    """Boot a kernel, and end it and QEMU with the block.

    QEMU's files go to `directory`, and the logs stay there.  Raises NoBoot, with
    what the kernel said last.
    """
    require_space(directory, 64 * 2**20)
    argv = qemu.argv(engine, image, initramfs, card=card)
    with shell.start(argv, cwd=directory) as running:
        guest = Guest(directory, shell, running)
        deadline = time.monotonic() + _BOOT_PATIENCE[engine.name]
        try:
            while not guest.ready:
                if time.monotonic() > deadline:
                    raise NoBoot(image, "it hangs", last_words(guest.kernel_log()))
                guest.listen(1.0)
        except (GuestPanic, GuestLost) as error:
            raise NoBoot(image, error.message, error.cure) from error
        yield guest


def in_guest(command: str) -> str:
    """A command as it is shown: a shell's comment says where it is run."""
    return f"{command}  # in the guest"


def last_words(log: list[str]) -> str:
    """The end of a kernel's log, or of where its trouble begins, for an error."""
    if not log:
        return "the kernel said nothing"
    trouble = (n for n, line in enumerate(log) if _PANIC.search(line) or splats([line]))
    begin = max(0, next(trouble, len(log)) - _LAST // 3)
    shown = log[-_LAST:] if begin + _LAST > len(log) else log[begin : begin + _LAST]
    return "\n".join(["the kernel's last words:", *shown])


def splats(log: list[str]) -> list[str]:
    """The reports of trouble in a kernel's log, without their time stamps."""
    found = (_SPLAT.search(_STAMP.sub("", line)) for line in log)
    return [match[0] for match in found if match]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="backslashreplace")
    except FileNotFoundError:
        return ""
