"""Nobody has more rights than it takes: what runs as root, and what it may still do."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import NOBODY, PATIENCE, PROJECT, Invoke, wait_until
from test_run import IP, Namespace, namespace, running, without_links

from xdplab.boot import Kernel
from xdplab.build import Build
from xdplab.process import Shell
from xdplab.testbed.vm import Vm
from xdplab.workspace import Workspace

NET_ADMIN, SYS_ADMIN, PERFMON, BPF = (1 << bit for bit in (12, 21, 38, 39))
NAME = "xdp_ip_filter"
OBJECT = f"{NAME}_kern.o"


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespace() as private:
        yield private


@pytest.fixture(scope="module")
def old(labs: Callable[[str], Invoke], tmp_path_factory: pytest.TempPathFactory) -> Invoke:
    return without_links(labs, tmp_path_factory.mktemp("old"))


# ---- the binary


def rights(status: str) -> dict[str, int]:
    """A process's capability sets, and whether it can get no more, as proc(5) has them."""
    found = re.findall(r"^(Cap\w+|NoNewPrivs):\t(\w+)$", status, re.MULTILINE)
    return {name: int(value, 16) for name, value in found}


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def assert_only(capabilities: int, status: str) -> None:
    """A process has these capabilities, and no way to others."""
    found = rights(status)
    assert (found["CapEff"], found["CapPrm"]) == (capabilities, capabilities)
    assert (found["CapBnd"], found["CapInh"], found["CapAmb"]) == (0, 0, 0)
    assert found["NoNewPrivs"] == 1


def to_read(release: str, *, closed: bool) -> int:
    """What reading a map takes, by what kernel.unprivileged_bpf_disabled closes."""
    before = tuple(int(number) for number in re.findall(r"\d+", release)[:2]) < (5, 19)
    return BPF if closed and before else 0


def to_read_here() -> int:
    closed = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
    return to_read(os.uname().release, closed=closed.exists() and closed.read_text() != "0\n")


@pytest.mark.tree
@pytest.mark.root
def test_once_attached_the_binary_may_only_count(lab: Invoke, host: Namespace) -> None:
    with running(lab, host) as background:
        assert_only(to_read_here(), status_of(host.pid_of(NAME)))
        assert host.programs()
        assert background.interrupt().code == 0
    assert host.programs() == []


@pytest.mark.tree
@pytest.mark.root
def test_that_of_a_pair_without_a_user_half_too(
    lab: Invoke, host: Namespace, tmp_path: Path
) -> None:
    kern = tmp_path / "bare_kern.c"
    kern.write_text((PROJECT / "xdp_ip_filter_kern.c").read_text())
    tree = (lab.workspace / "current").read_text().strip()
    assert lab("build", "--tree", tree, "--sample", kern).code == 0
    with lab.start(
        "run", "--tree", tree, "--sample", kern, "--interval=0.1", "--raw", under=host.enter
    ) as background:
        background.wait_for("counting in counter_map", "cpu 0, value = 0")
        wait_until(lambda: not rights(status_of(host.pid_of("bare")))["CapEff"] & NET_ADMIN)
        assert_only(to_read_here(), status_of(host.pid_of("bare")))
        assert background.interrupt().code == 0
    assert host.programs() == []


@pytest.mark.tree
@pytest.mark.root
def test_without_a_bpf_link_it_keeps_what_detaching_takes(old: Invoke, host: Namespace) -> None:
    """And the child that outlives a kill -9 has nothing else."""
    with running(old, host) as background:
        binary = host.pid_of(NAME)
        (watchdog,) = children(binary)
        assert_only(NET_ADMIN | to_read_here(), status_of(binary))
        wait_until(lambda: rights(status_of(watchdog))["CapEff"] == NET_ADMIN)
        assert_only(NET_ADMIN, status_of(watchdog))
        os.kill(binary, signal.SIGKILL)
        background.wait()
        wait_until(lambda: not host.processes())
    assert host.programs() == []


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def waiting(program: Path, tmp_path: Path) -> Path:
    """The program where its object is a FIFO: it waits there to be given it."""
    os.mkfifo(tmp_path / OBJECT)
    return Path(shutil.copy(program, tmp_path))


@pytest.mark.tree
@pytest.mark.root
@pytest.mark.parametrize(
    ("of", "kept"),
    [
        ("+all", NET_ADMIN | PERFMON | BPF),
        # as it is in many a container, and before v5.8
        ("-all,+sys_admin,+net_admin", NET_ADMIN | SYS_ADMIN),
        ("-all,+bpf,+net_admin,+setpcap", NET_ADMIN | BPF),
        ("-all", 0),
    ],
)
def test_before_it_opens_its_object_it_gave_up_the_rest(
    waiting: Path, of: str, kept: int, host: Namespace
) -> None:
    argv = [*host.enter, "setpriv", f"--bounding-set={of}", str(waiting), "-i", IP]
    with subprocess.Popen(argv, cwd=waiting.parent, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: rights(status_of(process.pid))["NoNewPrivs"] == 1)
            wait_until(lambda: rights(status_of(process.pid))["CapEff"] == kept)
            found = rights(status_of(process.pid))
            assert found["CapPrm"] == kept
            if "setpcap" in of or "+all" in of:
                assert found["CapBnd"] == 0
        finally:
            process.kill()


@pytest.mark.tree
@pytest.mark.root
def test_an_ordinary_user_with_three_capabilities_can_run_it(
    program: Path, host: Namespace, tmp_path: Path
) -> None:
    """As with setcap(8): no root is in it, nor CAP_SETPCAP."""
    three = "-all,+bpf,+perfmon,+net_admin"
    user = [*NOBODY, f"--inh-caps={three}", f"--ambient-caps={three}"]
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    for name in (NAME, OBJECT):
        shutil.copy(program.with_name(name), place)
    try:
        argv = [*host.enter, *user, f"./{NAME}", "-i", IP, "-n", "2", "-t", "0.1"]
        done = subprocess.run(
            argv, cwd=place, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    finally:
        shutil.rmtree(place)
    assert done.returncode == 0, done.stderr
    assert "cpu 0, value = 0" in done.stdout
    assert "link bpf_link" in done.stderr
    assert host.programs() == []


@pytest.mark.root
def test_what_is_built_can_be_opened_by_root_with_no_right_to_others_files(nobody: Path) -> None:
    """Whatever the umask: xdp_caps.h gives up CAP_DAC_OVERRIDE before the object is opened."""
    invoke = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    private = ("sh", "-c", 'umask 077 && exec "$@"', "sh")
    env = {"HOME": str(nobody)}
    outcome = invoke("build", "--tree", nobody / "linux", env=env, under=[*NOBODY, *private])
    assert outcome.code == 0, outcome.err
    (build,) = invoke.workspace.glob(f"builds/*/{NAME}")
    without = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all"]
    read = subprocess.run([*without, "cat", OBJECT], cwd=build, capture_output=True, check=False)
    assert read.stdout == (build / OBJECT).read_bytes()


@pytest.mark.tree
@pytest.mark.image
@pytest.mark.parametrize("spec", ["5.10-cloud", "7.2-cloud"])
def test_on_the_oldest_and_the_newest_kernel_too(
    bootable: Callable[[str], Kernel], lab: Invoke, tmp_path: Path, spec: str
) -> None:
    """Debian's have kernel.unprivileged_bpf_disabled set, as most have today."""
    (directory,) = lab.workspace.glob(f"builds/*/{NAME}")
    build = Build.load(directory)
    assert build
    vm = Vm(bootable(spec), build, "lo", tmp_path, Workspace(lab.workspace))
    with vm.open(Shell(), packets=False) as bench:
        assert bench.guest.tell("cat /proc/sys/kernel/unprivileged_bpf_disabled") == "2"
        process = bench.start(build, ["-i", IP, "-t", "0.1"], tmp_path / "output.log")
        wait_for_counters = (line.text.startswith("cpu 0, ") for line in process.lines(PATIENCE))
        assert any(wait_for_counters)
        status = bench.guest.tell("cat /proc/$(cat /run/pid)/status")
        assert_only(to_read(spec, closed=True), status)
        assert any("cpu 0, " in line.text for line in process.lines(PATIENCE))  # it still can
        process.end_input()
        assert list(process.lines(PATIENCE))[-1].text == "stopping"
        assert bench.attached("lo") == []
