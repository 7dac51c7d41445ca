"""The commands on virtual machines: the tutorial on a kernel of one's choice, without root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import (
    NOBODY,
    PROJECT,
    Background,
    Invoke,
    assert_refused,
    path_without,
    processes_in,
    snapshot,
    wait_until,
)

from xdplab.boot import Kernel, qemu

pytestmark = pytest.mark.tree

IP = "192.168.1.78"
CHECKS = 8  # of verify, in a network of its own


@pytest.fixture(scope="session")
def kernel(bootable: Callable[[str], Kernel]) -> Kernel:
    return bootable("6.1-cloud")


@contextlib.contextmanager
def running(lab: Invoke, kernel: Kernel, *options: str) -> Iterator[Background]:
    """`invoke run` in a virtual machine, attached and counting."""
    boot = f"--boot={kernel.image.parent}"
    with lab.start("run", "--on=vm", boot, "--interval=0.1", *options) as background:
        background.wait_for("round 0")
        yield background
    assert left_of(lab.workspace) == []


def left_of(workspace: Path) -> list[str]:
    """Processes of virtual machines, and files of theirs that are no logs."""
    files = [path.name for path in workspace.glob("runs/*/*")]
    unwanted = sorted(set(files) - {"kernel.log", "output.log", "readings.jsonl", "run.json"})
    return [*map(str, processes_in(workspace / "runs")), *unwanted]


@pytest.mark.parametrize(
    ("dev", "mode", "seen"),
    [("lo", "auto", "skb"), ("eth0", "skb", "skb"), ("eth0", "native", "native")],
)
def test_the_claim_is_proved_on_another_kernel(
    lab: Invoke, kernel: Kernel, dev: str, mode: str, seen: str
) -> None:
    boot = f"--boot={kernel.image.parent}"
    outcome = lab("verify", "--on=vm", boot, f"--dev={dev}", f"--mode={mode}")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("ok   ") == CHECKS
    assert f"the kernel shows it on {dev}: prog/xdp id" in outcome.out
    assert f"in {seen} mode" in outcome.out
    (tried,) = [command for command in outcome.commands() if "verdicts" in command]
    assert " /frames " in tried  # the cases' frames: they came with the guest
    assert left_of(lab.workspace) == []


def test_readings_come_live_and_other_terminals_can_send_look_and_end(
    lab: Invoke, kernel: Kernel
) -> None:
    with running(lab, kernel, "--dev=eth0", f"--ip={IP}") as background:
        status = lab("status")
        assert f"filters {IP}, in the virtual machine of process" in status.out
        sent = lab("send", "--on=vm", "--count=4")
        assert sent.out == f"4 from {IP} to 192.0.2.1: 0 got past XDP, 0 answered\n"
        sent = lab("send", "--on=vm", "--ip=10.1.2.3")
        assert sent.out == "1 from 10.1.2.3 to 192.0.2.1: 1 got past XDP, 1 answered\n"
        background.wait_for("total 4")
        # any traffic too, through the cable: what is tagged the filter lets pass
        sent = lab("send", "--on=vm", "--count=50", "--rate=500", "--proto=udp", "--size=300")
        assert sent.out.startswith("50 frames of 300 bytes into eth0 in "), sent.err
        assert lab("send", "--on=vm", "--count=5", "--vlan=7").code == 0
        background.wait_for("total 54")
        assert_refused(lab("send", "--on=vm", "--fast"), 2, "--on", "slowly")
        assert_refused(lab("send", "--on=vm", "--rate=5000"), 2, "--rate", "at most 1000")
        ended = lab("detach", "--on=vm")
        assert ended.code == 0, ended.err
        assert "and its virtual machine are gone" in ended.err
        assert background.wait().code == 0
    assert_refused(lab("send", "--on=vm"), 2, "no filter runs on vm", "invoke run --on vm")


def test_ctrl_c_ends_a_run(lab: Invoke, kernel: Kernel) -> None:
    with running(lab, kernel) as background:
        outcome = background.interrupt()
    assert outcome.code == 0, outcome.err
    assert "detached: nothing of it is left on lo" in outcome.err


@pytest.mark.parametrize("word", ["qemu-system-x86_64", "Linux version", "attached: dev"])
def test_ctrl_c_at_any_moment_leaves_nothing(lab: Invoke, kernel: Kernel, word: str) -> None:
    """While QEMU starts, while the kernel boots, while the program runs."""
    with lab.start("verify", "--on=vm", f"--boot={kernel.image.parent}") as background:
        if word == "Linux version":
            logs = set(lab.workspace.glob("runs/*/kernel.log"))

            def booting() -> bool:
                new = set(lab.workspace.glob("runs/*/kernel.log")) - logs
                return any(word in log.read_text(errors="replace") for log in new)

            wait_until(booting)
        elif word == "attached: dev":
            background.wait_for("start /sample/xdp_ip_filter")
        else:
            background.wait_for(f"{word} -M")
        outcome = background.interrupt()
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    assert "Traceback" not in outcome.err
    assert left_of(lab.workspace) == []


def test_no_qemu_outlives_the_harness(lab: Invoke, kernel: Kernel) -> None:
    with lab.start("run", "--on=vm", f"--boot={kernel.image.parent}") as background:
        background.wait_for("round 0")
        assert processes_in(lab.workspace / "runs")
        background.process.kill()
        wait_until(lambda: not processes_in(lab.workspace / "runs"))
    assert "virtual machine" not in lab("status").out
    for directory in lab.workspace.glob("runs/*"):  # what is left is `invoke clean`'s to remove
        shutil.rmtree(directory)


def test_an_ordinary_user_needs_no_root(lab: Invoke, kernel: Kernel, nobody: Path) -> None:
    shutil.copytree(kernel.image.parent, nobody / "kernel")
    theirs = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    env = {"HOME": str(nobody), "PATH": path_without(nobody / "bin", "sudo")}
    for command in (["setup", f"--tree={nobody / 'linux'}"], ["build"]):
        outcome = theirs(*command, env=env, under=NOBODY)
        assert outcome.code == 0, outcome.err
    # the real pair, in the place of what a made-up tree can build
    built = next(nobody.glob("workspace/builds/*/xdp_ip_filter"))
    for file in next(lab.workspace.glob("builds/*/xdp_ip_filter")).glob("xdp_ip_filter*"):
        shutil.copy(file, built)
    outcome = theirs(
        "verify", "--on=vm", f"--boot={nobody / 'kernel'}", "--dev=eth0", env=env, under=NOBODY
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("ok   ") == CHECKS


def test_a_dry_run_boots_nothing_and_fetches_nothing(lab: Invoke, kernel: Kernel) -> None:
    before = snapshot(lab.workspace)
    for boot in (f"--boot={kernel.image.parent}", "--boot=5.10-cloud"):
        outcome = lab("--dry", "run", "--on=vm", boot, "--dev=eth0")
        assert outcome.code == 0, outcome.err
        echoed = "\n".join(outcome.commands())
        assert "qemu-system-x86_64 -M pc" in echoed
        assert f"/sample/xdp_ip_filter -i {IP} -d eth0" in echoed
    after = snapshot(lab.workspace)
    assert {path for path in set(after) ^ set(before) if "kvm.json" not in path} == set()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--on=vm", "--boot=six"], 2, "six"),
        (["--on=vm", "--boot=/nowhere/vmlinuz"], 2, "/nowhere/vmlinuz"),
        (["--on=vm", f"--boot={sys.executable}"], 2, "can't be booted"),
        (["--on=vm", f"--boot={PROJECT}/README.md"], 2, "README.md"),
        (["--on=netns", "--boot=6.1"], 2, "--boot"),
        (["--on=vm", "--dev=wlan0"], 2, "--dev takes one of: lo, eth0"),
        (["--on=cloud"], 2, "--on takes one of: host, netns, vm"),
    ],
)
def test_what_can_not_be_booted(
    lab: Invoke, kernel: Kernel, options: list[str], code: int, words: str
) -> None:
    boot = [] if any("--boot" in one for one in options) else [f"--boot={kernel.image.parent}"]
    assert_refused(lab("verify", *options, *(boot if "--on=vm" in options else [])), code, words)
    assert left_of(lab.workspace) == []


def test_without_qemu(lab: Invoke, kernel: Kernel, tmp_path: Path) -> None:
    env = {"PATH": path_without(tmp_path / "bin", qemu.QEMU)}
    outcome = lab("verify", "--on=vm", f"--boot={kernel.image.parent}", env=env)
    assert_refused(outcome, 69, qemu.QEMU, "scripts/bootstrap vm")


def test_a_run_that_loses_its_machine_says_so(lab: Invoke, kernel: Kernel) -> None:
    with lab.start("run", "--on=vm", f"--boot={kernel.image.parent}") as background:
        background.wait_for("round 0")
        for pid in processes_in(lab.workspace / "runs"):
            os.kill(pid, signal.SIGKILL)
        outcome = background.wait()
    assert_refused(outcome, 69, "QEMU was killed by signal 9", "the kernel's last words:")
    assert left_of(lab.workspace) == []
