"""How make makes the pair's halves: heard from it, and told again without it.

make takes one to two seconds to find out what to do, the compilers a tenth of that.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from xdplab.process import Argv, Shell
from xdplab.toolchain import Toolchain
from xdplab.tree import Tree

# A rule is a pipe of clang into llc from v5.0 on, and a failed clang is hidden by it:
# make would keep an empty object.  With pipefail the rule fails, as it should.
BASH, FLAGS = "/bin/bash", "-o pipefail -c"

# Where kbuild has the compiler list the headers, for its own use.
_KBUILDS_LIST = r"\s-Wp,-MM?D,\S+"
_COMPILES = r"\s-c\s"
_OUTPUT = r"\s-o\s+\S+"


def commands(text: str) -> Iterator[str]:
    """The commands in what make says with V=1, each on one line."""
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        first = line.split(maxsplit=1)[:1]
        if first and shutil.which(first[0]):
            yield line.strip()


def words(command: str) -> list[str]:
    """The words of a command, up to its pipe; none if it isn't for a shell."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|")
    lexer.whitespace_split = True
    with contextlib.suppress(ValueError):  # an apostrophe in what a compiler complains of
        return list(takewhile(lambda word: word != "|", lexer))
    return []


def place(tree: Tree, file: str) -> Path:
    """Where make was when it named a file of samples/bpf so: up to v6.12 at the tree's top."""
    return tree.path if (tree.path / file).exists() else tree.samples


@dataclass(frozen=True, slots=True)
class Recipe:
    """What make runs for one half: first a compiler, then what goes on with its object."""

    directory: str  # where it runs them, from the tree's top
    commands: tuple[str, ...]

    @classmethod
    def heard(cls, tree: Tree, made: str, text: str) -> Recipe | None:
        """The recipe of an object, by its name in samples/bpf, in what make said.

        None if there is none that can be told again: make had nothing to do, or
        the tree's rule is unlike those that are known.
        """
        found = tuple(one for one in commands(text) if re.search(rf"(?<![\w.]){made}(?!\S)", one))
        first, source = found[0] if found else "", f"{made.removesuffix('.o')}.c"
        named = [word for word in words(first) if Path(word).name == source]
        if not named or not re.search(_COMPILES, first):
            return None
        return cls(str(place(tree, named[0]).relative_to(tree.path)), found)

    def again(self, listing: Path) -> list[str]:
        """The commands, for a shell; the first has what it reads listed in a file."""
        first, *rest = self.commands
        listed = f" -MD -MF {shlex.quote(str(listing))} -c "
        return [re.sub(_COMPILES, listed, re.sub(_KBUILDS_LIST, "", first), count=1), *rest]

    def list_files(self, tree: Tree, listing: Path, tools: Toolchain) -> None:
        """Have the compiler list what it reads, and make nothing."""
        command = re.sub(_OUTPUT, "", self.again(listing)[0]).replace(" -MD ", " -M ")
        argv: Argv = words(command)
        place = tree.path / self.directory
        if tools.sandboxed:  # what was heard is a makefile's word
            from xdplab import sandbox  # here: who only looks into recipes runs none

            argv = sandbox.around(argv, place, [tree.path], tools.called)
        Shell().ask(argv, cwd=place)

    def listed(self, tree: Tree, listing: Path) -> list[str]:
        """What was listed, by its whole path; the list is taken away."""
        text = listing.read_text() if listing.exists() else ""
        listing.unlink(missing_ok=True)
        files = text.partition(": ")[2].replace("\\\n", " ").split()
        return [os.path.normpath(tree.path / self.directory / file) for file in files]
