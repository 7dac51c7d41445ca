"""What users write on the command line, into values; each raises an InputError."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TypeVar

from xdplab.errors import NotAChoice, NotANumber, NotTogether

_Choice = TypeVar("_Choice", bound=StrEnum)


def number(option: str, given: str) -> float:
    """A number that is not negative."""
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e9:
        raise NotANumber(option, given, "a number, 0 or more")
    return value


def whole_number(option: str, given: str) -> int:
    """A whole number that is not negative."""
    value = number(option, given)
    if value != int(value):
        raise NotANumber(option, given, "a whole number, 0 or more")
    return int(value)


_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(option: str, given: str) -> int:
    """A time, such as 60s, 5m, 1h, or 60: at least one whole second."""
    unit = _UNITS.get(given[-1:])
    value = whole_number(option, given[:-1] if unit else given) * (unit or 1)
    if not value:
        raise NotANumber(option, given, "a time, such as 60s or 5m")
    return value


def choice(option: str, given: str, choices: type[_Choice]) -> _Choice:
    """One of an enumeration's words."""
    try:
        return choices(given)
    except ValueError:
        raise NotAChoice(option, given, choices) from None


def one_of(**given: bool) -> str | None:
    """The name of the one option that was given, or None; raises NotTogether."""
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise NotTogether(f"--{name}" for name in names)
    return names[0] if names else None


def words(given: str | None) -> list[str]:
    """The words of a list with commas; none of nothing."""
    return [word for word in map(str.strip, (given or "").split(",")) if word]
