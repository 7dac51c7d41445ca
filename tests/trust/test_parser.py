"""Parsers of what others write: a value or a clear error, whatever comes.

The long form, with a fuzzer where there is one: invoke torture --only parser
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdplab import counters, formats
from xdplab.cases import Cases
from xdplab.counters import Reading
from xdplab.errors import BadCases, NotReadings
from xdplab.process import Shell
from xdplab.torture import parsers
from xdplab.torture.parsers import CHECKS, Parsers, Stream, tried

QUICK = {name: max(40, check.inputs // 20) for name, check in CHECKS.items()}

numbers = st.integers(-1, 2**64).map(str)
counter_lines = st.one_of(
    st.just(""),
    numbers,
    st.builds("cpu {}, value = {}".format, st.integers(0, 3), numbers),
    st.text(),
)


def by_seed(seed: int = 1) -> Random:
    return Random(seed)  # noqa: S311


@pytest.mark.parametrize("name", CHECKS)
def test_inputs_by_chance_are_read_or_refused(name: str) -> None:
    assert not tried(name, QUICK[name], by_seed())


@given(st.lists(counter_lines).map("\n".join).map(lambda text: text.encode(errors="replace")))
def test_counters_are_as_a_slow_parser_has_them(text: bytes) -> None:
    parsers.counters(text)


@given(st.binary())
def test_any_bytes_are_read_as_counters(text: bytes) -> None:
    parsers.counters(text)


@given(st.lists(st.one_of(st.text(), st.ip_addresses().map(str))).map("\n".join))
def test_rules_are_as_ipaddress_has_them(text: str) -> None:
    parsers.rule_lines(text.encode(errors="replace"))


def test_counters_come_whole_through_a_pipe_however_it_cuts_them() -> None:
    for seed in range(10):
        Stream.by_chance(by_seed(seed)).through(Shell())


def test_what_a_broken_parser_would_lose_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = counters.readings

    def forgetful(lines: Iterable[str], **how: object) -> Iterator[Reading | str]:
        for number, one in enumerate(real(lines, **how)):  # type: ignore[arg-type]
            if number % 7 != 3:
                yield one

    monkeypatch.setattr(parsers, "readings", forgetful)
    found = tried("counters", 200, by_seed())
    assert found
    assert "AssertionError" in found.what
    stream = next(one for one in map(Stream.by_chance, map(by_seed, range(20)))
                  if len(one.expected) > 9)  # fmt: skip
    with pytest.raises(AssertionError):
        stream.through(Shell())


@pytest.mark.parametrize(
    ("before", "now", "increase"),
    [
        (2**64 - 2, 3, 5.0),
        (2**32 - 2, 3, 5.0),
        (2**31 - 1, 3, 3.0),  # it was begun anew
        (2**33, 3, 3.0),
        (3, 2**64 - 1, float(2**64 - 4)),
    ],
)
def test_a_counter_that_wraps_goes_on_and_one_that_is_begun_anew_begins_at_0(
    before: int, now: int, increase: float
) -> None:
    first = Reading.after(None, 1.0, 0, {0: before})
    assert Reading.after(first, 2.0, 1, {0: now}).rates == {0: increase}


def test_digits_of_other_scripts_are_no_numbers() -> None:
    lines = ["0", "cpu 0, value = \u0663", ""]
    assert list(counters.readings(lines)) == lines[:2]


@pytest.mark.parametrize("value", ["[" * 10_000, "1" * 5000], ids=["brackets", "digits"])
def test_a_file_that_is_too_deep_or_too_large_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(BadCases, match="no TOML"):
        Cases.parse(f"counts = {value}", "a file", "192.168.1.78")
    file = tmp_path / "readings"
    file.write_text(f'{{"per_cpu": {value}\n')
    with pytest.raises(NotReadings, match="line 1"):
        formats.load(file)


def test_a_try_by_the_fuzzer_finds_nothing_or_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not importlib.util.find_spec("atheris"):
        pytest.skip("there is no atheris")
    monkeypatch.setattr(parsers, "CHECKS", {"counters": parsers.Check(parsers.counters, 1, 500)})
    with tempfile.TemporaryDirectory() as corpora:
        ordeal = Parsers(Shell(), Path(corpora), fuzzer=True)
        kinds = {ordeal.once(by_seed(seed)).finding for seed in range(4)}
    assert kinds == {None}
