"""The binary, wrapped: started in a testbed, its output read, its end checked."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from xdplab import formats, verifier
from xdplab.build import Build
from xdplab.counters import Reading, readings
from xdplab.errors import (
    DidNotAttach,
    EndedBadly,
    InterfaceTaken,
    ModeRefused,
    NativeHindered,
    NoSuchInterface,
    NotAChoice,
    NotAnAddress,
    NotANumber,
    NotPermitted,
    StillAttached,
    TakesNoAddress,
)
from xdplab.interfaces import Hindrance
from xdplab.process import Line
from xdplab.testbed import Bench, Place, Process
from xdplab.tracing import Log, Logged
from xdplab.workspace import RunRecord, boot_id

MODES = ("auto", "native", "skb", "hw")
_ATTACH_PATIENCE = 20.0  # seconds
_END_PATIENCE = 10.0
_LOOK = 0.2  # seconds between two looks at the interface, where the binary says nothing
# What an end by our own SIGINT is told as: by wait(2), by sudo, and a shell; in a guest SIGTERM.
_INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT, -signal.SIGTERM)
UNKNOWN = "unknown"
# libbpf's word for what the kernel says of a netlink request that it refuses (extack)
KERNEL = "libbpf: Kernel error message: "
# How a driver says that it can't: in its own words, or by having no XDP at all.  That
# there is a program already is no driver's word.
REFUSED = re.compile(rf"{KERNEL}(?!.*\balready\b)|Operation not supported")
# veth and others that have native mode alone say only that of hardware mode
_REFUSED_HW = re.compile(rf"{REFUSED.pattern}|link set xdp fd failed .*Invalid argument")
ALREADY = "an XDP program is there already"  # of xdp_attach.h
# That the limit can't be raised is said beside every failure; by itself it stops nothing.
NOT_PERMITTED = re.compile(r"^(?!RLIMIT_MEMLOCK).*Operation not permitted", re.MULTILINE)
# the binary's one line for us, on standard error
_ATTACHED = re.compile(
    r"attached: dev (\S+) ifindex (\d+) mode (\w+) link (\w+) prog (\d+) tag ([0-9a-f]{16})"
)


@dataclass(frozen=True, slots=True)
class Job:
    """What a build is to do, the same for every testbed."""

    ip: str
    dev: str = "lo"
    mode: str = "auto"
    interval: float = 2.0  # seconds
    rounds: int = 1000  # the post's; 0: no end

    def __post_init__(self) -> None:
        """Raise NotAnAddress, NotAChoice or NotANumber before anything is started."""
        check_address(self.ip)
        if self.mode not in MODES:
            raise NotAChoice("--mode", self.mode, MODES)
        if not 0.001 <= self.interval <= 1e6:
            raise NotANumber("--interval", self.interval, "seconds, at least 0.001")
        if self.rounds < 0:
            raise NotANumber("--rounds", self.rounds, "a number of rounds, 0 for no end")

    def options(self, build: Build) -> list[str]:
        """The binary's options, those that it takes; with -e it ends when its input does."""
        values = {"i": self.ip, "d": self.dev, "m": "" if self.mode == "auto" else self.mode,
                  "t": f"{self.interval:g}", "n": str(self.rounds)}  # fmt: skip
        given = [[f"-{one}", value] for one, value in values.items() if value and build.takes(one)]
        return [*itertools.chain(*given), *(["-e"] if build.takes("e") else [])]


@dataclass(frozen=True, slots=True)
class Program:
    """What the binary says that it attached."""

    dev: str
    ifindex: int
    mode: str
    link: str  # "bpf_link", or "netlink" on kernels before v5.9; UNKNOWN: it didn't say
    program: int
    tag: str  # or UNKNOWN

    @classmethod
    def of(cls, line: Line) -> Program | None:
        """What a line of the binary's says of it, if it does."""
        found = line.stream == "err" and _ATTACHED.match(line.text)
        if not found:
            return None
        dev, ifindex, mode, link, program, tag = found.groups()
        return cls(dev, int(ifindex), mode, link, int(program), tag)


@dataclass(slots=True)
class Run:
    """A filter that is attached and counts."""

    process: Process
    program: Program
    ip: str  # whose packets it drops; empty: it takes no address
    place: Place
    since: float  # when it was attached, in seconds since the epoch
    early: list[Line] = field(default_factory=list)  # what was printed before it was attached
    # each gets every reading, before who follows the run
    sinks: list[Callable[[Reading], None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # why it has not the mode that it could have
    said: list[str] = field(default_factory=list)  # on standard error, so far
    log: Log = field(default_factory=lambda: Log([]))
    on_log: Callable[[Logged], None] = lambda _: None  # hears what the kernel half logs
    sample: str = ""  # its name
    interrupt: Callable[[], None] = lambda: None  # ends it where its input's end doesn't

    def output(
        self, timeout: float | None = None, hear: Callable[[str], None] = lambda _: None
    ) -> Iterator[Reading | str]:
        """Readings and other lines as they come, to the binary's end; `hear` gets all lines.

        Raises TimeoutError after `timeout` seconds in all.
        """
        for item in readings(self._lines(timeout, hear)):
            if isinstance(item, Reading):
                for sink in self.sinks:
                    sink(item)
            yield item

    def _lines(self, timeout: float | None, hear: Callable[[str], None]) -> Iterator[str]:
        early, self.early = self.early, []
        for line in itertools.chain(early, self.process.lines(timeout)):
            if line.stream == "out":
                hear(line.text)
                yield line.text
            elif line.stream == "err":
                self.said.append(line.text)
            elif logged := self.log.take(line.text):
                self.on_log(logged)

    def remarks(self) -> list[str]:
        """What there was to say while it attached: warnings, and the mode it got and why."""
        return [line.text for line in self.early if line.stream == "err"] + self.notes

    def stop(self) -> None:
        """Ask it to detach and end; what it prints meanwhile can still be read."""
        self.process.end_input()
        self.interrupt()


@contextlib.contextmanager
def started(
    build: Build, job: Job, bench: Bench, record: RunRecord, *, trace: bool = False
) -> Iterator[Run]:
    """A run, from attached to gone; with `trace` it hears what its kernel half logs.

    Raises NoSuchInterface, InterfaceTaken and NativeHindered before anything is
    attached, DidNotAttach or NotPermitted if it can't be, and after the end EndedBadly or
    StillAttached: the interface is looked at again.
    """
    check_interface(job.dev, bench)
    hindrances = _against_native(build, job, bench)
    place = bench.place(job.dev)
    process = bench.start(build, job.options(build), record.log, trace=trace)
    with ending(process):
        program, early = _wait_until_attached(build, job, bench, process, record.log)
        since = time.time()
        record.update(
            **asdict(program),
            **bench.facts(build, process),
            ip=job.ip if build.takes("i") else "",
            on=bench.where,
            release=place.release,
            build=build.facts,
            boot=boot_id(),
            started=since,
            ended=None,
        )
        lost = hindrances if program.mode == "skb" else []
        notes = [f"{one.words}: {one.cure}" for one in lost]
        keep = formats.keeper(record.readings)
        run = Run(
            process,
            program,
            job.ip if build.takes("i") else "",
            place,
            since,
            early,
            [keep],
            notes,
            log=Log(build.facts.get("logs") or []),
            sample=build.name,
            interrupt=(lambda: None) if build.takes("e") else partial(bench.interrupt, process),
        )
        try:
            yield run
        finally:
            run.stop()
            try:
                for _ in run.output(_END_PATIENCE):
                    pass
            except TimeoutError:
                bench.kill(process)
            process.end()
            record.update(ended=time.time())
    if any(one.program == program.program for one in bench.attached(program.dev)):
        raise StillAttached(program.dev, program.program)
    code = process.wait()
    if code and (build.takes("e") or code not in _INTERRUPTED):
        raise EndedBadly(code, "\n".join(run.said))


@contextlib.contextmanager
def ending(process: Process) -> Iterator[None]:
    """End the process with the block."""
    try:
        yield
    finally:
        process.end()


def check_address(given: str) -> None:
    """Raise NotAnAddress unless it is an IPv4 address in four decimal numbers."""
    try:
        ipaddress.IPv4Address(given)
    except ValueError:
        raise NotAnAddress(given) from None


def check_takes_address(build: Build) -> None:
    """Raise TakesNoAddress if the user half can't be told an address."""
    if not build.takes("i"):
        raise TakesNoAddress(build.name)


def check_interface(dev: str, bench: Bench) -> None:
    """Raise NoSuchInterface, or InterfaceTaken if there is a program already."""
    present = bench.interfaces()
    if dev not in present:
        raise NoSuchInterface(dev, present)
    for one in bench.attached(dev):
        raise InterfaceTaken(dev, one.program, one.mode, bench.holder(one))


def _against_native(build: Build, job: Job, bench: Bench) -> list[Hindrance]:
    """What speaks against native mode, where it may be taken; raises NativeHindered."""
    if job.mode not in ("auto", "native"):
        return []
    fragments = any(b"xdp.frags" in path.read_bytes() for path in build.objects)
    found = [one for one in bench.against_native(job.dev) if not (fragments and one.one_page)]
    certain = [one for one in found if one.certain]
    if job.mode == "native" and certain:
        reasons = [f"{one.words} ({one.says})" for one in certain]
        raise NativeHindered(job.dev, reasons, [one.cure for one in certain])
    return found


def _wait_until_attached(
    build: Build, job: Job, bench: Bench, running: Process, log: Path
) -> tuple[Program, list[Line]]:
    """What the binary says that it has attached, or else is found, and what it said before.

    The interface had no program before: what is there now is the binary's.
    """
    early: list[Line] = []
    announces = build.facts.get("announces", True)
    deadline = time.monotonic() + _ATTACH_PATIENCE
    ended = False
    while not ended and (left := deadline - time.monotonic()) > 0:
        try:
            for line in running.lines(left if announces else _LOOK):
                early.append(line)
                program = Program.of(line)
                if program:
                    return program, early
            ended = True
        except TimeoutError:
            pass
        for one in [] if announces else bench.attached(job.dev):
            found_there = Program(one.dev, one.ifindex, one.mode, UNKNOWN, one.program, UNKNOWN)
            return found_there, early
    if not ended:
        bench.kill(running)
        running.end()
    lines = [line.text for line in early if line.stream == "err"]
    said = "\n".join(lines)
    code = running.wait(_END_PATIENCE)
    if NOT_PERMITTED.search(said):
        raise NotPermitted(said)
    if ALREADY in said:  # since it was looked at
        check_interface(job.dev, bench)
    refused = _REFUSED_HW if job.mode == "hw" else REFUSED
    refusals = [line for line in lines if refused.search(line)]
    if refusals and job.mode != "auto":
        raise ModeRefused(job.dev, job.mode, refusals[0].removeprefix(KERNEL), said)
    raise DidNotAttach(job.dev, code, verifier.shortened(said, log), said)
