"""The tutorial's claim, proved in a testbed: packets from one address die, and are counted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from xdplab import cases
from xdplab.build import Build
from xdplab.cases import Cases, Met
from xdplab.counters import Reading
from xdplab.packets import Pinged
from xdplab.runner import Job, Run, check_interface, started
from xdplab.testbed import Bench
from xdplab.workspace import RunRecord

COUNT = 3  # packets of each kind
_INTERVAL = 0.02  # seconds between two readings: nobody waits long for one
_SETTLE = 5.0  # seconds for the counters to be printed after the last packet


class Outcome(StrEnum):
    """What became of a trial; what this machine can't do is no fault of the tree or the pair."""

    PASSED = "passed"
    FAILED = "failed"  # the sample, or its build
    ERROR = "error"  # the kernel or its machine went wrong: nothing is said of the sample
    SKIPPED = "skipped"  # it can't be tried here


@dataclass(frozen=True, slots=True)
class Check:
    """One claim, whether it held, and what was found."""

    claim: str
    held: bool
    found: str


def verify(
    build: Build, job: Job, bench: Bench, record: RunRecord, watch: Callable[[Reading], None]
) -> Iterator[Check]:
    """Prove the claim, step by step; each reading goes to `watch` too.

    A pair that takes no address claims nothing of the kind: it is seen attached, its
    packet cases are run, and it is seen to be gone.  Raises what runner.started raises,
    and BadCases before anything is attached.
    """
    job = dataclasses.replace(job, interval=_INTERVAL, rounds=0)
    check_interface(job.dev, bench)
    known = cases.of(build, job.ip)
    if build.takes("i") and bench.private:
        yield _without_filter(job, bench)
    with started(build, job, bench, record) as run:
        yield _seen_on_link(job, bench, run)
        total = 0
        if build.takes("i"):
            total = yield from _filtered(job, bench, run, watch)
        elif known and known.counts:
            total = settled_total(run, job.interval, watch, 0)
        if known:
            yield from _cases(known, job.interval, bench, run, total, watch)
    left = [one.program for one in bench.attached(job.dev)]
    yield Check(
        "stopped, it leaves nothing on the link", not left, f"programs left: {left or 'none'}"
    )


def _without_filter(job: Job, bench: Bench) -> Check:
    """In a network of our own the same packets are seen to be answered before the filter is there.

    So the checks are seen to be able to fail.  The address is ours for the while: on the
    host that would send replies to whoever has it.
    """
    bench.answer_to(job.ip, job.dev)
    before = bench.ping(job.ip, bench.peers(job.dev).target, COUNT)
    return Check(
        f"without the filter, {COUNT} packets from {job.ip} are answered",
        before.answered == COUNT, _words(before),
    )  # fmt: skip


def _filtered(
    job: Job, bench: Bench, run: Run, watch: Callable[[Reading], None]
) -> Generator[Check, None, int]:
    """The tutorial's claim; gives what is counted in the end."""
    peers = bench.peers(job.dev)
    dropped = bench.ping(job.ip, peers.target, COUNT)
    yield Check(
        f"with it, {COUNT} packets from {job.ip} die",
        dropped.answered == dropped.delivered == 0, _words(dropped),
    )  # fmt: skip
    other = next(address for address in peers.others if address != job.ip)
    passed = bench.ping(other, peers.target, COUNT)
    yield Check(
        f"{COUNT} packets from another address, {other}, are answered",
        passed.answered == passed.delivered == COUNT, _words(passed),
    )  # fmt: skip
    total = settled_total(run, job.interval, watch, COUNT)
    yield Check(f"the counters' total is {COUNT}", total == COUNT, f"it is {total}")
    return total


def _cases(
    known: Cases, interval: float, bench: Bench, run: Run, before: int,
    watch: Callable[[Reading], None],
) -> Iterator[Check]:  # fmt: skip
    """The packet cases, and whether they are counted on top of what was counted before."""
    met = cases.run(known, bench, run.program.program)
    yield from case_checks(met)
    if known.counts:
        found = [verdict for one in met for _, verdict in one.found]
        counted = sum(verdict in known.counts for verdict in found)
        after = settled_total(run, interval, watch, before + counted)
        words = " and ".join(known.counts)
        yield Check(
            f"the counters rise by the {counted} frames of the verdict {words}",
            after - before == counted, f"by {after - before}",
        )  # fmt: skip


def case_checks(met: Sequence[Met]) -> Iterator[Check]:
    """What cases come to: one check for those that hold, one for each that doesn't."""
    good = [one for one in met if one.held]
    if good:
        frames = sum(len(one.found) for one in good)
        yield Check(f"{len(good)} packet cases hold", True, f"{frames} frames met their verdict")
    for one in met:
        if not one.held:
            yield Check(
                f"case {one.case.name}: {one.expected}", False, f"{one.words}; {one.case.why}"
            )


def _words(pinged: Pinged) -> str:
    return f"sent {pinged.sent}, delivered {pinged.delivered}, answered {pinged.answered}"


def _seen_on_link(job: Job, bench: Bench, run: Run) -> Check:
    seen = [one for one in bench.attached(job.dev) if one.program == run.program.program]
    found = ", ".join(f"prog/xdp id {one.program} in {one.mode} mode" for one in seen)
    held = len(seen) == 1 and seen[0].mode == run.program.mode
    return Check(f"the kernel shows it on {job.dev}", held, found or "no program of that id")


def settled_total(
    run: Run, interval: float, watch: Callable[[Reading], None], expected: int
) -> int:
    """The total once all packets are counted: two readings after the right one, or at the end.

    More than the right number would show in those two.  Readings that were made
    while packets were still sent wait to be read: they come at once, and don't count.
    """
    total, rounds_after = 0, 0
    last_sent = time.monotonic()
    try:
        for item in run.output(_SETTLE):
            if not isinstance(item, Reading):
                continue
            watch(item)
            total = item.total
            is_new = time.monotonic() > last_sent + interval
            rounds_after += is_new and total >= expected
            if rounds_after > 2:
                break
    except TimeoutError:
        pass
    return total
