"""What users write after options, into values."""

from collections.abc import Callable
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdplab.errors import NotAChoice, NotANumber
from xdplab.options import choice, number, whole_number


class Colour(StrEnum):
    RED = "red"
    BLUE = "light-blue"


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("2", 2), ("0.25", 0.25), (".5", 0.5), ("1e3", 1000)]
)
def test_numbers_are_read(text: str, value: float) -> None:
    assert number("--interval", text) == value


@pytest.mark.parametrize(
    "text", ["", "-1", "two", "nan", "inf", "-inf", "1e9", "0x10", "1,5", "2s"]
)
@pytest.mark.parametrize("read", [number, whole_number])
def test_what_is_no_number_is_refused_with_its_option(
    read: Callable[[str, str], float], text: str
) -> None:
    with pytest.raises(NotANumber, match="--interval") as refused:
        read("--interval", text)
    assert repr(text) in refused.value.message


@pytest.mark.parametrize("text", ["0.5", "1e-3", "2.000001"])
def test_a_whole_number_has_no_fraction(text: str) -> None:
    with pytest.raises(NotANumber) as refused:
        whole_number("--rounds", text)
    assert "whole number" in refused.value.cure


@given(st.integers(0, 10**9 - 1))
def test_whole_numbers_are_read_back(value: int) -> None:
    assert whole_number("--rounds", str(value)) == value


@given(st.text())
def test_any_text_is_a_number_in_range_or_refused(text: str) -> None:
    try:
        value = number("--interval", text)
    except NotANumber:
        return
    assert 0 <= value < 1e9


@pytest.mark.parametrize("colour", Colour)
def test_a_choice_is_read(colour: Colour) -> None:
    assert choice("--colour", colour.value, Colour) is colour


@pytest.mark.parametrize("text", ["", "Red", "BLUE", "light_blue", "green"])
def test_what_is_no_choice_is_answered_with_the_choices(text: str) -> None:
    with pytest.raises(NotAChoice) as refused:
        choice("--colour", text, Colour)
    assert f"--colour can't be {text!r}" in refused.value.message
    assert refused.value.cure.endswith("red, light-blue")
