"""A private network namespace: nothing of the host's network is seen or touched.

It has no name, so that there is none to leave behind: it ends with the last
process in it (network_namespaces(7)).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence

from xdplab.errors import LabError, MissingTools
from xdplab.process import Shell
from xdplab.testbed.local import LocalBench, LocalTestbed, agent_in
from xdplab.workspace import Workspace


class Netns(LocalTestbed):
    """A namespace with nothing in it but `lo`."""

    name = "netns"

    def missing(self) -> LabError | None:
        """The commands of util-linux."""
        absent = [tool for tool in ("unshare", "nsenter", "setpriv") if not shutil.which(tool)]
        return MissingTools(absent, "run") if absent else None

    @contextlib.contextmanager
    def open(self, shell: Shell, *, packets: bool) -> Iterator[LocalBench]:
        """A new namespace, held by our agent, with `lo` up."""
        ours = LocalBench(shell, self.workspace)
        with agent_in(ours, ["unshare", "--net"], ["net_raw", "net_admin"]) as bench:
            bench.enter = ("nsenter", f"--net=/proc/{bench.netns}/ns/net")
            bench.ask("bring_up", dev="lo")
            yield bench


NEAR, FAR = "xdp0", "wire0"  # the ends of the cable: the program's, and the one to send into

_TRANSIT = 0.5  # seconds for a frame to come through, where nothing tells that none will come


@contextlib.contextmanager
def wired(shell: Shell, workspace: Workspace) -> Iterator[LocalBench]:
    """A new namespace with a cable in it, on which there is nothing but what we send."""
    with Netns(workspace).open(shell, packets=True) as bench:
        bench.ask("lay_cable", ends=(NEAR, FAR))
        yield bench


def arrivals(bench: LocalBench, frames: Sequence[bytes]) -> list[bool]:
    """Which frames, sent into the far end, get past XDP at the near: see packets.arrivals."""
    sent = [frame.hex() for frame in frames]
    answer = bench.ask("arrivals", frames=sent, sender=FAR, receiver=NEAR, patience=_TRANSIT)
    return [bool(one) for one in answer]


@contextlib.contextmanager
def join(
    shell: Shell,
    workspace: Workspace,
    process: int,
    capabilities: Sequence[str] = ("net_raw", "net_admin"),
) -> Iterator[LocalBench]:
    """The namespace that a process, of a run in another terminal, is in."""
    enter = ("nsenter", f"--net=/proc/{process}/ns/net")
    with agent_in(LocalBench(shell, workspace, enter), enter, capabilities) as bench:
        yield bench
