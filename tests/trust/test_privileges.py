"""Nobody has more rights than it takes: what runs as root, and what it may still do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import (
    NOBODY,
    PATIENCE,
    PRIVATE,
    PROJECT,
    Invoke,
    assert_refused,
    give_away,
    snapshot,
    wait_until,
)
from test_run import IP, Namespace, namespace, running, without_links

from xdplab import trust
from xdplab.boot import Kernel
from xdplab.build import Build
from xdplab.errors import Changeable, MissingTools
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
        pid = bench.guest.tell(f"/bin/busybox pidof {NAME}")
        status = bench.guest.tell(f"cat /proc/{pid}/status")
        assert_only(to_read(spec, closed=True), status)
        assert any("cpu 0, " in line.text for line in process.lines(PATIENCE))  # it still can
        process.end_input()
        assert list(process.lines(PATIENCE))[-1].text == "stopping"
        assert bench.attached("lo") == []


# ---- what runs as root

TRICKS = ("kill", "unshare", "nsenter", "lsns", "ip", "sh", "env", "mount", "dd", "bpftool", "true")
PRELOADED = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void act(void)
{
    if (!geteuid())
        close(open(MARK, O_CREAT | O_WRONLY, 0600));
}
"""


@pytest.fixture
def tricks(nobody: Path) -> tuple[Path, dict[str, str]]:
    """An environment that has what root runs do something else, and the file that would tell."""
    mark, place = nobody / "mark", nobody / "tricks"
    place.mkdir()
    act = f'[ "$(id -u)" != 0 ] || touch {mark}'
    for name in TRICKS:
        script = place / name
        real = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") or "false"
        script.write_text(f'#!/bin/sh\n{act}\nexec {real} "$@"\n')
        script.chmod(0o755)
    (place / "sitecustomize.py").write_text(
        f"import os\nos.geteuid() or open({str(mark)!r}, 'w').close()\n"
    )
    (place / "profile").write_text(f"{act}\n")
    (place / "act.c").write_text(PRELOADED.replace("MARK", f'"{mark}"'))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "act.so", "act.c"], cwd=place, check=True)
    give_away(place)
    return mark, {
        "HOME": str(nobody),
        "PATH": f"{place}:{os.environ['PATH']}",
        "LD_PRELOAD": str(place / "act.so"),
        "PYTHONPATH": str(place),
        "BASH_ENV": str(place / "profile"),
        "ENV": str(place / "profile"),
    }


@pytest.fixture
def lax_sudo(with_sudo: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
    """A sudo that hands on what it is given: the harness doesn't rely on its rules."""
    (rule,) = (word for word in with_sudo if isinstance(word, Path))
    rule.write_text(f"Defaults !env_reset, !secure_path\n{rule.read_text()}")
    return with_sudo


@pytest.mark.root
@pytest.mark.parametrize(
    "command",
    [
        ("status", "--all"),
        ("log", "--all", "--duration=0.2"),
        ("lab", "--hosts=1", "--command", "true"),
        ("doctor",),
    ],
)
def test_no_environment_decides_what_root_runs(
    tricks: tuple[Path, dict[str, str]], lax_sudo: tuple[str | Path, ...], command: tuple[str, ...],
    nobody: Path,
) -> None:  # fmt: skip
    mark, env = tricks
    invoke = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    tricked = ["env", *(f"{name}={value}" for name, value in env.items())]  # by the user alone
    outcome = invoke(*command, under=[*PRIVATE, *lax_sudo, *tricked])
    assert "Traceback" not in outcome.err
    assert not mark.exists(), outcome.err
    borrowed = [line for line in outcome.commands() if "sudo" in line]
    assert borrowed
    for line in borrowed:
        sudo, option, program, *words = shlex.split(line.rpartition(" && ")[2])
        assert (sudo, option) == ("/usr/bin/sudo", "-n")
        assert program.startswith(("/usr/", "/bin/", "/sbin/"))
        python = [word for word in words if "python" in Path(word).name]
        assert not python or "--reuid=65534" in words  # Python is never root


def test_a_command_that_is_nowhere() -> None:
    with pytest.raises(MissingTools):
        trust.command("no-such-program-here")


def lay(place: Path, mode: int, owner: int = -1, group: int = -1) -> Path:
    place.chmod(mode)
    os.chown(place, owner, group, follow_symlinks=False)
    return place


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    ("mode", "owner", "group", "safe"),
    [
        (0o755, 0, 0, True),
        (0o775, 0, 0, True),  # root's own group, with nobody in it
        (0o775, 0, 65534, False),
        (0o777, 0, 0, False),
        (0o1777, 0, 0, True),  # as /tmp is
        (0o755, 65534, 65534, False),
    ],
)
def test_whose_directory_a_program_may_lie_in(
    tmp_path: Path, mode: int, owner: int, group: int, safe: bool
) -> None:
    place = tmp_path / "place"
    (place / "below").mkdir(parents=True)
    program = place / "below/program"
    program.write_text("")
    link = tmp_path / "link"
    link.symlink_to("place/below/../below/program")
    lay(place, mode, owner, group)
    for path in (program, link):
        if safe:
            assert trust.file(path) == path
            continue
        with pytest.raises(Changeable) as refused:
            Shell().as_root([path], "for a test")
        assert str(place) in refused.value.message
        with pytest.raises(Changeable):
            Shell().as_root(["sh", path], "for a test")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("where", ["file", "link"])
def test_whose_program_it_may_be(tmp_path: Path, where: str) -> None:
    program, link = tmp_path / "program", tmp_path / "link"
    program.write_text("")
    link.symlink_to(program)
    os.chown(program if where == "file" else link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(Changeable):
        trust.file(link)


@pytest.mark.root
def test_a_build_that_others_can_change_is_not_run(
    nobody: Path, with_sudo: tuple[str | Path, ...]
) -> None:
    invoke = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    env = {"HOME": str(nobody)}
    assert invoke("build", "--tree", nobody / "linux", env=env, under=NOBODY).code == 0
    (build,) = invoke.workspace.glob(f"builds/*/{NAME}")
    build.parent.chmod(0o777)
    nobody.chmod(0o755)
    outcome = invoke("run", "--on=netns", "--tree", nobody / "linux", env=env, under=with_sudo)
    assert_refused(outcome, 69, str(build.parent), "chmod go-w")
    assert not any(NAME in line for line in outcome.commands())


# ---- a build is nothing for root


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to be kept from it")
@pytest.mark.parametrize(
    "command",
    [
        ("setup", "--tree", "."),
        ("build", "--tree", "."),
        ("build", "--tree", ".", "--all-samples"),
        ("kernel", "--tree", "."),
        ("editor", "--tree", "."),
        ("survey", "--trees", "."),
        ("bench", "--only", "build"),
    ],
)
def test_root_builds_nothing_without_being_told(
    invoke: Invoke, fake_tree: Path, command: tuple[str, ...]
) -> None:
    before = snapshot(fake_tree)
    words = [str(fake_tree) if word == "." else word for word in command]
    if command[0] == "bench":
        assert invoke("setup", "--tree", fake_tree).code == 0
        before = snapshot(fake_tree)
    outcome = invoke(*words, env={"INVOKE_AS_ROOT": "0"})
    assert_refused(outcome, 2, "as root", "INVOKE_AS_ROOT=1", "ordinary user")
    assert snapshot(fake_tree) == before
    assert outcome.commands() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to be kept from it")
def test_root_may_look_and_may_be_told(invoke: Invoke, fake_tree: Path) -> None:
    told_not = {"INVOKE_AS_ROOT": "0"}
    assert invoke("--dry", "setup", "--tree", fake_tree, env=told_not).code == 0
    assert invoke("setup", "--tree", fake_tree, env={"INVOKE_AS_ROOT": "1"}).code == 0
    assert invoke("patch", "--show", env=told_not).code == 0
