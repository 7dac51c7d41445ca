"""The filters against their models: frames by chance through the kernel, and no disagreement.

A long run, in guests too: XDPLAB_FRAMES=5000000 pytest tests/test_differential.py
Another one: XDPLAB_SEED=2 before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network
from itertools import islice
from pathlib import Path
from random import Random

import frames as chance
import pytest
from conftest import Invoke
from hypothesis import given, settings
from hypothesis import strategies as st

from xdplab import testbed
from xdplab.boot import Kernel, initramfs
from xdplab.build import Build
from xdplab.counters import Reading
from xdplab.model import Action, Policy, Rule, Rules, Side, Verdict, xdp_filter, xdp_ip_filter
from xdplab.process import Shell
from xdplab.runner import Job, Run, started
from xdplab.testbed import prog_run, tools
from xdplab.testbed.local import LocalBench
from xdplab.testbed.vm import GuestBench, Vm
from xdplab.workspace import Workspace

pytestmark = [pytest.mark.root, pytest.mark.tree]

SEED = int(os.environ.get("XDPLAB_SEED", "1"))
FRAMES = int(os.environ.get("XDPLAB_FRAMES", "0"))  # of a long run
SETS = max(1, FRAMES // 20_000) if FRAMES else 5  # of rules
EACH = 20_000 if FRAMES else 2_000  # frames that a set is tried with
GUEST_SETS, GUEST_EACH = 20, 5_000
ADDRESS = IPv4Address("192.168.1.78")

Frames = Sequence[bytes]
Verdicts = Callable[[int, Frames], list[int]]  # given a program's id

# hypothesis makes a frame that fails as simple as it can
few_frames = st.lists(st.randoms(use_true_random=False).map(chance.frame), max_size=30)
simplified = settings(deadline=None, max_examples=40)


def by_seed() -> Random:
    return Random(SEED)  # noqa: S311


def some_rules(random: Random, number: int) -> list[Rule]:
    """Few and many in turn: each kind of place that the filter keeps rules in is used."""
    most = (3, 8, 40, 300, 0)[number % 5]
    return chance.rules(random, most) if most else chance.addresses(random)


@dataclass(slots=True)
class Counted:
    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Filter:
    """xdp_filter's program somewhere: how it is run, and how frames are run through it."""

    run: Callable[..., str]  # given arguments and `text` for its standard input
    verdicts: Verdicts

    @contextlib.contextmanager
    def loaded(self, policy: Policy, rules: Sequence[Rule]) -> Iterator[int]:
        """Load it with these rules; gives the program's id."""
        room = str(max(1, len(rules)))  # no more than is needed: its tables are crowded
        self.run("load", "-d", "lo", "-m", "skb", "-p", policy, "-n", room, "-s")
        try:
            self.run("add", text="".join(f"{rule}\n" for rule in rules))
            yield int(self.run("stats").partition(" prog ")[2].split()[0])
        finally:
            self.run("unload")

    def counted(self) -> dict[Rule | Action, Counted]:
        """What it has counted, by rule and by action."""
        counted: dict[Rule | Action, Counted] = {}
        for line in self.run("list").splitlines():
            side, network, *numbers = line.split()
            counted[Rule(Side(side), ip_network(network))] = Counted(*map(int, numbers))
        for line in self.run("stats").splitlines()[-len(Action) :]:
            name, *numbers = line.split()
            counted[Action[name.upper()]] = Counted(*map(int, numbers))
        return counted


def by_model(
    verdicts: Sequence[Verdict], frames: Frames, rules: Sequence[Rule]
) -> dict[Rule | Action, Counted]:
    """The counters that these verdicts make."""
    counted: dict[Rule | Action, Counted] = {one: Counted() for one in (*rules, *Action)}
    for verdict, frame in zip(verdicts, frames, strict=True):
        for one in (verdict.action, verdict.rule):
            if one is not None:
                counted[one].packets += 1
                counted[one].bytes += len(frame)
    return counted


def same(frames: Frames, returned: Sequence[int], verdicts: Sequence[Action], about: str) -> None:
    """Fail if program and model disagree on a frame."""
    wrong = [
        f"{frame.hex()}: returned {Action(action).name}, the model says {verdict.name}"
        for frame, action, verdict in zip(frames, returned, verdicts, strict=True)
        if action != verdict
    ]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(frames)}, {about}", *wrong[:10]])


def agrees(filter_: Filter, policy: Policy, rules: Sequence[Rule], frames: Frames) -> set[Side]:
    """Load the filter, try it, and look at its counters; gives the sides that counted."""
    about, model = f"policy {policy}: {', '.join(map(str, rules))}", Rules(rules)
    verdicts = [xdp_filter(frame, policy, model) for frame in frames]
    with filter_.loaded(policy, rules) as program:
        same(frames, filter_.verdicts(program, frames), [one.action for one in verdicts], about)
        assert filter_.counted() == by_model(verdicts, frames, rules), about
    return {verdict.rule.side for verdict in verdicts if verdict.rule}


# ---- on this kernel


@pytest.fixture(scope="module")
def builds(labs: Callable[[str], Invoke]) -> dict[str, Build]:
    """Both filters, made in the tree of 6.1."""
    invoke = labs("6.1")
    outcome = invoke("build", "--sample", "xdp_filter")
    assert outcome.code == 0, outcome.err
    paths = invoke.workspace.glob("builds/*/*")
    return {path.name: build for path in paths if (build := Build.load(path))}


@pytest.fixture(scope="module")
def workspace(labs: Callable[[str], Invoke]) -> Workspace:
    return Workspace(labs("6.1").workspace)


@pytest.fixture(scope="module")
def filter_here(builds: dict[str, Build], workspace: Workspace) -> Iterator[Filter]:
    """xdp_filter in a network of its own, with a BPF file system of its own."""
    ready = "mount -t bpf bpf /sys/fs/bpf && echo ready && exec cat"
    with Shell().start(["unshare", "--net", "--mount", "sh", "-c", ready]) as holder:
        assert next(holder.lines(60)).text == "ready"
        own = Path(f"/proc/{holder.pid}/ns")
        enter = ("nsenter", f"--net={own}/net", f"--mount={own}/mnt")
        bench = LocalBench(Shell(), workspace, enter)

        def run(*arguments: str, text: str = "") -> str:
            argv: list[str | Path] = [*enter, builds["xdp_filter"].program, *arguments]
            ended = subprocess.run(argv, input=text.encode(), capture_output=True, check=False)
            assert ended.returncode == 0, ended.stderr.decode()
            return ended.stdout.decode()

        yield Filter(run, bench.test_run)


@dataclass(slots=True)
class Tutorial:
    """The tutorial's filter at work, and how many frames it must have dropped so far."""

    run: Run
    verdicts: Verdicts
    dropped: int = 0

    def agrees(self, frames: Frames) -> None:
        verdicts = [xdp_ip_filter(frame, ADDRESS) for frame in frames]
        self.dropped += verdicts.count(Action.DROP)
        same(frames, self.verdicts(self.run.program.program, frames), verdicts, str(ADDRESS))

    def has_counted(self) -> bool:
        """Whether it says so, sooner or later."""
        readings = (one for one in self.run.output(60) if isinstance(one, Reading))
        return self.dropped > 0 and any(reading.total == self.dropped for reading in readings)


JOB = Job(str(ADDRESS), interval=0.1, rounds=0)


def test_the_tutorials_filter_agrees(builds: dict[str, Build], workspace: Workspace) -> None:
    frames = chance.frames(by_seed())
    with (
        testbed.named("netns", workspace).open(Shell(), packets=False) as bench,
        started(builds["xdp_ip_filter"], JOB, bench, workspace.new_run()) as run,
    ):
        tutorial = Tutorial(run, bench.test_run)
        simplified(given(few_frames)(tutorial.agrees))()
        for _ in range(SETS):
            tutorial.agrees(list(islice(frames, EACH)))
        assert tutorial.has_counted()


@pytest.mark.parametrize("policy", Policy)
def test_the_filter_agrees_on_any_frames(policy: Policy, filter_here: Filter) -> None:
    rules = chance.rules(by_seed(), 40)
    model = Rules(rules)
    with filter_here.loaded(policy, rules) as program:

        def holds(tried: Frames) -> None:
            verdicts = [xdp_filter(frame, policy, model).action for frame in tried]
            same(tried, filter_here.verdicts(program, tried), verdicts, ", ".join(map(str, rules)))

        simplified(given(few_frames)(holds))()


def test_the_filter_agrees_under_any_rules(filter_here: Filter) -> None:
    random, sides = by_seed(), set()
    frames = chance.frames(random)
    for number in range(SETS):
        rules = some_rules(random, number)
        tried = list(islice(frames, EACH))
        for policy in Policy:
            sides |= agrees(filter_here, policy, rules, tried)
    assert sides == set(Side)


# ---- on others


@dataclass(frozen=True, slots=True)
class Trial:
    """A guest with a sample, and frames beside it in files: a terminal is slow."""

    bench: GuestBench
    sets: Sequence[Frames]

    def verdicts(self, program: int, frames: Frames) -> list[int]:
        """What comes of one of the sets."""
        tool = shlex.join(prog_run.command(initramfs.TOOLS / tools.TEST_RUN, program))
        file = initramfs.SAMPLE / str(self.sets.index(frames))
        return [int(digit) for digit in self.bench.guest.tell(f"{tool} < {file} | tr -d '\\n'")]


@contextlib.contextmanager
def trial(build: Build, kernel: Kernel, workspace: Workspace, directory: Path) -> Iterator[Trial]:
    frames = chance.frames(by_seed())
    sets = [list(islice(frames, GUEST_EACH)) for _ in range(GUEST_SETS)]
    vm = Vm(kernel, packed(build, sets, directory / "packed"), "lo", directory, workspace)
    with vm.open(Shell(), packets=False) as bench:
        yield Trial(bench, sets)


def packed(build: Build, sets: Sequence[Frames], directory: Path) -> Build:
    """A build with frames beside it, a file a set, as test_run reads them."""
    shutil.copytree(build.directory, directory)
    for number, tried in enumerate(sets):
        (directory / str(number)).write_text("\n".join(prog_run.request(tried)) + "\n")
    files = [*build.facts["files"], *map(str, range(len(sets)))]
    return dataclasses.replace(build, directory=directory, facts={**build.facts, "files": files})


@pytest.fixture(params=["5.10-cloud", "7.2-cloud"])
def kernel(request: pytest.FixtureRequest, bootable: Callable[[str], Kernel]) -> Kernel:
    if not FRAMES:
        pytest.skip("a long run: XDPLAB_FRAMES=5000000")
    return bootable(request.param)


@pytest.mark.image
def test_the_tutorials_filter_agrees_in_a_guest(
    kernel: Kernel, builds: dict[str, Build], workspace: Workspace, tmp_path: Path
) -> None:
    build = builds["xdp_ip_filter"]
    with (
        trial(build, kernel, workspace, tmp_path) as it,
        started(build, JOB, it.bench, workspace.new_run()) as run,
    ):
        tutorial = Tutorial(run, it.verdicts)
        for tried in it.sets:
            tutorial.agrees(tried)
        assert tutorial.has_counted()


@pytest.mark.image
def test_the_filter_agrees_in_a_guest(
    kernel: Kernel, builds: dict[str, Build], workspace: Workspace, tmp_path: Path
) -> None:
    build, random = builds["xdp_filter"], by_seed()
    with trial(build, kernel, workspace, tmp_path) as it:
        it.bench.guest.tell("mount -t bpf bpf /sys/fs/bpf")

        def run(*arguments: str, text: str = "") -> str:
            command = shlex.join([str(initramfs.SAMPLE / build.name), *arguments])
            given = shlex.join(["printf", r"%s\n", *text.splitlines()])  # a command is one line
            return it.bench.guest.tell(f"{given} | {command}")

        for number, tried in enumerate(it.sets):
            rules = some_rules(random, number)
            for policy in Policy:
                agrees(Filter(run, it.verdicts), policy, rules, tried)
