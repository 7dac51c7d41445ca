"""A packet filter's rules as people write them: one to a line, all of them or none.

    192.0.2.7                a source, unless another direction was asked for
    dst 2001:db8::/32        src, dst, or src,dst for either
    src 10.0.0.0/8  # why    comments and empty lines are passed over

The filter's own program reads them, a million in a fifth of a second, and says what is
known of them here.  Only where it finds a fault are they read line by line, to tell of
all faults, with what is meant perhaps.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xdplab.errors import BadRules, NotAChoice
from xdplab.model import Rule, Rules, Side

# Directions in the words of xdp-filter(8).
MODES = {"src": Side.SRC, "dst": Side.DST, "src,dst": Side.BOTH}
DIRECTIONS = MODES | {"dst,src": Side.BOTH, "both": Side.BOTH}  # what a line may have
WORDS: Mapping[str, str] = {side: word for word, side in MODES.items()}

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_WIDTHS = {4: 32, 6: 128}  # bits of an address
_LENGTHS = {str(length): length for length in range(129)}  # of prefixes, as they are written
_MAPPED = bytes(10) + b"\xff\xff"  # how an IPv4-mapped IPv6 address begins (RFC 4291)
_MAPPED_WIDTH = 96
_SHOWN = 60  # characters of a line that is wrong


@dataclass(frozen=True, slots=True)
class Given:
    """Rules as they were given."""

    source: str = ""  # the file; "" for the command line, whose words are its lines
    side: Side = Side.SRC  # of lines that say none
    text: str = ""  # the lines

    def located(self, said: str) -> str:
        """What the filter's program says of "rule 7", said of the line that the user wrote."""
        if not self.source:
            return re.sub(r"^rule \d+: |, in rule \d+", "", said)
        words = re.sub(r"\brule (\d+)", r"line \1", said)
        return f"{self.source}, {words}" if words.startswith("line ") else words


NOTHING = Given()


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the filter's program knows of some rules."""

    counts: Mapping[int, int] = field(default_factory=dict)  # by the version of IP
    covering: frozenset[Rule] = frozenset()  # those that cover an address that was asked about

    @classmethod
    def of(cls, lines: Iterable[str]) -> Ruleset:
        """Read what the program prints of them, among other things perhaps."""
        counts, covering = {}, set()
        for line in lines:
            match line.split():
                case ["ipv4" | "ipv6" as version, count]:
                    counts[int(version[3:])] = int(count)
                case ["covers", side, prefix]:
                    covering.add(Rule(Side(side), ipaddress.ip_network(prefix)))
        return cls(counts, frozenset(covering))

    def __len__(self) -> int:
        return sum(self.counts.values())

    @property
    def rules(self) -> Rules:
        """Those that matter to packets between the addresses that were asked about."""
        rules = Rules(self.covering)
        rules.versions |= {version for version, count in self.counts.items() if count > 0}
        return rules

    def without(self, others: Ruleset) -> Ruleset:
        """These but for others that are all among them."""
        counts = {
            version: count - others.counts.get(version, 0) for version, count in self.counts.items()
        }
        return Ruleset(counts, self.covering - others.covering)


def told(rule: Rule) -> str:
    """A rule in the words of this file's format, an address without its length."""
    network = rule.network
    exact = network.prefixlen == network.max_prefixlen
    return f"{WORDS[rule.side]} {network.network_address if exact else network}"


# ---- reading


def read(given: str | None, mode: str) -> Given:
    """The rules that a command was given, in one of three ways; NOTHING, if it was given none.

    `given`: addresses and prefixes with commas between, the name of a file, or "-" for
    standard input; `mode`: the direction of those that say none.  Raises NotAChoice,
    BadRules for a list, and OSError for a file that can't be read.
    """
    if mode not in DIRECTIONS:
        raise NotAChoice("--mode", mode, MODES)
    side = DIRECTIONS[mode]
    if given is None:
        return NOTHING
    if given == "-":
        return Given("standard input", side, decoded(sys.stdin.buffer.read()))
    words = given.split(",")
    found = faults(words, side, "")
    if not found:
        return Given("", side, "\n".join(words))
    path = Path(given)
    if not path.is_file():
        raise BadRules("", found)
    return Given(given, side, decoded(path.read_bytes()))


def decoded(text: bytes) -> str:
    """A file, which may be Windows', with a byte order mark and CRLF."""
    return text.decode("utf-8-sig", errors="backslashreplace").replace("\r\n", "\n")


# ---- what is wrong with them


def faults(lines: Sequence[str], side: Side, source: str) -> list[str]:
    """What is wrong with rules from somewhere, line by line; nothing, if they can be used."""
    known: _Known = {side: {} for side in Side}
    found: list[str] = []
    for number, line in enumerate(lines, 1):
        words = _words(line.partition("#")[0])
        fault = _fault(known, words, number, side, source) if words else ""
        if fault:
            text = " ".join(words)
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            found.append(f"line {number}: {shown!r} {fault}" if source else f"{shown!r} {fault}")
    found += _on_both_sides(known, source)
    return found if found or any(known.values()) else ["there is no rule in it"]


# The line of each rule, by its side and prefix: bytes, as objects take several times as long.
_Known = Mapping[Side, dict[bytes, int]]


def _fault(known: _Known, words: Sequence[str], number: int, side: Side, source: str) -> str:
    """What is wrong with the words of a line, if something is; else it is known from now on."""
    *directions, address = words
    try:
        side = _direction(directions) if directions else side
        packed, length = _prefix(address)
    except ValueError as error:
        return str(error)
    earlier = known[side].setdefault(packed + bytes([length]), number)
    if earlier == number:
        return ""
    return "is there twice" + (f", first in line {earlier}" if source else "")


def _on_both_sides(known: _Known, source: str) -> Iterator[str]:
    """Rules for one side of a packet that another has for both; two for a side were told."""
    both = known[Side.BOTH]
    for side in (Side.SRC, Side.DST):
        for prefix in known[side].keys() & both.keys():
            first, second = sorted([known[side][prefix], both[prefix]])
            where = f"line {second}: " if source else ""
            earlier = f", in line {first}" if source else ""
            rule = Rule(side, ipaddress.ip_network((prefix[:-1], prefix[-1])))
            yield f"{where}{told(rule)} is there for both sides too{earlier}"


def _words(text: str) -> list[str]:
    """The words between ASCII's spaces: the filter's program knows no others."""
    return [word.decode() for word in text.encode(errors="backslashreplace").split()]


def _direction(words: Sequence[str]) -> Side:
    """The direction in front of an address."""
    if len(words) > 1 or words[0] not in DIRECTIONS:
        raise ValueError("is no rule: that is [src|dst|src,dst] ADDRESS[/LENGTH]")
    return DIRECTIONS[words[0]]


def _prefix(text: str) -> tuple[bytes, int]:
    """An address or prefix: its beginning, and its length.

    Raises ValueError, with what is meant perhaps.
    """
    address, slash, bits = text.partition("/")
    version = 6 if ":" in address else 4
    try:
        packed = socket.inet_pton(_FAMILIES[version], address)
    except (OSError, ValueError):
        raise ValueError(_why_no_address(address)) from None
    width = _WIDTHS[version]
    length = _LENGTHS.get(bits, width + 1) if slash else width
    if length > width:
        raise ValueError(f"has no length from 0 to {width} behind the slash")
    if packed.startswith(_MAPPED) and length > _MAPPED_WIDTH:
        inner = f"{ipaddress.IPv4Address(packed[12:])}"
        meant = inner + (f"/{length - _MAPPED_WIDTH}" if length < width else "")
        raise ValueError(f"is IPv4 in IPv6's notation, which no packet has: write {meant}")
    if int.from_bytes(packed) & (1 << width - length) - 1:
        begin = ipaddress.ip_network((packed, length), strict=False)
        raise ValueError(
            f"has bits set behind its prefix: write {begin}, or {address} for the one address"
        )
    return packed, length


def _why_no_address(text: str) -> str:
    """What is wrong with an address, and what is meant if that is plain."""
    plain, zone, _ = text.partition("%")
    if zone and _is_address(plain):
        return f"has a zone, which no packet carries: write {plain}"
    numbers = text.split(".")
    if len(numbers) == 4 and all(one.isascii() and one.isdigit() for one in numbers):
        decimal = ".".join(str(int(one)) for one in numbers)
        if decimal != text and _is_address(decimal):
            return f"has leading zeros, which some programs read as octal: write {decimal}"
    return "is no IPv4 or IPv6 address"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
