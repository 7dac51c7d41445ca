"""Traffic: frames of one's choice, at a rate of one's choice."""

from __future__ import annotations

import ipaddress
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from xdplab.errors import (
    InterfaceDown,
    MixedFamilies,
    NotACapture,
    NotAnIpAddress,
    NotANumber,
    NoTarget,
)
from xdplab.options import choice, number, whole_number, words
from xdplab.outlet import Outlet

USUAL_RATE = 100.0  # frames a second
_SMALLEST = 60  # bytes of a frame on Ethernet, without its checksum (IEEE 802.3)
_HEADER, _TAG = 14, 4  # bytes of Ethernet's and of 802.1Q's
_LAST_VLAN = 4094  # 4095 is reserved (IEEE 802.1Q)
_ETHERNET = 1  # LINKTYPE_ETHERNET of tcpdump.org
_MOST_FRAMES = 100_000  # of a capture
_DISCARD, _HIGH_PORT = 9, 49152  # RFC 863; the first of those that are nobody's
_TELL = 1.0  # seconds between two pieces of news
_NAP = 0.2  # seconds without a look at whether it should stop, at most


class Proto(StrEnum):
    """What is in a frame's IP packet."""

    ICMP = "icmp"
    UDP = "udp"
    TCP = "tcp"


# ---- frames


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a frame is made."""

    source: str
    target: str
    proto: Proto = Proto.ICMP
    size: int | None = None  # bytes of the frame; None: as small as it gets
    vlans: tuple[int, ...] = ()  # the outer tag first

    def __post_init__(self) -> None:
        """Raise NotAnIpAddress, MixedFamilies."""
        if _version(self.source) != _version(self.target):
            raise MixedFamilies(self.source, self.target)

    @classmethod
    def of(
        cls, source: str, target: str | None, proto: str | None, size: str | None, vlan: str | None
    ) -> Recipe:
        """What options ask for; raises NoTarget, NotAChoice and NotANumber too."""
        if target is None:
            raise NoTarget
        return cls(
            source,
            target,
            Proto.ICMP if proto is None else choice("--proto", proto, Proto),
            None if size is None else whole_number("--size", size),
            _tags(vlan),
        )

    def frame(self, outlet: Outlet) -> bytes:
        """The frame, as it goes out there; raises NotANumber if it can't have that size."""
        packet = self._headers(outlet)
        least = len(bytes(packet))
        most = outlet.mtu + _HEADER + min(1, len(self.vlans)) * _TAG
        size = max(least, _SMALLEST) if self.size is None else self.size
        if not least <= size <= most:
            room = f"its headers, to {most}, the MTU of {outlet.dev}"
            raise NotANumber("--size", size, f"the bytes of a frame, from {least}, {room}")
        return bytes(packet / bytes(size - least))

    def _headers(self, outlet: Outlet) -> Any:
        from scapy.layers.inet import ICMP, IP, TCP, UDP  # here: scapy takes long to import
        from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
        from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

        ends = {"src": self.source, "dst": self.target}
        ports = {"sport": _HIGH_PORT, "dport": _DISCARD}
        ipv6 = _version(self.source) == 6
        above = {
            Proto.ICMP: ICMPv6EchoRequest() if ipv6 else ICMP(),
            Proto.UDP: UDP(**ports),
            Proto.TCP: TCP(**ports),
        }
        packet = Ether(src=outlet.mac, dst=outlet.next_hop)
        *outer, inner = self.vlans or (0,)
        for tag in outer:
            packet /= Dot1AD(vlan=tag)
        if inner:
            packet /= Dot1Q(vlan=inner)
        return packet / (IPv6(**ends) if ipv6 else IP(**ends)) / above[self.proto]


def _version(address: str) -> int:
    try:
        return ipaddress.ip_address(address).version
    except ValueError:
        raise NotAnIpAddress(address) from None


def captured(path: Path) -> list[bytes]:
    """The frames of a capture, a pcap or pcapng file; raises NotACapture."""
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapReader

    frames = []
    try:
        with RawPcapReader(str(path)) as reader:
            for data, meta in itertools.islice(reader, _MOST_FRAMES + 1):
                link = getattr(meta, "linktype", None) or getattr(reader, "linktype", None)
                if link != _ETHERNET:
                    raise NotACapture(path, f"its frames are not Ethernet's: link type {link}")
                frames.append(bytes(data))
    except (OSError, Scapy_Exception, EOFError) as error:
        raise NotACapture(path, getattr(error, "strerror", None) or str(error)) from None
    if not frames:
        raise NotACapture(path, "there is no frame in it")
    if len(frames) > _MOST_FRAMES:
        raise NotACapture(path, f"it has more than {_MOST_FRAMES:,} frames")
    for at, frame in enumerate(frames, 1):
        if len(frame) < _HEADER:
            raise NotACapture(path, f"its frame {at} ends within the Ethernet header")
    return frames


def require_room(frames: Sequence[bytes], outlet: Outlet, path: Path) -> None:
    """Raise NotACapture if a frame is too long for the interface."""
    for at, frame in enumerate(frames, 1):
        tagged = frame[12:14] in (b"\x81\x00", b"\x88\xa8")
        if len(frame) > outlet.mtu + _HEADER + tagged * _TAG:
            why = f"its frame {at} has {len(frame)} bytes, and the MTU of {outlet.dev} is"
            raise NotACapture(path, f"{why} {outlet.mtu}")


def _tags(given: str | None) -> tuple[int, ...]:
    if given is None:
        return ()
    tags = [int(one) if one.isdecimal() else 0 for one in words(given)]
    if not 1 <= len(tags) <= 2 or not all(1 <= tag <= _LAST_VLAN for tag in tags):
        expected = "one or two VLAN IDs from 1 to 4094, with a comma between"
        raise NotANumber("--vlan", given, expected)
    return tuple(tags)


# ---- what is asked for


@dataclass(frozen=True, slots=True)
class Order:
    """What to send, and how fast."""

    recipe: Recipe | None  # or else:
    capture: Path | None
    rate: float | None  # frames a second; None: as many as can be
    count: int | None  # None: those of the capture, or one
    seconds: float | None
    fast: bool

    @classmethod
    def of(
        cls, recipe: Recipe | None, capture: str | None, rate: str | None, count: str | None,
        duration: str | None, *, fast: bool,
    ) -> Order:  # fmt: skip
        """What options ask for; raises NotANumber."""
        asked = None if rate is None else number("--rate", rate)
        if asked == 0:
            raise NotANumber("--rate", rate, "frames a second, more than 0")
        return cls(
            recipe,
            None if capture is None else Path(capture),
            None if fast and asked is None else asked or USUAL_RATE,
            None if count is None else whole_number("--count", count),
            None if duration is None else number("--duration", duration),
            fast,
        )

    def frames(self, outlet: Outlet) -> list[bytes]:
        """The frames that are sent in turn; raises InterfaceDown, NotANumber, NotACapture."""
        if not outlet.up:
            raise InterfaceDown(outlet.dev)
        if self.recipe:
            return [self.recipe.frame(outlet)]
        assert self.capture  # noqa: S101  # one of the two
        frames = captured(self.capture)
        require_room(frames, outlet, self.capture)
        return frames

    def number(self, frames: Sequence[bytes]) -> int:
        """How many are to be sent; 0: no end."""
        if self.count is not None:
            return self.count
        return 0 if self.seconds is not None or self.fast else len(frames)


# ---- sending


@dataclass(frozen=True, slots=True)
class Sent:
    """How far a sender is."""

    sent: int
    seconds: float  # since it began
    how: str  # what sends them
    why: str = ""  # it is that and nothing faster

    @property
    def rate(self) -> float:
        """Frames a second so far."""
        return self.sent / self.seconds if self.seconds else 0.0


Send = Callable[[int], int]  # send so many frames, or fewer; gives how many


def paced(
    send: Send,
    most: Callable[[], int],
    stopped: Callable[[float], bool],
    *,
    rate: float | None,
    count: int,
    seconds: float | None,
) -> Iterator[tuple[int, float]]:
    """Send by a schedule that is kept from the beginning, so that it doesn't drift.

    `most` tells how many may be sent at once; `stopped` waits so many seconds, and
    whether to stop.  Gives how many were sent, and in how many seconds: now and then,
    and at the end.
    """
    began = time.monotonic()
    sent, told, passed = 0, 0.0, 0.0
    while not (count and sent >= count) and (seconds is None or passed < seconds):
        due = most() if rate is None else int(passed * rate) + 1 - sent
        due = min(due, most(), count - sent if count else due)
        if due > 0:
            sent += send(due)
        ahead = 0.0 if rate is None else sent / rate - (time.monotonic() - began)
        if stopped(min(max(ahead, 0.0), _NAP)):
            break
        passed = time.monotonic() - began
        if passed >= told + _TELL:
            told = passed
            yield sent, passed
    yield sent, time.monotonic() - began
