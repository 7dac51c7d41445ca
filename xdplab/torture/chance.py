"""Frames and rules by chance: made from a `Random`, which a seed or hypothesis drives.

What is likely is what a filter looks at: most frames are nearly right, most
addresses are known ones, and each choice's first is the simplest.
"""

from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from random import Random

from xdplab.model import Rule, Side

# what rules and frames are about: neighbours in the last bits, in the middle, and edges
KNOWN4 = [
    IPv4Address(text).packed
    for text in (
        *("192.168.1.78", "192.168.1.78", "192.168.1.79", "192.168.0.78", "78.1.168.192"),
        *("10.0.0.1", "0.0.0.1", "255.255.255.255", "127.0.0.1"),
    )
]
KNOWN6 = [
    IPv6Address(text).packed
    for text in (
        *("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "fe80::1", "::", "::1"),
        *("ff02::1:ff00:1", "::ffff:192.168.1.78", "::192.168.1.78"),
        *(f"2001:db8::{number:x}" for number in range(3, 60)),
    )
]

MOST, LEAST = 1518, 14  # bytes of a frame; BPF_PROG_TEST_RUN refuses what has no Ethernet header

_IPV4, _ARP, _IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
_EXTENSIONS, _OTHERS = (0, 43, 44, 51, 60), (50, 135, 139)  # what a filter looks behind, or not
_FRAGMENT, _AUTHENTICATION = 44, 51

_CHANGES = 15  # frames that are made of one
_HEADERS = 12 + 2 + 40 + 24  # where they end, but for tags and extensions
_MAPPED_WIDTH = 96  # bits in front of an IPv4 address (RFC 4291)
_PLACES = (22, 26, 28, 30, 34, 38, 42, 62)  # of addresses, without a tag and with one


def frames(random: Random) -> Iterator[bytes]:
    """Frames without end: each that is made is followed by some that it was changed into.

    A change takes a tenth of what a new one does.
    """
    while True:
        made = frame(random)
        yield made
        for _ in range(_CHANGES):
            yield changed(random, made)


def frame(random: Random) -> bytes:
    """An Ethernet frame, whole or spoilt."""
    whole = bytes(12) + _tags(random) + random.choice(_PAYLOADS)(random)
    return random.choice(_FATES)(random, whole)[:MOST].ljust(LEAST, b"\0")


def changed(random: Random, frame: bytes) -> bytes:
    """A frame with one thing in it changed: a bit or a byte of its headers, an address, its end."""
    what, where = random.random(), random.random()
    if what < 0.6:
        at = int(where * (min(len(frame), _HEADERS) - 12)) + 12
        byte = frame[at] ^ 1 << random.getrandbits(3) if what < 0.4 else random.getrandbits(8)
        return b"%b%c%b" % (frame[:at], byte, frame[at + 1 :])
    if what < 0.8:
        at = _PLACES[int(where * len(_PLACES))]
        known = KNOWN6 if frame[12:14] == _IPV6 else KNOWN4
        address = known[int(random.random() * len(known))]
        return frame[:at] + address + frame[at + len(address) :]
    return frame[: max(LEAST, int(where * len(frame)) + 1)]


def rules(random: Random, most: int) -> list[Rule]:
    """So many rules or less, some within others; no two have a prefix and a side in common."""
    found: dict[IPv4Network | IPv6Network, list[Rule]] = {}
    for _ in range(random.randrange(most // 2, most + 1)):
        rule = _rule(random)
        there = found.setdefault(rule.network, [])
        taken = {one.side for one in there}
        if not there or (rule.side not in taken and Side.BOTH not in (rule.side, *taken)):
            there.append(rule)
    return [rule for there in found.values() for rule in there]


def addresses(random: Random) -> list[Rule]:
    """A rule for each known IPv6 address, and none else: they crowd in one table."""
    known = [network for network in map(IPv6Network, KNOWN6) if not _maps_ipv4(network)]
    return [Rule(random.choice(tuple(Side)), network) for network in known]


def _rule(random: Random) -> Rule:
    network: IPv4Network | IPv6Network
    if random.random() < 0.6:
        length = random.choice((32, 32, 32, 24, 31, 16, random.randrange(33)))
        network = IPv4Network((_address(random, KNOWN4), length), strict=False)
    else:
        length = random.choice((128, 128, 128, 64, 127, 32, random.randrange(129)))
        network = IPv6Network((_address(random, KNOWN6), length), strict=False)
        if _maps_ipv4(network):
            network = network.supernet(new_prefix=_MAPPED_WIDTH)
    return Rule(random.choice(tuple(Side)), network)


def _maps_ipv4(network: IPv6Network) -> bool:
    """Whether it is IPv4 in IPv6's notation: the filter refuses that, as no packet has it."""
    return bool(network.network_address.ipv4_mapped) and network.prefixlen > _MAPPED_WIDTH


def _address(random: Random, known: Sequence[bytes]) -> bytes:
    """A known address, or one bit beside, or any."""
    address = random.choice(known)
    chance = random.random()
    if chance < 0.6:
        return address
    return _flipped(random, address) if chance < 0.9 else random.randbytes(len(address))


def _tags(random: Random) -> bytes:
    number = random.choice((0, 0, 0, 0, 1, 1, 2, 3))
    kinds = (
        random.choice((b"\x81\x00", b"\x81\x00", b"\x88\xa8", b"\x91\x00")) for _ in range(number)
    )
    return b"".join(kind + random.randbytes(2) for kind in kinds)


def _ipv4(random: Random) -> bytes:
    first = random.choice(
        (0x45, 0x45, 0x45, 0x46, 0x4F, 0x44, 0x40, 0x55, 0x65, random.randrange(256))
    )
    options = bytes(max(0, (first & 0xF) - 5) * 4)
    middle = random.randbytes(11)  # lengths that lie, fragments, any protocol
    ends = _address(random, KNOWN4) + _address(random, KNOWN4)
    return _IPV4 + bytes([first]) + middle + ends + options + _payload(random)


def _ipv6(random: Random) -> bytes:
    length = random.choice((0, 0, 0, 1, 2, 5, 6, 7))
    chain = [random.choice(_EXTENSIONS * 6 + _OTHERS) for _ in range(length)]
    last = random.choice((58, 58, 58, 17, 6, 59, 50, random.randrange(256)))
    kinds = [*chain, last]
    headers = b"".join(
        _extension(random, kind, following)
        for kind, following in zip(chain, kinds[1:], strict=True)
    )
    first = random.choice((0x60, 0x60, 0x60, 0x60, 0x6F, 0x40, random.randrange(256)))
    start = bytes([first]) + random.randbytes(5) + bytes([kinds[0], 255])
    ends = _address(random, KNOWN6) + _address(random, KNOWN6)
    return _IPV6 + start + ends + headers + (_icmpv6 if last == 58 else _payload)(random)


def _extension(random: Random, kind: int, following: int) -> bytes:
    """A header of its true length; sometimes it says another, or belongs to a later fragment."""
    eighths = 0 if kind == _FRAGMENT else random.choice((0, 0, 1, 2))
    says = eighths * 2 if kind == _AUTHENTICATION else eighths
    if random.random() < 0.03:
        says = random.choice((0, 1, 7, 255))
    offset = random.choice((0, 0, 0, 0, 0, 1, 7, 8, 0x100, random.randrange(65536)))
    head = bytes([following, says]) + offset.to_bytes(2)
    return head + random.randbytes(4 + eighths * 8)


def _icmpv6(random: Random) -> bytes:
    kind = random.choice((135, 136, 133, 134, 137, 128, 132, 138, random.randrange(256)))
    return bytes([kind]) + bytes(7) + _address(random, KNOWN6) + _payload(random)


def _arp(random: Random) -> bytes:
    first = bytearray.fromhex("0001080006040001")
    if random.random() < 0.3:
        first[random.randrange(8)] = random.choice((0, 1, 2, 4, 6, 8, 255))
    sender, target = (_address(random, KNOWN4) for _ in range(2))
    return _ARP + bytes(first) + bytes(6) + sender + bytes(6) + target + _payload(random)


def _other(random: Random) -> bytes:
    """A type and what isn't it, or nobody's."""
    kind = random.choice((_IPV4, _IPV6, _ARP, b"\x88\xb5", b"\x05\xdc", random.randbytes(2)))
    return kind + random.choice((_ipv4, _ipv6, _arp, _payload))(random)[random.choice((0, 2)) :]


def _payload(random: Random) -> bytes:
    return random.randbytes(random.choice((0, 1, 8, 26)))


_PAYLOADS: Sequence[Callable[[Random], bytes]] = (
    *(_ipv4, _ipv4, _ipv4, _ipv6, _ipv6, _ipv6, _ipv6, _arp, _other),
)


def _kept(random: Random, whole: bytes) -> bytes:
    return whole


def _cut(random: Random, whole: bytes) -> bytes:
    return whole[: random.randrange(LEAST, max(len(whole), LEAST) + 1)]


def _flipped(random: Random, whole: bytes) -> bytes:
    spoilt = bytearray(whole)
    for _ in range(random.choice((1, 1, 2, 4))):
        spoilt[random.randrange(len(spoilt))] ^= 1 << random.randrange(8)
    return bytes(spoilt)


def _shifted(random: Random, whole: bytes) -> bytes:
    """A few bytes too many, or too few, somewhere."""
    at, by = random.randrange(12, len(whole)), random.choice((1, 2, 4))
    return (
        whole[:at] + whole[at + by :]
        if random.random() < 0.5
        else (whole[:at] + random.randbytes(by) + whole[at:])
    )


_FATES: Sequence[Callable[[Random, bytes], bytes]] = (_kept, _kept, _kept, _cut, _flipped, _shifted)
