"""Testbeds: where a sample runs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from xdplab import netlink
from xdplab.errors import LabError, NotAChoice, SessionLost
from xdplab.netlink import Attached
from xdplab.packets import Pinged
from xdplab.process import Argv, Running, Shell
from xdplab.workspace import PROJECT

_PATIENCE = 30.0  # seconds for the agent to start or to answer: scapy's import included


@dataclass(slots=True)
class Bench:
    """An opened testbed: a place to start binaries, send packets, and look.

    `enter` is the command that brings another into the testbed.
    """

    shell: Shell
    enter: tuple[str | Path, ...] = ()
    netns: int | None = None  # a process in the network namespace, if it is not ours
    _agent: Running | None = field(default=None, repr=False)

    def as_root(self, argv: Argv, why: str) -> list[str | Path]:
        """The command as root inside the testbed."""
        return self.shell.as_root([*self.enter, *argv], why)

    def attached(self, dev: str) -> list[Attached]:
        """The XDP programs on an interface of the testbed."""
        if not self.enter:
            return netlink.attached(dev)
        return [Attached(**one) for one in self.ask("attached", dev=dev)]

    def interfaces(self) -> list[str]:
        """The testbed's interfaces."""
        if not self.enter:
            return netlink.interfaces()
        return [str(name) for name in self.ask("interfaces")]

    def ping(self, source: str, target: str, count: int) -> Pinged:
        """Send ICMP echo requests inside the testbed."""
        return Pinged(**self.ask("ping", source=source, target=target, count=count))

    def ask(self, deed: str, **arguments: object) -> Any:
        """Have the agent do something; raises SessionLost if it is gone or refuses."""
        if not self._agent:
            raise SessionLost("the testbed's agent", "it was never started")
        self._agent.write(json.dumps({"do": deed, **arguments}))
        answer = _next_object(self._agent)
        if "error" in answer:
            raise SessionLost(f"{deed} in the testbed", str(answer["error"]))
        return answer["answer"]


class Testbed(ABC):
    """A kind of place to run in."""

    name: ClassVar[str]

    @abstractmethod
    def missing(self) -> LabError | None:
        """Why it can't be had on this machine, with the cure; None if it can."""

    @abstractmethod
    def open(self, shell: Shell, *, packets: bool) -> contextlib.AbstractContextManager[Bench]:
        """Make it ready, to send packets in too if asked, and take it away afterwards."""


@contextlib.contextmanager
def agent_in(bench: Bench, prefix: Argv, capabilities: Sequence[str]) -> Iterator[Bench]:
    """Give the bench an agent, started by the command `prefix` as root.

    Where root was borrowed through sudo it is given back at once: the agent
    keeps the user's identity and only the named capabilities.
    """
    python: list[str | Path] = [sys.executable, "-m", "xdplab.testbed.agent"]
    if os.geteuid() != 0:
        ambient = ",".join(f"+{name}" for name in capabilities)
        identity = [f"--reuid={os.getuid()}", f"--regid={os.getgid()}", "--init-groups"]
        kept = [f"--inh-caps=-all,{ambient}", f"--ambient-caps=-all,{ambient}"]
        python = ["setpriv", *identity, *kept, *python]
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


def named(name: str) -> Testbed:
    """The testbed of that name; raises NotAChoice, or what it misses on this machine."""
    from xdplab.testbed.host import Host
    from xdplab.testbed.netns import Netns

    beds: dict[str, type[Testbed]] = {bed.name: bed for bed in (Host, Netns)}
    if name not in beds:
        raise NotAChoice("--on", name, beds)
    bed = beds[name]()
    missing = bed.missing()
    if missing:
        raise missing
    return bed
