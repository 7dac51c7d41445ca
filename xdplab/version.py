"""Points on the line of kernel versions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import total_ordering

from xdplab.errors import NotAVersion

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?([-~]rc(\d+))?([-+.~].*|)", re.ASCII)
_ASSIGNED = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(.*?)\r?$", re.M)


@total_ordering
@dataclass(frozen=True, slots=True)
class KernelVersion:
    """A kernel's version; `suffix` (a distribution's, a vendor's) has no part in the order."""

    major: int
    minor: int
    patch: int = 0
    rc: int = 0  # 0: a release
    suffix: str = ""

    @classmethod
    def parse(cls, text: str) -> KernelVersion:
        """Read "v7.2-rc3", "6.1", "6.1.0-56-amd64", a package's "7.3~rc7-1"; raises NotAVersion."""
        found = _VERSION.fullmatch(text.strip())
        if not found:
            raise NotAVersion(text)
        major, minor, patch, _, rc, suffix = found.groups()
        return cls(int(major), int(minor), int(patch or 0), int(rc or 0), suffix)

    @classmethod
    def of_makefile(cls, text: str) -> KernelVersion | None:
        """Read the first lines of a tree's top Makefile; None if it isn't one."""
        fields = dict(reversed(_ASSIGNED.findall(text)))  # the first assignment counts
        try:
            number = f"{fields['VERSION']}.{fields['PATCHLEVEL']}.{fields.get('SUBLEVEL') or 0}"
            extra = fields.get("EXTRAVERSION", "")
            version = cls.parse(number + (extra if extra.startswith("-rc") else ""))
            # what a vendor appends may be any words at all
            return version if version.rc else replace(version, suffix=extra)
        except (KeyError, NotAVersion):
            return None

    @property
    def series(self) -> str:
        """What distributions name packages after: "6.1"."""
        return f"{self.major}.{self.minor}"

    @property
    def tag(self) -> str:
        """The git tag: mainline writes v6.1, not v6.1.0."""
        patch = f".{self.patch}" if self.patch else ""
        return f"v{self.series}{patch}{f'-rc{self.rc}' if self.rc else ''}"

    @property
    def exact(self) -> bool:
        """Whether it names one kernel; "6.1" is any release of that series."""
        return bool(self.patch or self.rc)

    def covers(self, other: KernelVersion) -> bool:
        """Whether `other` will do for who asks for this; a candidate only if it is named."""
        if self.exact:
            return other == self
        return other.series == self.series and not other.rc

    def __str__(self) -> str:
        return f"{self.tag[1:]}{self.suffix}"

    def _order(self) -> tuple[int, int, int, float]:
        return self.major, self.minor, self.patch, self.rc or float("inf")

    def __lt__(self, other: KernelVersion) -> bool:
        return self._order() < other._order()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KernelVersion) and self._order() == other._order()

    def __hash__(self) -> int:
        return hash(self._order())


def nearest(
    version: KernelVersion, known: Iterable[KernelVersion], count: int = 5
) -> list[KernelVersion]:
    """Of the known versions those closest to one that isn't among them, in their order."""
    line = sorted(set(known))
    below = sum(1 for one in line if one < version)
    start = max(0, min(below - count // 2, len(line) - count))
    return line[start : start + count]


@dataclass(frozen=True, slots=True)
class Range:
    """Versions from `since` on, up to but without `until`; None is an open end."""

    since: KernelVersion | None
    until: KernelVersion | None

    @classmethod
    def parse(cls, since: str, until: str) -> Range:
        """Read its two ends, as "v5.5"; "" and "-" are open.  Raises NotAVersion."""
        ends = [None if text in ("", "-") else KernelVersion.parse(text) for text in (since, until)]
        return cls(*ends)

    def __contains__(self, version: KernelVersion) -> bool:
        return (not self.since or self.since <= version) and (
            not self.until or version < self.until
        )

    def __str__(self) -> str:
        since = f"from {self.since.tag}" if self.since else ""
        until = f"before {self.until.tag}" if self.until else ""
        return " to ".join(filter(None, (since, until))) or "always"
