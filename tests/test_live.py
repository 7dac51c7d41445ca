"""A run's counters as people see them: rates, hints, the picture in any size, and words."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from xdplab.counters import Reading, busiest
from xdplab.hints import HINTS, fitting, hinted, silent
from xdplab.process import Line
from xdplab.runner import Program, Run
from xdplab.testbed import Place
from xdplab.view.live import FORMS, Picture, about, folded, sentence, sparkline

SINCE = 1e9
SIZES = [(width, height) for width in (20, 40, 80, 200) for height in (3, 6, 10, 24, 60)]
counts = st.dictionaries(st.integers(0, 300), st.integers(0, 2**64 - 1), min_size=1)


class Nothing:
    """A program that says nothing and has ended."""

    pid = 0

    def lines(self, timeout: float | None = None) -> Iterator[Line]:
        yield from ()

    def end_input(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def end(self) -> None: ...


def run_on(
    driver: str = "loopback", mode: str = "skb", where: str = "vm", release: str = "6.1.0"
) -> Run:
    program = Program("dev0", 1, mode, "bpf_link", 7, "0" * 16)
    return Run(Nothing(), program, "10.1.2.3", Place(where, release, driver), SINCE)


def series(*tables: dict[int, int], seconds: float = 2.0) -> list[Reading]:
    """Readings of these counts, one after the other."""
    found: list[Reading] = []
    for number, table in enumerate(tables):
        before = found[-1] if found else None
        found.append(Reading.after(before, SINCE + number * seconds, number, table))
    return found


# ---- rates


def test_rates_are_packets_a_second_since_the_reading_before() -> None:
    first, second = series({0: 1, 1: 0}, {0: 5, 1: 1})
    assert (first.rates, first.rate) == ({}, None)
    assert (second.rates, second.rate) == ({0: 2.0, 1: 0.5}, 2.5)


def test_a_counter_that_was_reset_is_counted_from_zero() -> None:
    assert series({0: 100}, {0: 6})[1].rates == {0: 3.0}


def test_a_cpu_that_was_not_there_before() -> None:
    assert series({0: 0}, {0: 0, 1: 4})[1].rates == {0: 0.0, 1: 2.0}


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_a_clock_that_stood_or_was_set_back_gives_no_rate(seconds: float) -> None:
    assert series({0: 1}, {0: 9}, seconds=seconds)[1].rate is None


@given(st.lists(counts, min_size=2), st.floats(0.001, 1e6))
def test_no_rate_is_negative(tables: list[dict[int, int]], seconds: float) -> None:
    for reading in series(*tables, seconds=seconds)[1:]:
        assert min(reading.rates.values()) >= 0
        assert reading.rate == pytest.approx(sum(reading.rates.values()))


# ---- what is shown of many CPUs


@given(counts, st.integers(0, 40))
def test_the_busiest_are_those_that_have_counted_most(table: dict[int, int], most: int) -> None:
    found = busiest(table, most)
    assert found == sorted(found)
    assert len(found) == min(most, sum(map(bool, table.values())))
    rest = set(table) - set(found)
    assert all(table[one] >= table[other] for one in found for other in rest)


@given(counts, st.integers(1, 40))
def test_folding_loses_no_cpu_and_keeps_to_the_room(table: dict[int, int], room: int) -> None:
    shown, rest = folded(table, room)
    assert sorted([*shown, *rest]) == sorted(table)
    assert len(shown) + bool(rest) <= room


def test_few_cpus_are_all_shown_and_of_many_those_that_count() -> None:
    assert folded(dict.fromkeys(range(8), 0), 20) == (list(range(8)), [])
    assert folded(dict.fromkeys(range(32), 0) | {5: 1, 30: 2}, 20)[0] == [5, 30]


def test_a_sparkline_goes_from_nothing_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 4, 0]) == "▁▃▅█▁"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
    assert sparkline([0, 7], "_#") == "_#"


# ---- the picture


def drawn(picture: Picture, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    """What a terminal of that size is sent."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height, color_system=None, highlight=False)
    console.print(picture)
    file.seek(0)
    return file.read().splitlines()


def picture_of(readings: list[Reading]) -> Picture:
    picture = Picture(run_on(), clock=lambda: SINCE + 3725)
    for reading in readings:
        picture.take(reading)
    return picture


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("cpus", [1, 2, 8, 64, 256])
def test_a_picture_fits_any_terminal_and_has_the_sum(width: int, height: int, cpus: int) -> None:
    table = {cpu: 10**cpu % 9973 * (cpu % 3) for cpu in range(cpus)} | {0: 1234567}
    lines = drawn(picture_of(series(dict.fromkeys(table, 0), table)), width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    if height > 3:
        (total,) = (line for line in lines if line.startswith("all"))
        assert f"{sum(table.values()):,}" in total


def test_a_picture_says_what_runs_where() -> None:
    idle = dict.fromkeys(range(32), 0)
    lines = drawn(picture_of(series(idle, idle | {3: 8}, idle | {3: 9})), 80, 24)
    whole = " ".join(lines[:2])
    assert "dev0: skb mode, program 7, tag 0000000000000000, drops 10.1.2.3" in whole
    assert "in a virtual machine, Linux 6.1.0, for 1:02:05" in whole
    assert lines[2:] == [
        "         dropped  per second",
        "all            9         0.5",
        "cpu 3          9         0.5",
        "31 more        0         0.0",
        "█▂",
    ]


def test_a_terminal_without_unicode_gets_ascii() -> None:
    lines = drawn(picture_of(series({0: 0}, {0: 8}, {0: 8})), 80, 24, encoding="ascii")
    assert lines[-1] == "@_"


def test_a_picture_before_its_first_reading() -> None:
    assert "dev0: skb mode" in drawn(picture_of([]), 80, 24)[0]
    assert len(drawn(picture_of([]), 20, 3)) == 2


@given(st.lists(st.floats(0, 1e9), max_size=100))
def test_a_sparkline_is_no_longer_than_its_window(rates: list[float]) -> None:
    readings = [Reading(SINCE, number, {0: 0}, {0: rate}) for number, rate in enumerate(rates)]
    spark = drawn(picture_of([Reading(SINCE, 0, {0: 0}), *readings]), 200, 24)
    assert len(spark[-1].strip()) == min(60, len(rates)) or not rates


# ---- in words


def test_a_reading_in_words() -> None:
    first, second = series({0: 0, 1: 0}, {0: 0, 1: 5})
    assert sentence(first) == "round 0: total 0"
    assert sentence(second) == "round 1: total 5 (cpu 1: 5), 2.5 a second"
    (many,) = series({cpu: cpu for cpu in range(100)})
    assert sentence(many).endswith("(cpu 96: 96, cpu 97: 97, cpu 98: 98, cpu 99: 99, 95 more)")


def test_plain_lines_are_words_alone() -> None:
    lines = list(FORMS["plain"](["the ip to filter", *series({0: 0}, {0: 2})]))
    assert lines == [
        "the ip to filter",
        "round 0: total 0",
        "round 1: total 2 (cpu 0: 2), 1.0 a second",
    ]
    assert all(line.isascii() for line in [*lines, about(run_on())])


# ---- hints


@pytest.mark.parametrize(
    ("rounds", "seconds", "total", "due"),
    [(3, 5.0, 0, True), (3, 4.9, 0, False), (2, 60.0, 0, False), (200, 5.0, 1, False)],
)
def test_silence_is_some_readings_and_some_time(
    rounds: int, seconds: float, total: int, due: bool
) -> None:
    readings = series(*[{0: total}] * rounds, seconds=seconds)
    assert silent(readings[0], readings[-1]) == due


def test_hints_are_told_once_and_nothing_is_lost() -> None:
    told: list[str] = []
    items: list[Reading | str] = ["text", *series(*[{0: 0}] * 9)]
    assert list(hinted(items, run_on(), told.append)) == items
    assert told[0] == "no packet from 10.1.2.3 for 10 seconds:"
    assert told[1:] == [f"  {hint}" for hint in fitting(run_on())]


def test_who_has_seen_a_packet_is_told_nothing() -> None:
    told: list[str] = []
    list(hinted(series({0: 0}, {0: 1}, *[{0: 0}] * 9), run_on(), told.append))
    assert told == []


@pytest.mark.parametrize("mode", ["native", "skb", "hw"])
@pytest.mark.parametrize("where", ["host", "netns", "vm"])
@pytest.mark.parametrize("driver", ["loopback", "veth", "virtio_net", "bridge"])
def test_what_sends_a_packet_is_always_told_last(driver: str, where: str, mode: str) -> None:
    told = fitting(run_on(driver, mode, where))
    assert told[-1].startswith("to send one")
    assert "invoke send" in told[-1]
    assert not any("{" in hint for hint in told)


def of_clones(release: str, **options: str) -> bool:
    return any("cloned" in hint for hint in fitting(run_on(release=release, **options)))


@pytest.mark.parametrize(
    ("release", "skips"),
    [
        ("4.19.105", True), ("4.19.106-cloud", False), ("5.4.0-26-generic", True),
        ("5.4.21", True), ("5.4.22", False), ("5.5.5", True), ("5.5.6", False), ("5.6.0", False),
        ("6.12.1", False), ("of my own", False),
    ],
)  # fmt: skip
def test_old_kernels_skip_cloned_packets(release: str, skips: bool) -> None:
    assert of_clones(release) == of_clones(release, driver="veth") == skips
    assert not of_clones(release, mode="native")
    assert not of_clones(release, driver="virtio_net")


def test_hints_speak_of_the_interface() -> None:
    assert any("its peer sends" in hint for hint in fitting(run_on("veth")))
    assert any("promisc on" in hint for hint in fitting(run_on("virtio_net", where="host")))
    assert any("from outside" in hint for hint in fitting(run_on("loopback", where="host")))
    assert not any("promisc" in hint for hint in fitting(run_on("veth", where="host")))


def test_every_hint_is_told_somewhere() -> None:
    told = {
        hint
        for driver in ("loopback", "veth", "e1000e")
        for where in ("host", "netns", "vm")
        for hint in fitting(run_on(driver, where=where, release="5.4.0"))
    }
    assert len(told) == len(HINTS)
