"""Packet cases: frames, and what must become of each, from a file beside the pair.

The format is told in docs/cases.md.
"""

from __future__ import annotations

import functools
import ipaddress
import string
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from xdplab import notation
from xdplab.build import Build
from xdplab.errors import BadCases, FrameRefused, NoCases, NotAChoice, NotAFrame
from xdplab.runner import Job
from xdplab.testbed import Bench
from xdplab.testbed.local import LocalBench
from xdplab.testbed.netns import NEAR, arrivals

LEAST = FrameRefused.least
EVERY = "every"  # length, as cut has it

_LONGEST = 1514  # bytes that a cable takes: a veth's MTU, and an Ethernet header
ARRIVED, GONE = "arrived", "did not arrive"  # what can be seen of a verdict on the wire
NOT_SENT = "not sent: too long"
ON_WIRE = "on the wire a frame arrives, or it doesn't: aborted, tx and redirect look like drop"


class Verdict(StrEnum):
    """What becomes of a frame: enum xdp_action of linux/bpf.h, in its order."""

    ABORTED = "aborted"
    DROP = "drop"
    PASS = "pass"  # noqa: S105  # no password
    TX = "tx"
    REDIRECT = "redirect"


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the file."""

    name: str
    verdict: Verdict
    why: str
    frame: str = ""  # in scapy's notation
    hex: str = ""  # or so
    cut: str | tuple[int, ...] = ()  # lengths that it is cut to, one after the other, or EVERY


@dataclass(frozen=True, slots=True)
class Try:
    """A frame of a case: whole, or cut."""

    case: Case
    frame: bytes


@dataclass(frozen=True, slots=True)
class Cases:
    """A file of cases, made for the address that a run filters."""

    file: str
    tries: tuple[Try, ...]
    counts: tuple[Verdict, ...] = ()  # the verdicts that the pair's counters count; none: unknown

    @classmethod
    @functools.cache  # the cells of a matrix have the same; their frames take a while to make
    def parse(cls, text: str, file: str, ip: str) -> Cases:
        """What a file's text says; raises BadCases.

        A case that tells the address from the same in reverse is left out where they are one.
        """
        try:
            read = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # no TOML, a number of 5,000 digits, brackets
            raise BadCases(file, "", f"it is no TOML: {error}") from None
        rows, counts = read.pop("case", None), read.pop("counts", [])
        if read:
            raise BadCases(file, "", f"{next(iter(read))!r} isn't known; there are case and counts")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise BadCases(file, "", "it has no [[case]]")
        if not isinstance(counts, list):
            raise BadCases(file, "", "counts must be a list of verdicts")
        cases = [_case(row, number, file) for number, row in enumerate(rows, start=1)]
        names = [case.name for case in cases]
        for name in names:
            if names.count(name) > 1:
                raise BadCases(file, name, "two cases have this name")
        fields = _fields(ip)
        tries = [
            one
            for case in cases
            if fields["reversed"] != ip or "$reversed" not in case.frame + case.hex
            for one in _tries(case, fields, file)
        ]
        return cls(file, tuple(tries), tuple(_verdict(one, file, "") for one in counts))


def of(build: Build, ip: str) -> Cases | None:
    """The cases that go with a build, if there are any; raises BadCases."""
    kept = build.facts.get("cases")
    return Cases.parse(kept["text"], kept["file"], ip) if kept else None


def required(build: Build, ip: str) -> Cases:
    """The cases that go with a build; raises NoCases, BadCases."""
    found = of(build, ip)
    if not found:
        raise NoCases(build.name)
    return found


def frames(build: Build, ip: str) -> list[bytes]:
    """The frames of the cases that go with a build, if there are any; raises BadCases."""
    found = of(build, ip)
    return [one.frame for one in found.tries] if found else []


# ---- the file


def _case(row: dict[str, Any], number: int, file: str) -> Case:
    name = row.get("name")
    if not isinstance(name, str) or not name.isprintable() or not name.strip():
        raise BadCases(file, "", f"the case number {number} has no name")

    def bad(why: str) -> BadCases:
        return BadCases(file, name, why)

    known = Case.__dataclass_fields__
    for key, value in row.items():
        if key not in known:
            raise bad(f"{key!r} isn't known; there are {', '.join(known)}")
        if key != "cut" and not isinstance(value, str):
            raise bad(f"{key} must be a text")
    if not row.get("why", "").strip():
        raise bad("it has no why: a sentence that argues the verdict")
    if bool(row.get("frame")) == bool(row.get("hex")):
        raise bad("it must have either a frame or hex")
    cut = row.get("cut", [])
    if cut != EVERY and not (isinstance(cut, list) and all(type(one) is int for one in cut)):
        raise bad(f'cut must be "{EVERY}" or a list of lengths')
    lengths = cut if isinstance(cut, str) else tuple(cut)
    return Case(**row | {"cut": lengths, "verdict": _verdict(row.get("verdict"), file, name)})


def _verdict(given: object, file: str, case: str) -> Verdict:
    try:
        return Verdict(str(given))
    except ValueError:
        what = "it has no verdict" if given is None else f"{given!r} is no verdict"
        raise BadCases(file, case, f"{what}; there are {', '.join(Verdict)}") from None


# ---- frames


def _fields(ip: str) -> dict[str, str]:
    """What $NAME stands for, for the address that is filtered."""
    address = ipaddress.IPv4Address(ip)
    digits = address.packed.hex()
    return {
        "ip": ip,
        "next": str(ipaddress.IPv4Address(int(address) ^ 1)),  # another in the last bit alone
        "reversed": str(ipaddress.IPv4Address(address.packed[::-1])),
        "high": digits[:4],  # its bytes in hexadecimal, for hex or an IPv6 address
        "low": digits[4:],
    }


def _tries(case: Case, fields: Mapping[str, str], file: str) -> Iterator[Try]:
    """A case's frames; raises BadCases."""
    try:
        filled = string.Template(case.frame or case.hex).substitute(fields)
        frame = notation.frame(filled) if case.frame else bytes.fromhex(filled)
    except KeyError as error:
        known = ", ".join(f"${name}" for name in fields)
        raise BadCases(
            file, case.name, f"${error.args[0]} stands for nothing; there are {known}"
        ) from None
    except NotAFrame as error:
        raise BadCases(file, case.name, error.message) from None
    except ValueError as error:  # fromhex()'s, or a lone $
        raise BadCases(file, case.name, f"{'frame' if case.frame else 'hex'}: {error}") from None
    if len(frame) < LEAST:
        why = f"it has {len(frame)} bytes, and an Ethernet header alone has {LEAST}"
        raise BadCases(file, case.name, why)
    whole = [len(frame)]
    for length in range(LEAST, len(frame)) if case.cut == EVERY else case.cut or whole:
        if not LEAST <= int(length) <= len(frame):
            why = f"it can be cut to {LEAST} to {len(frame)} bytes, and not to {length}"
            raise BadCases(file, case.name, why)
        yield Try(case, frame[: int(length)])


# ---- the run


@dataclass(frozen=True, slots=True)
class Met:
    """What became of a case: of each of its frames, by length."""

    case: Case
    expected: str
    found: tuple[tuple[int, str], ...]

    @property
    def held(self) -> bool:
        """Whether all met what they should."""
        return all(what in (self.expected, NOT_SENT) for _, what in self.found)

    @property
    def words(self) -> str:
        """What was found; where frames differ, of which lengths."""
        lengths: dict[str, list[int]] = {}
        for length, what in self.found:
            lengths.setdefault(what, []).append(length)
        if len(lengths) == 1:
            return next(iter(lengths))
        return ", ".join(f"{what} at {_listed(at)} bytes" for what, at in lengths.items())


def _listed(lengths: Sequence[int]) -> str:
    if len(lengths) > 2 and lengths[-1] - lengths[0] == len(lengths) - 1:
        return f"{lengths[0]} to {lengths[-1]}"
    return ", ".join(map(str, lengths))


def run(cases: Cases, bench: Bench, program: int) -> list[Met]:
    """What a loaded program says of each case, by BPF_PROG_TEST_RUN.

    Raises BadCases for a frame that the kernel doesn't run.
    """
    try:
        returned = bench.test_run(program, [one.frame for one in cases.tries])
    except FrameRefused as error:
        case = cases.tries[error.number - 1].case
        raise BadCases(cases.file, case.name, error.message) from error
    return _met(cases, [_named(one) for one in returned], str)


def _named(returned: int) -> str:
    """What a program returned, in words."""
    verdicts = [*Verdict]
    return verdicts[returned] if returned < len(verdicts) else f"{returned}, which is no verdict"


def job(ip: str, on: str, *, wire: bool) -> Job:
    """The run that cases need: at the end of a cable, if they are to be sent.

    In native mode XDP sees a frame before the kernel has touched it.  Raises NotAChoice.
    """
    if wire and on != "netns":
        raise NotAChoice("--on", on, ["netns, as there is a --wire"])
    return Job(ip, NEAR, "native", rounds=0) if wire else Job(ip, rounds=0)


def send(cases: Cases, bench: LocalBench) -> list[Met]:
    """Which frames come through a cable, past the program at its end: see netns.wired."""
    frames = [one.frame for one in cases.tries]
    fitting = [frame for frame in frames if len(frame) <= _LONGEST]
    came = iter(arrivals(bench, fitting))
    found = [NOT_SENT if len(one) > _LONGEST else ARRIVED if next(came) else GONE for one in frames]
    return _met(cases, found, lambda verdict: ARRIVED if verdict is Verdict.PASS else GONE)


def _met(cases: Cases, found: Sequence[str], expected: Callable[[Verdict], str]) -> list[Met]:
    by_case: dict[Case, list[tuple[int, str]]] = {}
    for one, what in zip(cases.tries, found, strict=True):
        by_case.setdefault(one.case, []).append((len(one.frame), what))
    return [Met(case, expected(case.verdict), tuple(these)) for case, these in by_case.items()]
