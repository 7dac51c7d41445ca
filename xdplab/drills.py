"""The exercises' frames and what must become of each: rows of data, made with scapy.

Imported where frames are sent and nowhere else: scapy takes most of a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from xdplab.cases import Verdict

ADDRESS, REVERSED = "192.168.1.78", "78.1.168.192"
_NEXT, _HERE = "192.168.1.79", "198.51.100.1"

_UNKNOWN = 0x88B5  # an EtherType for experiments (IEEE Std 802): no protocol's
_CUT = 14  # bytes of an IPv4 header: it ends in the middle of the source address


@dataclass(frozen=True, slots=True)
class Case:
    """A frame, and its words: [frames.TEXT] of templates/exercises.*.toml."""

    text: str
    verdict: Verdict
    packet: Packet

    @property
    def frame(self) -> bytes:
        """What is sent."""
        return bytes(self.packet)

    @property
    def passes(self) -> bool:
        """Whether it must get through."""
        return self.verdict is Verdict.PASS

    @property
    def source(self) -> str:
        """The IPv4 source address, if there is one whole."""
        return str(self.packet[IP].src) if IP in self.packet else ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A run of the program: what it is given as -i, and frames; none: it must refuse that."""

    given: str
    cases: tuple[Case, ...]
    counts_passed: bool = False


def _passes(text: str, *packets: Packet, kind: int | None = None) -> tuple[Case, ...]:
    return tuple(Case(text, Verdict.PASS, _ether(kind) / packet) for packet in packets)


def _dies(text: str, *packets: Packet) -> tuple[Case, ...]:
    return tuple(Case(text, Verdict.DROP, _ether() / packet) for packet in packets)


def _ether(kind: int | None = None) -> Packet:
    """A header; scapy knows its EtherType from what follows, unless that is bytes."""
    addresses = {"dst": "02:00:00:00:00:01", "src": "02:00:00:00:00:02"}
    return Ether(**addresses) if kind is None else Ether(**addresses, type=kind)


def _from(source: str, to: str = _HERE, **fields: object) -> Packet:
    return IP(src=source, dst=to, **fields)


_UDP = UDP(sport=4000, dport=4001)
_OPTIONS = [IPOption_Router_Alert()]

# sent after each of the others too: when it has come, they have
(LAST,) = _passes("unknown", b"the last frame", kind=_UNKNOWN)

_NEVER_DROPPED = (
    *_passes("ipv6", IPv6(src="2001:db8::1", dst="2001:db8::2") / _UDP),
    *_passes("bare", b"", kind=0x0800),
)

_AS_BEFORE = (
    *_dies("icmp", _from(ADDRESS) / ICMP()),
    *_dies("udp", _from(ADDRESS) / _UDP),
    *_dies("options", _from(ADDRESS, options=_OPTIONS) / _UDP),
    *_passes("other", _from(_NEXT) / ICMP()),
    *_passes("reversed", _from(REVERSED) / ICMP()),
    *_passes("to", _from(_NEXT, to=ADDRESS) / ICMP()),
    *_passes("arp", ARP(psrc=ADDRESS, pdst=_HERE, hwsrc="02:00:00:00:00:02")),
    *_passes("disguised", bytes(_from(ADDRESS) / _UDP), kind=_UNKNOWN),
    *_passes("cut", bytes(_from(ADDRESS))[:_CUT], kind=0x0800),
    *_NEVER_DROPPED,
)

_TO_ADDRESS = (
    *_dies("to_icmp", _from(_NEXT, to=ADDRESS) / ICMP()),
    *_dies("to_udp", _from(_NEXT, to=ADDRESS) / _UDP),
    *_dies("to_options", _from(_NEXT, to=ADDRESS, options=_OPTIONS) / _UDP),
    *_dies("to_itself", _from(ADDRESS, to=ADDRESS) / ICMP()),
    *_passes("to_from", _from(ADDRESS) / ICMP()),
    *_passes("to_other", _from(ADDRESS, to=_NEXT) / ICMP()),
    *_passes("to_reversed", _from(_NEXT, to=REVERSED) / ICMP()),
    *_passes("to_arp", ARP(psrc=_NEXT, pdst=ADDRESS, hwsrc="02:00:00:00:00:02")),
    *_passes("to_disguised", bytes(_from(_NEXT, to=ADDRESS) / _UDP), kind=_UNKNOWN),
    *_passes("to_cut", bytes(_from(_NEXT, to=ADDRESS))[: _CUT + 4], kind=0x0800),
    *_NEVER_DROPPED,
)

_TAG = Dot1Q(vlan=5)
# where an untagged frame has its source address, this has time to live, protocol and checksum
_SHIFTED = _from(_NEXT, ttl=192, proto=168, chksum=1 << 8 | 78)

_TAGGED = (
    *_dies("tag_icmp", _TAG / _from(ADDRESS) / ICMP()),
    *_dies("tag_udp", _TAG / _from(ADDRESS) / _UDP),
    *_dies("tag_priority", Dot1Q(vlan=4094, prio=7, dei=1) / _from(ADDRESS) / _UDP),
    *_dies("tag_zero", Dot1Q(vlan=0, prio=3) / _from(ADDRESS) / _UDP),
    *_passes("tag_other", _TAG / _from(_NEXT) / ICMP()),
    *_passes("tag_shifted", _TAG / _SHIFTED / b"payload"),
    *_passes("tag_disguised", Dot1Q(vlan=5, type=_UNKNOWN) / bytes(_from(ADDRESS) / _UDP)),
    *_passes("tag_cut", Dot1Q(vlan=5, type=0x0800) / bytes(_from(ADDRESS))[:_CUT]),
)


def _pings(*sources: str) -> Iterator[Packet]:
    return (_from(source) / ICMP() for source in sources)


_PREFIXES = (
    Trial(ADDRESS, _AS_BEFORE),
    Trial(
        "192.168.1.0/24",
        (
            *_dies("inside", *_pings("192.168.1.0", ADDRESS, "192.168.1.255")),
            *_passes("outside", *_pings("192.168.0.255", "192.168.2.0")),
            *_passes("mirrored", *_pings("10.168.1.0")),
        ),
    ),
    Trial(
        "192.168.1.78/24",
        (
            *_dies("host_bits", *_pings("192.168.1.1", "192.168.1.200")),
            *_passes("outside", *_pings("192.168.2.78")),
        ),
    ),
    Trial(
        "10.64.0.0/10",
        (
            *_dies("in_byte", *_pings("10.64.0.0", "10.127.255.255")),
            *_passes("past_byte", *_pings("10.63.255.255", "10.128.0.0")),
        ),
    ),
    Trial(
        f"{ADDRESS}/32",
        (*_dies("one", *_pings(ADDRESS)), *_passes("not_one", *_pings("192.168.1.77", _NEXT))),
    ),
    Trial("0.0.0.0/0", (*_dies("every", *_pings("10.0.0.1", "203.0.113.9")), *_NEVER_DROPPED)),
    Trial("192.168.1.0/33", ()),
)

TRIALS = {
    "passed": (Trial(ADDRESS, _AS_BEFORE, counts_passed=True),),
    "destination": (Trial(ADDRESS, _TO_ADDRESS),),
    "vlan": (Trial(ADDRESS, _AS_BEFORE + _TAGGED),),
    "prefix": _PREFIXES,
}
