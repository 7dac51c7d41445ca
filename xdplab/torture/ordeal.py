"""What an ordeal is: one thing that is tried again and again, each time in another way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random


@dataclass(frozen=True, slots=True)
class Finding:
    """A promise that was broken."""

    what: str
    left: tuple[str, ...] = ()  # what was found that should not be there, or not so
    said: str = ""  # the last that was printed


@dataclass(frozen=True, slots=True)
class Try:
    """What was done once, and what came of it."""

    kind: str  # "run on netns: SIGKILL to Python"
    moment: str = ""  # at which it was disturbed
    finding: Finding | None = None
    times: int = 1  # that it was disturbed


@dataclass(frozen=True, slots=True)
class Ordeal:
    """What tries a promise; `once` is a whole try, all of whose chances come from the Random."""

    name: str
    promise: int  # its number in SECURITY.md
    once: Callable[[Random], Try]
    skipped: Mapping[str, str] = field(default_factory=dict)  # kinds that can't be tried here: why


@dataclass(frozen=True, slots=True)
class Found:
    """A finding, and the seed that brings it about again."""

    seed: int
    tried: Try


@dataclass(slots=True)
class Tally:
    """How far an ordeal is."""

    name: str
    promise: int
    skipped: Mapping[str, str]
    tries: int = 0
    times: int = 0  # that something was disturbed
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    moments: dict[str, int] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)

    def take(self, tried: Try, seed: int, seconds: float) -> None:
        """Add a try."""
        self.tries += 1
        self.times += tried.times
        self.seconds += seconds
        self.kinds[tried.kind] = self.kinds.get(tried.kind, 0) + 1
        if tried.moment:
            self.moments[tried.moment] = self.moments.get(tried.moment, 0) + 1
        if tried.finding:
            self.found.append(Found(seed, tried))


@dataclass(slots=True)
class Record:
    """What a torture has done so far."""

    seed: int
    started: str  # local time
    ordeals: list[Tally]
    seconds: float = 0.0

    @property
    def found(self) -> list[tuple[str, Found]]:
        """All findings, each with the name of its ordeal."""
        return [(one.name, found) for one in self.ordeals for found in one.found]
