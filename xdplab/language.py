"""The languages that the tutorial and its exercises are told in."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from xdplab.errors import NotAChoice
from xdplab.workspace import PROJECT

LANGUAGES = ("en", "fr")
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")  # the first that is set counts: locale(7)


def choose(given: str | None, env: Mapping[str, str] = os.environ) -> str:
    """The language that --lang names, or else the locale's, or else English.

    Raises NotAChoice for a `given` that is none of LANGUAGES.
    """
    if given is not None:
        if given not in LANGUAGES:
            raise NotAChoice("--lang", given, LANGUAGES)
        return given
    locale = next(filter(None, map(env.get, _LOCALE)), "")
    spoken = re.split(r"[_.@]", locale)[0]
    return spoken if spoken in LANGUAGES else LANGUAGES[0]


def texts(name: str, language: str) -> dict[str, Any]:
    """The texts of templates/NAME.LANGUAGE.toml."""
    return tomllib.loads((PROJECT / "templates" / f"{name}.{language}.toml").read_text())
