"""A lab to be in: made, visited from this terminal and others, and taken away.

Who makes it holds it: the nodes are an agent's, see testbed.nodes, and end with it.
Other terminals find it by its record among the runs.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from xdplab import lifecycle
from xdplab.errors import (
    NoCommand,
    NoLab,
    NoShell,
    NotAChoice,
    NotATerminal,
    NotLaidOut,
    SessionLost,
)
from xdplab.lifecycle import LAB
from xdplab.network import BOX, NODE, Network
from xdplab.process import Argv, Shell, as_user, find, pasteable
from xdplab.testbed.local import LocalBench, agent_in
from xdplab.workspace import PROJECT, Workspace, boot_id

_CAPABILITIES = ("sys_admin", "net_admin", "kill", "sys_ptrace")  # see testbed.nodes
_AGENT = "xdplab.testbed.agent"  # in its command line
_WHY = "to be in the lab's network namespace"
_BORROW = PROJECT / "xdplab" / "testbed" / "borrow.py"
_PROMPTS = PROJECT / "templates" / "lab"
USUAL = BOX  # the node to be in: a filter is at home there
# how a shell learns to say in its prompt where it is: options, and an environment
_SHELLS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "bash": (("--rcfile", str(_PROMPTS / "bashrc")), ()),
    "zsh": ((), (f"ZDOTDIR={_PROMPTS}",)),
    "fish": (("--init-command", f"source {shlex.quote(str(_PROMPTS / 'config.fish'))}"), ()),
}


@dataclass(frozen=True, slots=True)
class Errand:
    """What to do in a node: a command, or else the user's shell."""

    argv: tuple[str, ...]
    environment: tuple[str, ...] = ()  # NAME=VALUE, {node} in it

    @classmethod
    def of(cls, command: str | None) -> Errand:
        """The command of a line, or the user's shell.

        Raises NoCommand, NoShell, and NotATerminal where nobody could type into the shell.
        """
        if command is None:
            return cls._shell()
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise NoCommand(command, f"{error}") from None
        found = find(words[0]) if words else None
        if not found:
            raise NoCommand(command, "nothing of that name can be run" if words else "it is empty")
        return cls((found, *words[1:]))

    @classmethod
    def _shell(cls) -> Errand:
        given = os.environ.get("SHELL") or "/bin/sh"
        if not shutil.which(given):
            raise NoShell(given)
        if not sys.stdin.isatty():
            raise NotATerminal(
                "a shell in the lab", 'give a command: invoke lab --command "ping -c 3 10.0.1.1"'
            )
        options, environment = _SHELLS.get(Path(given).name, ((), ("PS1=({node}) $ ",)))
        return cls((given, *options), tuple(environment))


@dataclass(frozen=True, slots=True)
class Visit:
    """A lab that is there, and a node of it."""

    network: Network
    holder: int  # the process that has the nodes open
    descriptors: dict[str, int]  # its, by node
    node: str

    def run(self, errand: Errand, shell: Shell) -> int:
        """Do the errand in the node, on this terminal; gives its exit code.

        Only getting there takes root: the command is the user's, with all of the user's
        environment.
        """
        place = f"/proc/{self.holder}/fd/{self.descriptors[self.node]}"
        argv = _entering(place, self.node, errand, shell)
        shell.echo(pasteable(argv))
        code = 0 if shell.dry else shell.hand_over(argv)
        return 128 - code if code < 0 else code  # a signal's, as shells say it


def _entering(place: str, node: str, errand: Errand, shell: Shell) -> Argv:
    environment = [f"{NODE}={node}", *(one.format(node=node) for one in errand.environment)]
    command: list[str | Path] = ["env", *environment, *errand.argv]
    if os.geteuid() != 0:
        command = as_user([sys.executable, "-I", _BORROW, str(os.getpid()), *command])
    return shell.as_root(["nsenter", f"--net={place}", *command], _WHY)


def require_node(option: str, node: str, network: Network) -> None:
    """Raise NotAChoice for a name that no node has."""
    if node not in network.nodes:
        raise NotAChoice(option, node, network.nodes)


@contextlib.contextmanager
def made(network: Network, node: str, workspace: Workspace, shell: Shell) -> Iterator[Visit]:
    """A new lab, for as long as the block; all that is still in it then is ended.

    A dry run's is nowhere.  Raises NotLaidOut, and what agent_in raises.
    """
    if shell.dry:
        yield Visit(network, 0, dict.fromkeys(network.nodes, 0), node)
        return
    record = workspace.new_run()
    with agent_in(LocalBench(shell, workspace), [], _CAPABILITIES) as bench:
        try:
            descriptors = bench.ask("lay_out", **asdict(network))
        except SessionLost as error:
            raise NotLaidOut(error.cure) from error
        holder = bench.netns or 0
        record.update(
            on=LAB, pid=holder, binary=_AGENT, descriptors=descriptors, boot=boot_id(),
            started=time.time(), ended=None, **asdict(network),
        )  # fmt: skip
        try:
            yield Visit(network, holder, descriptors, node)
        finally:
            record.update(ended=time.time())


def joined(node: str, workspace: Workspace, say: Callable[[str], None]) -> Visit:
    """A node of the newest lab that is there; raises NoLab, NotAChoice."""
    labs = [record.read() for record in lifecycle.under_way(LAB, workspace)]
    if not labs:
        raise NoLab
    if len(labs) > 1:
        say(f"{len(labs)} labs are there: this is the newest")
    fields = labs[0]
    network = Network(fields["hosts"], vlan=fields["vlan"], ipv6=fields["ipv6"])
    require_node("--join", node, network)
    return Visit(network, fields["pid"], fields["descriptors"], node)
