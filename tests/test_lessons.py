"""What the tutorial says: the same in every language, and typeset as each is."""

from __future__ import annotations

import re
import tomllib
from string import Formatter
from typing import Any

import pytest

from xdplab.errors import NotAChoice
from xdplab.language import LANGUAGES, choose
from xdplab.tutorial import STEPS, Answer
from xdplab.workspace import PROJECT

SPACES = "\u00a0\u202f"  # that no line is broken at


def flat(tables: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Texts by their keys, joined with dots."""
    found: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def texts(language: str) -> dict[str, str]:
    return flat(tomllib.loads((PROJECT / f"templates/tutorial.{language}.toml").read_text()))


ENGLISH = texts("en")
OTHERS = [one for one in LANGUAGES if one != "en"]


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def commands(text: str) -> list[str]:
    return sorted(re.findall(r"`([^`]+)`", text))


def test_there_are_two_languages() -> None:
    assert LANGUAGES == ("en", "fr")


def test_every_step_has_its_texts_and_no_other_has() -> None:
    steps = {key.split(".")[1] for key in ENGLISH if key.startswith("steps.")}
    assert steps == {step.key for step in STEPS}
    for step in STEPS:
        keys = {key.split(".")[2] for key in ENGLISH if key.startswith(f"steps.{step.key}.")}
        assert keys == {"title", "what", "why", "done", "look", "failed"}


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_has_the_same_keys_placeholders_and_commands(language: str) -> None:
    other = texts(language)
    assert list(other) == list(ENGLISH)
    for key, text in ENGLISH.items():
        assert placeholders(other[key]) == placeholders(text), key
        assert commands(other[key]) == commands(text), key


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_is_not_english(language: str) -> None:
    assert [key for key, text in texts(language).items() if text == ENGLISH[key]] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_key_of_the_keyboard_is_told(language: str) -> None:
    told = texts(language)["words.keys"]
    for answer in filter(None, Answer):
        assert re.search(rf"(^|\s){re.escape(answer)}\s?:", told)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_step_has_only_placeholders_that_are_filled_in(language: str) -> None:
    always = {"target", "where", "at", "ip", "dev", "other"}
    for key, text in texts(language).items():
        if key.endswith((".title", ".what", ".why")):
            assert placeholders(text) <= always, key
        if key.endswith(".title"):
            assert not placeholders(text)


def test_french_is_typeset_as_french() -> None:
    french = texts("fr")
    for key, text in french.items():
        prose = re.sub(r"`[^`]*`|\{\w+\}", "x", text)
        marks = ":" if key.startswith("words.keys") else ":;!?»"  # there "!" is a key's name
        assert not re.search(rf"[^{SPACES}][{marks}](\s|$)", prose), key
        assert not set(prose) & set("'\""), key
    assert sum(text.count("é") for text in french.values()) > 50


@pytest.mark.parametrize(
    ("given", "environment", "spoken"),
    [
        ("fr", {"LANG": "en_GB.UTF-8"}, "fr"),
        ("en", {"LC_ALL": "fr_FR.UTF-8"}, "en"),
        (None, {"LANG": "fr_FR.UTF-8"}, "fr"),
        (None, {"LANG": "fr"}, "fr"),
        (None, {"LANG": "fr.UTF-8"}, "fr"),
        (None, {"LANG": "fr@euro"}, "fr"),
        (None, {"LANG": "de_DE.UTF-8"}, "en"),
        (None, {"LANG": "C"}, "en"),
        (None, {"LANG": "frr_DE"}, "en"),
        (None, {}, "en"),
        (None, {"LC_ALL": "", "LC_MESSAGES": "fr_BE", "LANG": "en_GB"}, "fr"),
        (None, {"LC_ALL": "C.UTF-8", "LC_MESSAGES": "fr_BE", "LANG": "fr_FR"}, "en"),
    ],
)
def test_the_language_is_the_one_asked_for_or_the_locales(
    given: str | None, environment: dict[str, str], spoken: str
) -> None:
    assert choose(given, environment) == spoken


@pytest.mark.parametrize("given", ["", "de", "FR", "../en"])
def test_a_language_that_there_is_none_of(given: str) -> None:
    with pytest.raises(NotAChoice, match="--lang"):
        choose(given, {})
