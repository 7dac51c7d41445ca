"""Changes to a tree: planned, applied, shown, and taken back byte for byte.

A plan is a list of changes, each one edit of one file, as the text before and
the text after.  Applying records them in the tree; reverting works from the
record, line by line, so that it undoes ours and leaves what others did since.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from xdplab.dialect import Dialect, assigns, values
from xdplab.errors import BadSeries, CannotRevert, NotAVersion, PatchDoesNotApply
from xdplab.files import read_json, write_json, write_whole
from xdplab.process import Shell, scratch
from xdplab.templates import render
from xdplab.tree import MAKEFILE, Tree
from xdplab.version import Range
from xdplab.workspace import PROJECT

if TYPE_CHECKING:
    from unidiff.patch import PatchedFile

SERIES = PROJECT / "patches" / "series"
_RECORD = "changes.json"
_CONTEXT = 1  # lines around a patch's place that must match: trees differ in what is further off


@dataclass(frozen=True, slots=True)
class Change:
    """One edit of one file of a tree."""

    file: str  # relative to the tree
    before: str
    after: str
    why: str

    def diff(self) -> str:
        """The change as a unified diff that `patch -p1` takes."""
        return "".join(
            _with_newline(line)
            for line in difflib.unified_diff(
                _lines(self.before), _lines(self.after), f"a/{self.file}", f"b/{self.file}"
            )
        )

    def with_line_ends_of(self, current: str) -> Change:
        """The change as it is in a file whose line ends were all turned into others since."""
        if "\r\n" in self.after and "\r\n" not in current:
            return replace(self, before=_unix(self.before), after=_unix(self.after))
        if "\r\n" not in self.after and current == _dos(_unix(current)) != _unix(current):
            return replace(self, before=_dos(self.before), after=_dos(self.after))
        return self


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def _dos(text: str) -> str:
    return text.replace("\n", "\r\n")


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)  # str.splitlines() knows too many line ends


def _ended(lines: Sequence[str], ending: str = "\n") -> list[str]:
    """The lines, also the file's last, fit for others to follow."""
    return [line if line.endswith("\n") else line + ending for line in lines]


def _with_newline(line: str) -> str:
    return line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


# A file is text to people and bytes to us: what isn't UTF-8 survives both ways.


def _read(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape")


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode(errors="surrogateescape"))


# ---- the three lines of the tutorial


def plan_makefile(text: str, dialect: Dialect, sample: str) -> str:
    """The text of samples/bpf/Makefile with the sample in it.

    A line that is there already, by whoever's hand, is not added again.  A hand
    that followed the post in a newer tree is helped: see the template.
    """
    lines = _lines(text)
    ending = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    lists = [variable for variable in values("programs") if variable != dialect.programs]
    others = [variable for variable in lists if sample in _assigned(lines, variable)]
    wanted = render("samples_bpf_Makefile.j2", dialect=dialect, sample=sample, others=others)
    for line in wanted.splitlines():
        variable, how, *_, word = line.split()
        if not _says(lines, variable, word, dialect):
            index = _position(lines, _places(variable, dialect), anew=how == ":=")
            lines[:index] = _ended(lines[:index], ending)
            lines.insert(index, line + ending)
    return "".join(lines)


def _places(variable: str, dialect: Dialect) -> Sequence[str]:
    """Where the post puts a line: after the last one that the first of these matches that can."""
    own = assigns(variable)
    if not variable.endswith(dialect.objects):
        return (own,)
    siblings = (rf"xdp\w*{dialect.objects}", rf"[\w-]+{dialect.objects}", dialect.programs)
    return (own, *map(assigns, siblings))


def _says(lines: Sequence[str], variable: str, word: str, dialect: Dialect) -> bool:
    """Whether the Makefile gives the variable this word, and none that can't be built."""
    words = _assigned(lines, variable)
    links_the_posts_loader = variable.endswith(dialect.objects) and "bpf_load.o" in words
    return word in words and (dialect.loader == "bpf_load" or not links_the_posts_loader)


def _assigned(lines: Sequence[str], variable: str) -> list[str]:
    """The words that a variable has in the end, or would have if conditionals held."""
    words: list[str] = []
    joined = re.sub(r"\\\r?\n", " ", "".join(lines)).split("\n")
    for line, depth in zip(joined, _depths(joined), strict=True):
        found = re.match(rf"{assigns(variable)}(?P<words>[^#]*)", line)
        if found:
            kept = words if depth or found["how"] == "+" else []
            words = [*kept, *found["words"].split()]
    return words


def _position(lines: Sequence[str], places: Sequence[str], *, anew: bool) -> int:
    """The index to insert at: never inside ifdef...endif, nor in a continued line.

    What assigns a variable `anew` must come after all that did before.
    """
    depths = _depths(lines)
    for pattern in places:
        hits = [index for index, line in enumerate(lines) if re.match(pattern, line)]
        outside = [index for index in hits if not depths[index]]
        if hits:
            index = hits[-1] if anew and pattern == places[0] else (outside or hits)[-1]
            while index + 1 < len(lines) and (depths[index] or _is_continued(lines[index])):
                index += 1
            return index + 1
    return len(lines)


def _is_continued(line: str) -> bool:
    return line.rstrip("\r\n").endswith("\\")


def _depths(lines: Sequence[str]) -> list[int]:
    """How many conditionals each line is in."""
    depths, depth = [], 0
    for line in lines:
        if re.match(r"\s*endif\b", line):
            depth -= 1
        depths.append(depth)
        if re.match(r"\s*if(n?def|n?eq)\b", line):
            depth += 1
    return depths


# ---- the series: patches that let old trees build with today's compilers


@dataclass(frozen=True, slots=True)
class SeriesEntry:
    """A patch, the versions whose trees may need it, and why."""

    patch: Path
    versions: Range
    why: str


def read_series(path: Path = SERIES) -> list[SeriesEntry]:
    """The entries of a series file; raises BadSeries with the line."""
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        words = text.split(maxsplit=3)
        try:
            name, since, until, why = words
            entry = SeriesEntry(path.parent / name, Range.parse(since, until), why)
        except NotAVersion as error:
            raise BadSeries(path, number, text, error.message) from error
        except ValueError:
            raise BadSeries(path, number, text, "four fields are needed") from None
        if not entry.patch.is_file():
            raise BadSeries(path, number, text, f"there is no {entry.patch}")
        entries.append(entry)
    return entries


def plan_patch(tree: Tree, entry: SeriesEntry, planned: Sequence[Change] = ()) -> list[Change]:
    """What applying one patch of the series, on top of what is planned, changes.

    Nothing if the tree has it already, or has nothing of what the patch takes
    out.  Raises PatchDoesNotApply, with git's reason, if it fits neither way.
    """
    from unidiff.patch import PatchSet

    patch = PatchSet.from_filename(str(entry.patch))
    texts = {}
    for file in patch:
        if not (tree.path / file.path).is_file():
            return []  # a sparse tree: what isn't there isn't built
        texts[file.path] = _read(tree.path / file.path)
    texts |= {change.file: change.after for change in planned if change.file in texts}
    if not all(_breaks(file, texts[file.path]) for file in patch):
        return []  # it has the change, or what would be changed in a form of its own
    with scratch() as copy:
        for name, text in texts.items():
            _write(copy / name, text)
        if _git_apply(copy, entry.patch, "--reverse", "--check") is None:
            return []
        refused = _git_apply(copy, entry.patch, f"-C{_CONTEXT}")
        if refused is not None:
            raise PatchDoesNotApply(entry.patch, tree.path, refused)
        return [Change(name, text, _read(copy / name), entry.why) for name, text in texts.items()]


def _breaks(file: PatchedFile, text: str) -> bool:
    """Whether all that the patch takes out of a file is there; git needs no asking if it isn't."""
    runs = [
        "".join(line.value for line in run)
        for hunk in file
        for taken_out, run in itertools.groupby(hunk, lambda line: line.is_removed)
        if taken_out
    ]
    return all(f"\n{run}" in f"\n{text}" for run in runs)


def _git_apply(directory: Path, patch: Path, *options: str) -> str | None:
    """None if git could apply the patch, else what it said.

    In a directory below some repository git would look for the files from that
    repository's top, and skip them without a word: it must not find one.
    """
    # on a copy that is ours to change, in a dry run too: a way to look, nothing to paste
    finished = Shell().run(
        ["git", "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn", *options, patch],
        cwd=directory,
        env={"GIT_CEILING_DIRECTORIES": str(directory.parent)},
        check=False,
    )
    return finished.text("err").partition("\n")[0] if finished.code else None


# ---- plan, apply, revert


def plan(tree: Tree, sample: str, series: Path = SERIES) -> list[Change]:
    """All that the tree needs for the sample to be built: its Makefile lines and patches.

    Raises UnknownDialect, BadSeries, PatchDoesNotApply.
    """
    text = _read(tree.path / MAKEFILE)
    after = plan_makefile(text, Dialect.of(tree), sample)
    changes = [Change(str(MAKEFILE), text, after, f"the sample {sample}")] if after != text else []
    return changes + plan_series(tree, series, changes)


def plan_series(tree: Tree, series: Path = SERIES, planned: Sequence[Change] = ()) -> list[Change]:
    """The patches that the tree needs, whatever is to be built in it, on top of what is planned.

    Raises BadSeries, PatchDoesNotApply.
    """
    changes: list[Change] = []
    for entry in read_series(series):
        if tree.version in entry.versions:
            changes += plan_patch(tree, entry, [*planned, *changes])
    return changes


def apply(tree: Tree, changes: Sequence[Change], *, dry: bool = False) -> None:
    """Make the changes; the record is on disk before the first file is touched.

    A file is written once, whatever number of changes it has: it is never between two.
    """
    if not changes or dry:
        return
    write_json(tree.state(_RECORD), [asdict(change) for change in [*recorded(tree), *changes]])
    for name, text in {change.file: change.after for change in changes}.items():
        _write(tree.path / name, text)


def recorded(tree: Tree) -> list[Change]:
    """The changes that were applied and not reverted, the oldest first."""
    return [Change(**fields) for fields in read_json(tree.state(_RECORD)) or []]


def revert(tree: Tree, *, dry: bool = False) -> list[str]:
    """Take back all recorded changes, and only them; gives the files that changed.

    Nothing is written unless everything can be: see undo() for what can't.
    """
    texts: dict[str, str] = {}
    for change in reversed(recorded(tree)):
        path = tree.path / change.file
        if not path.exists():
            continue  # somebody removed it, and our lines with it
        current = texts.get(change.file, _read(path))
        texts[change.file] = undo(change, current, path)
    changed = [name for name, text in texts.items() if text != _read(tree.path / name)]
    if dry:
        return changed
    for name in changed:
        _write(tree.path / name, texts[name])
    tree.state(_RECORD).unlink(missing_ok=True)
    return changed


def undo(change: Change, current: str, path: Path | None = None) -> str:
    """`current` without the change, whatever other lines, or all line ends, were edited since.

    What somebody took back by hand already is left so.  Raises CannotRevert if
    lines that the change replaced were edited: then nobody can say what is meant.
    """
    if current in (change.before, change.after):
        return change.before
    change = change.with_line_ends_of(current)
    before, after, now = _lines(change.before), _lines(change.after), _lines(current)
    hunks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    was, became = _matches(before, now), _matches(after, now)
    edits: list[tuple[int, int, list[str]]] = []
    for tag, i1, i2, j1, j2 in hunks:
        ours = [became[j] for j in range(j1, j2) if j in became]
        whole = len(ours) == j2 - j1 and _consecutive(ours)
        if tag == "equal":
            continue
        if tag == "insert":
            # what was moved matches nothing: it is known by its words, if they are ours alone
            new = [] if whole else [line for line in after[j1:j2] if line not in before]
            ours += [now.index(line) for line in new if line in now]
            edits += [(index, index + 1, []) for index in set(ours)]
        elif tag == "replace" and whole:
            edits.append((ours[0], ours[-1] + 1, before[i1:i2]))
        elif all(i in was for i in range(i1, i2)):
            continue
        elif tag == "delete":
            gap = _gap(became, j1, len(now))
            edits.append((gap, gap, before[i1:i2]))
        else:
            line = (ours[0] if ours else _gap(became, j1, len(now))) + 1
            raise CannotRevert(path or Path(change.file), line, change.why)
    edits.sort(key=lambda edit: edit[0])
    for start, end, lines in reversed(edits):
        now[start:end] = lines
    return "".join(_ended(now[:-1]) + now[-1:])


def _matches(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """Which line of `new` each line of `old` has become."""
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    return {block.a + k: block.b + k for block in blocks for k in range(block.size)}


def _consecutive(numbers: Sequence[int]) -> bool:
    return all(b - a == 1 for a, b in itertools.pairwise(numbers))


def _gap(where: dict[int, int], index: int, end: int) -> int:
    """Where in the new text the gap before line `index` of the old one is."""
    for before in range(index - 1, -1, -1):
        if before in where:
            return where[before] + 1
    return 0 if index == 0 else where.get(index, end)
