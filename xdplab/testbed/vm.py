"""A virtual machine, booted on a kernel of the user's choice: no root, nothing of the host.

Packets reach its network card through a pair of UNIX sockets; on its `lo` its
own ping sends them, as in the post.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from xdplab import netlink, packets
from xdplab.boot import Kernel, config, initramfs, modules, qemu
from xdplab.boot.guest import READ_LOG, Guest, booted, in_guest
from xdplab.boot.qemu import CARD, HOST
from xdplab.build import Build
from xdplab.errors import CommandFailed, LabError, NoBoot, NotAChoice
from xdplab.files import write_whole
from xdplab.netlink import Attached
from xdplab.packets import Pinged
from xdplab.process import Shell
from xdplab.testbed import Bench, Peers, Place, Process, Testbed, prog_run
from xdplab.testbed.door import Deeds, Door, short_name
from xdplab.testbed.local import LOOPBACK
from xdplab.workspace import Workspace

DEV = "eth0"  # the card, as the kernel calls it where no udev renames it
_DEVS = ("lo", DEV)
# Addresses for documentation (RFC 5737): nobody's, and not martian on a card.
ON_CARD = Peers("192.0.2.1", ("198.51.100.2", "198.51.100.3"))

_PORTION = 16384  # bytes of frames; a terminal holds 65536 characters, and a byte is two
_PING_PATIENCE = 1.0  # seconds for the replies
_RECEIVED = re.compile(r"(\d+) packets received")
# the kernel answers each source without asking who has it, and without a route
_CARD_UP = (
    f"/sbin/ip address add {ON_CARD.target}/24 dev {DEV}",
    f"/sbin/ip link set dev {DEV} arp off up",
    f"/sbin/ip route add default dev {DEV}",
)
_LOAD = f"for module in {initramfs.MODULES}/*; do insmod $module || exit; done"


@dataclass(frozen=True, slots=True)
class Parcel:
    """All that a guest is made of: it can be sent to another machine."""

    image: Path
    initramfs: Path
    card: bool  # whether it has a network card
    drivers: bool  # whether that needs modules


@dataclass(frozen=True, slots=True)
class Vm(Testbed):
    """A virtual machine with a build in it."""

    name = "vm"

    kernel: Kernel
    build: Build
    dev: str  # the interface that it is wanted for
    directory: Path  # where its logs stay
    workspace: Workspace
    tell: Callable[[str], None] = lambda _: None

    def missing(self) -> LabError | None:
        """QEMU, new enough; a kernel with BPF, and with a driver for the card."""
        if self.dev not in _DEVS:
            return NotAChoice("--dev", self.dev, _DEVS)
        try:
            qemu.require(Shell())
            config.require_bpf(self.kernel)
            self._modules()
        except LabError as error:
            return error
        return None

    def _modules(self) -> list[modules.Module]:
        return modules.needed(self.kernel, modules.CARD) if self._has_card else []

    @property
    def _has_card(self) -> bool:
        return self.dev != "lo"

    @property
    def _archive(self) -> Path:
        return self.directory / "initramfs.cpio"

    def pack(self, shell: Shell) -> Parcel:
        """Make the guest's file system, in the directory; raises MissingTools."""
        drivers = [
            (f"{number:02}-{module.name}.ko", module.content())
            for number, module in enumerate(self._modules())
        ]
        tool = prog_run.tool(self.workspace, shell)
        packed = initramfs.pack(self.build.program, self.build.objects, drivers, tool, shell)
        write_whole(self._archive, packed)
        return Parcel(self.kernel.image, self._archive, self._has_card, bool(drivers))

    @contextlib.contextmanager
    def open(self, shell: Shell, *, packets: bool) -> Iterator[GuestBench]:
        """Boot, and switch off afterwards; a kernel that reported trouble is an error then."""
        parcel = self.pack(shell)
        try:
            with opened(parcel, self.directory, self.workspace, shell, self.tell) as bench:
                yield bench
        finally:
            parcel.initramfs.unlink(missing_ok=True)

    def show(self, build: Build, options: Sequence[str], shell: Shell) -> None:
        """QEMU's command, and the program's in the guest."""
        engine = qemu.engines(self.workspace, shell, self.tell)[0]
        argv = qemu.argv(engine, self.kernel.image, self._archive, card=self._has_card)
        shell.run(argv, cwd=self.directory)
        shell.echo(in_guest(shlex.join(_command(build, options))))


def _command(build: Build, options: Sequence[str]) -> list[str]:
    return [str(initramfs.SAMPLE / build.name), *options]


@contextlib.contextmanager
def opened(
    parcel: Parcel, directory: Path, workspace: Workspace, shell: Shell, tell: Callable[[str], None]
) -> Iterator[GuestBench]:
    """A bench in a guest made of a parcel, whose logs go to a directory.

    `tell` hears why it can't be run as fast as it could.  Raises NoBoot, what
    Guest.ask raises, and KernelSplat at the end.
    """
    with contextlib.ExitStack() as stack:
        cable = stack.enter_context(Cable.laid(directory)) if parcel.card else None
        stack.callback(_remove, directory, qemu.OUTPUT, qemu.ERRORS)
        guest = _boot(parcel, directory, workspace, shell, tell, stack)
        guest.tell("/sbin/ip link set dev lo up")
        for command in [_LOAD] * parcel.drivers + [*_CARD_UP] * parcel.card:
            guest.tell(command)
        bench = GuestBench(guest, cable)
        deeds: Deeds = {
            "ping": lambda *what: asdict(bench.ping(*what)),
            "attached": lambda dev: [asdict(one) for one in bench.attached(dev)],
            "frames": bench.send,
            "stop": guest.stop,
            "log": lambda: guest.ask(READ_LOG).text,
        }
        guest.meanwhile = stack.enter_context(Door.opened(directory, deeds)).answer
        yield bench
        guest.require_no_splat()


def _boot(
    parcel: Parcel, directory: Path, workspace: Workspace, shell: Shell,
    tell: Callable[[str], None], stack: contextlib.ExitStack,
) -> Guest:  # fmt: skip
    """A guest, until the stack is left; if need be without a KVM that was thought to work."""
    fault = None
    for engine in qemu.engines(workspace, shell, tell):
        boot = booted(parcel.image, parcel.initramfs, directory, engine, shell, card=parcel.card)
        try:
            guest = stack.enter_context(boot)
        except NoBoot as error:
            fault = error
            continue
        if fault:
            tell(f"it boots without KVM, but with it: {fault.message}")
            qemu.judge_kvm(workspace, fault.message)
        return guest
    assert fault  # noqa: S101  # there is always an engine
    raise fault


def _remove(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class GuestBench(Bench):
    """A bench in a guest."""

    guest: Guest
    cable: Cable | None

    @property
    def where(self) -> str:
        """A virtual machine."""
        return Vm.name

    def start(
        self, build: Build, options: Sequence[str], log: Path, *, trace: bool = False
    ) -> Process:
        """Start the program in the guest."""
        if trace:
            self.guest.tell(READ_LOG)
        return self.guest.start(_command(build, options), log)

    def interfaces(self) -> list[str]:
        """The guest's interfaces."""
        return self.guest.tell("ls /sys/class/net").split()

    def place(self, dev: str) -> Place:
        """The guest's kernel."""
        release = self.guest.tell("cat /proc/sys/kernel/osrelease")
        return Place(self.where, release, "loopback" if dev == "lo" else "virtio_net")

    def attached(self, dev: str) -> list[Attached]:
        """The XDP programs on an interface, as ip-link(8) has them."""
        said = self.guest.tell(f"/sbin/ip -json link show dev {shlex.quote(dev)}")
        return netlink.of_ip_link(said)

    def ping(self, source: str, target: str, count: int) -> Pinged:
        """Send ICMP echo requests: to the card from outside, to the guest's `lo` from inside."""
        before = self._echos()
        if self.cable and target == ON_CARD.target:
            answered = self.cable.ping(source, target, count)
        else:
            answered = self._ping_inside(source, target, count)
        return Pinged(count, delivered=self._echos() - before, answered=answered)

    def send(self, frames: Sequence[str]) -> int:
        """Send Ethernet frames, in hexadecimal, to the card; gives how many."""
        assert self.cable  # noqa: S101  # who asks knows that there is a card
        return self.cable.send(bytes.fromhex(frame) for frame in frames)

    def _ping_inside(self, source: str, target: str, count: int) -> int:
        addresses = f"-I {shlex.quote(source)} {shlex.quote(target)}"
        command = f"ping -q -c {count} -i 0.1 -W {_PING_PATIENCE:.0f} {addresses}"
        answer = self.guest.ask(command)
        found = _RECEIVED.search(answer.text)
        if not found:
            raise CommandFailed(in_guest(command), answer.code, answer.text)
        return int(found[1])

    def _echos(self) -> int:
        """How many echo requests the guest's ICMP has seen: those that got past XDP."""
        names, values = (
            line.split()
            for line in self.guest.tell("cat /proc/net/snmp").splitlines()
            if line.startswith("Icmp: ")
        )
        return int(values[names.index("InEchos")])

    def answer_to(self, address: str, dev: str) -> None:
        """On `lo` the address must be the guest's own; on the card all are answered."""
        if dev == "lo":
            self.guest.tell(f"/sbin/ip address replace {shlex.quote(address)}/32 dev lo")

    def peers(self, dev: str) -> Peers:
        """The card's address, or those of `lo`."""
        return LOOPBACK if dev == "lo" else ON_CARD

    def test_run(self, program: int, frames: Sequence[bytes]) -> list[int]:
        """Run frames through a program in the guest: they go there by its serial line."""
        run = shlex.join(prog_run.command(initramfs.TEST_RUN, program))
        said: list[str] = []
        for lines in map(prog_run.request, _portions(frames)):
            said += self.guest.tell(run, lines).splitlines()
        return prog_run.returned(said, frames)

    def facts(self, build: Build, process: Process) -> dict[str, object]:
        """QEMU, and whom to send packets to."""
        target = self.peers(DEV if self.cable else "lo").target
        return {"pid": process.pid, "binary": qemu.QEMU, "target": target}


def _portions(frames: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Frames, as many at once as the guest's terminal is sure to hold."""
    portion: list[bytes] = []
    room = _PORTION
    for frame in frames:
        if portion and len(frame) > room:
            yield portion
            portion, room = [], _PORTION
        portion.append(frame)
        room -= len(frame)
    yield portion


@dataclass(frozen=True, slots=True)
class Cable:
    """Our end of the cable that leads to the guest's card."""

    socket: socket.socket
    place: str

    @classmethod
    @contextlib.contextmanager
    def laid(cls, directory: Path) -> Iterator[Cable]:
        """The cable's two UNIX sockets in a directory, removed afterwards."""
        with (
            short_name(directory) as place,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours,
        ):
            try:
                ours.bind(f"{place}/{HOST}")
                yield cls(ours, place)
            finally:
                _remove(directory, HOST, CARD)

    def send(self, frames: Iterable[bytes]) -> int:
        """Send Ethernet frames; gives how many."""
        return sum(bool(self.socket.sendto(one, f"{self.place}/{CARD}")) for one in frames)

    def ping(self, source: str, target: str, count: int) -> int:
        """Send ICMP echo requests as frames; gives how many were answered."""
        from scapy.layers.inet import ICMP, IP  # here: scapy takes most of a second to import
        from scapy.layers.l2 import Ether

        identity = os.getpid() & 0xFFFF
        requests = packets.echo_requests(source, target, count, identity)
        self.send(bytes(Ether(dst=qemu.MAC, src=qemu.HOST_MAC) / one) for one in requests)
        answered: set[int] = set()
        for frame in self._frames(_PING_PATIENCE):
            reply = Ether(frame)
            if (
                ICMP in reply
                and reply[IP].dst == source
                and reply[ICMP].id == identity
                and reply[ICMP].type == packets.ECHO_REPLY
            ):
                answered.add(reply[ICMP].seq)
            if len(answered) == count:
                break
        return len(answered)

    def _frames(self, seconds: float) -> Iterator[bytes]:
        """Frames from the guest as they come, for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                yield self.socket.recv(65536)
            except TimeoutError:
                return
