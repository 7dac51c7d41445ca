"""The virtual machine: what QEMU is told, and whether KVM can be used."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xdplab.errors import MissingTools, QemuTooOld
from xdplab.files import read_json, write_json
from xdplab.process import Shell, scratch
from xdplab.workspace import Workspace, boot_id

QEMU = "qemu-system-x86_64"
MEMORY = 512  # MiB of the guest; QEMU itself takes some 100 more
_SINCE = (7, 2)  # the first release with -netdev dgram

_KVM = Path("/dev/kvm")
_VERDICT = "kvm.json"  # in the workspace
# Says 0x10 to isa-debug-exit's port and stops: mov $0x10,%al; out %al,$0xf4; hlt
_BOOT_SECTOR = bytes.fromhex("b010e6f4f4").ljust(510, b"\0") + b"\x55\xaa"
_LEFT = 0x10 << 1 | 1  # how QEMU ends when the device is told 0x10
_PROBE_PATIENCE = 2.0  # seconds; emulation needs a tenth of that

# -M microvm would boot faster, and hangs; so does emulation with more than one thread
_MACHINE = ("-M", "pc", "-nodefaults", "-display", "none", "-no-reboot", "-m", f"{MEMORY}M")
# -cpu max: a distribution's C library may ask for more than the oldest x86-64 has
_EMULATED = ("-accel", "tcg,thread=single", "-cpu", "max")
_VIRTUALISED = ("-accel", "kvm", "-cpu", "host")

# Features of the card with which its driver refuses XDP, as packets would come
# merged or without a checksum (virtnet_xdp_set() of drivers/net/virtio_net.c).
_NO_XDP = ("guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "csum", "guest_csum")
MAC, HOST_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
CARD, HOST = "card.sock", "host.sock"  # the ends of its cable, in QEMU's directory

# What each serial port is for, as testbed/init.c has it, and the file that
# QEMU writes it to; None: QEMU's own standard input and output.
KERNEL_LOG, OUTPUT, ERRORS = "kernel.log", "guest.out", "guest.err"
_PORTS = (KERNEL_LOG, OUTPUT, None, ERRORS)

# A panic ends QEMU at once (-no-reboot).  A kernel that tries its cryptography on itself
# spends a tenth to a quarter of an emulated boot on that.  One that tries its timer counts
# ticks in a few milliseconds of ours, and on a busy machine panics: "IO-APIC + timer
# doesn't work!" (arch/x86/kernel/apic/io_apic.c, which skips this under KVM by itself).
_KERNEL_LINE = "console=ttyS0 panic=-1 8250.nr_uarts=4 cryptomgr.notests no_timer_check"


@dataclass(frozen=True, slots=True)
class Engine:
    """How QEMU runs a guest's instructions."""

    name: str
    options: tuple[str, ...]


KVM = Engine("KVM", _VIRTUALISED)
TCG = Engine("emulation (TCG)", _EMULATED)


def require(shell: Shell) -> str:
    """The version of a QEMU that has all that is used here; raises MissingTools, QemuTooOld."""
    if not shutil.which(QEMU):
        raise MissingTools([QEMU], "vm")
    said = shell.ask([QEMU, "--version"]).text()
    found = re.search(r"version (\d+)\.(\d+)", said)
    if not found or (int(found[1]), int(found[2])) < _SINCE:
        raise QemuTooOld(said.partition("\n")[0], "{}.{}".format(*_SINCE))
    return f"{found[1]}.{found[2]}"


def argv(engine: Engine, image: Path, initramfs: Path, *, card: bool) -> list[str | Path]:
    """The command line of a guest, to be run in the directory that its files go to."""
    ports: list[str] = ["-chardev", "stdio,id=commands,signal=off"]
    for file in _PORTS:
        ports += ["-serial", f"file:{file}" if file else "chardev:commands"]
    return [
        *(QEMU, *_MACHINE, *engine.options, "-smp", "1"),
        *("-kernel", image, "-initrd", initramfs, "-append", _KERNEL_LINE),
        *ports,
        *(_card() if card else ()),
    ]


def _card() -> Sequence[str]:
    """A virtio card whose cable is a pair of UNIX sockets: a datagram is a frame."""
    ends = f"local.type=unix,local.path={CARD},remote.type=unix,remote.path={HOST}"
    features = ",".join(f"{name}=off" for name in _NO_XDP)
    return (
        *("-netdev", f"dgram,id=cable,{ends}"),
        *("-device", f"virtio-net-pci,netdev=cable,mac={MAC},romfile=,{features}"),
    )


# ---- KVM


def engines(workspace: Workspace, shell: Shell, tell: Callable[[str], None]) -> list[Engine]:
    """What to try, in this order: KVM where it works, and emulation.

    `tell` hears of a KVM that can't be used.
    """
    if not _KVM.exists():
        return [TCG]
    fault = kvm_fault(workspace, shell)
    if not fault:
        return [KVM, TCG]
    tell(f"KVM is there but can't be used ({fault}): emulation instead")
    return [TCG]


def kvm_fault(workspace: Workspace, shell: Shell) -> str:
    """Why the KVM that is there can't be used; empty if it can.

    A /dev/kvm that opens can still hang or abort, so a boot sector of a few
    bytes is run with the very options of a guest.  The verdict is kept until
    the next boot of this machine.
    """
    known = read_json(workspace.root / _VERDICT) or {}
    if known.get("boot") == boot_id():
        return str(known["fault"])
    fault = _why_no_kvm(shell)
    if not shell.dry:
        judge_kvm(workspace, fault)
    return fault


def judge_kvm(workspace: Workspace, fault: str) -> None:
    """Remember, until the next boot of this machine, why KVM can't be used; empty if it can."""
    write_json(workspace.root / _VERDICT, {"boot": boot_id(), "fault": fault})


def _why_no_kvm(shell: Shell) -> str:
    with scratch() as place:
        disk = place / "disk"
        disk.write_bytes(_BOOT_SECTOR)
        options = ["-drive", f"file={disk},format=raw,if=ide,readonly=on", "-device",
                   "isa-debug-exit,iobase=0xf4,iosize=4"]  # fmt: skip
        with Shell(shell.echo).start([QEMU, *_MACHINE, *KVM.options, *options]) as running:
            try:
                said = [line.text for line in running.lines(_PROBE_PATIENCE)]
                code = running.wait()
            except TimeoutError:
                return "a guest of five bytes hangs"
    return "" if code == _LEFT else (said or [f"QEMU ended with {code}"])[0]
