"""A place where the bench puts programs: a network namespace in which nothing is anybody else's."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xdplab import build as building
from xdplab import runner
from xdplab.bench.measure import Means
from xdplab.build import Build
from xdplab.errors import CommandFailed
from xdplab.process import pasteable
from xdplab.runner import Job, Run
from xdplab.sample import Sample
from xdplab.testbed.local import LocalBench, agent_in
from xdplab.workspace import RunRecord

BPFFS = "/sys/fs/bpf"
_WHY = "packet filters in a network namespace"

# sysfs shows the interfaces of who mounts it; what is pinned in a BPF file system of its own
# is nobody else's; and a source that no route leads to is none to refuse
_SETTLE = f"""\
mount -t sysfs sysfs /sys && mount -t bpf bpf {BPFFS} &&
for one in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $one; done && exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where programs are put, and a directory for what is kept meanwhile."""

    bench: LocalBench
    scratch: Path

    def run(self, *command: str | Path, text: str = "") -> str:
        """Run a command there, as root; gives what it printed.  Raises CommandFailed."""
        argv = self.bench.shell.as_root([*self.bench.enter, *command], _WHY)
        fed = self.bench.shell.feed(argv, text)
        if fed.code:
            raise CommandFailed(pasteable(argv), fed.code, fed.err[-2000:])
        return fed.out

    @contextlib.contextmanager
    def running(self, build: Build, job: Job) -> Iterator[Run]:
        """A sample there, attached."""
        record = RunRecord(Path(tempfile.mkdtemp(dir=self.scratch)) / "run.json")
        bench = replace(self.bench, enter=(*self.bench.enter, f"--wd={build.directory}"))
        with runner.started(build, job, bench, record) as run:
            yield run


@contextlib.contextmanager
def namespace(means: Means, rights: Sequence[str]) -> Iterator[LocalBench]:
    """A namespace with sysfs and a BPF file system of its own; it ends with its agent.

    `rights` are the capabilities of the agent.
    """
    settled = ["unshare", "--net", "--mount", "sh", "-c", _SETTLE, "sh"]
    with agent_in(LocalBench(means.shell, means.workspace), settled, rights) as bench:
        namespaces = f"/proc/{bench.netns}/ns"
        bench.enter = ("nsenter", f"--net={namespaces}/net", f"--mount={namespaces}/mnt")
        bench.ask("bring_up", dev="lo")
        yield bench


def built(means: Means, sample: Sample, keep: Path | None, *, trace: bool = False) -> Build:
    """A sample, built in the current tree and kept in a directory, or where `run` finds it."""
    return building.build(
        means.tree(), sample, means.toolchain(), means.workspace, means.shell,
        lambda _: None, lambda _: None, trace=trace, keep=keep,
    )  # fmt: skip
