"""Packets dropped a second on a real path: a cable (veth) in native and generic mode, and `lo`.

All in network namespaces of the bench's own.  Live frames come down the cable as a card's
would: in bulk, and from another core.  A veth puts what a CPU sends into the receive queue of
that CPU's number, and schedules that queue's NAPI on the same CPU (veth_select_rxq and
__veth_xdp_flush of drivers/net/veth.c): one core sends and drops, and with as many queues as
CPUs each has a cable of its own in effect.  For one core to send and another to drop, NAPI is
made a thread (Documentation/networking/napi.rst) that is kept on the other.  Who sends and who
drops has real-time priority: a card's interrupts don't wait for processes either.

Each reading counts what was sent, and by the filter's own counter what it dropped: all of it,
or there is no reading.  Only where another core drops may what finds the cable's ring full be
lost; the interface counts it, and what was sent is told too.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from xdplab import TUTORIAL
from xdplab.bench.measure import Comparison, Figures, Means, Way
from xdplab.bench.place import Place, built, namespace
from xdplab.build import Build
from xdplab.counters import Reading
from xdplab.errors import FramesAstray
from xdplab.filtering import SAMPLE
from xdplab.process import find
from xdplab.runner import Job
from xdplab.sample import Sample
from xdplab.sending import live_frames
from xdplab.testbed.local import LocalBench
from xdplab.testbed.netns import FAR, NEAR
from xdplab.traffic import Proto, Recipe
from xdplab.workspace import PROJECT

_BARE = PROJECT / "xdplab/bench/drop_all_kern.c"
_SOURCE, _TARGET = "10.0.9.2", "10.0.9.1"
_SECONDS = 0.3  # of sending, for a reading
_LOOK = 0.05  # seconds between a sample's own readings
_PATIENCE = 3.0  # seconds for the last frame to be counted
_MOST_CPUS = 8
_RIGHTS = ("net_raw", "net_admin", "bpf", "sys_nice")


def comparisons(means: Means) -> Generator[Comparison]:
    """Every filter on the cable and on `lo`, and some of them by the CPUs that drop."""
    if not live_frames():
        nothing = Way("live frames", dict, skipped="this kernel has none: they came with v5.18")
        yield Comparison("veth", (nothing,))
        return
    cpus = sorted(os.sched_getaffinity(0))[:_MOST_CPUS]
    with tempfile.TemporaryDirectory() as scratch:
        builds = _Builds.made(means, Path(scratch))
        with namespace(means, _RIGHTS) as bench:
            cable = _cable(bench, cpus, Path(scratch))
            who = f"CPU {cpus[0]} sends and drops"
            if len(cpus) > 1:
                cable = _handed_over(cable, cpus[-1])
                who = f"CPU {cpus[0]} sends, CPU {cpus[-1]} drops; what finds the ring full is lost"
            for mode in ("native", "skb"):
                filters = [*_xdp(builds, mode, NEAR), *_netfilter(NEAR), _NOBODY]
                yield Comparison(f"veth, {_MODES[mode]}", _ways(filters, cable, cpus[:1]), note=who)
            lo = _loopback(bench, Path(scratch))
            filters = [*_xdp(builds, "skb", "lo"), *_netfilter("lo"), _NOBODY]
            note = f"CPU {cpus[0]} sends and drops; through a socket it sends a fifth of that"
            yield Comparison("lo, generic mode", _ways(filters, lo, cpus[:1]), note=note)
        with namespace(means, _RIGHTS) as bench:
            cable = _cable(bench, cpus, Path(scratch))
            for number in (one for one in (1, 2, 4, 8) if one <= len(cpus)):
                ways = _ways(_few(builds), cable, cpus[:number])
                note = "each CPU sends into a queue of its own, and drops what is in it"
                on = f"veth, native mode, on {number} CPU{'s' * (number > 1)}"
                yield Comparison(on, ways, point=("CPUs", number), note=note)


_QUANTITY = "million packets/s"
_MODES = {"native": "native mode", "skb": "generic mode"}


# ---- where frames arrive


@dataclass(frozen=True, slots=True)
class _Line(Place):
    """A place that frames are sent to."""

    dev: str  # that a filter is put on
    into: str  # what frames are sent into
    frame: bytes
    handed_over: bool = False  # to another CPU, where they are dropped

    def lost(self) -> int:
        """How many frames found no room."""
        return int(self.bench.ask("counters", dev=self.into)["lost"])


def _cable(bench: LocalBench, cpus: list[int], scratch: Path) -> _Line:
    """A cable with a queue for each CPU."""
    bench.ask("lay_cable", ends=(NEAR, FAR), queues=cpus[-1] + 1, napi=True)
    bench.answer_to(_TARGET, NEAR)
    outlet = replace(bench.outlet(FAR, None), next_hop=bench.outlet(NEAR, None).mac)
    return _Line(bench, scratch, NEAR, FAR, _recipe.frame(outlet))


def _loopback(bench: LocalBench, scratch: Path) -> _Line:
    return _Line(bench, scratch, "lo", "lo", _recipe.frame(bench.outlet("lo", None)))


_recipe = Recipe(_SOURCE, _TARGET, Proto.UDP)


def _handed_over(cable: _Line, cpu: int) -> _Line:
    """The cable, with NAPI by threads that are kept on a CPU: not on that which sends."""
    before = set(_napi_threads(cable.dev))
    cable.run("sh", "-c", f"echo 1 > /sys/class/net/{cable.dev}/threaded")
    for thread in set(_napi_threads(cable.dev)) - before:
        for pin in (["taskset", "-cp", str(cpu)], ["chrt", "--fifo", "-p", "1"]):
            cable.run(*pin, str(thread))
    return replace(cable, handed_over=True)


def _napi_threads(dev: str) -> Iterator[int]:
    """The kernel's threads for interfaces of that name, in any namespace."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if comm.read_text().startswith(f"napi/{dev}-"):
                yield int(comm.parent.name)


# ---- filters

Dropped = Callable[[], int]  # how many so far


@dataclass(frozen=True, slots=True)
class _Filter:
    name: str
    put: Callable[[_Line], contextlib.AbstractContextManager[Dropped]]  # it there for the while
    how: str
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class _Builds:
    """What is measured of the harness's own, made in the current tree."""

    bare: Build
    pair: Build
    traced: Build  # the pair, with its logs
    filter: Build

    @classmethod
    def made(cls, means: Means, scratch: Path) -> _Builds:
        """Build all of them; the tree is left with the pair that logs nothing."""
        traced = built(means, Sample.find(TUTORIAL), scratch / "traced", trace=True)
        names = {"bare": str(_BARE), "pair": TUTORIAL, "filter": SAMPLE}
        made = {as_: built(means, Sample.find(name), scratch / as_) for as_, name in names.items()}
        return cls(traced=traced, **made)


def _xdp(builds: _Builds, mode: str, dev: str) -> list[_Filter]:
    """The XDP programs in a mode, the floor first."""

    def sample(name: str, build: Build, options: str, first: str = "") -> _Filter:
        how = f"{first}invoke run {options} --dev {dev} --mode {mode}"
        return _Filter(name, partial(_sample, build, mode), how)

    pair = f"--ip {_SOURCE}"
    return [
        sample("bare XDP_DROP, counted", builds.bare, f"--sample {_BARE.relative_to(PROJECT)}"),
        sample("the tutorial's pair", builds.pair, pair),
        sample("the tutorial's pair, logging", builds.traced, pair, "invoke build --trace; "),
        sample("samples/xdp_filter", builds.filter, f"--sample {SAMPLE} {pair}"),
        _Filter(
            "xdp-filter -f ipv4", partial(_xdp_filter, mode),
            f"xdp-filter load -m {mode} -f ipv4 {dev}; xdp-filter ip -m src {_SOURCE}",
            _absent("xdp-filter", "xdp-tools"),
        ),
    ]  # fmt: skip


def _netfilter(dev: str) -> list[_Filter]:
    """Those of nftables and iptables: the earliest hook that each has, and a later one."""
    hooks = {
        "netdev ingress": ("netdev", f"type filter hook ingress device {dev} priority 0"),
        "raw prerouting": ("ip", "type filter hook prerouting priority raw"),
    }
    chains = {"raw PREROUTING": ("raw", "PREROUTING"), "INPUT": ("filter", "INPUT")}
    nft, iptables = _absent("nft", "nftables"), _absent("iptables", "iptables")
    return [
        *(_Filter(f"nft, {name}", partial(_nft, *hook), f"nft '{_ruleset(*hook)}'", nft)
          for name, hook in hooks.items()),
        *(_Filter(f"iptables, {name}", partial(_iptables, *chain),
                  f"iptables -t {chain[0]} {' '.join(_rule('-A', chain[1]))}", iptables)
          for name, chain in chains.items()),
    ]  # fmt: skip


def _few(builds: _Builds) -> list[_Filter]:
    """Those whose growth by CPUs is looked at: one of each kind."""
    bare, pair, _, ours, theirs = _xdp(builds, "native", NEAR)
    ingress, _, raw, _ = _netfilter(NEAR)
    return [bare, pair, ours, theirs, ingress, raw]


def _absent(command: str, package: str) -> str:
    return "" if find(command) else f"{command} is not installed: apt install {package}"


@contextlib.contextmanager
def _sample(build: Build, mode: str, place: _Line) -> Iterator[Dropped]:
    """A sample's program, which prints its count again and again."""
    with place.running(build, Job(_SOURCE, place.dev, mode, _LOOK, rounds=0)) as run:
        totals = (one.total for one in run.output() if isinstance(one, Reading))
        yield lambda: next(totals, 0)


@contextlib.contextmanager
def _xdp_filter(mode: str, place: _Line) -> Iterator[Dropped]:
    place.run("xdp-filter", "load", "-m", mode, "-f", "ipv4", place.dev)
    try:
        place.run("xdp-filter", "ip", "-m", "src", _SOURCE)
        yield lambda: _number(r"XDP_DROP +(\d+)", place.run("xdp-filter", "status"))
    finally:
        place.run("xdp-filter", "unload", place.dev)


def _ruleset(family: str, hook: str) -> str:
    chain = f"add table {family} bench; add chain {family} bench drops {{ {hook}; }}"
    return f"{chain}; add rule {family} bench drops ip saddr {_SOURCE} counter drop"


@contextlib.contextmanager
def _nft(family: str, hook: str, place: _Line) -> Iterator[Dropped]:
    place.run("nft", _ruleset(family, hook))
    try:
        listed = ("nft", "list", "chain", family, "bench", "drops")
        yield lambda: _number(r"counter packets (\d+)", place.run(*listed))
    finally:
        place.run("nft", "delete", "table", family, "bench")


def _rule(change: str, chain: str) -> list[str]:
    return [change, chain, "-s", _SOURCE, "-j", "DROP"]


@contextlib.contextmanager
def _iptables(table: str, chain: str, place: _Line) -> Iterator[Dropped]:
    iptables = ("iptables", "-t", table)
    place.run(*iptables, *_rule("-A", chain))
    try:
        listed = (*iptables, "-nvxL", chain)
        yield lambda: _number(r"(\d+) +\d+ +DROP", place.run(*listed))
    finally:
        place.run(*iptables, *_rule("-D", chain))


@contextlib.contextmanager
def _nobody(place: _Line) -> Iterator[Dropped]:
    """No filter: what is for a port that nobody listens at goes all the way, and is dropped."""

    def counted() -> int:
        return _number(r"UdpNoPorts +(\d+)", place.run("nstat", "-asz", "UdpNoPorts"))

    before = counted()
    yield lambda: counted() - before


_NOBODY = _Filter(
    "no filter: UDP to nobody", _nobody, "nstat UdpNoPorts", _absent("nstat", "iproute2")
)


def _number(pattern: str, said: str) -> int:
    found = re.search(pattern, said)
    return int(found[1]) if found else 0


# ---- readings


def _ways(filters: Iterable[_Filter], place: _Line, cpus: list[int]) -> tuple[Way, ...]:
    return tuple(
        Way(one.name, partial(_reading, one, place, cpus), one.how, skipped=one.skipped)
        for one in filters
    )


def _reading(filter_: _Filter, place: _Line, cpus: list[int]) -> Figures:
    """Put the filter there, send from these CPUs for a while, and see to it that all is counted."""
    frame = place.frame.hex()
    with filter_.put(place) as dropped:
        before = place.lost()
        flood = place.bench.ask("flood", dev=place.into, frame=frame, cpus=cpus, seconds=_SECONDS)
        sent, millions = flood["sent"], 1e6 * flood["seconds"]
        if not place.handed_over:
            _await(dropped, sent, place.dev)
            return {_QUANTITY: sent / millions}
        arrived = sent - (place.lost() - before)
        _await(dropped, arrived, place.dev)
        return {_QUANTITY: arrived / millions, "million sent/s": sent / millions}


def _await(dropped: Dropped, all_of_them: int, dev: str) -> None:
    """Wait until all are counted as dropped; raises FramesAstray."""
    deadline = time.monotonic() + _PATIENCE
    while (found := dropped()) != all_of_them:
        if found > all_of_them or time.monotonic() > deadline:
            raise FramesAstray(dev, all_of_them, found)
