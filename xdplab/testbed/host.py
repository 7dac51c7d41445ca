"""The host itself, as in the post: this machine's own interfaces."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from xdplab.errors import LabError, MissingTools
from xdplab.process import Shell
from xdplab.testbed import Bench
from xdplab.testbed.local import LocalBench, LocalTestbed, agent_in


class Host(LocalTestbed):
    """Run right here."""

    name = "host"

    def missing(self) -> LabError | None:
        """Nothing is: whether root can be had is seen when it is needed."""
        return None if shutil.which("setpriv") else MissingTools(["setpriv"], "run")

    @contextlib.contextmanager
    def open(self, shell: Shell, *, packets: bool) -> Iterator[Bench]:
        """Only who sends raw packets needs an agent; looking at interfaces is free to all."""
        if not packets:
            yield LocalBench(shell, self.workspace)
            return
        with agent_in(LocalBench(shell, self.workspace), [], ["net_raw"]) as bench:
            yield bench
