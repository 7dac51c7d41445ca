"""When a total is settled: what was printed while packets were still sent proves nothing."""

from __future__ import annotations

import pytest

from xdplab.counters import Reading
from xdplab.process import Running, Shell
from xdplab.runner import Program, Run
from xdplab.testbed import Place
from xdplab.verify import COUNT, settled_total

EARLY = "printf '{number}\\ncpu 0, value = {total}\\n\\n\\n'"
PROGRAM = Program("lo", 1, "skb", "bpf_link", 1, "0" * 16)


def run_of(process: Running) -> Run:
    return Run(process, PROGRAM, "127.0.0.9", Place("netns", "6.1.0", "loopback"), 0.0)


def block(number: int, total: int) -> str:
    return EARLY.format(number=number, total=total)


@pytest.mark.parametrize("last", [COUNT, 2 * COUNT])
def test_readings_that_waited_to_be_read_do_not_settle_it(last: int) -> None:
    early = [block(number, COUNT) for number in range(5)]
    late = [f"sleep 0.3; {block(5 + number, last)}" for number in range(4)]
    watched: list[Reading] = []
    with Shell().start(["sh", "-c", "; ".join([*early, *late])]) as running:
        total = settled_total(run_of(running), 0.2, watched.append, COUNT)
    assert total == last
    assert [reading.total for reading in watched[:5]] == [COUNT] * 5


def test_a_program_that_ends_has_the_last_word() -> None:
    with Shell().start(["sh", "-c", block(0, 1)]) as running:
        assert settled_total(run_of(running), 0.2, lambda _: None, COUNT) == 1
