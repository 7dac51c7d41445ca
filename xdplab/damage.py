"""Trees whose files aren't as they were released: seen at a look, named, mended, brought back.

Web uploads and zip files lose modes, checkouts on Windows gain carriage
returns, somebody's .gitignore eats a Makefile.  make answers each with a riddle,
after it has written to the tree.  Symbolic links get lost too, but a sample's
build goes through none of them.

A mend is recorded before the first file is touched, and the files that a look
reads are mended last: what was interrupted still shows.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from xdplab import footprint, patching
from xdplab.errors import Damaged
from xdplab.files import read_json, write_json, write_whole
from xdplab.process import Shell
from xdplab.sources import wanted
from xdplab.tree import Tree

_RECORD = "mended.json"

# What a build reads in every tree from v4.19 on, besides what Tree.at looks for.
EVERY_TREE = (
    *("Kconfig", "init/Kconfig", "kernel/bounds.c"),
    *("include/linux/types.h", "include/uapi/linux/bpf.h", "include/uapi/linux/if_link.h"),
    *("scripts/Kbuild.include", "scripts/Kconfig.include"),
    *(f"scripts/Makefile.{what}" for what in ("build", "host", "lib", "modpost")),
    *(f"scripts/{directory}/Makefile" for directory in ("basic", "kconfig", "mod")),
    *("scripts/basic/fixdep.c", "scripts/kconfig/conf.c", "scripts/mod/modpost.c"),
    *("tools/build/Makefile.build", "tools/build/Makefile.include", "tools/build/fixdep.c"),
    *("tools/scripts/Makefile.arch", "tools/scripts/Makefile.include"),
    *("tools/include/linux/types.h", "tools/include/uapi/linux/bpf.h"),
    *("tools/lib/bpf/Makefile", "tools/lib/bpf/Build"),
    "tools/testing/selftests/bpf/bpf_util.h",
)
_ALSO_READ = ("Makefile", "Kbuild", "samples/bpf/Makefile")  # Tree.at has seen that they are there

# What the makefiles below a directory name, from there: other makefiles of the
# tree, by "include", which unlike "-include" can't do without, or "make -f"; and
# libbpf's linker script, from v5.0 on.  A name with a variable in it is anybody's guess.
_NAMED = (
    (
        "",
        r"(?:^[ \t]*include|\s-f)[ \t]+(?:\$\(srctree\)/)?((?:scripts|tools)/[\w./-]+)(?![\w./$-])",
    ),
    ("tools/lib/bpf/", r"^VERSION_SCRIPT[ \t]*:=[ \t]*([\w.-]+)"),
)


# ---- what can be mended in each file by itself


@dataclass(frozen=True, slots=True)
class File:
    """What is damaged and mended of a file: its bytes, its permission bits."""

    content: bytes
    mode: int

    @classmethod
    def at(cls, path: Path) -> File:
        """The file as it is on disk."""
        return cls(path.read_bytes(), path.stat().st_mode & 0o7777)

    def write(self, path: Path) -> None:
        """Put it on disk, as a file of its own: `path` may be a hard link to another tree's."""
        write_whole(path, self.content, self.mode)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of damage, and the way to take it out of a file and to bring it back exactly."""

    name: str  # in the record
    words: str
    git_cure: str  # what git has against it; "": nothing
    shows: Callable[[Sequence[File]], bool]  # in what a look reads; never in a tree as released
    mended: Callable[[File], File]  # the file itself if it has no such damage
    damaged: Callable[[File], File]  # the way back, for what was mended

    def hurts(self, file: File) -> bool:
        """Whether the file has this damage."""
        return self.mended(file) != file


def _executable(file: File) -> File:
    """A script without exec bits gets one for each that may read it."""
    if file.mode & 0o111 or not file.content.startswith(b"#!"):
        return file
    return replace(file, mode=file.mode | (file.mode & 0o444) >> 2)


def _not_executable(file: File) -> File:
    return replace(file, mode=file.mode & ~0o111)


def _most_scripts_lack_bits(seen: Sequence[File]) -> bool:
    scripts = [file for file in seen if file.content.startswith(b"#!")]
    return 2 * sum(_executable(file) != file for file in scripts) > len(scripts)


def _unix(file: File) -> File:
    """A text whose lines all end in CRLF gets plain ends: only then there is one way back."""
    text = replace(file, content=file.content.replace(b"\r\n", b"\n"))
    only_way = b"\0" not in file.content and b"\r\n" not in text.content
    return text if only_way and _dos(text) == file else file


def _dos(file: File) -> File:
    return replace(file, content=file.content.replace(b"\n", b"\r\n"))


KINDS = (
    # Upstream too has scripts without exec bits, called by the name of their
    # interpreter: up to a tenth of those in scripts/.
    Kind("exec bits", "scripts without their exec bits", "",
         _most_scripts_lack_bits, _executable, _not_executable),
    Kind("line ends", "files with CRLF line ends",
         "git config core.autocrlf false, and a fresh checkout",
         lambda seen: any(_unix(file) != file for file in seen), _unix, _dos),
)  # fmt: skip
_BY_NAME = {kind.name: kind for kind in KINDS}


# ---- the record


@dataclass(frozen=True, slots=True)
class Mark:
    """A file as a mend leaves it, and the kinds of damage that were taken out of it."""

    kinds: Sequence[str]
    sha256: str
    mode: int

    @classmethod
    def of(cls, file: File, kinds: Sequence[Kind]) -> Mark:
        """What mending makes of a file; no kinds if nothing is wrong with it."""
        hurting = [kind for kind in kinds if kind.hurts(file)]
        for kind in hurting:
            file = kind.mended(file)
        return cls([kind.name for kind in hurting], _sha256(file), file.mode)

    def is_of(self, file: File) -> bool:
        """Whether the file is as it was left."""
        return (self.sha256, self.mode) == (_sha256(file), file.mode)

    def mended(self, file: File) -> File:
        """The file as it is to be."""
        for name in self.kinds:
            file = _BY_NAME[name].mended(file)
        return file

    def damaged(self, file: File) -> File:
        """The file as it was found, out of the mended one."""
        for name in self.kinds:
            file = _BY_NAME[name].damaged(file)
        return file


def _sha256(file: File) -> str:
    return hashlib.sha256(file.content).hexdigest()


def _marks(tree: Tree) -> dict[str, Mark]:
    """The files that were mended and not brought back."""
    record = read_json(tree.state(_RECORD)) or {}
    return {name: Mark(**fields) for name, fields in record.items()}


# ---- look


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a few hundred files of a tree finds; nothing in a tree as released."""

    missing: tuple[str, ...]
    kinds: tuple[Kind, ...]


def look(tree: Tree) -> Look:
    """Look at what a build reads first."""
    seen = _seen(tree)
    marks = {name: mark for name, mark in _marks(tree).items() if name in seen}

    def came_back(kind: Kind) -> bool:
        return any(kind.name in mark.kinds and kind.hurts(seen[n]) for n, mark in marks.items())

    kinds = tuple(k for k in KINDS if k.shows(list(seen.values())) or came_back(k))
    missing = (name for name in _wanted(seen) if not (tree.path / name).exists())
    return Look(tuple(sorted(missing)), kinds)


def read_first(tree: Tree) -> set[str]:
    """The files that a look is about, whether they are there or not."""
    seen = _seen(tree)
    return {*seen, *_wanted(seen)}


def _wanted(seen: Mapping[str, File]) -> set[str]:
    """The files that there must be."""
    return {*EVERY_TREE, *_named(seen)}


def _named(seen: Mapping[str, File]) -> Iterator[str]:
    """What the makefiles among them name."""
    for path, file in seen.items():
        if Path(path).name.startswith(("Makefile", "Kbuild")):
            text = file.content.decode(errors="replace")
            for place, pattern in _NAMED:
                if path.startswith(place):
                    yield from (place + name for name in re.findall(pattern, text, re.MULTILINE))


def _seen(tree: Tree) -> dict[str, File]:
    """The files that a look reads."""
    scripts = sorted(f"scripts/{path.name}" for path in (tree.path / "scripts").iterdir())
    return dict(_files(tree, [*_ALSO_READ, *EVERY_TREE, *scripts]))


def _files(tree: Tree, names: Sequence[str]) -> Iterator[tuple[str, File]]:
    """Those of the names that are files, and no links."""
    for name in names:
        path = tree.path / name
        if path.is_file() and not path.is_symlink():
            yield name, File.at(path)


# ---- mend


def require_whole(tree: Tree, shell: Shell, *, mend: bool) -> None:
    """Look at a tree before anything is written into it.

    Raises Damaged for what is missing, and for the rest unless it is to be mended.
    """
    found = look(tree)
    if found.missing or (found.kinds and not mend):
        raise _error(tree, found, _plan(tree, found.kinds), shell)


def mend(tree: Tree, shell: Shell, tell: Callable[[str], None]) -> None:
    """Mend what can be; `tell` hears of it.

    A tree is mended as it was found: what patches and builds did to it is taken
    back first, so that there is one order in which everything can be undone, and
    comes again with the next build.  Raises CannotRevert.
    """
    kinds = look(tree).kinds
    if not kinds:
        tell(f"there is nothing to mend in {tree.path}")
        return
    if not shell.dry:
        patching.revert(tree)
        footprint.remove(tree)
    plan = _plan(tree, kinds)
    if not shell.dry:
        _carry_out(tree, plan)
    for words in _counted(kinds, plan):
        tell(f"{'would mend' if shell.dry else 'mended'} {words}")


def _plan(tree: Tree, kinds: Sequence[Kind]) -> dict[str, Mark]:
    """Each damaged file that a build reads, and what mending makes of it."""
    if not kinds:
        return {}
    names = sorted(wanted.chosen(footprint.names_below(tree, [""])))
    marks = ((name, Mark.of(file, kinds)) for name, file in _files(tree, names))
    return {name: mark for name, mark in marks if mark.kinds}


def _carry_out(tree: Tree, plan: Mapping[str, Mark]) -> None:
    marks = _marks(tree)
    for name, mark in plan.items():
        before = marks.get(name, mark).kinds  # only one kind of damage may have come back
        marks[name] = replace(mark, kinds=sorted({*before, *mark.kinds}))
    write_json(tree.state(_RECORD), {name: asdict(mark) for name, mark in marks.items()})
    seen = _seen(tree)
    for name in sorted(plan, key=lambda name: (name in seen, name)):
        path = tree.path / name
        plan[name].mended(File.at(path)).write(path)


def _counted(kinds: Sequence[Kind], plan: Mapping[str, Mark]) -> list[str]:
    """How many files each kind of damage hurts, and the first of them."""
    counted = []
    for kind in kinds:
        names = [name for name, mark in plan.items() if kind.name in mark.kinds]
        counted.append(f"{len(names)} {kind.words}, {names[0]} first")
    return counted


def _error(tree: Tree, found: Look, plan: Mapping[str, Mark], shell: Shell) -> Damaged:
    in_git = tree.git_dir is not None
    return Damaged(
        tree.path,
        tree.version.tag,
        _counted(found.kinds, plan),
        [kind.git_cure for kind in found.kinds if kind.git_cure and in_git],
        found.missing,
        _tracked(tree, found.missing, shell) if in_git else [],
    )


def _tracked(tree: Tree, names: Sequence[str], shell: Shell) -> list[str]:
    """Those of the missing files that git can put back."""
    if not names or not shutil.which("git"):
        return []
    listed = shell.ask(["git", "ls-files", "--deleted", "--", *names], cwd=tree.path)
    return listed.text().splitlines() if not listed.code else []


def mended(tree: Tree) -> list[str]:
    """What was mended and not brought back: how many files of each kind, and the first."""
    marks = _marks(tree)
    taken = {name for mark in marks.values() for name in mark.kinds}
    return _counted([kind for kind in KINDS if kind.name in taken], marks)


# ---- bring back


def revert(tree: Tree, *, dry: bool = False) -> tuple[int, list[str]]:
    """Bring every mended file back to what it was; patches must have been reverted before.

    Gives how many there were, and the names of those that somebody wrote to
    since: they are left, and theirs.
    """
    marks = _marks(tree)
    if dry:
        return len(marks), []
    kept = []
    for name, file in _files(tree, list(marks)):
        mark = marks[name]
        if mark.is_of(file):
            mark.damaged(file).write(tree.path / name)
        elif not mark.is_of(mark.mended(file)):  # else it was never mended
            kept.append(name)
    tree.state(_RECORD).unlink(missing_ok=True)
    return len(marks) - len(kept), kept
