"""The binary's output, whole and wrecked, into readings."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import LOGS

from xdplab.counters import Reading, readings

LARGEST = 2**64 - 1

counts = st.integers(0, LARGEST)
tables = st.dictionaries(st.integers(0, 4095), counts, min_size=1, max_size=20)
rounds = st.integers(0, 10**10 - 1)

# lines as the binary prints them, nearly so, and not at all
numbers = st.integers(-3, LARGEST + 3).map(str)
cpu_lines = st.builds("cpu {}, value = {}".format, numbers, numbers)
lines_of_a_block = st.one_of(st.just(""), st.integers(0, 20).map(str), cpu_lines)
any_lines = st.lists(st.one_of(lines_of_a_block, st.text()))


def logged(name: str) -> list[str]:
    return (LOGS / name).read_text(errors="backslashreplace").split("\n")


def block(number: int, per_cpu: dict[int, int]) -> list[str]:
    """What the binary prints of one round."""
    return [str(number), *(f"cpu {cpu}, value = {n}" for cpu, n in per_cpu.items()), "", ""]


def parsed(lines: Iterable[str]) -> list[Reading | str]:
    return list(readings(lines, clock=lambda: 0.0))


def as_reading(item: Reading | str) -> Reading:
    assert isinstance(item, Reading)
    return item


def only_readings(lines: Iterable[str]) -> list[tuple[int, dict[int, int]]]:
    return [(item.round, item.per_cpu) for item in parsed(lines) if isinstance(item, Reading)]


def only_text(lines: Iterable[str]) -> list[str]:
    return [item for item in parsed(lines) if isinstance(item, str)]


# ---- recorded outputs


def test_a_whole_run() -> None:
    idle = dict.fromkeys(range(16), 0)
    lines = logged("whole.txt")
    assert only_readings(lines) == [(0, idle), (1, idle), (2, idle | {1: 1}), (3, idle | {1: 3})]
    assert only_text(lines) == ["the ip to filter is 192.168.1.78/1308731584", "stopping"]


def test_a_run_to_its_end_says_so_last() -> None:
    items = parsed(logged("ended.txt"))
    assert items[-1] == "end"
    assert only_readings(logged("ended.txt")) == [(998, {0: 7, 1: 0}), (999, {0: 7, 1: 0})]


@pytest.mark.parametrize("name", ["cut_in_block.txt", "cut_in_line.txt"])
def test_a_block_that_was_cut_off_comes_out_as_text(name: str) -> None:
    lines = logged(name)
    assert only_readings(lines) == [(0, dict.fromkeys(range(16), 0))]
    cut = lines[lines.index("1") :]
    assert only_text(lines)[-len(cut) :] == cut


def test_warnings_in_a_block_do_not_break_it() -> None:
    lines = logged("warnings.txt")
    assert only_readings(lines) == [(0, {0: 0, 1: 0}), (1, {0: 5, 1: 0})]
    assert only_text(lines) == [line for line in lines if line.startswith("libbpf:")]


def test_junk_costs_the_blocks_that_it_is_in_and_no_others() -> None:
    lines = logged("garbled.txt")
    assert only_readings(lines) == [(0, {0: 1, 1: 2}), (9, {0: 3, 1: 4})]
    assert "cpu 0, value = 18446744073709551616" in only_text(lines)


# ---- one thing wrong at a time


@pytest.mark.parametrize(
    "line",
    [
        "cpu 0, value = 18446744073709551616",
        "cpu 0, value = 99999999999999999999999999",
        "cpu 0, value = -1",
        "cpu 1, value = 8",
        "cpu 123456, value = 1",
        "cpu 2, valu",
    ],
    ids=["over-u64", "huge", "negative", "duplicate", "no-such-cpu", "half-a-line"],
)
def test_a_line_that_cannot_be_true_breaks_its_block(line: str) -> None:
    lines = ["0", "cpu 1, value = 7", line, "cpu 3, value = 9", ""]
    assert parsed(lines) == lines[:-1]


def test_a_block_without_its_blank_lines_never_ended() -> None:
    lines = ["0", "cpu 0, value = 1", "1", "cpu 0, value = 2", ""]
    assert parsed(lines) == ["0", "cpu 0, value = 1", Reading(0.0, 1, {0: 2})]


def test_one_blank_line_is_enough() -> None:
    assert only_readings([*block(0, {0: 1})[:-1], *block(1, {0: 2})]) == [(0, {0: 1}), (1, {0: 2})]


def test_a_number_without_cpus_is_text() -> None:
    assert [item for item in parsed(["7", "", "8"]) if item] == ["7", "8"]


def test_line_ends_of_terminals_are_no_part_of_lines() -> None:
    assert only_readings(line + "\r\n" for line in block(3, {0: 4})) == [(3, {0: 4})]


def test_the_total_is_over_all_cpus() -> None:
    assert Reading(0.0, 0, {0: 3, 2: 4}).total == 7


# ---- whatever comes


def spelled_out(item: Reading | str) -> list[str]:
    return [item] if isinstance(item, str) else block(item.round, item.per_cpu)


def of_blocks(lines: Iterable[str]) -> list[str]:
    """The lines that look like a block's, numbers in their shortest form."""
    kept = (line for line in lines if re.fullmatch(r"\d{1,10}|cpu .*", line, re.DOTALL))
    return [re.sub(r"\d+", lambda digits: str(int(digits[0])), line) for line in kept]


def of_others(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line and not of_blocks([line])]


@given(any_lines)
def test_no_line_is_lost_or_doubled_or_changed_but_blank_ones(lines: list[str]) -> None:
    came = [line.rstrip("\r\n") for line in lines]
    out = list(itertools.chain.from_iterable(map(spelled_out, parsed(lines))))
    assert of_blocks(out) == of_blocks(came)
    # somebody else's line in a block comes out before the block does
    assert of_others(out) == of_others(came)


@given(st.lists(st.tuples(rounds, tables)))
def test_what_the_binary_prints_is_read_back(expected: list[tuple[int, dict[int, int]]]) -> None:
    lines = itertools.chain.from_iterable(block(number, table) for number, table in expected)
    assert [(item.round, item.per_cpu) for item in map(as_reading, parsed(lines))] == expected


@given(any_lines, rounds, tables)
def test_a_good_block_is_read_whatever_came_before(
    lines: list[str], number: int, table: dict[int, int]
) -> None:
    assert only_readings([*lines, *block(number, table)])[-1] == (number, table)


# ---- lazily


def test_a_reading_is_out_as_soon_as_its_block_ended() -> None:
    given_so_far: list[str] = []

    def source() -> Iterator[str]:
        for line in [*block(0, {0: 1, 1: 0}), *block(1, {0: 2, 1: 0})]:
            given_so_far.append(line)
            yield line

    found = readings(source())
    assert given_so_far == []
    assert as_reading(next(found)).round == 0
    assert given_so_far == block(0, {0: 1, 1: 0})[:-1]
    assert as_reading(next(found)).round == 1


def test_readings_of_a_stream_without_end() -> None:
    endless = itertools.chain.from_iterable(block(n, {0: n}) for n in itertools.count())
    assert [as_reading(item).total for item in itertools.islice(readings(endless), 5)] == [
        *range(5)
    ]


def test_a_reading_has_the_time_at_which_its_block_ended() -> None:
    ticks = itertools.count(100.0)
    found = readings([*block(0, {0: 0}), *block(1, {0: 0})], clock=lambda: next(ticks))
    assert [as_reading(item).at for item in found] == [100.0, 101.0]


@pytest.mark.parametrize("log", sorted(LOGS.glob("*.txt")), ids=lambda log: log.stem)
def test_every_recorded_output_keeps_its_lines(log: Path) -> None:
    lines = logged(log.name)
    out = list(itertools.chain.from_iterable(map(spelled_out, parsed(lines))))
    assert of_blocks(out) == of_blocks(lines)
    assert of_others(out) == of_others(lines)
