"""What a packet costs in each program, by the kernel's own clock, and what a million rules do.

The programs are the very ones that their user halves have loaded, or xdp-filter's own object;
frames run through them by BPF_PROG_TEST_RUN, on one CPU, see test_time.c.  The floor is a
program that drops all, in the same rounds: what remains above it is the program's own.
What the tutorial's pair is held against is the post's own logic, with its maps and without
its logs, in post/.

A figure is only taken if the verdict is the expected one, before and at the end of each part
of a reading: a frame that leaves a program early is cheap.  None of these programs writes
to a packet, so that a run repeated on the same bytes does the same again.  Statistics and
the interpreter, which would be measured too, are refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path

from xdplab import TUTORIAL
from xdplab.bench.measure import By, Comparison, Figures, Goal, Means, Way, timed
from xdplab.bench.place import BPFFS, Place, built, namespace
from xdplab.build import Build
from xdplab.errors import CommandFailed, OtherVerdict
from xdplab.filtering import SAMPLE
from xdplab.model import Action
from xdplab.process import find
from xdplab.runner import Job
from xdplab.sample import Sample
from xdplab.testbed import tools
from xdplab.testbed.netns import FAR, NEAR
from xdplab.workspace import PROJECT

_REPEAT = 1_000_000  # runs for a reading
_REPEAT_LOGGING = 100_000  # of what takes a microsecond
_ENTRIES = (1, 1000, 100_000, 1_000_000)
_MANY = 1_000_000  # rules that are loaded
_STEP, _OFFSET = 2654435761, 12345  # see row() of test_time.c
_SHIPPED = 10_000  # addresses at most, in xdp-filter's object as it is
_BY_SOURCE = 1 << 0  # MAP_FLAG_SRC of xdp-filter's common_kern_user.h
_PEER = "xdp-filter -f ipv4"
_PAIR, _LOGIC = "the tutorial's pair", "the post's logic, without logs"
_POST = PROJECT / "xdplab/bench/post/xdp_ip_filter_kern.c"
_ALIKE = 1.03  # two programs that do the same may differ so much: of some 55 ns one is 1.02

_ADDRESS, _OTHER = b"\xc0\xa8\x01\x4e", b"\xc0\xa8\x01\x4f"
_IPV4, _LOCAL = b"\x08\x00", b"\x88\xb5"  # EtherTypes; the second is for experiments
_TAG = b"\x81\x00\x00\x01"
_SPARE = "xdp1", "wire1"  # another cable: each program is on an interface of its own


def comparisons(means: Means) -> Generator[Comparison]:
    """One address; growth by addresses, hot and random, covered and not; loading a million."""
    with tempfile.TemporaryDirectory() as scratch:
        builds = _Builds.made(means, Path(scratch))
        with _stand(means, Path(scratch)) as place:
            yield from _one_address(place, builds)
            for entries in _ENTRIES:
                yield from _grown(place, builds, entries)
            yield from _loading(place)


# ---- where programs are run


@dataclass(frozen=True, slots=True)
class _Builds:
    """What is measured of the harness's own, made in the current tree."""

    pair: Build
    traced: Build  # the pair, with its logs
    post: Build  # the pair, with the post's logic
    filter: Build

    @classmethod
    def made(cls, means: Means, scratch: Path) -> _Builds:
        """Build all of them; the tree is left with the pair that logs nothing."""
        sample = Sample.find(TUTORIAL)
        post = built(means, replace(sample, kern=_POST), scratch / "post")
        traced = built(means, sample, scratch / "traced", trace=True)
        pair = built(means, sample, scratch / "pair")
        rules = built(means, Sample.find(SAMPLE), None)  # where invoke filter.load finds it
        return cls(pair, traced, post, rules)


@dataclass(frozen=True, slots=True)
class _Stand(Place):
    """A place with cables in it, and the tool that runs frames."""

    tool: Path

    def ask(self, request: str) -> list[int]:
        """The numbers that the tool answers, on the last CPU: the first has the interrupts."""
        cpu = str(max(os.sched_getaffinity(0)))
        return [int(one) for one in self.run(self.tool, cpu, text=f"{request}\n").split()]

    def timed(self, what: _Timed) -> Figures:
        """Nanoseconds for a frame; raises OtherVerdict."""
        numbers = f"{what.program} {what.repeat} {what.first} {what.count}"
        verdict, ns = self.ask(f"time {numbers} {what.frame.hex()}")
        if verdict != what.verdict:
            returned = "not always the same" if verdict < 0 else str(verdict)
            raise OtherVerdict(what.verdict.name, returned)
        return {"ns": ns}


@contextlib.contextmanager
def _stand(means: Means, scratch: Path) -> Iterator[_Stand]:
    tool = tools.compiled(tools.TEST_TIME, means.workspace, means.shell)
    with namespace(means, ("net_raw", "net_admin")) as bench:
        bench.ask("lay_cable", ends=(NEAR, FAR))
        bench.ask("lay_cable", ends=_SPARE)
        yield _Stand(bench, scratch, tool)


@dataclass(frozen=True, slots=True)
class _Timed:
    """A program, a frame, and what must become of it."""

    program: int  # its id; 0: the one that drops all
    verdict: Action
    frame: bytes
    first: int = 0  # of the row of addresses, which are written into the frame
    count: int = 0  # of them; 0: none is
    repeat: int = _REPEAT


def _frame(source: bytes = _ADDRESS, tags: int = 0, kind: bytes = _IPV4) -> bytes:
    """An Ethernet frame of 64 bytes, without its checksum 60; more with tags."""
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 46, 0, 0, 64, 17, 0, source, b"\x0a\0\0\1")
    return bytes(12) + _TAG * tags + kind + header.ljust(46, b"\0")


def _row(count: int) -> str:
    """The first addresses of the row, a line each."""
    words = struct.pack(f"<{count}I", *((i * _STEP + _OFFSET) & 0xFFFFFFFF for i in range(count)))
    packed = (words[at : at + 4] for at in range(0, len(words), 4))
    return "\n".join(map(socket.inet_ntop, repeat(socket.AF_INET), packed)) + "\n"


# ---- programs


@contextlib.contextmanager
def _pair(place: _Stand, build: Build, dev: str) -> Iterator[int]:
    """The tutorial's, attached; gives its id."""
    job = Job(socket.inet_ntoa(_ADDRESS), dev, "skb", 10.0, rounds=0)
    with place.running(build, job) as run:
        yield run.program.program


@contextlib.contextmanager
def _filter(place: _Stand, build: Build, rules: str) -> Iterator[int]:
    """samples/xdp_filter with some rules, and room for no more; gives its id."""
    room = str(rules.count("\n"))
    program = build.program
    place.run(
        program, "load", "-d", NEAR, "-m", "skb", "-n", room, "-s", "-r", text=f"{rules}end\n"
    )
    try:
        yield int(place.run(program, "stats").partition(" prog ")[2].split()[0])
    finally:
        place.run(program, "unload")


@contextlib.contextmanager
def _xdp_filter(place: _Stand, entries: int) -> Iterator[int]:
    """xdp-filter's own object for IPv4, with the first addresses of the row; gives its id.

    As it is shipped there is room for 10,000: for more its map is made before, and larger.
    """
    many, pinned, name = f"{BPFFS}/many", f"{BPFFS}/xdp-filter", ("name", "filter_ipv4")
    shape = ("type", "percpu_hash", "key", "4", "value", "8")
    room = str(max(entries, _SHIPPED))
    place.run("bpftool", "map", "create", many, *shape, "entries", room, *name)
    try:
        load = ("bpftool", "prog", "load", str(_object()), pinned, "type", "xdp")
        place.run(*load, "map", *name, "pinned", many)
        place.ask(f"fill {_id(place, 'map', many)} {_BY_SOURCE} {entries}")
        yield _id(place, "prog", pinned)
    finally:
        place.run("sh", "-c", f"cd {BPFFS} && rm -f filter_ipv* xdp_stats_map {many} {pinned}")


def _id(place: _Stand, kind: str, pinned: str) -> int:
    return int(json.loads(place.run("bpftool", "--json", kind, "show", "pinned", pinned))["id"])


def _object() -> Path | None:
    """What `xdp-filter load -f ipv4` loads, where distributions have it."""
    return next(Path("/usr").glob("lib*/**/bpf/xdpfilt_alw_ip.o"), None)


def _no_peer() -> str:
    if not _object():
        return "xdp-filter is not installed: apt install xdp-tools"
    return "" if find("bpftool") else "bpftool is not installed: apt install bpftool"


# ---- one address


def _one_address(place: _Stand, builds: _Builds) -> Iterator[Comparison]:
    hit, miss, other = _frame(), _frame(_OTHER), _frame(kind=_LOCAL)
    drop, passes = Action.DROP, Action.PASS
    with (
        _pair(place, builds.pair, "lo") as pair,
        _pair(place, builds.traced, FAR) as traced,
        _pair(place, builds.post, _SPARE[0]) as post,
        _filter(place, builds.filter, f"{socket.inet_ntoa(_ADDRESS)}\n") as ours,
        _peer(place, 1) as peer,
    ):
        tool, peers = partial(_way, place), partial(_way, place, skipped=_no_peer())
        logging = _Timed(traced, drop, hit, repeat=_REPEAT_LOGGING)
        yield Comparison(
            "one address",
            (
                tool("a bare XDP_DROP", _Timed(0, drop, hit)),
                tool(f"{_PAIR}: covered", _Timed(pair, drop, hit)),
                tool(f"{_PAIR}: not covered", _Timed(pair, passes, miss)),
                tool(f"{_PAIR}: not IPv4", _Timed(pair, passes, other)),
                tool(f"{_PAIR}, logging: covered", logging),
                tool(f"{_LOGIC}: covered", _Timed(post, drop, hit)),
                tool(f"{_LOGIC}: not covered", _Timed(post, passes, miss)),
                tool("samples/xdp_filter: covered", _Timed(ours, drop, hit)),
                tool("samples/xdp_filter: not covered", _Timed(ours, passes, miss)),
                tool("samples/xdp_filter: not IPv4", _Timed(ours, passes, other)),
                tool("samples/xdp_filter: tagged, covered", _Timed(ours, drop, _frame(tags=1))),
                peers(f"{_PEER}: covered", _Timed(peer, drop, _frame(_first()))),
                peers(f"{_PEER}: not covered", _Timed(peer, passes, miss)),
            ),
            (
                Goal(f"{_PAIR}: covered", "ns", _ALIKE, than=f"{_LOGIC}: covered"),
                Goal(f"{_PAIR}: not covered", "ns", _ALIKE, than=f"{_LOGIC}: not covered"),
                Goal(f"{_PAIR}: not IPv4", "ns", 1.0, than=f"{_LOGIC}: not covered"),
                Goal("samples/xdp_filter: covered", "ns", 6, By.DIFFERENCE),
                Goal("samples/xdp_filter: not covered", "ns", 6, By.DIFFERENCE),
            ),
            rounds=11,
            note="64-byte frames; the filter counts packets and bytes, and looks behind VLAN tags",
        )  # fmt: skip


def _peer(place: _Stand, entries: int) -> contextlib.AbstractContextManager[int]:
    return contextlib.nullcontext(0) if _no_peer() else _xdp_filter(place, entries)


def _first() -> bytes:
    """The first address of the row."""
    return struct.pack("<I", _OFFSET)


def _way(place: _Stand, name: str, what: _Timed, *, skipped: str = "") -> Way:
    how = f"bpftool prog run id ID data_in FRAME repeat {what.repeat}"
    return Way(name, partial(place.timed, what), how, skipped=skipped)


# ---- many


def _grown(place: _Stand, builds: _Builds, entries: int) -> Iterator[Comparison]:
    """So many addresses; one of them again and again, or all of them at random; and others."""
    with _filter(place, builds.filter, _row(entries)) as ours, _peer(place, entries) as peer:
        for name, verdict, first, count in (
            ("hot, covered", Action.DROP, entries // 2, 1),
            ("hot, not covered", Action.PASS, entries + 1, 1),
            ("random, covered", Action.DROP, 0, entries),
            ("random, not covered", Action.PASS, entries, 4 * _MANY),
        ):
            tool = partial(_Timed, frame=_frame(), first=first, count=count)
            yield Comparison(
                f"{entries:,} addresses: {name}",
                (
                    _way(place, "a bare XDP_DROP", tool(0, Action.DROP)),
                    _way(place, "samples/xdp_filter", tool(ours, verdict)),
                    _way(place, _PEER, tool(peer, verdict), skipped=_no_peer()),
                ),
                (Goal("samples/xdp_filter", "ns", 1.0, than=_PEER),),
                point=(f"addresses, {name}", entries),
                note="the floor has the program in it that writes the source address"
                + (f"; {_PEER} with a larger map than its own" if entries > _SHIPPED else ""),
            )


# ---- loading


def _loading(place: _Stand) -> Iterator[Comparison]:
    """A million rules from a file until they are in force, by invoke, its start included."""
    needs_root = "" if os.geteuid() == 0 else "needs root: it is run in a network namespace"
    rules = {"addresses": _row(_MANY), "prefixes": _prefixes(_MANY)}
    for name, text in rules.items():
        file = place.scratch / name
        file.write_text(text)
        how = f"invoke filter.load {NEAR} --rules FILE --stay"
        yield Comparison(
            f"a million {name}",
            (
                Way("each line by inet_pton", timed(partial(_parse, file)), "socket.inet_pton"),
                Way("invoke filter.load", timed(partial(_load, place, file)), how,
                    partial(_unload, place), needs_root),
            ),
            (Goal("invoke filter.load", "s", 3.0, By.FIGURE),),
            rounds=3,
            note="the floor is Python's, for the lines alone",
        )  # fmt: skip
        if not needs_root:
            _unload(place)


def _prefixes(count: int) -> str:
    """Prefixes as a router has them: mostly 24 bits, none within another."""
    bits = ((i << 8, 24) if i % 4 else (i << 8, 26) for i in range(1 << 16, (1 << 16) + count))
    return "".join(f"{socket.inet_ntoa(word.to_bytes(4))}/{length}\n" for word, length in bits)


def _parse(file: Path) -> list[bytes]:
    addresses = [line.partition("/")[0] for line in file.read_text().splitlines()]
    return list(map(socket.inet_pton, repeat(socket.AF_INET), addresses))


def _load(place: _Stand, file: Path) -> None:
    workspace = f"INVOKE_WORKSPACE={place.bench.workspace.root}"
    load = ("invoke", "filter.load", NEAR, "--rules", file, "--stay")
    place.run("env", f"--chdir={PROJECT}", workspace, sys.executable, "-m", *load)


def _unload(place: _Stand) -> None:
    """Whatever was there, no filter is."""
    program = next(place.bench.workspace.root.glob(f"builds/*/{SAMPLE}/{SAMPLE}"))
    with contextlib.suppress(CommandFailed):  # nothing was
        place.run(program, "unload")
