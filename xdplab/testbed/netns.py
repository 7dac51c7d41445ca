"""A private network namespace: nothing of the host's network is seen or touched.

It has no name, so that there is none to leave behind: it ends with the last
process in it (network_namespaces(7)).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from xdplab.errors import LabError, MissingTools
from xdplab.process import Shell
from xdplab.testbed import Bench
from xdplab.testbed.local import LocalBench, LocalTestbed, agent_in


class Netns(LocalTestbed):
    """A namespace with nothing in it but `lo`."""

    name = "netns"

    def missing(self) -> LabError | None:
        """The commands of util-linux."""
        absent = [tool for tool in ("unshare", "nsenter", "setpriv") if not shutil.which(tool)]
        return MissingTools(absent, "run") if absent else None

    @contextlib.contextmanager
    def open(self, shell: Shell, *, packets: bool) -> Iterator[Bench]:
        """A new namespace, held by our agent, with `lo` up."""
        with agent_in(LocalBench(shell), ["unshare", "--net"], ["net_raw", "net_admin"]) as bench:
            bench.enter = ("nsenter", f"--net=/proc/{bench.netns}/ns/net")
            bench.ask("bring_up", dev="lo")
            yield bench


@contextlib.contextmanager
def join(shell: Shell, process: int) -> Iterator[Bench]:
    """The namespace that a process, of a run in another terminal, is in."""
    enter = ("nsenter", f"--net=/proc/{process}/ns/net")
    with agent_in(LocalBench(shell, enter), enter, ["net_raw", "net_admin"]) as bench:
        yield bench
