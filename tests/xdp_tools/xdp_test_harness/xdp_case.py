"""Cases that send packets along a cable and look at what comes out past XDP.

Both ends are in one network namespace, which run.py has made: packet(7) sockets
put a frame in and take it out, and no address in it is the namespace's own.
"""

import socket
import time
import unittest
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from xdp_test_harness.utils import XDPFlag

NEAR, FAR = "xdp0", "wire0"  # the filter's end, and the one to send into

_ALL = 3  # ETH_P_ALL of linux/if_ether.h
_SOL_PACKET, _IGNORE_OUTGOING = 263, 23  # linux/if_packet.h
_PATIENCE = 10.0  # seconds: a safety net


@dataclass
class Context:
    """An end of the cable, and the addresses that are said to be there."""

    iface: str
    ether: str
    inet: str
    inet6: str
    xdp_mode: XDPFlag = XDPFlag.DRV_MODE


class Contexts:
    """The two ends."""

    _local = Context(NEAR, "02:00:00:00:00:01", "192.0.2.1", "2001:db8::1")
    _remote = Context(FAR, "02:00:00:00:00:02", "192.0.2.2", "2001:db8::2")

    def get_local_main(self) -> Context:
        """The end that XDP is on."""
        return self._local

    def get_remote_main(self) -> Context:
        """The end that packets come from."""
        return self._remote


@dataclass
class SendResult:
    """The frames that came out at each end."""

    captured_local: Sequence[bytes]
    captured_remote: Sequence[Sequence[bytes]]


def usingCustomLoader(case: type) -> type:  # noqa: N802
    """Mark a case that loads its program itself: here all do."""
    return case


class XDPCase(unittest.TestCase):
    """A case with a cable."""

    @classmethod
    def get_contexts(cls) -> Contexts:
        """The ends of the cable."""
        return Contexts()

    @classmethod
    def generate_default_packets(
        cls, src_port: int = 50000, dst_port: int = 50000, src_inet: str | None = None,
        dst_inet: str | None = None, src_ether: str | None = None, dst_ether: str | None = None,
        amount: int = 5, use_inet6: bool = False,
    ) -> list[Any]:  # fmt: skip
        """Different UDP packets from the far end's addresses to the near one's."""
        to, of = cls.get_contexts().get_local_main(), cls.get_contexts().get_remote_main()
        if use_inet6:
            header = IPv6(src=src_inet or of.inet6, dst=dst_inet or to.inet6)
        else:
            header = IP(src=src_inet or of.inet, dst=dst_inet or to.inet)
        start = Ether(src=src_ether or of.ether, dst=dst_ether or to.ether) / header
        return [
            start / UDP(sport=int(src_port), dport=int(dst_port)) / Raw(f"packet {number}".encode())
            for number in range(amount)
        ]

    def send_packets(self, packets: Iterable[Packet]) -> SendResult:
        """Send packets into the far end; gives what came out of the near one, and came back."""
        frames = [bytes(packet) for packet in packets]
        with _listening(NEAR) as near, _listening(FAR) as far:
            before = _received(NEAR)
            for frame in frames:
                far.send(frame)
            deadline = time.monotonic() + _PATIENCE
            while _received(NEAR) < before + len(frames) and time.monotonic() < deadline:
                time.sleep(0.01)  # dropped ones are counted too
            return SendResult(_waiting(near), [_waiting(far)])

    def assertPacketsIn(self, packets: Iterable[Packet], container: Sequence[bytes]) -> None:  # noqa: N802
        """Every packet is among them, as often as it was sent."""
        left = list(container)
        for packet in packets:
            if bytes(packet) not in left:
                self.fail(f"{packet.summary()} didn't arrive: {len(container)} did")
            left.remove(bytes(packet))

    def assertPacketsNotIn(self, packets: Iterable[Packet], container: Sequence[bytes]) -> None:  # noqa: N802
        """No packet is among them."""
        for packet in packets:
            if bytes(packet) in container:
                self.fail(f"{packet.summary()} arrived")

    def assertPacketContainerEmpty(self, container: Sequence[bytes]) -> None:  # noqa: N802
        """Nothing came."""
        if container:
            self.fail(f"{len(container)} packets came")


def _listening(dev: str) -> socket.socket:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    listener.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    listener.bind((dev, _ALL))
    listener.setblocking(False)
    return listener


def _waiting(listener: socket.socket) -> list[bytes]:
    """The frames that a socket holds."""
    found: list[bytes] = []
    while True:
        try:
            found.append(listener.recv(65536))
        except BlockingIOError:
            return found


def _received(dev: str) -> int:
    """How many frames have come in; /proc/net is this namespace's, /sys may be another's."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    (counters,) = (line.split(":")[1] for line in lines if line.strip().startswith(f"{dev}:"))
    return int(counters.split()[1])
