"""A bench on this machine, in its own network or in a namespace of ours.

What needs to be in that network and needs capabilities is done by an agent, a
process of its own.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xdplab import interfaces, netlink
from xdplab import outlet as outlets
from xdplab.build import Build
from xdplab.errors import CommandFailed, NoSuchInterface, NotAChoice, SessionLost
from xdplab.interfaces import Hindrance
from xdplab.netlink import Attached
from xdplab.outlet import Outlet
from xdplab.packets import Pinged
from xdplab.process import Argv, Running, Shell, as_user, interrupts_noted, pasteable
from xdplab.testbed import Bench, Peers, Place, Process, Testbed, prog_run, tools
from xdplab.testbed.kernel_log import KernelLog, Traced
from xdplab.traffic import Sent
from xdplab.workspace import PROJECT, Workspace

LOOPBACK = Peers("127.0.0.1", ("127.0.0.2", "127.0.0.3"))

_PATIENCE = 30.0  # seconds for the agent to start or to answer: scapy's import included
_WHY = "loading and attaching an XDP program"


@dataclass(slots=True)
class LocalBench(Bench):
    """This machine, seen from a network namespace.

    `enter` is the command that brings another into the namespace.
    """

    shell: Shell
    workspace: Workspace
    enter: tuple[str | Path, ...] = ()
    netns: int | None = None  # a process in the network namespace, if it is not ours
    _agent: Running | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """The host, or a namespace."""
        return "netns" if self.enter else "host"

    def start(
        self, build: Build, options: Sequence[str], log: Path, *, trace: bool = False
    ) -> Process:
        """Start a build's program, through sudo if need be."""
        argv = self.shell.as_root([*self.enter, build.program, *options], _WHY)
        log.parent.mkdir(parents=True, exist_ok=True)
        if not trace:
            return self.shell.start(argv, cwd=build.directory, log=log)
        kernel_log = KernelLog.opened(self.shell)
        return Traced(self.shell.start(argv, cwd=build.directory, log=log), kernel_log)

    def interrupt(self, process: Process) -> None:
        """Send it SIGINT, as root: sudo(8) passes it on."""
        self._signal("-INT", str(process.pid))

    def kill(self, process: Process) -> None:
        """Send SIGKILL to it, and to what sudo(8) has started, which can't pass that on."""
        started = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with contextlib.suppress(OSError):  # it has just ended
            self._signal("-KILL", str(process.pid), *started.read_text().split())

    def _signal(self, *words: str) -> None:
        self.shell.run(self.shell.as_root(["kill", *words], _WHY), check=False)

    def interfaces(self) -> list[str]:
        """The namespace's interfaces."""
        if not self.enter:
            return netlink.interfaces()
        return [str(name) for name in self.ask("interfaces")]

    def place(self, dev: str) -> Place:
        """This machine's kernel; a namespace of ours has nothing but `lo`."""
        driver = "loopback" if self.enter else interfaces.of(dev).driver
        return Place(self.where, platform.release(), driver)

    def attached(self, dev: str) -> list[Attached]:
        """The XDP programs on an interface."""
        if not self.enter:
            return netlink.attached(dev)
        return [Attached(**one) for one in self.ask("attached", dev=dev)]

    def holder(self, one: Attached) -> str:
        """Of the host's, by the records of runs."""
        from xdplab import lifecycle  # here: it needs this module

        return "" if self.enter else lifecycle.holder(one, self.workspace)

    def against_native(self, dev: str) -> list[Hindrance]:
        """What speaks against native XDP; a namespace of ours has only `lo`, which has none."""
        return [] if self.enter else interfaces.against_native(interfaces.of(dev))

    def ping(self, source: str, target: str, count: int) -> Pinged:
        """Send ICMP echo requests inside the namespace."""
        return Pinged(**self.ask("ping", source=source, target=target, count=count))

    def answer_to(self, address: str, dev: str) -> None:
        """Let the address be the interface's own for the while."""
        self.ask("add_address", dev=dev, address=address)

    def peers(self, dev: str) -> Peers:
        """All pings of this machine to itself go through `lo`; raises NotAChoice for another."""
        if dev != "lo":
            raise NotAChoice("--dev", dev, ["lo, or in a virtual machine, --on vm, eth0"])
        return LOOPBACK

    def test_run(self, program: int, frames: Sequence[bytes]) -> list[int]:
        """Run frames through a program of this machine's, from inside the namespace."""
        tool = tools.compiled(tools.TEST_RUN, self.workspace, self.shell)
        argv = self.shell.as_root([*self.enter, *prog_run.command(tool, program)], prog_run.WHY)
        fed = self.shell.feed(argv, "\n".join(prog_run.request(frames)))
        if fed.code:
            raise CommandFailed(pasteable(argv), fed.code, fed.err)
        return prog_run.returned(fed.out.splitlines(), frames)

    def facts(self, build: Build, process: Process) -> dict[str, object]:
        """The program's own process, and one that keeps the namespace."""
        netns = self.netns if self.enter else None
        return {"pid": process.pid, "binary": str(build.program), "netns": netns}

    def outlet(self, dev: str, target: str | None) -> Outlet:
        """An interface to send into; raises NoSuchInterface."""
        if dev not in (present := self.interfaces()):
            raise NoSuchInterface(dev, present)
        if not self.enter:
            return outlets.of(dev, target)
        return Outlet(**self.ask("outlet", dev=dev, target=target))

    def send(
        self, dev: str, frames: Sequence[bytes], *,
        rate: float | None, count: int, seconds: float | None, fast: bool,
    ) -> Iterator[Sent]:  # fmt: skip
        """Send frames, see sender.send; Ctrl-C ends it in good order.

        Raises SessionLost as `ask` does.
        """
        sent = [frame.hex() for frame in frames]
        how = {"rate": rate, "count": count, "seconds": seconds, "fast": fast}
        with interrupts_noted() as pressed:
            told = self._tell("send", dev=dev, frames=sent, **how)
            while "answer" not in (said := _next_object(told)):
                if "error" in said:
                    raise SessionLost(f"sending into {dev}", str(said["error"]))
                yield Sent(**said["news"])
                if pressed():
                    self._tell("stop")

    def ask(self, deed: str, **arguments: object) -> Any:
        """Have the agent do something; raises SessionLost if it is gone or refuses."""
        answer = _next_object(self._tell(deed, **arguments))
        if "error" in answer:
            raise SessionLost(f"{deed} in the testbed", str(answer["error"]))
        return answer["answer"]

    def _tell(self, deed: str, **arguments: object) -> Running:
        if not self._agent:
            raise SessionLost("the testbed's agent", "it was never started")
        self._agent.write(json.dumps({"do": deed, **arguments}))
        return self._agent


@dataclass(frozen=True, slots=True)
class LocalTestbed(Testbed):
    """A testbed whose programs run on this machine itself."""

    workspace: Workspace

    def show(self, build: Build, options: Sequence[str], shell: Shell) -> None:
        """The command, as root."""
        shell.run(shell.as_root([build.program, *options], _WHY), cwd=build.directory)


@contextlib.contextmanager
def agent_in(bench: LocalBench, prefix: Argv, capabilities: Sequence[str]) -> Iterator[LocalBench]:
    """Give the bench an agent, started by the command `prefix` as root.

    Where root was borrowed through sudo it is given back at once: the agent
    keeps the user's identity and only the named capabilities.
    """
    python = as_user([sys.executable, "-m", "xdplab.testbed.agent"], capabilities)
    argv = bench.shell.as_root([*prefix, *python], "raw packets, in a network namespace")
    with bench.shell.start(argv, cwd=PROJECT) as agent:
        bench.netns = int(_next_object(agent)["pid"])
        bench._agent = agent  # the bench's own constructor, in two steps
        yield bench
        agent.end_input()
        with contextlib.suppress(TimeoutError):
            agent.wait(_PATIENCE)


def _next_object(agent: Running) -> dict[str, Any]:
    """The agent's next answer; what it prints besides is kept for the error."""
    said = []
    try:
        for line in agent.lines(_PATIENCE):
            if line.stream == "out" and line.text.startswith("{"):
                answer: dict[str, Any] = json.loads(line.text)
                return answer
            said.append(line.text)
    except TimeoutError:
        said.append(f"no answer for {_PATIENCE:.0f} seconds")
    raise SessionLost("the testbed's agent", "\n".join(said[-8:]))
