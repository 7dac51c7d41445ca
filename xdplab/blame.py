"""Whose fault a failed make is: what make and compilers say, read for faults of the tree.

Both say the truth, but in the middle of hundreds of lines.  A header with a
lost #endif makes every file that includes it fail, and most of the errors that
follow are elsewhere; that a file isn't there is told by its name alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xdplab.process import Line
from xdplab.tree import SAMPLES, Tree

_GIVES_UP = re.compile(r"\berror: |^LLVM ERROR: ")  # a compiler's word for why

# that make runs compilers in
_DIRECTORIES = (Path(), SAMPLES, Path("tools/lib/bpf"), Path("tools/lib/subcmd"))


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the tree's, and what can be done about it."""

    words: str
    cure: str


@dataclass(frozen=True, slots=True)
class Symptom:
    """Words of make or of a compiler that tell of a fault, with {placeholders} for their parts."""

    pattern: str  # of a message: a line, and what is said below it
    words: str
    cure: str
    always: bool = False  # whether it is the tree's fault also where the pair led to it


_PLACE = r"^(?P<file>[^\s:]+):(?P<line>\d+)(?::\d+)?: (?:fatal )?error: "
_GET_IT = (
    "copy {file} from the same release, or get the whole tree anew: invoke setup --kernel {tag}"
)

# The first that a message shows is the fault: what is certain, before what may follow from it.
SYMPTOMS = (
    # both compilers: gcc's "unterminated #if" is clang's "unterminated conditional directive"
    Symptom(
        _PLACE + r"(?P<said>unterminated .*|#\w+ without #if|.*conflict marker in file)",
        "the tree itself is damaged: {file}:{line}: {said}", _GET_IT, always=True,
    ),
    Symptom(
        r"^\S+:\d+: (?P<file>\S+): No such file or directory",  # make's include
        "the tree has no {file}", _GET_IT, always=True,
    ),
    Symptom(
        r"""No rule to make target [`'](?P<file>[^']+)', needed by '(?P<by>[^']+)'""",
        "the tree has nothing to make {file} of, for {by}",
        "copy it, or what it is made of, from the same release, or get the whole tree anew:"
        " invoke setup --kernel {tag}",
    ),
    Symptom(
        r"""^\S+:\d+: can't open file "(?P<file>[^"]+)\"""",  # Kconfig's source
        "the tree has no {file}", _GET_IT, always=True,
    ),
    Symptom(
        r"^(?:/bin/)?\w*sh: (?:line )?\d+: (?P<file>\S+): Permission denied",
        "{file} can't be executed",
        "chmod +x {file}; or, if its disk is mounted noexec, put the tree on another", always=True,
    ),
    # a header of the tree's own; <libelf.h> and the like are this machine's to have
    Symptom(
        _PLACE + r"(?P<said>.*(?:No such file or directory|file not found))(?s:.*?)"
        r"""#\s*include\s+(?:"|<(?:asm|asm-generic|bpf|linux|net|tools|uapi|vdso)/)""",
        "the tree has not all its headers: {file}:{line}: {said}",
        "copy that header from the same release, or get the whole tree anew:"
        " invoke setup --kernel {tag}",
    ),
    Symptom(
        _PLACE + r"(?P<said>(?!.*(?:No such file or directory|file not found)).*)",
        "the tree itself does not compile: {file}:{line}: {said}",
        "it is not your pair: either {file} isn't as it was released, or the tree is older than"
        " this compiler; patches/series has what is known of that",
    ),
)  # fmt: skip


def of(tree: Tree, lines: Sequence[Line]) -> Fault | None:
    """The tree's own fault that made make fail; None if it is the pair's, or nobody can say."""
    pair = file_of(tree.placed())
    told = messages(lines)
    of_pair = [message for message in told if any(map(pair.search, message))]
    pair_fails = any("error" in line for message in of_pair for line in message)
    others = [] if pair_fails else [message for message in told if message not in of_pair]
    for symptom in SYMPTOMS:
        for message in told if symptom.always else others:
            found = re.search(symptom.pattern, "\n".join(message), re.MULTILINE)
            name = _name(tree, found["file"]) if found else None
            if found and name and not pair.match(f"{name}:"):
                fields = {**found.groupdict(), "file": name, "tag": tree.version.tag}
                return Fault(symptom.words.format(**fields), symptom.cure.format(**fields))
    return None


def file_of(names: Iterable[str]) -> re.Pattern[str]:
    """How compilers name files of samples/bpf, and not others that are called the same.

    Up to v6.12 they say samples/bpf/NAME, from v6.13 on NAME alone.
    """
    known = "|".join(map(re.escape, names)) or "(?!)"
    return re.compile(rf"(?<![\w/.+-])(?:\./|[^\s:]*{SAMPLES}/)?({known})(?=[:,])")


def _name(tree: Tree, said: str) -> str | None:
    """A file that was spoken of, from the tree's top; None if it is outside."""
    given = Path(os.path.normpath(said))
    if given.is_absolute():
        return str(given.relative_to(tree.path)) if given.is_relative_to(tree.path) else None
    places = (directory / given for directory in _DIRECTORIES)
    return str(next((place for place in places if (tree.path / place).exists()), given))


def messages(lines: Sequence[Line]) -> list[list[str]]:
    """What was said, message by message: the way to the place, the fault, its notes."""
    told: list[list[str]] = [[]]
    on_the_way = False
    for line in (line.text for line in lines if line.stream == "err"):
        leads = re.match(r"In file included from|\s+from |\S+: (In|At) ", line)
        faults = re.match(r"\S+:\d+:(?!.* note: )|\S+:\(\.|make|WARNING", line)
        if (leads or faults) and not on_the_way:
            told.append([])
        told[-1].append(line)
        on_the_way = bool(leads)
    return told


def first_error(lines: Iterable[Line]) -> str:
    """A compiler's first word for why it gives up; empty if none has one."""
    said = (line.text for line in lines if line.stream == "err" and _GIVES_UP.search(line.text))
    return next(said, "")
