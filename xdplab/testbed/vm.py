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
from xdplab.netlink import Attached
from xdplab.packets import Pinged
from xdplab.process import Shell, pasteable
from xdplab.testbed import Bench, Peers, Place, Process, Testbed, prog_run, tools
from xdplab.testbed.door import Deeds, Door, short_name
from xdplab.testbed.local import LOOPBACK
from xdplab.workspace import Workspace

DEV = "eth0"  # the card, as the kernel calls it where no udev renames it
_DEVS = ("lo", DEV)
ARCHIVE = "initramfs.cpio"  # a guest's file system, in its directory
# Addresses for documentation (RFC 5737): nobody's, and not martian on a card.
ON_CARD = Peers("192.0.2.1", ("198.51.100.2", "198.51.100.3"))

_PORTION = 16384  # bytes of frames; a terminal holds 65536 characters, and a byte is two
_PING_PATIENCE = 1.0  # seconds for the replies
_LOOK = 0.005  # seconds without one after which it is asked whether there will be more
_RECEIVED = re.compile(r"(\d+) packets received")
_LOAD = f"insmod {initramfs.MODULES}"
_LO_UP = "ip link set dev lo up"
# the kernel answers each source without asking who has it, and without a route
_CARD_UP = (
    f"ip address add {ON_CARD.target}/24 dev {DEV}"
    f" && ip link set dev {DEV} arp off up && ip route add default dev {DEV}"
)
_ECHOS, _TAKEN = "/proc/net/snmp", f"/sys/class/net/{DEV}/statistics/rx_packets"


@dataclass(frozen=True, slots=True)
class Parcel:
    """All that a guest is made of: it can be sent to another machine."""

    image: Path
    initramfs: Path
    card: bool  # whether it has a network card
    drivers: bool  # whether that needs modules
    frames: tuple[bytes, ...] = ()  # that are in it already, for GuestBench.test_run


@dataclass(frozen=True, slots=True)
class Userland:
    """What a build needs in a guest, on whatever kernel: packed once for all of them."""

    archive: bytes
    frames: tuple[bytes, ...]

    @classmethod
    def of(
        cls, build: Build, frames: Sequence[bytes], workspace: Workspace, shell: Shell
    ) -> Userland:
        """The build, our tools, and the frames that are to be run through its program.

        A frame takes 5 ms through a serial line, and none in the archive.  Raises
        MissingTools, and what tools.compiled raises.
        """
        sample = {initramfs.SAMPLE / file.name: file for file in (build.program, *build.objects)}
        places = {name: initramfs.TOOLS / name for name in tools.OF_GUESTS}
        places[tools.INIT] = initramfs.INIT
        ours = {place: tools.compiled(name, workspace, shell) for name, place in places.items()}
        files = {path: file.read_bytes() for path, file in (sample | ours).items()}
        files[initramfs.FRAMES] = "\n".join([*prog_run.request(frames), ""]).encode()
        programs = [build.program, *ours.values()]
        return cls(initramfs.userland(files, programs, shell), tuple(frames))


@dataclass(frozen=True, slots=True)
class Platform:
    """A kernel with the drivers that its machine needs: packed once for all builds."""

    image: Path
    card: bool  # whether it has a network card
    drivers: bytes  # an archive of modules; empty: it needs none

    @classmethod
    def of(cls, kernel: Kernel, dev: str) -> Platform:
        """One with an interface of that name.

        Raises NotAChoice, and why the kernel is not fit for it: WithoutBpf, NoDriver or
        ModulesUnfit.
        """
        if dev not in _DEVS:
            raise NotAChoice("--dev", dev, _DEVS)
        config.require_bpf(kernel)
        card = dev != "lo"
        wanted = modules.needed(kernel, modules.CARD) if card else []
        files = [
            (f"{number:02}-{module.name}.ko", module.content())
            for number, module in enumerate(wanted)
        ]
        return cls(kernel.image, card, initramfs.drivers(files) if files else b"")

    def parcel(self, userland: Userland, directory: Path) -> Parcel:
        """A guest with that in it, whose file system is put into a directory."""
        archive = directory / ARCHIVE
        directory.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(userland.archive + self.drivers)
        return Parcel(self.image, archive, self.card, bool(self.drivers), userland.frames)


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
    frames: Sequence[bytes] = ()  # that it is known will be run through the program

    def missing(self) -> LabError | None:
        """QEMU, new enough; a kernel with BPF, and with a driver for the card."""
        try:
            qemu.require(Shell())
            Platform.of(self.kernel, self.dev)
        except LabError as error:
            return error
        return None

    @contextlib.contextmanager
    def open(self, shell: Shell, *, packets: bool) -> Iterator[GuestBench]:
        """Boot, and switch off afterwards; a kernel that reported trouble is an error then."""
        userland = Userland.of(self.build, self.frames, self.workspace, shell)
        parcel = Platform.of(self.kernel, self.dev).parcel(userland, self.directory)
        try:
            with opened(parcel, self.directory, self.workspace, shell, self.tell) as bench:
                yield bench
        finally:
            parcel.initramfs.unlink(missing_ok=True)

    def show(self, build: Build, options: Sequence[str], shell: Shell) -> None:
        """QEMU's command, and the program's in the guest."""
        engine = qemu.engines(self.workspace, shell, self.tell)[0]
        archive, card = self.directory / ARCHIVE, self.dev != "lo"
        argv = qemu.argv(engine, self.kernel.image, archive, card=card)
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
        for command in [_LO_UP] + [_LOAD] * parcel.drivers + [_CARD_UP] * parcel.card:
            guest.tell(command)
        bench = GuestBench(guest, cable, parcel.frames)
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
    frames: tuple[bytes, ...] = ()  # that are in the guest already

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
        _, _, *rows = self.guest.tell("cat /proc/net/dev").splitlines()
        return [row.partition(":")[0].strip() for row in rows]

    def place(self, dev: str) -> Place:
        """The guest's kernel."""
        release = self.guest.tell("cat /proc/sys/kernel/osrelease")
        return Place(self.where, release, "loopback" if dev == "lo" else "virtio_net")

    def attached(self, dev: str) -> list[Attached]:
        """The XDP programs on an interface, as a tool of ours has them."""
        tool = initramfs.TOOLS / tools.LINKS
        return netlink.of_tool(self.guest.tell(shlex.join([str(tool), dev])), dev)

    def ping(self, source: str, target: str, count: int) -> Pinged:
        """Send ICMP echo requests: to the card from outside, to the guest's `lo` from inside."""
        if self.cable and target == ON_CARD.target:
            return self._ping_card(self.cable, source, count)
        before, _ = self._counted()
        answered = self._ping_inside(source, target, count)
        return Pinged(count, delivered=self._counted()[0] - before, answered=answered)

    def _ping_card(self, cable: Cable, source: str, count: int) -> Pinged:
        """Send requests to the card, and wait as long as answers can come.

        All is over once the driver has taken all frames, and as many requests as got
        past XDP were answered: the guest has one processor, which is done with what
        the driver has taken before it can be asked.
        """
        identity = os.getpid() & 0xFFFF
        echos, taken = self._counted()
        cable.request(source, ON_CARD.target, count, identity)
        answered: set[int] = set()
        deadline = time.monotonic() + _PING_PATIENCE
        while True:
            for number in cable.replies(source, identity, _LOOK):
                answered.add(number)
                if len(answered) == count:
                    break
            echos_now, taken_now = self._counted()
            delivered = echos_now - echos
            over = taken_now - taken >= count and len(answered) == delivered
            if over or time.monotonic() > deadline:
                return Pinged(count, delivered, len(answered))

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

    def _counted(self) -> tuple[int, int]:
        """How many echo requests got past XDP to the guest's ICMP, how many frames to its card."""
        files = [_ECHOS, _TAKEN] if self.cable else [_ECHOS]
        lines = self.guest.tell(shlex.join(["cat", *files])).splitlines()
        names, values = (line.split() for line in lines if line.startswith("Icmp: "))
        return int(values[names.index("InEchos")]), int(lines[-1]) if self.cable else 0

    def answer_to(self, address: str, dev: str) -> None:
        """On `lo` the address must be the guest's own; on the card all are answered."""
        if dev == "lo":
            self.guest.tell(f"ip address replace {shlex.quote(address)}/32 dev lo")

    def peers(self, dev: str) -> Peers:
        """The card's address, or those of `lo`."""
        return LOOPBACK if dev == "lo" else ON_CARD

    def test_run(self, program: int, frames: Sequence[bytes]) -> list[int]:
        """Run frames through a program in the guest.

        Those that are not in it yet go there by its serial line.
        """
        run = pasteable(prog_run.command(str(initramfs.TOOLS / tools.TEST_RUN), program))
        said: list[str] = []
        if self.frames and tuple(frames) == self.frames:
            said = self.guest.tell(f"{run} {initramfs.FRAMES}").splitlines()
        else:
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

    def request(self, source: str, target: str, count: int, identity: int) -> None:
        """Send ICMP echo requests as frames."""
        from scapy.layers.l2 import Ether  # here: scapy takes most of a second to import

        requests = packets.echo_requests(source, target, count, identity)
        self.send(bytes(Ether(dst=qemu.MAC, src=qemu.HOST_MAC) / one) for one in requests)

    def replies(self, source: str, identity: int, seconds: float) -> Iterator[int]:
        """The numbers of requests that are answered within so long."""
        from scapy.layers.inet import ICMP, IP
        from scapy.layers.l2 import Ether

        for frame in self._frames(seconds):
            reply = Ether(frame)
            if (
                ICMP in reply
                and reply[IP].dst == source
                and reply[ICMP].id == identity
                and reply[ICMP].type == packets.ECHO_REPLY
            ):
                yield reply[ICMP].seq

    def _frames(self, seconds: float) -> Iterator[bytes]:
        """Frames from the guest as they come, for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                yield self.socket.recv(65536)
            except TimeoutError:
                return
