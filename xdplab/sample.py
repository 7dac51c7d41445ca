"""A sample: a C pair, NAME_kern.c for the kernel and NAME_user.c for user space."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xdplab.errors import NotASample
from xdplab.workspace import PROJECT

KERN = "_kern.c"  # how the kernel half's file name ends
PLACES = (PROJECT, PROJECT / "samples")  # where a pair is looked for by its name
COMPAT = PROJECT / "xdp_compat.h"  # what differs between trees; it goes wherever a pair goes

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """A pair as the user has it; kbuild sees copies of its files."""

    name: str
    kern: Path
    user: Path

    @classmethod
    def find(cls, given: str) -> Sample:
        """The sample of that name, or the pair that a path names one half of.

        Raises NotASample with the reason.
        """
        path = Path(given)
        if path.suffix == ".c" or "/" in given:
            directory, name = path.parent, re.sub(r"(_kern|_user)?(\.c)?$", "", path.name)
            places = [directory]
        else:
            name, places = given, list(PLACES)
        if not re.fullmatch(r"[a-zA-Z]\w*", name, re.ASCII):
            raise NotASample(given, "its name must be letters, digits and '_': make reads it")
        for place in places:
            sample = cls(
                name,
                (place / f"{name}{KERN}").absolute(),
                (place / f"{name}_user.c").absolute(),
            )
            missing = [file.name for file in (sample.kern, sample.user) if not file.is_file()]
            if not missing:
                return sample
        where = " or ".join(str(place) for place in places)
        raise NotASample(given, f"there is no {' and no '.join(missing)} in {where}")

    @property
    def object(self) -> str:
        """The BPF object's file name, which the user half opens by that name."""
        return f"{self.name}_kern.o"

    @property
    def objects(self) -> tuple[str, ...]:
        """The file names of what the two halves are compiled to."""
        return self.object, f"{self.name}_user.o"

    @property
    def cases(self) -> Path:
        """The file of its packet cases, whether there is one or not: see docs/cases.md."""
        return self.kern.with_name(f"{self.name}_cases.toml")

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that go into samples/bpf: the halves, then what they include."""
        return self.kern, self.user, *self.headers

    @property
    def headers(self) -> tuple[Path, ...]:
        """What the halves include with "..." and lies with them, and xdp_compat.h in any case."""
        found = set(_included((self.kern, self.user), self.kern.parent))
        compat = self.kern.with_name(COMPAT.name)  # one's own comes first, as in C
        return *sorted(found - {compat}), compat if compat in found else COMPAT

    def in_tree(self, source: Path) -> Path:
        """Where a source goes, from samples/bpf: as it lies to the halves."""
        here = self.kern.parent
        return source.relative_to(here) if source.is_relative_to(here) else Path(source.name)


def _included(files: tuple[Path, ...], directory: Path) -> Iterator[Path]:
    """The files below a directory that these include, and those include in turn."""
    seen, rest = set(files), list(files)
    while rest:
        file = rest.pop()
        for name in _INCLUDE.findall(file.read_text(errors="replace")):
            # no resolve(): where a link leads, no compiler looks for what it includes
            path = Path(os.path.normpath(file.parent / name))
            if path not in seen and path.is_relative_to(directory) and path.is_file():
                seen.add(path)
                rest.append(path)
                yield path
