"""A packet filter's rules as people write them: one to a line, checked, all of them or none.

    192.0.2.7                a source, unless another direction was asked for
    dst 2001:db8::/32        src, dst, or src,dst for either
    src 10.0.0.0/8  # why    comments and empty lines are passed over

A million lines are read in about a second, so rules are kept packed, in tables:
an object for each would take several times as long.  The filter's own program reads
the same lines again, and needs a tenth of that.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import socket
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from xdplab.errors import BadRules, NotAChoice
from xdplab.model import Address, Network, Rule, Side

# Directions in the words of xdp-filter(8).
MODES = {"src": Side.SRC, "dst": Side.DST, "src,dst": Side.BOTH}
DIRECTIONS = MODES | {"dst,src": Side.BOTH, "both": Side.BOTH}  # what a line may have
WORDS: Mapping[str, str] = {side: word for word, side in MODES.items()}

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_WIDTHS = {4: 32, 6: 128}  # bits of an address
_LENGTHS = {str(length): length for length in range(129)}  # of prefixes, as they are written
_TOO_LONG = 129
_MAPPED = bytes(10) + b"\xff\xff"  # how an IPv4-mapped IPv6 address begins (RFC 4291)
_MAPPED_WIDTH = 96
_AT_ONCE = 10_000  # lines
_SHOWN = 60  # characters of a line that is wrong


class Kind(NamedTuple):
    """What rules have in common that are in one table."""

    side: Side
    version: int  # of IP
    length: int  # of the prefix, in bits

    @property
    def exact(self) -> bool:
        """Whether these are addresses, and not prefixes."""
        return self.length == _WIDTHS[self.version]

    def network(self, packed: bytes) -> Network:
        """The prefix of these that begins so."""
        return ipaddress.ip_network((packed, self.length))

    def rule(self, packed: bytes) -> Rule:
        """The rule of this kind for an address or prefix."""
        return Rule(self.side, self.network(packed))


@dataclass(slots=True)
class Ruleset:
    """Rules that were read, and the line that each stood in."""

    source: str  # the file; "" for the command line, whose words are its lines
    side: Side = Side.SRC  # of lines that say none
    text: str = ""  # the lines as they were given, which the filter's own program takes too
    tables: dict[Kind, dict[bytes, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    def located(self, said: str) -> str:
        """What the filter's program says of "rule 7", said of the line that the user wrote."""
        if not self.source:
            return re.sub(r"^rule \d+: |, in rule \d+", "", said)
        words = re.sub(r"\brule (\d+)", r"line \1", said)
        return f"{self.source}, {words}" if words.startswith("line ") else words

    @property
    def versions(self) -> set[int]:
        """The versions of IP that there are rules for."""
        return {kind.version for kind, table in self.tables.items() if table}

    def of(self, *addresses: Address) -> list[Rule]:
        """The rules whose prefix one of the addresses is in."""
        return [
            kind.rule(packed)
            for kind, table in self.tables.items()
            for packed in {_masked(one.packed, kind.length)
                           for one in addresses if one.version == kind.version}
            if packed in table
        ]  # fmt: skip

    def without(self, others: Ruleset) -> Ruleset:
        """These but for those that others have too."""
        left = {
            kind: {packed: number for packed, number in table.items()
                   if packed not in others.tables.get(kind, ())}
            for kind, table in self.tables.items()
        }  # fmt: skip
        return Ruleset(self.source, tables=left)


def told(rule: Rule) -> str:
    """A rule in the words of this file's format, an address without its length."""
    network = rule.network
    exact = network.prefixlen == network.max_prefixlen
    return f"{WORDS[rule.side]} {network.network_address if exact else network}"


def _masked(packed: bytes, length: int) -> bytes:
    """An address with all bits behind a prefix's end cleared."""
    rest = len(packed) * 8 - length
    return (int.from_bytes(packed) >> rest << rest).to_bytes(len(packed))


# ---- reading


def read(given: str | None, mode: str) -> Ruleset:
    """The rules that a command was given, in one of three ways; none, if it was given nothing.

    `given`: addresses and prefixes with commas between, the name of a file, or "-" for
    standard input; `mode`: the direction of those that say none.  Raises NotAChoice,
    BadRules, and OSError for a file that can't be read.
    """
    if mode not in DIRECTIONS:
        raise NotAChoice("--mode", mode, MODES)
    side = DIRECTIONS[mode]
    if given is None:
        return Ruleset("")
    if given == "-":
        return parse(_lines(sys.stdin.buffer.read()), side, "standard input")
    try:
        return parse(given.split(","), side)
    except BadRules:
        path = Path(given)
        if not path.is_file():
            raise
    return parse(_lines(path.read_bytes()), side, given)


def _lines(text: bytes) -> list[str]:
    """The lines of a file, which may be Windows', with a byte order mark and CRLF."""
    decoded = text.decode("utf-8-sig", errors="backslashreplace")
    return decoded.replace("\r\n", "\n").split("\n")


def parse(lines: Sequence[str], side: Side, source: str = "") -> Ruleset:
    """The rules of some lines; raises BadRules, with every line that is none, if one is none."""
    rules = Ruleset(source, side, "\n".join(lines))
    faults: list[str] = []
    for first in range(0, len(lines), _AT_ONCE):
        some = lines[first : first + _AT_ONCE]
        if not _take_alike(rules, some, first + 1, side):
            faults += filter(
                None,
                (_take(rules, line, number, side) for number, line in enumerate(some, first + 1)),
            )
    faults += _twice(rules)
    if faults:
        raise BadRules(source, faults)
    if not rules:
        raise BadRules(source, ["there is no rule in it"])
    return rules


def _take_alike(rules: Ruleset, lines: Sequence[str], first: int, side: Side) -> bool:
    """Take in lines that are alike: of one version and direction, none there twice.

    That is what long lists are, and by far the fastest; else nothing is taken in.
    """
    text = "".join(lines)
    if "#" in text:
        lines = [line.partition("#")[0].rstrip(" \t") for line in lines]
    direction, _, address = lines[0].rpartition(" ")
    version = 6 if ":" in address else 4
    if direction:
        if direction not in DIRECTIONS or not all(
            line.startswith(f"{direction} ") for line in lines
        ):
            return False
        lines, side = [line[len(direction) + 1 :] for line in lines], DIRECTIONS[direction]
    try:
        found = (
            _packed(lines, first, version)
            if "/" in text
            else {f"{_WIDTHS[version]}": _numbered(lines, first, version)}
        )
    except (OSError, ValueError):
        return False
    tables = {
        Kind(side, version, _LENGTHS.get(length, _TOO_LONG)): table
        for length, table in found.items()
    }
    if sum(map(len, found.values())) < len(lines) or not all(
        kind.length <= _WIDTHS[version]
        and _are_sound(kind, table)
        and rules.tables.get(kind, {}).keys().isdisjoint(table)
        for kind, table in tables.items()
    ):
        return False
    for kind, table in tables.items():
        rules.tables.setdefault(kind, {}).update(table)
    return True


def _numbered(addresses: Sequence[str], first: int, version: int) -> dict[bytes, int]:
    """Addresses of one version of IP, each with its line's number; raises as inet_pton does."""
    family = itertools.repeat(_FAMILIES[version])
    return dict(zip(map(socket.inet_pton, family, addresses), itertools.count(first)))


def _packed(lines: Sequence[str], first: int, version: int) -> dict[str, dict[bytes, int]]:
    """Prefixes, addresses among them perhaps, by length; raises as inet_pton does."""
    exact = f"/{_WIDTHS[version]}"
    parts = [(line if "/" in line else line + exact).partition("/") for line in lines]
    family = itertools.repeat(_FAMILIES[version])
    packed = map(socket.inet_pton, family, [part[0] for part in parts])
    found: defaultdict[str, dict[bytes, int]] = defaultdict(dict)
    for one, part, number in zip(packed, parts, itertools.count(first)):
        found[part[2]][one] = number
    return found


def _are_sound(kind: Kind, packed: Collection[bytes]) -> bool:
    """Whether none has bits set behind its prefix's end, nor is IPv4 in IPv6's notation.

    Bits are looked at in all of them at once, as in one large number.
    """
    width = _WIDTHS[kind.version]
    behind = ((1 << width - kind.length) - 1).to_bytes(width // 8) * len(packed)
    if int.from_bytes(b"".join(packed)) & int.from_bytes(behind):
        return False
    mapped = kind.version == 6 and kind.length > _MAPPED_WIDTH
    return not (mapped and any(one.startswith(_MAPPED) for one in packed))


def _take(rules: Ruleset, line: str, number: int, side: Side) -> str | None:
    """Take in one line; gives what is wrong with it, if something is."""
    words = _words(line.partition("#")[0])
    if not words:
        return None
    *directions, address = words
    try:
        side = _direction(directions) if directions else side
        version, packed, length = _prefix(address)
    except ValueError as error:
        fault = str(error)
    else:
        table = rules.tables.setdefault(Kind(side, version, length), {})
        earlier = table.setdefault(packed, number)
        if earlier == number:
            return None
        fault = "is there twice" + (f", first in line {earlier}" if rules.source else "")
    text = " ".join(words)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f"line {number}: {shown!r} {fault}" if rules.source else f"{shown!r} {fault}"


def _words(text: str) -> list[str]:
    """The words between ASCII's spaces: the filter's program knows no others."""
    return [word.decode() for word in text.encode(errors="backslashreplace").split()]


def _twice(rules: Ruleset) -> Iterator[str]:
    """Rules for one side of a packet that another has for both; two for a side were told."""
    for kind, table in rules.tables.items():
        both = rules.tables.get(kind._replace(side=Side.BOTH), {})
        for packed in table.keys() & both.keys() if both is not table else ():
            first, second = sorted([table[packed], both[packed]])
            where = f"line {second}: " if rules.source else ""
            earlier = f", in line {first}" if rules.source else ""
            yield f"{where}{told(kind.rule(packed))} is there for both sides too{earlier}"


def _direction(words: Sequence[str]) -> Side:
    """The direction in front of an address."""
    if len(words) > 1 or words[0] not in DIRECTIONS:
        raise ValueError("is no rule: that is [src|dst|src,dst] ADDRESS[/LENGTH]")
    return DIRECTIONS[words[0]]


def _prefix(text: str) -> tuple[int, bytes, int]:
    """An address or prefix: IP's version, its beginning, and its length.

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
    start = _masked(packed, length) if slash else packed
    if start != packed:
        begin = socket.inet_ntop(_FAMILIES[version], start)
        raise ValueError(
            f"has bits set behind its prefix: write {begin}/{length},"
            f" or {address} for the one address"
        )
    return version, packed, length


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
