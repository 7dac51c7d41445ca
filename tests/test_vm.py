"""The virtual machine: what goes into it, what comes out of it, and how it can end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, Invoke

from xdplab import cases
from xdplab.boot import Kernel, initramfs, qemu
from xdplab.boot.guest import booted, splats
from xdplab.boot.initramfs import Entry, cpio
from xdplab.build import Build
from xdplab.errors import (
    GuestHangs,
    GuestLost,
    GuestPanic,
    KernelSplat,
    MissingTools,
    NoBoot,
    NotAChoice,
    QemuTooOld,
)
from xdplab.logs import Tail
from xdplab.netlink import Attached, of_ip_link
from xdplab.process import Line, Shell
from xdplab.runner import Job
from xdplab.testbed.vm import GuestBench, Vm
from xdplab.verify import verify
from xdplab.workspace import RunRecord, Workspace

IP = "192.168.1.78"


# ---- the archive


def test_an_archive_is_one_that_cpio_can_read(tmp_path: Path) -> None:
    if not shutil.which("cpio"):
        pytest.skip("cpio is not installed")
    entries = [
        Entry("d", stat.S_IFDIR | 0o755),
        Entry("d/odd", stat.S_IFREG | 0o755, b"12345"),
        Entry("d/empty", stat.S_IFREG | 0o600),
        Entry("link", stat.S_IFLNK | 0o777, b"d/odd"),
    ]
    subprocess.run(
        ["cpio", "-id", "--quiet"], input=cpio(entries), cwd=tmp_path, check=True, timeout=PATIENCE
    )
    assert (tmp_path / "link").read_bytes() == b"12345"
    assert (tmp_path / "d/odd").stat().st_mode == stat.S_IFREG | 0o755
    assert (tmp_path / "d/empty").stat().st_size == 0


def test_a_program_comes_with_its_libraries() -> None:
    here = initramfs.libraries([Path("/bin/sh")], Shell())
    assert any(path.name.startswith("libc.so") for path in here)
    assert any(path.name.startswith("ld-") for path in here)


def test_a_static_program_needs_none() -> None:
    busybox = shutil.which("busybox")
    if not busybox:
        pytest.skip("busybox is not installed")
    said = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False)
    if not said.returncode:
        pytest.skip("this busybox is not a static one")
    assert initramfs.libraries([Path(busybox)], Shell()) == []


# ---- what is read


def test_the_kernels_trouble_is_found_in_its_log() -> None:
    log = [
        "[    0.000000] Linux version 6.1.0 (gcc) #1 SMP",
        "[    0.100000] Warning: unable to open an initial console.",
        "[    1.100000] rcu: INFO: rcu_sched self-detected stall on CPU",
        "[    1.200000] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
        "[    2.000000][    T1] WARNING: CPU: 0 PID: 1 at net/core/dev.c:1 f+0x1/0x2",
        "[    3.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "[    3.100000] Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "[    4.000000] BUG: KASAN: slab-out-of-bounds in f+0x1/0x2",
        "plain: UBSAN: array-index-out-of-bounds in f.c:1:2",
    ]
    assert splats(log) == [
        "WARNING: CPU: 0 PID: 1 at net/core/dev.c:1 f+0x1/0x2",
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "BUG: KASAN: slab-out-of-bounds in f+0x1/0x2",
        "UBSAN: array-index-out-of-bounds in f.c:1:2",
    ]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('[{"ifindex":1,"ifname":"lo"}]', []),
        ("[{},{}]", []),
        (
            '[{"ifindex":2,"ifname":"eth0","xdp":{"mode":1,"prog":{"id":7,"tag":"0"}}}]',
            [Attached("eth0", 2, "native", 7)],
        ),
        (
            '[{"ifindex":2,"ifname":"eth0","xdp":{"mode":4,"attached":'
            '[{"mode":2,"prog":{"id":7}},{"mode":3,"prog":{"id":9}}]}}]',
            [Attached("eth0", 2, "skb", 7), Attached("eth0", 2, "hw", 9)],
        ),
    ],
)
def test_programs_are_read_from_ip_link(said: str, found: list[Attached]) -> None:
    assert of_ip_link(said) == found


def test_a_growing_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb", buffering=0) as file:
        tail = Tail(path)
        assert tail.lines(last=False) == []
        file.write(b"one\ntw")
        assert tail.lines(last=False) == ["one"]
        file.write(b"o\n\xff\0\n\nlast")
        assert tail.lines(last=False) == ["two", "\\xff\0", ""]
        assert tail.lines(last=True) == ["last"]
        assert tail.lines(last=True) == []


# ---- QEMU


def test_without_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTools, match="qemu-system-x86_64"):
        qemu.require(Shell())


@pytest.mark.parametrize("said", ["QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2)", "QEMU 9"])
def test_a_qemu_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    old = tmp_path / "qemu-system-x86_64"
    old.write_text(f"#!/bin/sh\necho '{said}'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(QemuTooOld, match=r"QEMU 7\.2 or newer is needed, and this is: QEMU"):
        qemu.require(Shell())


# ---- guests


@pytest.fixture(scope="module")
def kernel(bootable: Callable[[str], Kernel]) -> Kernel:
    return bootable("6.1-cloud")


@pytest.fixture(scope="module")
def vm_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One for all, so that KVM is tried once."""
    return Workspace(tmp_path_factory.mktemp("vm"))


Boot = Callable[..., contextlib.AbstractContextManager[GuestBench]]


@pytest.fixture
def opened(kernel: Kernel, vm_workspace: Workspace, tmp_path: Path) -> Boot:
    """Gives a guest with a script in it that stands for the sample's program."""

    @contextlib.contextmanager
    def boot(script: str = "", dev: str = "lo", kernel: Kernel = kernel) -> Iterator[GuestBench]:
        vm = a_vm(tmp_path, kernel, vm_workspace, script, dev)
        before = set(tmp_path.rglob("*"))
        try:
            with vm.open(Shell(), packets=True) as bench:
                yield bench
        finally:
            left = {path.name for path in set(tmp_path.rglob("*")) - before}
            assert left <= {"run", "kernel.log", "output.log"}
            assert qemus_in(tmp_path) == []

    return boot


def a_vm(tmp_path: Path, kernel: Kernel, workspace: Workspace, script: str, dev: str) -> Vm:
    build = build_in(tmp_path)
    build.directory.mkdir()
    program = build.program
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Vm(kernel, build, dev, tmp_path / "run", workspace, lambda _: None)


def build_in(tmp_path: Path) -> Build:
    return Build(tmp_path / "build", {"sample": "odd", "files": ["odd"], "version": "6.1"})


def qemus_in(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(directory):
                found.append(int(entry.name))
    return found


def run_in(bench: GuestBench, tmp_path: Path, *options: str) -> tuple[list[Line], int]:
    """All that the script prints, and its exit code."""
    process = bench.start(build_in(tmp_path), options, tmp_path / "run/output.log")
    lines = list(process.lines(PATIENCE))
    return lines, process.wait()


def test_output_errors_and_status_are_told_apart(opened: Boot, tmp_path: Path) -> None:
    script = """
        echo "started with $# options: $2"
        echo complaint >&2
        head -c 300000 /dev/zero | tr '\\0' x; echo
        printf '\\377\\000\\n'; printf unfinished
        exit 7"""
    with opened(script) as bench:
        lines, code = run_in(bench, tmp_path, "-i", "it's; $(poweroff)")
        out = [line.text for line in lines if line.stream == "out"]
        assert out == [
            "started with 2 options: it's; $(poweroff)", "x" * 300000, "\\xff\0", "unfinished",
        ]  # fmt: skip
        assert [line.text for line in lines if line.stream == "err"] == ["complaint"]
        assert code == 7
        assert bench.interfaces() == ["lo"]
        assert bench.guest.kernel_log()[0].startswith("[    0.000000] Linux version 6.1.")
    log = (tmp_path / "run/output.log").read_text().splitlines()
    assert log[0].startswith("$ /sample/odd -i ")
    assert "complaint" in log


def test_output_comes_while_the_program_runs(opened: Boot, tmp_path: Path) -> None:
    with opened("echo first; read word; echo never") as bench:
        process = bench.start(build_in(tmp_path), [], tmp_path / "run/output.log")
        lines = process.lines(PATIENCE)
        assert next(lines).text == "first"
        process.end_input()
        assert list(lines) == []
        assert process.wait() == -signal.SIGTERM


def test_one_that_never_ends_is_ended(opened: Boot, tmp_path: Path) -> None:
    with opened("trap '' INT TERM; echo on; while :; do sleep 1; done") as bench:
        process = bench.start(build_in(tmp_path), [], tmp_path / "run/output.log")
        assert next(process.lines(PATIENCE)).text == "on"
        process.end_input()
        with pytest.raises(TimeoutError):
            process.wait(1.0)
        process.end()
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("dev", ["lo", "eth0"])
def test_packets_reach_the_guest_from_inside_and_from_outside(opened: Boot, dev: str) -> None:
    with opened(dev=dev) as bench:
        bench.answer_to(IP, dev)
        for source in (IP, *bench.peers(dev).others):
            pinged = bench.ping(source, bench.peers(dev).target, 4)
            assert (pinged.sent, pinged.delivered, pinged.answered) == (4, 4, 4)
        assert bench.attached(dev) == []
        assert sorted(bench.interfaces()) == sorted({"lo", dev})


@pytest.mark.tree
def test_a_proof_waits_for_nothing_that_cannot_come(
    labs: Callable[[str], Invoke], kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped requests are known to be dropped, and the cases' frames are there already.

    No shell is started for it in the guest, once its card is up.
    """
    lab = labs("6.1")
    (directory,) = lab.workspace.glob("builds/*/xdp_ip_filter")
    build = Build.load(directory)
    assert build
    monkeypatch.setattr("xdplab.testbed.vm._PING_PATIENCE", PATIENCE)
    echoed: list[str] = []
    frames = [one.frame for one in cases.required(build, IP).tries]
    workspace, job = Workspace(lab.workspace), Job(IP, "eth0", "skb")
    vm = Vm(kernel, build, "eth0", tmp_path / "run", workspace, frames=frames)
    begun = time.monotonic()
    with vm.open(Shell(echoed.append), packets=True) as bench:
        record = RunRecord(tmp_path / "run/run.json")
        checks = list(verify(build, job, bench, record, lambda _: None))
        assert all(check.held for check in checks), checks
    assert time.monotonic() - begun < PATIENCE
    (run,) = [command for command in echoed if "test_run" in command and "guest" in command]
    assert f" {initramfs.FRAMES}  #" in run
    there = [command.split()[0] for command in echoed if command.endswith("# in the guest")]
    assert {*there} <= {"ip", "insmod", "cat", "start", "stop", "/tools/links", "/tools/test_run"}
    assert there.count("ip") == 2  # for lo and the card


def play(
    opened: Boot, tmp_path: Path, script: str, meanwhile: Callable[[GuestBench], None] | None = None
) -> int:
    """Run a script in a guest, to which something happens meanwhile; gives its exit code."""
    with opened(script) as bench:
        process = bench.start(build_in(tmp_path), [], tmp_path / "run/output.log")
        if meanwhile:
            meanwhile(bench)
        return process.wait(PATIENCE)


def test_a_warning_of_the_kernels_is_a_failure(opened: Boot, tmp_path: Path) -> None:
    report = "WARNING: CPU: 0 PID: 1 at net/core/dev.c:1 f+0x1/0x2"
    with pytest.raises(KernelSplat, match=r"net/core/dev\.c:1"):
        play(opened, tmp_path, f"echo '<4>{report}' > /dev/kmsg")


def test_a_panic_is_told_by_name(opened: Boot, tmp_path: Path) -> None:
    with pytest.raises(GuestPanic, match="sysrq triggered crash") as caught:
        play(opened, tmp_path, "echo last words; echo c > /proc/sysrq-trigger")
    assert "sysrq: Trigger a crash" in caught.value.cure
    assert "last words" in (tmp_path / "run/output.log").read_text()


def test_a_lost_qemu_is_no_panic(opened: Boot, tmp_path: Path) -> None:
    with pytest.raises(GuestLost, match="killed by signal 9"):
        play(opened, tmp_path, "sleep 1000", lambda bench: os.kill(bench.guest.pid, signal.SIGKILL))


def test_a_guest_that_hangs(opened: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xdplab.boot.guest._PATIENCE", 1.0)

    def stop_and_ask(bench: GuestBench) -> None:
        os.kill(bench.guest.pid, signal.SIGSTOP)
        bench.guest.tell("echo")

    with pytest.raises(GuestHangs, match="no answer to 'echo' for 1 seconds") as caught:
        play(opened, tmp_path, "sleep 1000", stop_and_ask)
    assert "the kernel's last words:" in caught.value.cure


def test_a_guest_that_hangs_while_its_program_runs(
    opened: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xdplab.boot.guest._PATIENCE", 1.0)
    monkeypatch.setattr("xdplab.boot.guest._PULSE", 1.0)
    with pytest.raises(GuestHangs, match="no answer to ':'"):
        play(opened, tmp_path, "sleep 1000", lambda bench: os.kill(bench.guest.pid, signal.SIGSTOP))


def test_what_does_not_boot(opened: Boot, tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(Path(sys.executable).read_bytes())
    boot = opened(kernel=Kernel("6.1", None, image, None, None))
    with pytest.raises(NoBoot, match="doesn't boot: QEMU ended with exit code 1"), boot:
        pytest.fail("it can't be")


def test_a_kernel_that_panics_before_its_first_command(kernel: Kernel, tmp_path: Path) -> None:
    archive = tmp_path / "empty.cpio"
    archive.write_bytes(cpio([]))
    boot = booted(kernel.image, archive, tmp_path, qemu.TCG, Shell(), card=False)
    with pytest.raises(NoBoot, match="the kernel panicked: Kernel panic - not syncing"), boot:
        pytest.fail("it can't be")


def test_a_kvm_that_works_only_at_first_sight_is_not_tried_again(
    kernel: Kernel, tmp_path: Path
) -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("there is no /dev/kvm")
    workspace = Workspace(tmp_path / "workspace")
    qemu.judge_kvm(workspace, "")  # as a probe that it passed would leave it
    said: list[str] = []
    vm = a_vm(tmp_path, kernel, workspace, "", "lo")
    for _ in range(2):
        with Vm(kernel, vm.build, "lo", tmp_path / "run", workspace, said.append).open(
            Shell(), packets=False
        ) as bench:
            assert bench.interfaces() == ["lo"]
    works = qemu.engines(workspace, Shell(), said.append) == [qemu.KVM, qemu.TCG]
    assert works or said[0].startswith("it boots without KVM")


def test_an_interface_that_a_guest_has_not(
    kernel: Kernel, vm_workspace: Workspace, tmp_path: Path
) -> None:
    assert isinstance(a_vm(tmp_path, kernel, vm_workspace, "", "wlan0").missing(), NotAChoice)
