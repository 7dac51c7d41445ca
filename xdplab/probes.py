"""What can be found out about a machine: a small function for each kind of question.

A probe is asked about something by name, and says what it found.  The table of
what is needed, with cures, is in xdplab.needs.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from xdplab import interfaces, lifelines, netlink, trust
from xdplab.boot import config, qemu, version_of
from xdplab.boot.beside import BOOT
from xdplab.dialect import Dialect
from xdplab.errors import LabError
from xdplab.files import mounted
from xdplab.kbuild import VMLINUX_BTF
from xdplab.minima import minimum
from xdplab.process import Finished, Shell, as_user, find
from xdplab.toolchain import Toolchain, installed
from xdplab.tree import Tree
from xdplab.version import KernelVersion, Range
from xdplab.workspace import PROJECT, Workspace

BOOTSTRAP = PROJECT / "scripts" / "bootstrap"


@dataclass(frozen=True, slots=True)
class Machine:
    """What is asked about: this machine, for a tree if there is one, and an interface."""

    workspace: Workspace
    shell: Shell
    tree: Tree | None
    gcc: str | None  # the compilers that were chosen; None: the machine's own
    clang: str | None
    dev: str

    @property
    def running(self) -> KernelVersion | None:
        """The version of the running kernel, if its release says one."""
        return version_of(platform.release())


@dataclass(frozen=True, slots=True)
class Found:
    """What there is, and whether it will do; None: that can't be told here."""

    will_do: bool | None
    words: str
    needed: str = ""  # more exactly than the table has it
    cure: str = ""  # better than the table's


# What a probe is asked about, by name; None: the question doesn't arise.
Probe = Callable[[Machine, str], Found | None]


def _ask(*argv: str) -> Finished | None:
    """What a command says that only reads; None if there is no such command."""
    place = find(argv[0])
    return Shell().ask([place, *argv[1:]], env={"LC_ALL": "C"}) if place else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


# ---- tools

# Rows of their own say more of these, and know that a numbered clang will do.
_APART = frozenset(
    ("gcc", "clang", "llc", "opt", "llvm-dis", "llvm-objcopy", "llvm-readelf", "bpftool")
)


def group(machine: Machine, name: str) -> Found:
    """Whether all things of a group of scripts/packages are there: bootstrap looks."""
    said = _bootstrap_says(name)
    if said is None:
        return _NO_BOOTSTRAP
    missing = [line.split()[0] for line in said.splitlines() if line.startswith("  ")]
    missing = [thing for thing in missing if thing not in _APART]
    return Found(not missing, f"no {', no '.join(missing)}" if missing else "all of it")


def python_packages(machine: Machine, name: str) -> Found:
    """Whether .venv is made of today's lock."""
    said = _bootstrap_says("run")
    if said is None:
        return _NO_BOOTSTRAP
    stale = "no .venv" in said
    return Found(not stale, "not made of today's lock" if stale else "as locked")


_NO_BOOTSTRAP = Found(None, f"{BOOTSTRAP.relative_to(PROJECT)} is not in this checkout")


def _bootstrap_says(group: str) -> str | None:
    return Shell().ask([BOOTSTRAP, "--check", group]).text() if BOOTSTRAP.exists() else None


def python(machine: Machine, name: str) -> Found:
    """The Python that runs this."""
    return Found(sys.version_info >= (3, 11), platform.python_version())


def tool(machine: Machine, name: str) -> Found:
    """A tool's release, against the oldest that the tree takes."""
    command = {"gcc": machine.gcc, "clang": machine.clang}.get(name) or _usual(name)
    number = _release(command)
    if not number:
        return Found(False, "not there", needed="any", cure=_INSTALL.get(name, ""))
    needed, where = minimum(machine.tree, name) if machine.tree else ("", "")
    if not needed:
        return Found(True, number, needed="any")
    newer = (one for one in installed(name) if _parts(one[len(name) + 1 :]) >= _parts(needed))
    cures = (f"export INVOKE_{name.upper()}={one}" for one in newer)
    will_do = _parts(number) >= _parts(needed)
    return Found(will_do, number, needed=f"{needed} ({Path(where).name})", cure=next(cures, ""))


_INSTALL = dict.fromkeys(("gcc", "clang"), "scripts/bootstrap build")  # there is none to choose


def _usual(kind: str) -> str:
    """The command of that name, or the newest that is numbered."""
    return next(filter(shutil.which, [kind, *installed(kind)]), kind)


def _release(command: str) -> str:
    """The number that a command says it is of; empty if it isn't there."""
    said = _ask(command, "--version")
    number = said and re.search(r"\d+(?:\.\d+)+", said.text("out", "err"))
    return number[0] if number else ""


def _parts(number: str) -> list[int]:
    """A release's number, to be compared: 11.0.0 is 11."""
    return [int(part) for part in re.sub(r"(\.0)+$", "", number).split(".")]


def git(machine: Machine, name: str) -> Found:
    """Git knows sparse checkouts as they are used here from 2.25 on."""
    number = _release("git")
    return Found(bool(number) and _parts(number) >= [2, 25], number or "not there")


def toolchain(machine: Machine, name: str) -> Found:
    """Compilers that fit together: clang, and the LLVM that reads what it writes."""
    try:
        tools = Toolchain.find(machine.gcc, machine.clang)
    except LabError as error:
        return Found(False, error.message, cure=_another_clang(machine))
    return Found(True, tools.clang)


def _another_clang(machine: Machine) -> str:
    """How to choose a clang whose LLVM is whole, if there is one."""
    for clang in installed("clang"):
        try:
            Toolchain.find(machine.gcc, clang)
        except LabError:
            continue
        return f"export INVOKE_CLANG={clang}"
    return ""


def bpftool(machine: Machine, name: str) -> Found:
    """Bpftool runs: a distribution's may be a script that looks for the kernel's own."""
    said = _ask("bpftool", "version")
    if not said:
        return Found(False, "not there")
    first = said.text("out", "err").partition("\n")[0]
    return Found(not said.code, first if said.code else first.split()[-1])


def emulator(machine: Machine, name: str) -> Found:
    """A QEMU that has all that is used."""
    try:
        return Found(True, qemu.require(Shell()))
    except LabError as error:
        return Found(False, error.message)


def kvm(machine: Machine, name: str) -> Found:
    """KVM, tried by booting a guest of a few bytes; the verdict holds until the next boot."""
    if not Path("/dev/kvm").exists():
        return Found(False, "no /dev/kvm")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        cure = "sudo usermod --append --groups kvm $USER  # and log in anew"
        return Found(False, "/dev/kvm is not this user's to open", cure=cure)
    if not shutil.which(qemu.QEMU):
        return Found(None, f"there is no {qemu.QEMU} to try it with")
    fault = qemu.kvm_fault(machine.workspace, machine.shell)
    return Found(not fault, fault or "a guest boots with it")


def space(machine: Machine, name: str) -> Found:
    """Free space on the workspace's disk."""
    place = machine.workspace.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return Found(free >= 3 * 2**30, f"{free / 2**30:.1f} GiB on the disk of {place}")


# ---- the running kernel


def _options() -> dict[str, str] | None:
    return config.read_first(config.RUNNING, BOOT / f"config-{platform.release()}")


def readable_config(machine: Machine, name: str) -> Found | None:
    """Whether the configuration can be read; nothing is said if it can."""
    places = f"neither {config.RUNNING} nor {BOOT}/config-{platform.release()} can be read"
    return Found(None, places) if _options() is None else None


def option(machine: Machine, name: str) -> Found | None:
    """An option of the running kernel's configuration: built in, or a module."""
    options = _options()
    if options is None:
        return None
    value = options.get(name)
    return Found(value in ("y", "m"), f"={value}" if value else "not set")


def btf(machine: Machine, name: str) -> Found:
    """Whether the running kernel describes its types."""
    there = VMLINUX_BTF.exists()
    return Found(there, f"{VMLINUX_BTF} {'is there' if there else 'is not there'}")


def vmlinux_for_samples(machine: Machine, name: str) -> Found | None:
    """Whether the tree's own samples want a kernel with BTF, and get one."""
    wanted = machine.tree and Dialect.of(machine.tree).vmlinux
    return btf(machine, name) if wanted else None


def sysctl(machine: Machine, name: str) -> Found | None:
    """The value of a setting of the kernel's, to be 1 or more; None if it has no such setting."""
    value = _read(f"/proc/sys/{name.replace('.', '/')}")
    return None if value is None else Found(value != "0", value)


def lockdown(machine: Machine, name: str) -> Found:
    """How far the kernel is locked down (kernel_lockdown(7))."""
    said = _read("/sys/kernel/security/lockdown")
    if said is None and _mounted("securityfs"):
        return Found(True, "the kernel knows none")
    if said is None:
        cure = "sudo mount -t securityfs securityfs /sys/kernel/security"
        return Found(None, "securityfs is not mounted", cure=cure)
    level = re.search(r"\[(\w+)\]", said)
    words = level[1] if level else said
    return Found(words != "confidentiality", words)


def mount(machine: Machine, name: str) -> Found:
    """Where a file system of the kernel's own is mounted."""
    where = _mounted(name)
    return Found(bool(where), where or "not mounted")


def _mounted(kind: str) -> str:
    return next(mounted(kind), "")


# ---- what this process may do

# linux/capability.h
_CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
_IMPLIED = ("CAP_PERFMON", "CAP_BPF")  # by CAP_SYS_ADMIN: capable_noaudit of the kernel's bpf


def _status(field: str) -> str:
    lines = (_read("/proc/self/status") or "").splitlines()
    return next((line.split()[1] for line in lines if line.startswith(f"{field}:")), "")


def capability(machine: Machine, name: str) -> Found:
    """A capability that root has here: of who is root, now; of others, what sudo could give."""
    held = int(_status("CapEff" if os.geteuid() == 0 else "CapBnd"), 16)
    names = (name, "CAP_SYS_ADMIN") if name in _IMPLIED else (name,)
    through = [one for one in names if held >> _CAPABILITIES[one] & 1]
    if not through:
        return Found(False, "root doesn't have it here")
    how = "held" if os.geteuid() == 0 else "in reach of root"
    return Found(True, how if through[0] == name else f"{how}, by {through[0]}")


_NO_ROOT = "invoke verify --on vm  # that needs no root"


def root(machine: Machine, name: str) -> Found:
    """Root, or a way to it."""
    if os.geteuid() == 0:
        return Found(True, "this is root")
    if _status("NoNewPrivs") == "1":
        return Found(False, "this process can't get more rights (no_new_privs)", cure=_NO_ROOT)
    sudo = _ask("sudo", "-n", trust.command("true"))
    if not sudo:
        return Found(False, "neither root nor sudo", cure=_NO_ROOT)
    if sudo.code:
        return Found(None, "sudo is there, and wants to ask for a password")
    return Found(True, "by sudo")


def user_namespace(machine: Machine, name: str) -> Found:
    """Whether root here is root of the machine (user_namespaces(7))."""
    whole = (_read("/proc/self/uid_map") or "").split() == ["0", "0", "4294967295"]
    return Found(whole, "the machine's first" if whole else "one inside of it")


def memlock(machine: Machine, name: str) -> Found:
    """How much memory a process may lock, or whether root may raise that."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    words = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB"
    may_raise = bool(capability(machine, "CAP_SYS_RESOURCE").will_do)
    return Found(words == "unlimited" or may_raise, words)


# ---- the interface


def interface(machine: Machine, name: str) -> Found:
    """What kind of interface it is."""
    it = interfaces.of(machine.dev)
    words = [it.driver or "no driver's", f"MTU {it.mtu}", *(f"{one} on" for one in it.merging)]
    words += ["XDP in hardware"] if it.offload else []
    return Found(True, ", ".join(words))


def up(machine: Machine, name: str) -> Found:
    """Whether packets can come."""
    it = interfaces.of(machine.dev)
    return Found(it.up, "up" if it.up else "down")


def queues(machine: Machine, name: str) -> Found:
    """How many processors its packets can be spread over."""
    it, cpus = interfaces.of(machine.dev), os.cpu_count() or 1
    words = f"{it.rx_queues} receive, {it.tx_queues} send; {cpus} CPUs"
    return Found(it.rx_queues >= min(cpus, it.most_queues), words)


def free(machine: Machine, name: str) -> Found:
    """Whether no XDP program is on it."""
    programs = netlink.attached(machine.dev)
    words = ", ".join(f"id {one.program} in {one.mode} mode" for one in programs)
    return Found(not programs, words or "none")


def spared(machine: Machine, name: str) -> Found:
    """Whether this machine can be reached without it."""
    it = interfaces.of(machine.dev)
    words = [
        word
        for word, holds in (
            ("an ssh session", lifelines.come_through(machine.dev)),
            ("the default route", it.default_route),
        )
        if holds
    ]
    return Found(not words, " and ".join(words) or "nothing that would be missed")


def native(machine: Machine, name: str) -> Found:
    """Native XDP: what was tried, or else what is known of its driver and its state.

    A driver that has none is no fault: generic is what there is.
    """
    it = interfaces.of(machine.dev)
    has, who = interfaces.native(it)
    against = interfaces.against_native(it)
    refused = any(one.certain for one in against)
    if has is False and not refused:
        return Found(True, who)
    cure = against[0].cure if against else ""
    tried = _tried(machine, "native")
    if tried:
        return replace(tried, cure=cure)
    words = "; ".join([who, *(one.words for one in against)])
    return Found(False if refused else has, f"{words} (not tried)", cure=cure)


def generic(machine: Machine, name: str) -> Found:
    """Generic XDP, which the kernel has for every interface."""
    return _tried(machine, "skb") or Found(True, "every interface has it (not tried)")


_TO_ATTACH = ("bpf", "net_admin")  # the capabilities, since v5.8


def _tried(machine: Machine, mode: str) -> Found | None:
    """What came of attaching a program that passes all, where that disturbs nobody."""
    it = interfaces.of(machine.dev)
    reached = it.default_route or lifelines.come_through(machine.dev)
    busy = reached or bool(netlink.attached(machine.dev))
    links = Range.parse("v5.9", "")  # bpf_link for XDP
    able = bool(root(machine, "").will_do) and user_namespace(machine, "").will_do
    if busy or not able or not machine.running or machine.running not in links:
        return None
    trial = as_user([sys.executable, "-m", "xdplab.trial", machine.dev, mode], _TO_ATTACH)
    as_root = machine.shell.as_root(trial, "trying an XDP mode")
    tried = machine.shell.run(as_root, cwd=PROJECT, check=False)
    if machine.shell.dry:
        return None
    if tried.code:
        return Found(False, tried.text("err").rpartition("\n")[2])
    return Found(not tried.lines, f"tried: {tried.text() or 'it attached'}")
