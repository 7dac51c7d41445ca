"""The host itself, as in the post: this machine's own interfaces."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence

from xdplab.build import Build
from xdplab.errors import LabError, MissingTools
from xdplab.process import Shell
from xdplab.testbed import Bench, Testbed
from xdplab.testbed.local import LocalBench, agent_in, show


class Host(Testbed):
    """Run right here."""

    name = "host"

    def missing(self) -> LabError | None:
        """Nothing is: whether root can be had is seen when it is needed."""
        return None if shutil.which("setpriv") else MissingTools(["setpriv"], "run")

    @contextlib.contextmanager
    def open(self, shell: Shell, *, packets: bool) -> Iterator[Bench]:
        """Only who sends raw packets needs an agent; looking at interfaces is free to all."""
        if not packets:
            yield LocalBench(shell)
            return
        with agent_in(LocalBench(shell), [], ["net_raw"]) as bench:
            yield bench

    def show(self, build: Build, options: Sequence[str], shell: Shell) -> None:
        """The command, as root."""
        show(build, options, shell)
