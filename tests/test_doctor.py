"""invoke doctor, run for real: on this machine as it is, and on one that lacks something."""

from __future__ import annotations

import gzip
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    NOBODY,
    PROJECT,
    SYSTEM,
    Invoke,
    Outcome,
    assert_refused,
    copy_checkout,
    path_without,
    snapshot,
)
from rich.console import Console

from xdplab import doctor, needs, probes
from xdplab.boot import config
from xdplab.minima import MINIMA, minimum
from xdplab.needs import NEEDS, Need
from xdplab.probes import Machine
from xdplab.process import Shell
from xdplab.toolchain import installed
from xdplab.tree import Tree
from xdplab.view import checkup
from xdplab.workspace import Workspace

Checks = dict[str, dict[str, str]]
FIXES = re.compile(r"scripts/bootstrap [\w ]+|sudo mount -t \w+ \w+ /sys/[\w/]+")


def checks(outcome: Outcome) -> Checks:
    """What `doctor --json` found, by what it is about."""
    return {one["what"]: one for one in whole(outcome)["checks"]}


def whole(outcome: Outcome) -> dict[str, Any]:
    assert "Traceback" not in outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    missing = [one for one in found["checks"] if one["outcome"] == "missing"]
    assert found["fit"] == (not missing)
    assert outcome.code == (69 if missing else 0), outcome.err
    return found


def machine(tmp_path: Path, tree: Tree | None = None, dev: str = "lo") -> Machine:
    return Machine(Workspace(tmp_path / "workspace"), Shell(), tree, None, None, dev)


def examined(tmp_path: Path, rows: Iterable[Need]) -> dict[str, doctor.Finding]:
    return {one.need.what: one for one in doctor.examine(machine(tmp_path), list(rows))}


# ---- the table


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.what)
def test_a_cure_is_one_line_for_a_shell(need: Need) -> None:
    cure = need.cure.replace("{dev}", "eth0")
    assert shlex.split(cure, comments=True)
    assert "\n" not in cure
    assert "{" not in cure
    subprocess.run(["bash", "-n", "-c", cure], check=True)
    for command in re.findall(r"invoke ([a-z]+)", cure):
        assert f"\ndef {command}(" in (PROJECT / "tasks.py").read_text()
    if need.fix:
        assert FIXES.fullmatch(cure.partition("  #")[0])


def test_things_are_named_once() -> None:
    names = [need.what for need in NEEDS]
    assert len(names) == len(set(names))
    assert all(need.needed or need.probe is probes.tool for need in NEEDS)


def test_a_minimum_says_where_it_is_from() -> None:
    for one in MINIMA:
        assert re.fullmatch(r"[0-9a-f]{12}", one.commit)
        assert one.tool in {need.what for need in NEEDS}


# ---- this machine


def test_each_row_is_reached(invoke: Invoke, fake_tree: Path) -> None:
    outcome = invoke("doctor", "--tree", fake_tree, "--json")
    found = whole(outcome)
    assert found["tree"] == str(fake_tree)
    running = machine(invoke.workspace).running
    here = {need.what for need in NEEDS if not running or running in need.kernels}
    # said of a configuration that can't be read, and of a tree that asks for a vmlinux
    unasked = here - set(checks(outcome))
    assert unasked <= {"configuration", "vmlinux for all samples", *(
        need.what for need in needs.KERNEL if need.probe in (probes.option, probes.sysctl)
    )}  # fmt: skip
    for one in found["checks"]:
        assert bool(one["cure"]) == (one["outcome"] != "ok"), one
        assert one["found"]
        assert one["needed"]
        assert one["why"]
    assert not list(fake_tree.glob(".xdplab"))  # it was looked at, no more


def test_a_pipe_gets_aligned_lines(invoke: Invoke) -> None:
    outcome = invoke("doctor")
    lines = outcome.out.splitlines()
    assert "for no tree: none is set up" in outcome.err
    assert len(lines) > 20
    starts = {line.index("needed: ") for line in lines}
    assert len(starts) == 1
    assert {line.split()[0] for line in lines} <= {"ok", "warning", "missing", "unknown"}


def test_a_terminal_gets_a_table_and_the_cures_below(tmp_path: Path) -> None:
    findings = list(doctor.examine(machine(tmp_path), needs.RIGHTS))
    bad = doctor.Finding(needs.INTERFACE[0], doctor.Outcome.MISSING, "none", "one", "true  # [x]")
    screen = io.StringIO()
    checkup.show(Console(file=screen, width=80, force_terminal=True), [*findings, bad])
    text = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())
    assert "user namespace" in text
    assert text.index("rights") < text.index("interface") < text.index("true  # [x]")
    assert max(map(len, text.splitlines())) <= 80


def test_an_interface_that_is_not_there(invoke: Invoke) -> None:
    assert_refused(invoke("doctor", "--dev", "nope0"), 2, "'nope0'", "lo")


def test_a_tree_that_is_named_must_be_there(invoke: Invoke, tmp_path: Path) -> None:
    assert_refused(invoke("doctor", "--kernel", "4.19"), 2, "v4.19", "invoke setup")
    assert_refused(invoke("doctor", "--tree", tmp_path), 2, "is not a kernel tree")


def test_an_ordinary_user_learns_what_is_missing(nobody: Path) -> None:
    invoke = Invoke(nobody / "checkout/workspace", nobody / "checkout")
    before = snapshot(nobody)
    outcome = invoke("doctor", "--json", env={"HOME": str(nobody)}, under=NOBODY)
    found = checks(outcome)
    assert snapshot(nobody) == before  # that workspace can't be made, nor need it
    assert found["root"]["found"] != "this is root"
    assert found["generic mode"]["outcome"] in ("ok", "unknown")
    if Path("/dev/kvm").exists() and found["QEMU"]["outcome"] == "ok":
        assert found["KVM"]["outcome"] in ("warning", "unknown")
    # this checkout has no scripts: who could install anything is not there
    assert found["for building"]["outcome"] == "unknown"
    assert "scripts/bootstrap" in found["for building"]["found"]


def test_no_new_rights(nobody: Path) -> None:
    invoke = Invoke(nobody / "workspace", nobody / "checkout")
    env = {"HOME": str(nobody)}
    found = checks(invoke("doctor", "--json", env=env, under=(*NOBODY, "--no-new-privs")))
    assert found["root"]["outcome"] == "missing"
    assert "no_new_privs" in found["root"]["found"]


@pytest.mark.parametrize(("sudo", "outcome"), [("exit 0", True), ("exit 1", None), (None, False)])
def test_sudo(sudo: str | None, outcome: bool | None, nobody: Path) -> None:
    path = path_without(nobody / "bin", "sudo", folders=SYSTEM[:3])
    if shutil.which("sudo", path="/usr/sbin:/sbin"):
        pytest.skip("sudo is where root's commands are")
    if sudo:
        script(nobody / "bin/sudo", sudo)
    asked = "from xdplab import probes; print(probes.root(None, '').will_do)"
    said = subprocess.run(
        [*NOBODY, sys.executable, "-c", asked], cwd=nobody / "checkout", capture_output=True,
        env={**os.environ, "PATH": path}, check=True, text=True,
    )  # fmt: skip
    assert said.stdout == f"{outcome}\n"


USERS = ("unshare", "--user", "--map-root-user")


@pytest.mark.skipif(
    subprocess.run([*USERS, "true"], capture_output=True, check=False).returncode != 0,
    reason="user namespaces are not allowed here",
)
def test_root_of_a_container_is_none(invoke: Invoke) -> None:
    outcome = invoke("doctor", under=USERS)
    assert_refused(outcome, 69, "user namespace", "invoke verify --on vm")
    found = checks(invoke("doctor", "--json", under=USERS))
    assert found["user namespace"]["outcome"] == "missing"
    assert "tried:" not in found["generic mode"]["found"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_each_missing_capability_is_named(invoke: Invoke) -> None:
    less = ("setpriv", "--bounding-set=-net_admin,-bpf,-sys_admin", "--inh-caps=-all")
    found = checks(invoke("doctor", "--json", under=less))
    for name in ("CAP_NET_ADMIN", "CAP_BPF", "CAP_SYS_ADMIN"):
        assert found[name]["outcome"] == "missing"
    assert found["CAP_NET_RAW"]["outcome"] == "ok"
    mode = found["generic mode"]
    assert (mode["outcome"], mode["found"]) == (
        "missing", "a program can't be loaded: Operation not permitted"
    )  # fmt: skip


def test_a_probe_that_cannot_look_says_why(invoke: Invoke) -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("no KVM here")
    invoke.workspace.mkdir()
    (invoke.workspace / "kvm.json").write_text("{")
    found = checks(invoke("doctor", "--json"))
    assert found["KVM"]["outcome"] in ("unknown", "warning")
    if found["KVM"]["outcome"] == "unknown":
        assert "kvm.json is damaged" in found["KVM"]["found"]


# ---- tools


def test_a_tool_that_is_hidden(invoke: Invoke, tmp_path: Path) -> None:
    hidden = ("clang", *installed("clang"), "rsync", "qemu-system-x86_64")
    path = path_without(tmp_path / "bin", *hidden, folders=SYSTEM)
    if shutil.which("rsync", path="/usr/sbin:/sbin"):
        pytest.skip("bootstrap always looks there")
    outcome = invoke("doctor", "--json", env={"PATH": path})
    found = checks(outcome)
    assert found["for building"]["outcome"] == "missing"
    assert found["for building"]["found"] == "no rsync"
    assert found["for building"]["cure"] == "scripts/bootstrap build"
    assert found["clang"]["outcome"] == "warning"
    assert found["clang and llc"]["outcome"] == "missing"
    assert found["clang"]["cure"] == "scripts/bootstrap build"
    assert found["QEMU"]["outcome"] == "warning"
    assert_refused(outcome, 69, "for building", "scripts/bootstrap build")


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_llc_of_another_release(invoke: Invoke, tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    path = path_without(bin_, "clang", "llc", *installed("clang"), folders=SYSTEM)
    script(bin_ / "clang", "echo clang version 98.0.1")
    script(bin_ / "llc", "echo LLVM version 97.0.0")
    found = checks(invoke("doctor", "--json", env={"PATH": path}))["clang and llc"]
    assert found["outcome"] == "missing"
    assert "LLVM 98" in found["found"]
    assert "is 97" in found["found"]
    assert found["cure"].startswith("scripts/bootstrap build")


def test_another_clang_that_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_ = tmp_path / "bin"
    tools = ("llc", "opt", "llvm-dis", "llvm-objcopy", "llvm-readelf")
    path = path_without(bin_, "clang", *tools, *installed("clang"), folders=SYSTEM)
    script(bin_ / "clang", "echo clang version 98.0.1")
    for tool in tools:
        script(bin_ / tool, "echo LLVM version 97.0.0")
    for tool in ("clang", *tools):
        script(tmp_path / "llvm-96" / tool, "echo version 96.0.0")
        (bin_ / f"{tool}-96").symlink_to(tmp_path / "llvm-96" / tool)
    monkeypatch.setenv("PATH", path)
    found = examined(tmp_path, needs.TOOLS)["clang and llc"]
    assert found.cure == "export INVOKE_CLANG=clang-96"
    assert found.need.fix
    assert doctor.curable([found]) == []


def test_what_the_tree_says_counts(invoke: Invoke, fake_tree: Path) -> None:
    says = "case $1 in gcc) echo 99.1.0;; llvm) [ $SRCARCH = x86 ] && echo 1.0.0;; esac"
    script(fake_tree / "scripts/min-tool-version.sh", says)
    page = fake_tree / "Documentation/process/changes.rst"
    page.parent.mkdir(parents=True)
    page.write_text(
        "GNU C                  5.1              gcc --version\n"
        "GNU make               88.0             make --version\n"
        "Clang/LLVM (optional)  77.0.0           clang --version\n"
    )
    outcome = invoke("doctor", "--tree", fake_tree, "--json")
    found = checks(outcome)
    assert found["gcc"]["outcome"] == found["make"]["outcome"] == "missing"
    assert found["gcc"]["needed"] == "99.1.0 (min-tool-version.sh)"
    assert found["make"]["needed"] == "88.0 (changes.rst)"
    assert found["clang"]["needed"].startswith("1.0.0 ")
    assert found["clang"]["outcome"] == "ok"
    assert found["flex"]["needed"] == "any"
    assert_refused(outcome, 69, "gcc", "make")


@pytest.mark.parametrize(
    ("release", "oldest", "outcome"),
    [("11.0.1", "11", "ok"), ("5.1", "5.1.0", "ok"), ("5.1.0", "5.2", "missing"),
     ("9.4.0", "10", "missing"), ("2.40", "2.23.0", "ok")],
)  # fmt: skip
def test_releases_are_numbers(
    release: str, oldest: str, outcome: str, fake_tree: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    script(tmp_path / "gcc-of-ours", f"echo 'gcc-of-ours (A Distribution 7) {release}'")
    script(fake_tree / "scripts/min-tool-version.sh", f"echo {oldest}")
    rows = [need for need in needs.TOOLS if need.what == "gcc"]
    chosen = replace(machine(tmp_path, Tree.at(fake_tree)), gcc=str(tmp_path / "gcc-of-ours"))
    (found,) = doctor.examine(chosen, rows)
    assert (found.outcome, found.found) == (outcome, release)


def test_a_tree_that_does_not_say_it(fake_tree: Path) -> None:
    makefile = fake_tree / "Makefile"
    text = makefile.read_text()
    for version, patchlevel, gcc in ((4, 19, "4.6"), (5, 10, "4.9"), (7, 2, "")):
        makefile.write_text(
            text.replace("VERSION = 6", f"VERSION = {version}", 1)
            .replace("PATCHLEVEL = 1", f"PATCHLEVEL = {patchlevel}")
        )  # fmt: skip
        assert minimum(Tree.at(fake_tree), "gcc")[0] == gcc


@pytest.mark.tree
def test_a_real_tree_says_its_minima(tree: Path) -> None:
    at = Tree.at(tree)
    for tool in ("gcc", "clang", "make", "ld", "flex", "bison", "bc"):
        number, where = minimum(at, tool)
        assert re.fullmatch(r"\d[\d.]+", number), tool
        assert (tree / where).is_file()


# ---- the kernel


def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    file = tmp_path / "config.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.setattr(config, "RUNNING", file)


def test_options_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options(
        tmp_path, monkeypatch, "CONFIG_BPF_JIT=y", "CONFIG_VETH=m", "# CONFIG_NET_NS is not set"
    )
    found = examined(tmp_path, needs.KERNEL)
    assert found["CONFIG_BPF_SYSCALL"].outcome is doctor.Outcome.MISSING
    assert found["CONFIG_NET_NS"].outcome is doctor.Outcome.MISSING
    assert found["CONFIG_BPF_EVENTS"].outcome is doctor.Outcome.WARNING
    assert found["CONFIG_BPF_JIT"].outcome is found["CONFIG_VETH"].outcome is doctor.Outcome.OK
    assert "configuration" not in found


def test_a_configuration_that_nobody_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "RUNNING", tmp_path / "none.gz")
    monkeypatch.setattr(probes, "BOOT", tmp_path)
    found = examined(tmp_path, needs.KERNEL)
    assert found["configuration"].outcome is doctor.Outcome.UNKNOWN
    assert not [what for what in found if what.startswith("CONFIG_")]
    (tmp_path / f"config-{platform.release()}").write_text("CONFIG_BPF_SYSCALL=y\n")
    assert examined(tmp_path, needs.KERNEL)["CONFIG_BPF_SYSCALL"].outcome is doctor.Outcome.OK


def test_what_matters_for_old_kernels_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-9-amd64")
    now = examined(tmp_path, needs.RIGHTS)
    monkeypatch.setattr(platform, "release", lambda: "5.4.0-9-generic")
    old = examined(tmp_path, needs.RIGHTS)
    assert set(old) - set(now) == {"CAP_SYS_RESOURCE", "RLIMIT_MEMLOCK"}
    assert set(now) - set(old) == {"CAP_BPF", "CAP_PERFMON"}


# ---- cures

APART = ("unshare", "--mount", "--net")  # mounts and interfaces of the test's own


@pytest.mark.root
def test_fix_mounts_what_is_not_mounted(tmp_path: Path) -> None:
    invoke = Invoke(tmp_path / "workspace", copy_checkout(tmp_path / "checkout"))
    here = Path("/proc/self/mounts").read_text()
    bare = 'umount -l /sys/kernel/tracing /sys/fs/bpf 2>/dev/null; exec "$@"'
    apart = (*APART, "sh", "-c", bare, "sh")
    before = checks(invoke("doctor", "--json", under=apart))
    assert before["tracefs"]["outcome"] == before["bpffs"]["outcome"] == "warning"
    dry = invoke("--dry", "doctor", "--fix", "--json", under=apart)
    mounts = [command for command in dry.commands() if "mount -t" in command]
    assert len(mounts) == 2
    assert checks(dry)["tracefs"]["outcome"] == "warning"
    fixed = invoke("doctor", "--fix", "--json", under=apart)
    assert [command for command in fixed.commands() if "mount -t" in command] == mounts
    found = checks(fixed)
    assert found["bpffs"]["outcome"] == found["tracefs"]["outcome"] == "ok"
    assert found["tracefs"]["found"] == "/sys/kernel/tracing"
    assert not [command for command in fixed.commands() if "sysctl" in command]
    assert Path("/proc/self/mounts").read_text() == here


@pytest.mark.root
def test_fix_installs_packages(tmp_path: Path) -> None:
    """The package manager is a stub that says what it was asked for, and makes the tool."""
    checkout, bin_ = copy_checkout(tmp_path / "checkout"), tmp_path / "bin"
    shutil.copytree(PROJECT / "scripts", checkout / "scripts")
    (checkout / "scripts/packages").write_text("build a-tool-of-ours its-package - - -\n")
    for lock in PROJECT.glob("requirements*.lock"):
        (checkout / lock.name).write_text("")
    script(bin_ / "apt", "exit 1")
    script(bin_ / "apt-get", f"[ $1 = update ] || cp {bin_}/apt {bin_}/a-tool-of-ours")
    invoke = Invoke(tmp_path / "workspace", checkout)
    path = {"PATH": f"{bin_}:{os.environ['PATH']}"}
    under = ("unshare", "--mount")
    before = checks(invoke("doctor", "--json", env=path, under=under))
    assert before["for building"]["found"] == "no a-tool-of-ours"
    dry = checks(invoke("--dry", "doctor", "--fix", "--json", env=path, under=under))
    assert dry["for building"]["outcome"] == "missing"
    fixed = invoke("doctor", "--fix", "--json", env=path, under=under)
    assert checks(fixed)["for building"]["outcome"] == "ok"
    assert checks(fixed)[".venv"]["outcome"] == "ok"
    assert "apt-get install" in fixed.err


def test_without_fix_nothing_is_cured(invoke: Invoke) -> None:
    outcome = invoke("doctor")
    assert not [one for one in outcome.commands() if "mount" in one or "bootstrap" in one]
