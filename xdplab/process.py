"""The one place where commands are run.

Each command is echoed as a person would paste it, its output streamed line by
line and kept in a log, and whatever it started goes when it goes.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from xdplab.errors import CommandFailed, MissingTools, NeedsRoot
from xdplab.logs import LogFile

Argv = Sequence[str | Path]
Stream = Literal["out", "err", "log"]  # the last: what a BPF program of the command's logs

# After kill -9 of Python the kernel ends what Python started (PR_SET_PDEATHSIG of
# prctl(2)); sudo is beyond that, and ends with its standard input.
_END_WITH_US = ("setpriv", "--pdeathsig=TERM", "--")

_ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SUDO = "sudo"
GRACE = 3.0  # seconds from SIGTERM to SIGKILL
_LOOK = 0.002  # seconds to the first look whether they are gone


@dataclass(frozen=True, slots=True)
class Line:
    """A line that a command printed, without its newline, and where."""

    stream: Stream
    text: str


OnLine = Callable[[Line], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a command: its exit code and all that it printed."""

    argv: tuple[str, ...]
    code: int
    lines: tuple[Line, ...]

    def text(self, *streams: Stream) -> str:
        """What it printed on these streams ("out" if none is named)."""
        return "\n".join(line.text for line in self.lines if line.stream in (streams or ("out",)))


@dataclass(frozen=True, slots=True)
class Fed:
    """What became of a command that was given all its input at once."""

    code: int
    out: str
    err: str


class Running:
    """A command under way, in a process group of its own, so that Ctrl-C is ours to handle.

    Iterating over `lines` gives them as they come; leaving the `with` block ends
    the command and everything it started.
    """

    def __init__(
        self, argv: Argv, *, cwd: Path | None, env: Mapping[str, str] | None, log: Path | None
    ) -> None:
        self.argv = tuple(map(str, argv))
        _require(argv[0])
        with _uninterrupted(self.end):
            self._process = subprocess.Popen(
                [*_END_WITH_US, *self.argv],
                cwd=cwd,
                env=_environment(self.argv, env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,
            )
            self._listen(log)

    def _listen(self, log: Path | None) -> None:
        self._log = LogFile(log) if log else None
        self._writing = threading.Lock()
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._open_streams = 2
        for name, pipe in (("out", self._process.stdout), ("err", self._process.stderr)):
            assert pipe is not None  # noqa: S101  # Popen was told PIPE
            threading.Thread(target=self._read, args=(name, pipe), daemon=True).start()

    def _read(self, stream: Stream, pipe: IO[bytes]) -> None:
        for raw in pipe:
            text = raw.decode(errors="backslashreplace").rstrip("\n")
            with self._writing:
                if self._log:
                    self._log.write(text)
                self._lines.put(Line(stream, text))
        with self._writing:
            self._open_streams -= 1
            if not self._open_streams:
                self._lines.put(None)
                if self._log:
                    self._log.close()

    def lines(
        self, timeout: float | None = None, idle: Callable[[], None] = lambda: None
    ) -> Iterator[Line]:
        """Lines as they come, to the end; TimeoutError after `timeout` seconds in all.

        `idle` is called whenever nothing came for a second.
        """
        deadline = time.monotonic() + timeout if timeout is not None else math.inf
        while True:
            try:
                # never for long: a signal that the kernel gave to one of the
                # reading threads is only seen when this one wakes
                line = self._lines.get(timeout=max(0.0, min(1.0, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
                idle()
                continue
            if line is None:
                self._lines.put(None)  # whoever asks again learns it too
                return
            yield line

    @property
    def pid(self) -> int:
        """The process, or sudo's if it runs under sudo."""
        return self._process.pid

    def write(self, text: str) -> None:
        """Give it a line on standard input; a process that is gone doesn't mind."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(text.encode() + b"\n")
                self._process.stdin.flush()

    def end_input(self) -> None:
        """Close its standard input: whoever reads it knows that this is the end."""
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; TimeoutError if it hasn't ended after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    def end(self) -> None:
        """End it and all that it started, politely first.

        What runs under sudo can't be signalled by an ordinary user: such
        commands must end with their standard input.
        """
        self.end_input()
        if self._process.poll() is not None and not self._open_streams:
            return  # all has ended; its number may be another's by now
        # the group lives as long as any member: a child may outlive the command
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            self._wait_for_group()

    def _wait_for_group(self) -> None:
        """Wait for all that it started too: a compiler clears up behind it, if it is let."""
        deadline, pause = time.monotonic() + GRACE, _LOOK
        while self._process.poll() is None or lives(self._process.pid):
            if time.monotonic() > deadline:
                return
            time.sleep(pause)
            pause = min(2 * pause, 16 * _LOOK)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def take_ends_like_ctrl_c() -> None:
    """From now on the first SIGTERM or SIGHUP ends this process in good order too.

    Further ones are no news.  What was ignored from the start, by nohup(1), stays so.
    """

    def end(*_: object) -> None:
        for number in _ASKED_TO_END[1:]:
            signal.signal(number, lambda *_: None)
        raise KeyboardInterrupt

    for number in _ASKED_TO_END[1:]:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


@contextlib.contextmanager
def _uninterrupted(end: Callable[[], None]) -> Iterator[None]:
    """Hold Ctrl-C back while something starts that nobody else could end yet, then end it.

    Signals are the main thread's alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _noted() as pressed:
        yield
    for number in pressed[:1]:
        end()
        signal.raise_signal(number)


@contextlib.contextmanager
def interrupts_noted() -> Iterator[Callable[[], bool]]:
    """For the while Ctrl-C only lets the function that is given say so."""
    with _noted() as pressed:
        yield lambda: bool(pressed)


@contextlib.contextmanager
def _noted() -> Iterator[list[int]]:
    """For the while signals that ask for the end only get into the list."""
    pressed: list[int] = []
    ignored = (signal.SIG_IGN, None)  # by nohup(1), or by what isn't Python's
    now = {number: signal.getsignal(number) for number in _ASKED_TO_END}
    handlers = {number: handler for number, handler in now.items() if handler not in ignored}
    for number in handlers:
        signal.signal(number, lambda number, _: pressed.append(number))
    try:
        yield pressed
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _environment(argv: Argv, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a command gets: all that we have, or very little if root is to be borrowed."""
    program = Path(argv[0])
    if program.name != _SUDO or not program.is_absolute():  # as borrow_root has it
        return {**os.environ, **(env or {})}
    from xdplab import trust  # here, as below: few commands ask for root

    return trust.environment()


def _require(command: str | Path) -> None:
    """Raise MissingTools unless a command can be found."""
    if not shutil.which(command):
        raise MissingTools([str(command)], "build run")


def find(command: str) -> str | None:
    """How to call a command, also one that only root's PATH leads to; None if there is none."""
    if shutil.which(command):
        return command
    return shutil.which(command, path="/usr/sbin:/sbin")


# It hears when the other end of its input is gone, however that came about.
_GUARD = ("setsid", "--fork", "sh", "-c", 'cat >/dev/null; rm -rf -- "$1"', "sh")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary directory that goes with the block, and also if this process is killed.

    A guard in a session of its own is there before the directory is.  Raises MissingTools.
    """
    _require(_GUARD[0])
    place = Path(tempfile.gettempdir(), f"xdplab-{secrets.token_hex(8)}")
    with subprocess.Popen(
        [*_GUARD, place], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    ) as guard:  # fmt: skip
        guard.wait()  # it has left a child behind
        place.mkdir(mode=0o700)
        try:
            yield place
        finally:
            shutil.rmtree(place)


def parent(pid: int) -> int:
    """The process that a process is a child of; raises OSError if it is gone."""
    return int(_stat(pid)[1])


def since(pid: int) -> float:
    """When a process began, in seconds since the epoch; raises OSError if it is gone."""
    began = int(_stat(pid)[19])
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - up + began / os.sysconf("SC_CLK_TCK")


def lives(group: int) -> bool:
    """Whether a process group has a member that is more than a zombie, which nobody may reap."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is all another user's
        return True
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _, its = _stat(int(process.name))[:3]
            if int(its) == group and state not in _DEAD:
                return True
    return False


_DEAD = "ZX"  # states of proc_pid_stat(5)


def _stat(pid: int) -> list[str]:
    """What proc_pid_stat(5) has behind the command's name, which may be of any characters."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def pasteable(argv: Argv, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """The command as a line for a shell."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    command = " ".join([*settings, shlex.join(map(str, argv))])
    return f"(cd {shlex.quote(str(cwd))} && {command})" if cwd else command


@dataclass(frozen=True, slots=True)
class Shell:
    """How commands are run: who hears of them, and whether they are run at all."""

    echo: Callable[[str], None] = lambda _: None
    dry: bool = False
    hold: Callable[[Running], None] = lambda _: None  # gets each that is started, to end it

    def start(
        self,
        argv: Argv,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        aside: Path | None = None,
    ) -> Running:
        """Start a command and stream its lines; not for a dry run.

        Temporary files go to `aside`, which isn't shown: who pastes it has an own /tmp.
        """
        self.echo(pasteable(argv, cwd, env))
        if log:
            with log.open("a", errors="backslashreplace") as file:
                file.write(f"$ {pasteable(argv, cwd, env)}\n")
        given = {**(env or {}), "TMPDIR": str(aside)} if aside else env
        running = Running(argv, cwd=cwd, env=given, log=log)
        self.hold(running)
        return running

    def run(
        self,
        argv: Argv,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        on_line: OnLine = lambda _: None,
        idle: Callable[[], None] = lambda: None,
        check: bool = True,
        leaves: bool = False,
    ) -> Finished:
        """Run a command that changes something to its end; only echo it in a dry run.

        `on_line` hears each line, `idle` is called in every second without one.
        What `leaves` temporary files when it is killed, as compilers do, is given a
        directory for them that goes with it.  Raises CommandFailed if it returns an
        error and `check` is set.
        """
        if self.dry:
            self.echo(pasteable(argv, cwd, env))
            return Finished(tuple(map(str, argv)), 0, ())
        if leaves:
            _require(argv[0])  # before anything is made for it
        with (
            scratch() if leaves else contextlib.nullcontext() as aside,
            self.start(argv, cwd=cwd, env=env, log=log, aside=aside) as running,
        ):
            running.end_input()
            lines = []
            for line in running.lines(idle=idle):
                lines.append(line)
                on_line(line)
            finished = Finished(running.argv, running.wait(), tuple(lines))
        if check and finished.code:
            said = finished.text("err") or finished.text("out")
            raise CommandFailed(pasteable(argv, cwd, env), finished.code, said[-2000:])
        return finished

    def feed(self, argv: Argv, text: str) -> Fed:
        """Give a command `text`, and wait for its end: for much of both, which nobody watches.

        Not for a dry run.  Raises MissingTools.
        """
        self.echo(pasteable(argv))
        _require(argv[0])
        ended = subprocess.run(
            [*_END_WITH_US, *argv], env=_environment(argv), input=text, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        return Fed(ended.returncode, ended.stdout, ended.stderr)

    def hand_over(
        self, argv: Argv, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> int:
        """Let a command have the terminal to its end, keys and Ctrl-C too; gives its exit code.

        Not for a dry run.  Raises MissingTools.
        """
        _require(argv[0])
        # a handler, not SIG_IGN: that the command would inherit
        handler = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            given, environment = [*_END_WITH_US, *argv], _environment(argv, env)
            return subprocess.run(given, cwd=cwd, env=environment, check=False).returncode
        finally:
            signal.signal(signal.SIGINT, handler)

    def ask(
        self, argv: Argv, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Finished:
        """Run a command that only reads: in a dry run too, whatever it returns."""
        return Shell(self.echo).run(argv, cwd=cwd, env=env, check=False)

    def as_root(self, argv: Argv, why: str) -> list[str | Path]:
        """The command with what it takes to be run as root; sudo asks now, not later.

        Its program is named by its whole path, and that, as each Path among its words, is of
        a file that nobody else can change: see trust.  Raises MissingTools, Changeable, and
        what borrow_root raises.
        """
        program, *words = argv
        fixed = [self._program(program), *map(self._file, words)]
        return [*self.borrow_root(str(program), why), *fixed]

    def borrow_root(self, what: str, why: str) -> list[str]:
        """What it takes to be root, in front of a command; nothing if one is.

        sudo asks for a password now, if it wants one.  Raises NeedsRoot where there is
        neither root nor sudo.
        """
        if os.geteuid() == 0:
            return []
        if not shutil.which(_SUDO):
            raise NeedsRoot(what, f"{why}; and there is no sudo")
        from xdplab import trust

        sudo = trust.command(_SUDO)
        if not self.dry and Shell().ask([sudo, "-n", trust.command("true")]).code:
            if not sys.stdin.isatty():
                raise NeedsRoot(what, f"{why}; and sudo can't ask for a password here")
            asking = [sudo, "--validate"]
            self.echo(f"{pasteable(asking)}   # {why}")
            if subprocess.run(asking, env=_environment(asking), check=False).returncode:
                raise NeedsRoot(what, f"{why}; and sudo refused")
        return [sudo, "-n"]

    def _program(self, program: str | Path) -> str | Path:
        from xdplab import trust

        if "/" in str(program):
            return self._file(Path(program))
        try:
            return trust.command(str(program))
        except MissingTools:
            if self.dry:
                return program
            raise

    def _file(self, word: str | Path) -> str | Path:
        """A word; if it is a Path, of a file that is safe, or isn't there yet in a dry run."""
        if isinstance(word, str) or (self.dry and not word.exists()):
            return word
        from xdplab import trust

        return trust.file(word)


def as_user(argv: Argv, capabilities: Sequence[str] = ()) -> list[str | Path]:
    """A command for root to run, by which it becomes this user again, for the rest of it.

    Who was root before stays it; others keep only these capabilities, as setpriv(1) has them.
    """
    if os.geteuid() == 0:
        return list(argv)
    kept = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    ids = [f"--reuid={os.getuid()}", f"--regid={os.getgid()}", "--init-groups"]
    return ["setpriv", *ids, f"--inh-caps={kept}", f"--ambient-caps={kept}", *argv]
