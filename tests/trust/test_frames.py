"""The filters against their models: frames by chance through the kernel, and no disagreement.

The long form, with guests of the oldest and the newest kernel: invoke torture --only frames
"""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import PROJECT, Invoke, means_of, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from xdplab import TUTORIAL, runner
from xdplab.bench.measure import Means
from xdplab.bench.place import Place, namespace
from xdplab.boot import Kernel, qemu
from xdplab.build import Build
from xdplab.counters import Reading
from xdplab.model import Action, Policy, Rule, Side
from xdplab.process import Shell
from xdplab.toolchain import Toolchain
from xdplab.torture import chance, frames, programs
from xdplab.torture.frames import JOB, Frames
from xdplab.torture.ground import made
from xdplab.torture.programs import FILTER
from xdplab.torture.trials import (
    Filter,
    Here,
    Inside,
    Loud,
    Trial,
    Tutorial,
    remarked,
    remarks,
)
from xdplab.torture.trials import require_quiet as quiet
from xdplab.tree import Tree
from xdplab.workspace import RunRecord, Workspace

SETS, EACH = 5, 2000  # of rules, and frames for each
RULE = Rule(Side.SRC, ip_network("192.168.1.78/32"))

# hypothesis makes a frame that fails as simple as it can
few_frames = st.lists(st.randoms(use_true_random=False).map(chance.frame), max_size=30)
simplified = settings(deadline=None, max_examples=40)


def by_seed() -> Random:
    return Random(1)  # noqa: S311


def some_trials(sample: str) -> list[Trial]:
    return [Trial.by_chance(sample, f"{sample} {number}", EACH) for number in range(SETS)]


# ---- without a kernel


def test_what_comes_of_a_seed_is_always_the_same_and_of_every_kind() -> None:
    trial, again, other = (Trial.by_chance(FILTER, seed, 500) for seed in ("1", "1", "2"))
    assert trial == again
    assert trial.frames != other.frames
    assert len(trial.frames) == len(trial.verdicts) == 500
    kinds = {frame[12:14] for frame in trial.frames}
    assert {b"\x08\x00", b"\x08\x06", b"\x86\xdd", b"\x81\x00"} <= kinds
    assert all(chance.LEAST <= len(frame) <= chance.MOST for frame in trial.frames)


def test_a_changed_frame_is_nearly_the_same() -> None:
    random = by_seed()
    for _ in range(500):
        frame = chance.frame(random)
        changed = chance.changed(random, frame)
        kept = min(len(changed), len(frame))
        assert sum(frame[at] != changed[at] for at in range(kept)) <= 16


def test_a_wrong_verdict_a_missing_one_and_a_wrong_count_are_found() -> None:
    trial = Trial.of(FILTER, list(some_frames(50)), Policy.ALLOW, [RULE])
    assert not trial.against(trial.verdicts)
    wrong = trial.against("0" + trial.verdicts[1:])
    assert wrong
    assert trial.frames[0].hex() in wrong.left[0]
    assert trial.against(trial.verdicts[:-1])
    assert trial.against(trial.verdicts + "1")
    assert not trial.against_counted(dict(trial.counted))
    assert trial.against_counted({**trial.counted, "pass": (0, 0)})
    assert trial.against_counted({**trial.counted, "src 1.2.3.4/32": (0, 0)})


def some_frames(number: int) -> Iterator[bytes]:
    random = by_seed()
    return (chance.frame(random) for _ in range(number))


def test_a_word_of_warning_is_heard() -> None:
    quiet("the ip to filter is 1.2.3.4/67305985\nattached: dev lo")
    for line in ("libbpf: prog 'x': BPF program load failed", "warning: this"):
        with pytest.raises(Loud, match=line[:7]):
            quiet(f"0\n{line}")


LOG = """\
libbpf: prog '_filter': -- BEGIN PROG LOAD LOG --
{}verification time 105 usec
stack depth {}
processed 40 insns (limit 1000000) max_states_per_insn 0 total_states 3 peak_states 3 mark_read 0
-- END PROG LOAD LOG --
attached: dev lo"""


def test_a_remark_of_the_verifiers_is_found() -> None:
    for depth in ("8", "8+0", "56 max 64\ninsns processed 40"):  # as 6.1, 6.18 and 7.2 say it
        assert not remarked(LOG.format("", depth))
    found = remarked(
        LOG.format("REG INVARIANTS VIOLATION (false_reg1): range bounds violation\n", "8")
    )
    assert found
    assert found.left == ("REG INVARIANTS VIOLATION (false_reg1): range bounds violation",)


@pytest.mark.parametrize("log", ["", LOG.format("", "8").replace("processed", "and")])
def test_without_the_verifiers_statistics_nothing_was_read(log: str) -> None:
    with pytest.raises(Loud, match="verifier"):
        remarked(log)


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
def place(
    labs: Callable[[str], Invoke], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A network of its own, with a BPF file system of its own."""

    def no_tree() -> Tree:
        raise AssertionError("nobody needs one")

    workspace = Workspace(labs("6.1").workspace)
    means = Means(workspace, Shell(), Toolchain.find, no_tree, lambda _: None)
    with namespace(means, ()) as bench:
        yield Place(bench, tmp_path_factory.mktemp("place"))


@pytest.mark.root
@pytest.mark.tree
def test_the_tutorials_filter_agrees(builds: dict[str, Build], place: Place) -> None:
    with place.running(builds[TUTORIAL], JOB) as run:
        tutorial = Tutorial(run, Here(place.bench).verdicts)

        def holds(tried: Sequence[bytes]) -> None:
            assert not tutorial.agrees(Trial.of(TUTORIAL, tried, Policy.ALLOW))

        simplified(given(few_frames)(holds))()
        for trial in some_trials(TUTORIAL):
            assert not tutorial.agrees(trial)
        assert tutorial.dropped > 0
        assert not tutorial.counted()


@pytest.mark.root
@pytest.mark.tree
@pytest.mark.parametrize("policy", Policy)
def test_the_filter_agrees_on_any_frames(
    policy: Policy, builds: dict[str, Build], place: Place
) -> None:
    rules = chance.rules(by_seed(), 40)
    here = Here(place.bench)
    with Filter(here, builds[FILTER]).loaded(policy, rules) as program:

        def holds(tried: Sequence[bytes]) -> None:
            trial = Trial.of(FILTER, tried, policy, rules)
            assert not trial.against(here.verdicts(program, trial))

        simplified(given(few_frames)(holds))()


@pytest.mark.root
@pytest.mark.tree
def test_the_filter_agrees_under_any_rules(builds: dict[str, Build], place: Place) -> None:
    filter_, counted = Filter(Here(place.bench), builds[FILTER]), set()
    for trial in some_trials(FILTER):
        for policy in Policy:
            tried = Trial.of(FILTER, trial.frames, policy, trial.rules)
            assert not filter_.agrees(tried)
            counted |= {one.split()[0] for one, (packets, _) in tried.counted.items() if packets}
    assert {*Side, "pass", "drop"} <= counted


@pytest.mark.root
@pytest.mark.tree
def test_a_filter_with_a_rule_too_few_is_found_out(builds: dict[str, Build], place: Place) -> None:
    filter_ = Filter(Here(place.bench), builds[FILTER])
    frame = bytes(12) + b"\x08\x00\x45" + bytes(11) + bytes([192, 168, 1, 78, 10, 0, 0, 1])
    trial = Trial.of(FILTER, [frame], Policy.ALLOW, [RULE])
    assert trial.verdicts == str(int(Action.DROP))
    assert not filter_.agrees(trial)
    elsewhere = Rule(Side.SRC, ip_network("192.168.1.79/32"))
    found = filter_.agrees(dataclasses.replace(trial, rules=(elsewhere,)))
    assert found
    assert frame.hex() in found.left[0]


@pytest.mark.root
@pytest.mark.tree
def test_the_verifier_has_nothing_to_remark(labs: Callable[[str], Invoke]) -> None:
    means = means_of(Workspace(labs("6.1").workspace))
    with made(means) as ground:
        loud = programs.built(means, ground, programs.LOUD)
        for build in loud.values():
            assert not remarks(Here(ground.bench), build)


# ---- an ordeal of them


def ordeal(build: Build, place: Place, kernels: dict[str, Kernel | None]) -> Frames:
    workspace = place.bench.workspace
    return Frames(place, [build], kernels, ThreadPoolExecutor(1), workspace, trials=2, each=500)


@pytest.mark.root
@pytest.mark.tree
def test_a_try_names_what_was_tried_and_finds_nothing(
    builds: dict[str, Build], place: Place
) -> None:
    kernels: dict[str, Kernel | None] = {platform.release(): None}
    for name, build in builds.items():
        tried = ordeal(build, place, kernels).once(by_seed())
        assert tried.kind == f"{name} on {platform.release()}, 1,000 frames"
        assert not tried.finding


@pytest.mark.root
@pytest.mark.tree
@pytest.mark.image
def test_a_try_in_a_guest_finds_nothing(
    builds: dict[str, Build], place: Place, bootable: Callable[[str], Kernel]
) -> None:
    kernel = bootable("5.10-cloud")
    tried = ordeal(builds[FILTER], place, {kernel.release: kernel}).once(by_seed())
    assert kernel.release in tried.kind
    assert not tried.finding


@pytest.mark.root
@pytest.mark.tree
@pytest.mark.image
def test_a_cpu_that_goes_takes_no_count_with_it(
    builds: dict[str, Build], place: Place, bootable: Callable[[str], Kernel],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    real = qemu.argv

    def with_two_cpus(*what: Any, **how: Any) -> list[str | Path]:
        argv = real(*what, **how)
        argv[argv.index("-smp") + 1] = "2"
        return argv

    monkeypatch.setattr(qemu, "argv", with_two_cpus)
    kernel, build = bootable("6.12-cloud"), builds[TUTORIAL]
    trial = Trial.by_chance(TUTORIAL, "1", EACH)
    with (
        frames.guest(build, [trial], kernel, place.bench.workspace, place, tmp_path) as bench,
        runner.started(build, JOB, bench, RunRecord(tmp_path / "run.json")) as run,
    ):
        seen: list[Reading] = []
        run.sinks.append(seen.append)
        inside = Inside(bench, [trial])
        tutorial = Tutorial(run, lambda program, one: inside.verdicts(program, one, on_cpu))
        for on_cpu, switch in ((1, "0"), (0, "1"), (1, "0"), (0, "0")):
            assert not tutorial.agrees(trial)
            assert not tutorial.counted()
            assert seen[-1].per_cpu[on_cpu] >= trial.verdicts.count("1") > 0
            bench.guest.tell(f"echo {switch} > /sys/devices/system/cpu/cpu1/online")
            assert not tutorial.counted()
    assert all(one.per_cpu.keys() == {0, 1} for one in seen)
    assert all(
        one.per_cpu[cpu] <= after.per_cpu[cpu] for one, after in pairwise(seen) for cpu in (0, 1)
    )


@pytest.mark.root
def test_what_the_kernel_logs_meanwhile_is_heard() -> None:
    kmsg = Path("/dev/kmsg")
    if not kmsg.exists():
        pytest.skip("there is no /dev/kmsg")
    kmsg.write_text("before\n")
    with frames.heard_here() as log:
        kmsg.write_text("a line by a test\n")
    assert any(line.endswith("a line by a test\n") for line in log)
    assert not any("before" in line for line in log)


def test_a_models_process_ends_with_its_parent() -> None:
    told = "from os import getpid; from xdplab.torture.frames import processes"
    deed = "with processes() as pool: print(pool.submit(getpid).result(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", f"{told}\n{deed}"],
        cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.kill()
        wait_until(lambda: not Path(f"/proc/{worker}").exists())
