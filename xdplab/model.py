"""What the filters make of a frame, told a second time: bytes and rules in, the action out.

Written from the samples' description and not from their C, so that each can be
held against the other, and so that a rule's effect is known before it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_TYPE_AT = 12  # where an Ethernet frame has its EtherType; these are linux/if_ether.h's
_IPV4, _ARP, _IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
_TAGS, _MOST_TAGS = (b"\x81\x00", b"\x88\xa8"), 2  # 802.1Q, 802.1ad
_ARP_OF_IPV4 = _IPV4 + b"\x06\x04"  # and the sizes of an Ethernet and an IPv4 address

_FRAGMENT, _AUTHENTICATION, _ICMPV6 = 44, 51, 58  # protocol numbers, as IANA has them
_EXTENSIONS = (0, 43, _FRAGMENT, _AUTHENTICATION, 60)  # 0, 43, 60: hops', routing, destination
_MOST_EXTENSIONS = 6
_NEIGHBOUR_DISCOVERY = range(133, 138)  # RFC 4861: solicitations, advertisements, redirect
_SOLICITATION, _ADVERTISEMENT = 135, 136  # of neighbours: an address follows the header


class Action(IntEnum):
    """What a program answers: enum xdp_action of linux/bpf.h."""

    ABORTED = 0
    DROP = 1
    PASS = 2


class Policy(StrEnum):
    """What becomes of a packet that no rule covers."""

    ALLOW = "allow"
    DENY = "deny"


class Side(StrEnum):
    """Which of a packet's addresses a rule looks at."""

    SRC = "src"
    DST = "dst"
    BOTH = "both"  # either will do


@dataclass(frozen=True, slots=True)
class Rule:
    """A prefix, or one address as a prefix of full length."""

    side: Side
    network: Network

    def __str__(self) -> str:
        return f"{self.side} {self.network}"


class Verdict(NamedTuple):  # millions are made
    """What becomes of a packet, and the rule that it counts for, if any covers it."""

    action: Action
    rule: Rule | None = None


class Rules:
    """A set of rules, to be asked which of them covers a packet."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Take in rules, of which no two have a prefix and a side in common."""
        self.versions: set[int] = set()  # of IP, that there are rules for
        self._of_source = _Prefixes()
        self._of_destination = _Prefixes()
        for rule in rules:
            self.versions.add(rule.network.version)
            if rule.side is not Side.DST:
                self._of_source.add(rule)
            if rule.side is not Side.SRC:
                self._of_destination.add(rule)

    def covering(self, source: bytes, destination: bytes) -> Rule | None:
        """The rule that a packet between two addresses counts for; None if none covers it.

        Of those that match the source the longest prefix, or else of those that match
        the destination.  Addresses are as they are in packets; one may be empty: there is none.
        """
        return self._of_source.longest(source) or self._of_destination.longest(destination)


class _Prefixes:
    """Rules by the leading bits of their addresses, for each version of IP and length."""

    def __init__(self) -> None:
        # by the size of an address, and by how many of its bits don't count: few first
        self._rules: dict[int, dict[int, dict[int, Rule]]] = {}

    def add(self, rule: Rule) -> None:
        network = rule.network
        rest, size = network.max_prefixlen - network.prefixlen, network.max_prefixlen // 8
        tables = self._rules.get(size, {})
        tables.setdefault(rest, {})[int(network.network_address) >> rest] = rule
        self._rules[size] = dict(sorted(tables.items()))

    def longest(self, address: bytes) -> Rule | None:
        bits = int.from_bytes(address)
        for rest, rules in self._rules.get(len(address), {}).items():
            if found := rules.get(bits >> rest):
                return found
        return None


def xdp_filter(frame: bytes, policy: Policy, rules: Rules) -> Verdict:
    """What samples/xdp_filter makes of an Ethernet frame.

    A packet that no rule covers passes under ALLOW.  Under DENY only what finds the
    neighbours does, without which those that a rule lets through wouldn't be heard:
    ARP if there is any rule for IPv4, neighbour discovery if there is one for IPv6.
    What has no whole, sound header can't be covered.
    """
    kind, packet = _beyond_tags(frame)
    discovery = _discovery(packet) if kind == _IPV6 else b""
    rule = rules.covering(*_addresses(kind, packet)) or rules.covering(*_target(discovery))
    if policy is Policy.ALLOW:
        passes = rule is None
    else:
        finds = 4 if kind == _ARP else 6 if discovery else None  # neighbours of that version
        passes = rule is not None or finds in rules.versions
    return Verdict(Action.PASS if passes else Action.DROP, rule)


def xdp_ip_filter(frame: bytes, address: IPv4Address) -> Action:
    """What the tutorial's pair makes of a frame: only the source of untagged IPv4 counts."""
    kind, packet = frame[_TYPE_AT : _TYPE_AT + 2], frame[_TYPE_AT + 2 :]
    dies = kind == _IPV4 and len(packet) >= 20 and packet[12:16] == address.packed
    return Action.DROP if dies else Action.PASS


def _beyond_tags(frame: bytes) -> tuple[bytes, bytes]:
    """An EtherType and what follows it, behind VLAN tags; both shorter where the frame ends."""
    at = _TYPE_AT
    for _ in range(_MOST_TAGS):
        if frame[at : at + 2] in _TAGS:
            at += 4
    return frame[at : at + 2], frame[at + 2 :]


def _addresses(kind: bytes, packet: bytes) -> tuple[bytes, bytes]:
    """Source and destination of a packet with a whole header that is what its type says.

    Of ARP the sender and the target, whose addresses they are that it speaks of.
    """
    if kind == _IPV4 and len(packet) >= 20 and packet[0] >> 4 == 4 and packet[0] & 0xF >= 5:
        return packet[12:16], packet[16:20]
    if kind == _ARP and len(packet) >= 28 and packet[2:6] == _ARP_OF_IPV4:
        return packet[14:18], packet[24:28]
    if kind == _IPV6 and _is_ipv6(packet):
        return packet[8:24], packet[24:40]
    return b"", b""


def _is_ipv6(packet: bytes) -> bool:
    return len(packet) >= 40 and packet[0] >> 4 == 6


def _target(discovery: bytes) -> tuple[bytes, bytes]:
    """The neighbour that discovery speaks of: who is looked for, or says that it's there."""
    if len(discovery) >= 24 and discovery[0] in (_SOLICITATION, _ADVERTISEMENT):
        target = discovery[8:24]
        return (b"", target) if discovery[0] == _SOLICITATION else (target, b"")
    return b"", b""


def _discovery(packet: bytes) -> bytes:
    """The ICMPv6 message of an IPv6 packet if it is neighbour discovery, else nothing.

    It may stand behind extension headers; of fragments only the first can be told.
    """
    if not _is_ipv6(packet):
        return b""
    kind, rest = packet[6], packet[40:]
    for _ in range(_MOST_EXTENSIONS):
        if kind not in _EXTENSIONS or len(rest) < 8:
            break
        if kind == _FRAGMENT:
            size = 8
            if int.from_bytes(rest[2:4]) & 0xFFF8:  # where the fragment belongs
                return b""
        else:
            size = (rest[1] + 2) * 4 if kind == _AUTHENTICATION else (rest[1] + 1) * 8
        kind, rest = rest[0], rest[size:]
    found = kind == _ICMPV6 and len(rest) > 0 and rest[0] in _NEIGHBOUR_DISCOVERY
    return rest if found else b""
