"""Testbeds: where a sample runs."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from xdplab.errors import LabError, NotAChoice

if TYPE_CHECKING:
    from xdplab.build import Build
    from xdplab.interfaces import Hindrance
    from xdplab.netlink import Attached
    from xdplab.packets import Pinged
    from xdplab.process import Line, Shell
    from xdplab.workspace import Workspace

NAMES = ("host", "netns", "vm")  # as --on has them


class Process(Protocol):
    """A program that runs in a testbed: see process.Running."""

    @property
    def pid(self) -> int:
        """A process of this machine that it lives and ends with."""

    def lines(self, timeout: float | None = None) -> Iterator[Line]:
        """Lines as they come, to the end; TimeoutError after `timeout` seconds in all."""

    def end_input(self) -> None:
        """Ask it to end."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; TimeoutError if it hasn't ended after `timeout` seconds."""

    def end(self) -> None:
        """End it, whatever it says."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Addresses to prove the claim with on an interface."""

    target: str
    others: tuple[str, ...]  # sources whose packets must get through


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program is attached, as far as that decides what it sees."""

    where: str  # the testbed
    release: str  # of its kernel, as uname(1) has it
    driver: str  # of the interface, as interfaces.Interface has it


class Bench(ABC):
    """An opened testbed: a place to start programs, send packets, and look."""

    @property
    @abstractmethod
    def where(self) -> str:
        """The testbed's name."""

    @property
    def private(self) -> bool:
        """Whether its network is ours alone."""
        return self.where != "host"

    @abstractmethod
    def start(
        self, build: Build, options: Sequence[str], log: Path, *, trace: bool = False
    ) -> Process:
        """Start a build's program as root, in the directory with its object.

        With `trace` its lines come with those of the kernel's log among them.
        """

    def interrupt(self, process: Process) -> None:
        """Have a program that doesn't mind the end of its input end by a signal."""
        process.end_input()

    def kill(self, process: Process) -> None:
        """End a program that doesn't mind that either."""
        process.end()

    @abstractmethod
    def interfaces(self) -> list[str]:
        """The testbed's interfaces."""

    @abstractmethod
    def place(self, dev: str) -> Place:
        """What there is to know of an interface of the testbed."""

    @abstractmethod
    def attached(self, dev: str) -> list[Attached]:
        """The XDP programs on an interface of the testbed."""

    def holder(self, one: Attached) -> str:
        """Who has attached a program, and since when, for people; empty if that can't be asked."""
        return ""

    def against_native(self, dev: str) -> list[Hindrance]:
        """What is known to speak against native XDP on an interface as it is now."""
        return []

    @abstractmethod
    def ping(self, source: str, target: str, count: int) -> Pinged:
        """Send ICMP echo requests to an address of the testbed's."""

    @abstractmethod
    def answer_to(self, address: str, dev: str) -> None:
        """See to it that packets from an address are answered; only where it is private."""

    @abstractmethod
    def peers(self, dev: str) -> Peers:
        """Whom to ping on an interface, and from where."""

    @abstractmethod
    def test_run(self, program: int, frames: Sequence[bytes]) -> list[int]:
        """What a loaded program returns for Ethernet frames, by BPF_PROG_TEST_RUN: see prog_run.

        `program` is its id; what comes back are XDP's numbers (enum xdp_action of linux/bpf.h),
        or what else the program returns.  Raises FrameRefused for what is no frame to the
        kernel, MissingTools, and CommandFailed if there is no such program.
        """

    @abstractmethod
    def facts(self, build: Build, process: Process) -> dict[str, object]:
        """What another terminal needs to find a run again, and to end it."""


class Testbed(ABC):
    """A kind of place to run in."""

    name: ClassVar[str]

    @abstractmethod
    def missing(self) -> LabError | None:
        """Why it can't be had on this machine, with the cure; None if it can."""

    @abstractmethod
    def open(self, shell: Shell, *, packets: bool) -> contextlib.AbstractContextManager[Bench]:
        """Make it ready, to send packets in too if asked, and take it away afterwards."""

    @abstractmethod
    def show(self, build: Build, options: Sequence[str], shell: Shell) -> None:
        """Echo the commands of a run, for a dry run."""


def named(name: str, workspace: Workspace) -> Testbed:
    """The testbed on this machine of that name.

    Raises NotAChoice, or what it misses here.
    """
    from xdplab.testbed.host import Host
    from xdplab.testbed.local import LocalTestbed
    from xdplab.testbed.netns import Netns

    beds: dict[str, type[LocalTestbed]] = {bed.name: bed for bed in (Host, Netns)}
    if name not in beds:
        raise NotAChoice("--on", name, NAMES)
    return ready(beds[name](workspace))


def ready(bed: Testbed) -> Testbed:
    """The testbed, if it misses nothing here; raises what it misses."""
    missing = bed.missing()
    if missing:
        raise missing
    return bed
