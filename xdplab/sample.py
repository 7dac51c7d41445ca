"""A sample: a C pair, NAME_kern.c for the kernel and NAME_user.c for user space."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xdplab.errors import NotASample
from xdplab.workspace import PROJECT

KERN = "_kern.c"  # how the kernel half's file name ends
COMPAT = PROJECT / "xdp_compat.h"  # what differs between trees; it goes wherever a pair goes
ATTACH = PROJECT / "xdp_attach.h"  # for user halves alone
OURS = (COMPAT, PROJECT / "xdp_caps.h", ATTACH)  # what any pair may include
LOADER = PROJECT / "templates/loader_user.c"  # the user half of a pair that has none of its own

# the options that the harness gives, as the tutorial's user half takes them: see getopt(3)
OPTIONS = "i:d:m:t:n:e"
_OPTION = re.compile(r"(\w)(:{0,2})")
_GETOPT = re.compile(r'\bgetopt(?:_long(?:_only)?)?\s*\([^,;]+,[^,;]+,\s*(?:"([^"]*)"|(\w+))')
_ATTACHED = '"attached: dev '  # the line that tells the harness of a program: see xdp_attach.h

_NAME = re.compile(r"[a-zA-Z]\w*", re.ASCII)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


def check_name(given: str) -> None:
    """Raise NotASample unless make and C take it for a name."""
    if not _NAME.fullmatch(given):
        raise NotASample(given, "its name must be letters, digits and '_': make reads it")


def places(name: str) -> list[Path]:
    """Where a pair is looked for by its name: where you are, and where the harness has its own."""
    here = Path.cwd()
    return list(dict.fromkeys([here, here / name, PROJECT, PROJECT / "samples"]))


def known() -> list[Path]:
    """The kernel halves of the pairs that have a name to be found by."""
    beside = (path for place in places("") for path in place.glob(f"*{KERN}"))
    below = (path for path in Path.cwd().glob(f"*/*{KERN}")
             if path.name == f"{path.parent.name}{KERN}")  # fmt: skip
    return sorted({*beside, *below})


@dataclass(frozen=True, slots=True)
class Sample:
    """A pair as the user has it; kbuild sees copies of its files."""

    name: str
    kern: Path
    user: Path  # LOADER, if it has none of its own

    @classmethod
    def find(cls, given: str) -> Sample:
        """The sample of that name, or the pair at a path: of one of its files, or its directory.

        Raises NotASample with the reason.
        """
        path = Path(given)
        if path.suffix == ".c" or "/" in given or given in (".", ".."):
            if path.is_dir():
                path = _only_one(given, path)
            name, looked = re.sub(r"(_kern|_user)?(\.c)?$", "", path.name), [path.parent]
        else:
            name, looked = given, places(given)
        check_name(name)
        found = [place for place in looked if (place / f"{name}{KERN}").is_file()]
        if not found:
            where = " or ".join(map(str, looked))
            raise NotASample(given, f"there is no {name}{KERN} in {where}")
        if len(found) > 1:
            where = " and in ".join(map(str, found))
            raise NotASample(given, f"there are two of that name, in {where}: name one by its path")
        kern, user = (found[0].absolute() / f"{name}{half}" for half in (KERN, "_user.c"))
        if not user.is_file() and path.name == user.name:
            raise NotASample(given, f"there is no {user.name} in {user.parent}")
        return cls(name, kern, user if user.is_file() else LOADER)

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
        """What the halves include with "..." and lies with them, or is ours.

        The last is xdp_compat.h, which goes along in any case.
        """
        directory = self.kern.parent
        compat = _ours(directory)[COMPAT.name]
        found = set(_included((self.kern, self.user), directory))
        return *sorted(found - {compat}), compat

    @property
    def options(self) -> str:
        """The letters of OPTIONS that the user half takes, read from its call of getopt()."""
        text = self.user.read_text(errors="replace")
        taken: set[tuple[str, str]] = set()
        for literal, name in _GETOPT.findall(text):
            given = re.search(rf'\b{name}(?:\[\d*\])?\s*=\s*"([^"]*)"', text) if name else None
            taken.update(_OPTION.findall(given[1] if given else literal))
        return "".join(one for one, value in _OPTION.findall(OPTIONS) if (one, value) in taken)

    @property
    def announces(self) -> bool:
        """Whether the user half says that it has attached, and what: see xdp_attach.h."""
        return any(
            _ATTACHED in source.read_text(errors="replace") for source in (self.user, *self.headers)
        )

    def in_tree(self, source: Path) -> Path:
        """Where a source goes, from samples/bpf: as it lies to the halves."""
        here = self.kern.parent
        if source == self.user:
            return Path(f"{self.name}_user.c")
        return source.relative_to(here) if source.is_relative_to(here) else Path(source.name)


def _only_one(given: str, directory: Path) -> Path:
    """The kernel half in a directory that has one."""
    halves = sorted(directory.glob(f"*{KERN}"))
    if len(halves) == 1:
        return halves[0]
    has = ", ".join(half.name for half in halves)
    why = f"{directory} has more than one: {has}; name one of them" if has else (
        f"there is no NAME{KERN} in {directory}"
    )  # fmt: skip
    raise NotASample(given, why)


def _ours(directory: Path) -> dict[str, Path]:
    """What any pair may include; its own file of the name comes first, as in C."""
    own = {one: directory / one.name for one in OURS}
    return {one.name: own[one] if own[one].is_file() else one for one in OURS}


def _included(files: Iterable[Path], directory: Path) -> Iterator[Path]:
    """The files below a directory, or ours, that these include, and those include in turn."""
    ours, rest = _ours(directory), list(files)
    seen = set(rest)
    while rest:
        file = rest.pop()
        for name in _INCLUDE.findall(file.read_text(errors="replace")):
            # no resolve(): where a link leads, no compiler looks for what it includes
            path = ours.get(name) or Path(os.path.normpath(file.parent / name))
            goes_along = name in ours or path.is_relative_to(directory)
            if goes_along and path not in seen and path.is_file():
                seen.add(path)
                rest.append(path)
                yield path
