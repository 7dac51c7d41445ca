"""What a build was made of, so that the next one knows what is to be made anew.

make knows less: nothing of a compiler that was upgraded, nor of what the kernel
half includes; and it needs seconds to find out that it has nothing to do.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from xdplab.files import Stamp, read_json, stamp, write_json
from xdplab.recipe import Recipe
from xdplab.toolchain import Toolchain
from xdplab.tree import Tree
from xdplab.workspace import PROJECT

_FILE = "made-of.json"
_SCHEMA = 1

# What make reads of a tree, besides what damage.read_first() gives and what compilers list.
_MAKEFILES = (
    *(".config", "include/config/auto.conf", "include/config/kernel.release"),
    *("arch/x86/Makefile*", "scripts/*/Makefile*", "tools/build/*", "tools/scripts/*"),
    *("tools/lib/bpf/Makefile", "tools/lib/bpf/Build", "samples/bpf/Makefile*"),
)
_LIBBPF_SOURCE = "tools/lib/bpf"
_TOOLS = ("make", "ld", "as")  # besides a toolchain's own

# The harness's part in a build: it writes to the tree, and looks at what comes out.
_HARNESS = ("xdplab/*.py", "patches/*", "templates/*")

# What compilers take from the environment, as gcc(1) has it, and how they are found.
_COMPILERS_HEED = {"PATH", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH", "TMPDIR"}
_SHELLS_OWN = {"PWD", "OLDPWD", "SHLVL", "_"}  # where somebody is, and no setting
_MAKEFILE = r"Makefile|Kbuild|.*\.include$"
_WORD = r"(?a:[A-Za-z_]\w+)"

_SOURCE = r"[^\s:]+\.[ch](?=[\s:])"  # in what fixdep and compilers list


Seen = tuple[Stamp | None, str]  # a file's stamp, None if there is none, and its SHA-256


@dataclass(frozen=True, slots=True)
class Half:
    """One of the pair's objects: how it is made, and which of the pair's files it reads."""

    recipe: Recipe
    reads: tuple[str, ...]  # from samples/bpf


@dataclass(frozen=True, slots=True)
class Receipt:
    """All that went into a build; it lies beside build.json."""

    commands: dict[str, str]  # of the toolchain
    says: list[str]
    words: list[str]  # in makefiles: any may be a variable of the environment
    environment: str  # the SHA-256 of those that are
    files: dict[str, Seen]  # all but the pair's own
    pair: dict[str, str]  # its files in samples/bpf, and the SHA-256 of each
    halves: dict[str, Half]  # by the object's name

    @classmethod
    def load(cls, directory: Path) -> Receipt | None:
        """The receipt of the build that is kept there, if there is one."""
        kept = read_json(directory / _FILE)
        if not kept or kept.pop("schema") != _SCHEMA:
            return None
        halves = {
            made: Half(Recipe(half["recipe"]["directory"], tuple(half["recipe"]["commands"])),
                       tuple(half["reads"]))
            for made, half in kept.pop("halves").items()
        }  # fmt: skip
        files = {file: (stamp, sha256) for file, (stamp, sha256) in kept.pop("files").items()}
        return cls(**kept, files=files, halves=halves)

    def save(self, directory: Path) -> None:
        """Put it beside a build; before build.json, which tells of what it is about."""
        write_json(directory / _FILE, {"schema": _SCHEMA, **asdict(self)})

    @staticmethod
    def remove(directory: Path) -> None:
        """Let the next build there be made by make."""
        (directory / _FILE).unlink(missing_ok=True)

    def current(self, tools: Toolchain) -> Receipt | None:
        """The receipt as of now, if all but the pair and what came out is as it was.

        None if anything isn't: a command, what it says of itself, a variable that is
        heeded, a file.  What was written anew with the same words is the same.
        """
        if (self.commands, self.says) != (tools.commands, [tools.gcc, tools.clang]):
            return None
        if self.environment != _environment(self.words):
            return None
        touched = {file for file, seen in self.files.items() if stamp(file) != seen[0]}
        now = {file: _seen(file) for file in touched}
        if any(seen[1] != self.files[file][1] for file, seen in now.items()):
            return None
        return replace(self, files=self.files | now) if now else self

    def stale(self, pair: Mapping[str, str]) -> list[str]:
        """The objects that have to be made anew for a pair of these files and SHA-256."""
        changed = {name for name, _ in self.pair.items() ^ pair.items()}
        unknown = changed - {name for half in self.halves.values() for name in half.reads}
        return [made for made, half in self.halves.items() if unknown or changed & {*half.reads}]

    def renewed(
        self, tree: Tree, pair: Mapping[str, str], made: Iterable[str], began: int
    ) -> Receipt | None:
        """The receipt after these objects were made anew; None: as with take()."""
        listed = {name: self.halves[name].recipe.listed(tree, listing(tree, name)) for name in made}
        read = {file for files in listed.values() for file in files}
        files = _looked_at(_others(tree, read, pair) - self.files.keys(), began, set())
        if files is None or not all(listed.values()):
            return None
        halves = {
            name: replace(self.halves[name], reads=_of_pair(tree, files, pair))
            for name, files in listed.items()
        }
        return replace(self, files=self.files | files, pair=dict(pair), halves=self.halves | halves)


def take(
    tree: Tree, tools: Toolchain, pair: Mapping[str, str], recipes: Mapping[str, Recipe],
    began: int,
) -> Receipt | None:  # fmt: skip
    """The receipt of a build by make, of a pair of these files and SHA-256.

    It `began` at a time of the tree's disk, in nanoseconds.  None if it can't be
    told what went into it: a compiler doesn't list what it reads, or a source was
    written to meanwhile, before or after make read it.
    """
    from xdplab import damage, footprint, patching  # here: who only compares needs none of it

    halves, read = {}, set[str]()
    for made, recipe in recipes.items():
        recipe.list_files(tree, listing(tree, made), tools)
        listed = recipe.listed(tree, listing(tree, made))
        if not listed:
            return None
        halves[made] = Half(recipe, _of_pair(tree, listed, pair))
        read.update(_others(tree, listed, pair))
    makefiles = {str(tree.path / name) for name in damage.read_first(tree)}
    makefiles.update(_globbed(tree.path, _MAKEFILES))
    texts = (_text(file) for file in makefiles if re.match(_MAKEFILE, Path(file).name))
    words = {word for text in texts for word in re.findall(_WORD, text)}
    heeded = sorted((words | _COMPILERS_HEED) - _SHELLS_OWN)
    found = (shutil.which(command) for command in [*tools.commands.values(), *_TOOLS])
    harness = _globbed(PROJECT, _HARNESS)
    generated = {*footprint.made(tree), *(change.file for change in patching.recorded(tree))}
    files = _looked_at(
        {*read, *makefiles, *_of_libbpf(tree), *filter(None, found), *harness},
        began,
        {str(tree.path / name) for name in generated},
    )
    if files is None:
        return None
    says = [tools.gcc, tools.clang]
    return Receipt(tools.commands, says, heeded, _environment(heeded), files, dict(pair), halves)


def listing(tree: Tree, made: str) -> Path:
    """Where what a compiler reads for an object is listed."""
    return tree.state(f"{made}.d")


def _of_pair(tree: Tree, files: Iterable[str], pair: Mapping[str, str]) -> tuple[str, ...]:
    """Those files that are of the pair, from samples/bpf."""
    return tuple(sorted(pair.keys() & {os.path.relpath(file, tree.samples) for file in files}))


def _others(tree: Tree, files: Iterable[str], pair: Mapping[str, str]) -> set[str]:
    """Those files that aren't."""
    return set(files) - {str(tree.samples / name) for name in pair}


def _of_libbpf(tree: Tree) -> Iterator[str]:
    """The library that is linked, and what it was made of, as kbuild has it beside its objects."""
    from xdplab.dialect import Dialect

    made = tree.path / Dialect.of(tree).libbpf
    yield str(made / "libbpf.a")
    for noted in made.rglob(".*.o.cmd"):
        for name in re.findall(_SOURCE, noted.read_text(errors="replace")):
            yield os.path.normpath(tree.path / _LIBBPF_SOURCE / name)


def _globbed(top: Path, patterns: Iterable[str]) -> set[str]:
    return {str(path) for one in patterns for path in top.glob(one) if path.is_file()}


def _text(path: str) -> str:
    return Path(path).read_text(errors="replace") if Path(path).is_file() else ""


def _seen(file: str) -> Seen:
    """A file as it is; its stamp is never newer than its SHA-256."""
    now = stamp(file)
    return now, hashlib.sha256(Path(file).read_bytes()).hexdigest() if now else ""


def _looked_at(
    files: Iterable[str], began: int, generated: Container[str]
) -> dict[str, Seen] | None:
    """Files as they are; None if one was written to since, and not by make."""
    seen = {file: _seen(file) for file in sorted(files)}
    racy = (one[0] and one[0][-1] > began and file not in generated for file, one in seen.items())
    return None if any(racy) else seen


def _environment(heeded: Iterable[str]) -> str:
    """The SHA-256 of the environment, as far as it is heeded."""
    names = set(heeded)
    seen = sorted((name, value) for name, value in os.environ.items() if name in names)
    return hashlib.sha256(repr(seen).encode()).hexdigest()
