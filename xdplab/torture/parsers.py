"""Promise 4, parsers: what comes of text that others write is a value or a clear error.

Each check takes bytes and returns, or raises whatever it finds wrong.  It holds a parser
against a slow one that is written another way, where there can be one.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import ipaddress
import itertools
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from xdplab import formats, rules
from xdplab.bench.measure import Means
from xdplab.cases import Cases
from xdplab.counters import Reading, readings
from xdplab.dialect import Dialect
from xdplab.errors import LabError
from xdplab.model import Side
from xdplab.process import Shell
from xdplab.torture import Name, chance
from xdplab.torture.ordeal import Finding, Ordeal, Try
from xdplab.tree import MAKEFILE, Origin, Tree
from xdplab.version import KernelVersion
from xdplab.workspace import PROJECT

STREAMS = 50  # of a try
_LARGEST = 2**64 - 1


# ---- the binary's counters


def counters(text: bytes) -> None:
    """No line is lost, doubled or changed, and no number is another than it was."""
    lines = text.decode(errors="backslashreplace").split("\n")
    came = list(readings(lines, clock=itertools.count().__next__))
    found = [(one.round, one.per_cpu) for one in came if isinstance(one, Reading)]
    kept = [one for one in came if isinstance(one, str) and one]
    expected, others = slow_readings(lines)
    assert found == expected, f"{found} and not {expected}"  # noqa: S101
    assert Counter(kept) == Counter(others), f"{kept} and not {others}"  # noqa: S101
    for one in came:
        if isinstance(one, Reading):
            assert one.total == sum(one.per_cpu.values())  # noqa: S101
            assert all(rate >= 0 for rate in one.rates.values())  # noqa: S101


def slow_readings(lines: Sequence[str]) -> tuple[list[tuple[int, dict[int, int]]], list[str]]:
    """Rounds with their counters, and the lines that are in none: each is looked for anew."""
    texts = [line.rstrip("\r\n") for line in lines]
    found, taken = [], set()
    for first, text in enumerate(texts):
        block = _block(texts, first) if _is_number(text, 10) else None
        if block:
            per_cpu, members = block
            found.append((int(text), per_cpu))
            taken.update(members)
    return found, [text for at, text in enumerate(texts) if text and at not in taken]


def _block(texts: Sequence[str], first: int) -> tuple[dict[int, int], list[int]] | None:
    per_cpu: dict[int, int] = {}
    members = [first]
    for at in range(first + 1, len(texts)):
        text = texts[at]
        if not text and per_cpu:
            return per_cpu, members
        if _is_number(text, 10):
            return None
        if text[:4] == "cpu ":
            cpu, comma, value = text[4:].partition(", value = ")
            sound = comma and _is_number(cpu, 5) and _is_number(value, 20)
            if not sound or int(cpu) in per_cpu or int(value) > _LARGEST:
                return None
            per_cpu[int(cpu)] = int(value)
            members.append(at)
    return None


def _is_number(text: str, digits: int) -> bool:
    return 0 < len(text) <= digits and all(one in "0123456789" for one in text)


@dataclass(frozen=True, slots=True)
class Stream:
    """What a binary prints of counters that are known, which is cut into pieces anywhere."""

    pieces: Sequence[bytes]
    expected: Sequence[tuple[int, dict[int, int]]]
    rates: Sequence[dict[int, float]]  # packets a second, if there is a second between readings
    others: Sequence[str]

    @classmethod
    def by_chance(cls, rng: Random) -> Stream:
        """Counters that wrap, CPUs that come and go, others' lines, and bytes that are no text."""
        bits = rng.choice((32, 64, 64))
        cpus = sorted(rng.sample(range(rng.choice((2, 16, 4096))), 2))
        counts = {cpu: rng.choice((0, 2**bits - rng.randrange(1, 500))) for cpu in cpus}
        steady = rng.random() < 0.5  # else CPUs come and go
        lines, expected, rates, others = [], [], [dict[int, float]()], []
        for number in range(rng.randrange(1, 30)):
            steps = {cpu: rng.randrange(200) for cpu in cpus}
            counts = {cpu: (counts[cpu] + steps[cpu]) % 2**bits for cpu in cpus}
            there = cpus if steady else rng.sample(cpus, rng.randrange(1, len(cpus) + 1))
            block = [str(number), *(f"cpu {cpu}, value = {counts[cpu]}" for cpu in there)]
            for at in range(len(block), 0, -1):
                if rng.random() < 0.1:
                    others.append(rng.choice(_FOREIGN))
                    block.insert(at, others[-1])
            lines += [*block, "", ""]
            expected.append((number, {cpu: counts[cpu] for cpu in there}))
            rates.append({cpu: float(step) for cpu, step in steps.items()} if steady else {})
        del rates[1]
        whole = "\n".join([*lines, "end"]).encode(errors="surrogateescape") + b"\n"
        cuts = sorted(rng.sample(range(len(whole)), min(len(whole), rng.randrange(1, 40))))
        pieces = [whole[a:b] for a, b in itertools.pairwise([0, *cuts, len(whole)])]
        return cls(pieces, expected, rates if steady else [], [*others, "end"])

    def through(self, shell: Shell) -> None:
        """Send it through a process and a pipe, as the binary's comes; raises AssertionError."""
        script = _scratch() / "prints"  # dash and bash print each piece by a write(2) of its own
        printed = ("".join(f"\\{byte:03o}" for byte in piece) for piece in self.pieces)
        script.write_text("".join(f"printf '{piece}'\n" for piece in printed))
        with shell.start(["sh", script]) as running:
            lines = (line.text for line in running.lines(60))
            came = list(readings(lines, clock=itertools.count().__next__))
        found = [one for one in came if isinstance(one, Reading)]
        kept = Counter(one for one in came if isinstance(one, str) and one)
        told = Counter(
            other.encode(errors="surrogateescape").decode(errors="backslashreplace")
            for other in self.others
        )
        assert [(one.round, one.per_cpu) for one in found] == self.expected  # noqa: S101
        assert kept == told, f"{kept} and not {told}"  # noqa: S101
        for one, rates in zip(found, self.rates, strict=False):
            assert one.rates == rates, f"{one} and not at {rates}"  # noqa: S101


_FOREIGN = (
    *("libbpf: a word", "\udcff\udc80", "x" * 5000, "cpu", "\x00", " 7", "7 ", "-1", "\u0663"),
    *("value = 3", "round 4", "\x1b[31m"),
)


# ---- others


def rule_lines(text: bytes) -> None:
    """Rules have faults if ipaddress doesn't know one of them, and else none."""
    lines = rules.decoded(text).split("\n")
    told = rules.faults(lines, Side.SRC, "a file")
    assert bool(told) != are_rules(lines), f"{told} is told"  # noqa: S101


def are_rules(lines: Sequence[str]) -> bool:
    """Whether these are rules, by way of ipaddress, and none is there twice."""
    found: set[tuple[Side, bytes, int]] = set()
    for line in lines:
        words = line.partition("#")[0].strip(_SPACES)
        if not words:
            continue
        try:
            side, packed, length = _slow_rule(re.split(f"[{_SPACES}]+", words))
        except ValueError:
            return False
        others = Side if side is Side.BOTH else (side, Side.BOTH)
        if any((other, packed, length) in found for other in others):
            return False
        found.add((side, packed, length))
    return bool(found)


_SPACES = " \t\n\r\x0b\x0c"  # ASCII's alone


def _slow_rule(words: Sequence[str]) -> tuple[Side, bytes, int]:
    *sides, address = words
    _, slash, length = address.partition("/")
    network = ipaddress.ip_network(address)
    mapped = network.network_address.packed.startswith(bytes(10) + b"\xff\xff")
    if (
        len(sides) > 1
        or not set(sides) <= rules.DIRECTIONS.keys()
        or "%" in address
        or (slash and length != str(network.prefixlen))  # ipaddress takes masks too
        or (mapped and network.prefixlen > 96)
    ):
        raise ValueError(address)
    side = rules.DIRECTIONS[sides[0]] if sides else Side.SRC
    return side, network.network_address.packed, network.prefixlen


def cases(text: bytes) -> None:
    """A file of cases."""
    with contextlib.suppress(LabError):
        Cases.parse.__wrapped__(Cases, text.decode(errors="replace"), "cases.toml", "192.168.1.78")


def kept_readings(text: bytes) -> None:
    """A file of readings, JSON or CSV."""
    path = _scratch() / "readings"
    path.write_bytes(text)
    with contextlib.suppress(LabError):
        for one in formats.load(path):
            assert min(one.per_cpu.values()) >= 0  # noqa: S101


def makefile(text: bytes) -> None:
    """The Makefile of samples/bpf."""
    tree = Tree(_scratch(), KernelVersion(6, 1), Origin.EXISTING)
    path = tree.path / MAKEFILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    (tree.path / "Makefile").write_bytes(text)
    with contextlib.suppress(LabError):
        Dialect.of(tree)


@cache
def _scratch() -> Path:
    """A directory of this process's, which goes with it."""
    made = Path(tempfile.mkdtemp(prefix="xdplab-parsers-"))
    atexit.register(shutil.rmtree, made)
    return made


@dataclass(frozen=True, slots=True)
class Check:
    """What is tried, and how often in some seconds."""

    parse: Callable[[bytes], None]
    inputs: int  # by chance
    executions: int  # by the fuzzer, under which all is slower


CHECKS: Mapping[str, Check] = {
    "counters": Check(counters, 10_000, 20_000),
    "rules": Check(rule_lines, 2_000, 10_000),
    "cases": Check(cases, 100, 500),  # each input makes some hundred frames
    "readings": Check(kept_readings, 5_000, 5_000),
    "Makefile": Check(makefile, 2_000, 2_000),
}


# ---- what they are given


def by_chance(name: str, rng: Random) -> bytes:
    """Something for a check: nearly right, for the most part."""
    if name == "counters":
        return "\n".join(_counter_line(rng) for _ in range(rng.randrange(30))).encode()
    if name == "rules":
        return _mutated(rng, _rules(rng), 0.5)
    return _mutated(rng, rng.choice(seeds(name)), 0.9)


def _counter_line(rng: Random) -> str:
    number = rng.choice(("0", "1", "7", "00", "18446744073709551615", "18446744073709551616",
                         "-1", "\u0663", "123456", "9" * 30))  # fmt: skip
    cpu = f"cpu {rng.choice(('0', '1', '2', number))}, value = {number}"
    return rng.choice(("", "", number, str(rng.randrange(9)), cpu, cpu, cpu, f"{cpu}\r", cpu[:-1],
                       f" {cpu}", rng.randbytes(8).decode(errors="backslashreplace")))  # fmt: skip


def _rules(rng: Random) -> bytes:
    most = rng.choice((1, 3, 20))
    made = [rules.told(one) for one in chance.rules(rng, most) or chance.addresses(rng)]
    plain = rng.random() < 0.4  # such as long lists are: alike
    lines = [one.split()[-1] if plain else rng.choice((one, one, f" {one} # why")) for one in made]
    return "\n".join(lines + [rng.choice(lines)] * (rng.random() < 0.1)).encode()


def _mutated(rng: Random, text: bytes, likely: float) -> bytes:
    while rng.random() < likely:
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.choice((0, 1, 1, 2, 8, 80)))
        some = rng.choice((b"", rng.randbytes(1), text[at:end] * rng.choice((2, 3)), *_TOKENS))
        text = text[:at] + some + text[end:]
    return text


_TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\r\n",
        b"\xef\xbb\xbf",
        b"#",
        b"/",
        b"/33",
        b"/0",
        b"::",
        b"::ffff:",
        b"%1",
    ),
    *(
        b"both",
        b"dst",
        b"[" * 5000,
        b"9" * 5000,
        b"=",
        b'"',
        b"{",
        b"1e999",
        b"NaN",
        b"\\\n",
        b"$(",
    ),
)


def seeds(name: str) -> list[bytes]:
    """Good input for a check."""
    if name == "cases":
        paths = [*PROJECT.glob("*_cases.toml"), *PROJECT.glob("samples/*_cases.toml")]
        return [path.read_bytes() for path in paths]
    if name == "readings":
        made = [Reading(1e9 + number, number, {0: number, 1: 7}) for number in range(3)]
        return ["\n".join(lines).encode() + b"\n"
                for lines in (map(formats.to_json, made), formats.to_csv(made))]  # fmt: skip
    if name == "Makefile":
        return [_MAKEFILE]
    return [by_chance(name, Random(number)) for number in range(20)]  # noqa: S311


_MAKEFILE = b"""\
tprogs-y := sockex1
sockex1-objs := sockex1_user.o
always-y := $(tprogs-y)
always-y += sockex1_kern.o
LIBBPF_OUTPUT = $(abspath $(BPF_SAMPLES_PATH))/libbpf
VMLINUX_BTF ?= $(abspath vmlinux)
"""


# ---- an ordeal of them


@dataclass(frozen=True, slots=True)
class Parsers:
    """Checks by chance, streams through a pipe, and the fuzzer where there is one."""

    shell: Shell
    corpora: Path
    fuzzer: bool

    def once(self, rng: Random) -> Try:
        """Some seconds of one check."""
        name = rng.choice([*CHECKS, _STREAM])
        if name == _STREAM:
            return Try(f"{name}, {STREAMS} streams", finding=self._streams(rng))
        check = CHECKS[name]
        if self.fuzzer and rng.random() < 0.5:
            kind = f"{name}, {check.executions:,} executions by atheris"
            return Try(kind, finding=self._fuzz(name, rng))
        kind = f"{name}, {check.inputs:,} inputs by chance"
        return Try(kind, finding=tried(name, check.inputs, rng))

    def _streams(self, rng: Random) -> Finding | None:
        for _ in range(STREAMS):
            stream = Stream.by_chance(rng)
            try:
                stream.through(self.shell)
            except AssertionError as error:
                return Finding("a stream was misread", tuple(map(repr, stream.pieces)), str(error))
        return None

    def _fuzz(self, name: str, rng: Random) -> Finding | None:
        corpus = self.corpora / name
        if not corpus.exists():
            corpus.mkdir()
            for number, seed in enumerate(seeds(name)):
                (corpus / str(number)).write_bytes(seed)
        runs = CHECKS[name].executions
        options = [f"-runs={runs}", f"-seed={rng.randrange(1, 2**31)}", f"-timeout={_PATIENCE}",
                   f"-artifact_prefix={corpus}-"]  # fmt: skip
        fuzz = [sys.executable, "-m", "xdplab.torture.fuzz", name]
        ended = self.shell.run(
            [*fuzz, *options, corpus],
            cwd=PROJECT,
            env={"TMPDIR": str(self.corpora)},  # it ends without a chance to clear up
            check=False,
        )
        if ended.code == 0 and f"Done {runs} " in ended.text("err"):
            return None
        inputs = tuple(repr(one.read_bytes()) for one in self.corpora.glob(f"{name}-*"))
        return Finding(f"the fuzzer ended with {ended.code}", inputs, ended.text("out", "err"))


_STREAM, _PATIENCE = "counters through a pipe", 30  # seconds for one input


def tried(name: str, number: int, rng: Random) -> Finding | None:
    """Give a check so many inputs; the first that it doesn't stand is a finding."""
    for _ in range(number):
        text = by_chance(name, rng)
        try:
            CHECKS[name].parse(text)
        except Exception as error:
            return Finding(f"{name}: {type(error).__name__}", (repr(text),), str(error))
    return None


@contextlib.contextmanager
def opened(means: Means) -> Iterator[Ordeal]:
    """The fuzzer's corpora grow as long as the block lasts."""
    fuzzer = importlib.util.find_spec("atheris") is not None
    skipped = {} if fuzzer else {"by the fuzzer": "there is no atheris: scripts/bootstrap fuzz"}
    with tempfile.TemporaryDirectory(prefix="xdplab-torture-") as directory:
        yield Ordeal(Name.PARSER, 4, Parsers(means.shell, Path(directory), fuzzer).once, skipped)
