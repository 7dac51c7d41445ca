"""A sample in a tree becomes a build; and where nothing changed, it is one.

How it is made is in making.py, with all that it takes: a build with nothing to do,
and who only asks for a build, do without that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdplab.errors import BadCases, FileInTheWay
from xdplab.files import read_json, sha256, write_json
from xdplab.process import OnLine, Shell
from xdplab.receipt import Receipt
from xdplab.sample import COMPAT, LOADER, OPTIONS, Sample
from xdplab.toolchain import Toolchain
from xdplab.tree import Tree
from xdplab.workspace import Workspace

FACTS = "build.json"
SCHEMA = 1  # of build.json


@dataclass(frozen=True, slots=True)
class Build:
    """What came out: a directory with the program, its BPF object, build.json and the log."""

    directory: Path
    facts: dict[str, Any]
    unchanged: bool = False  # there was nothing to do

    @property
    def name(self) -> str:
        """The sample's name."""
        return str(self.facts["sample"])

    @property
    def program(self) -> Path:
        """The user half; it loads the object from its own directory."""
        return self.directory / self.name

    @property
    def tree_key(self) -> str:
        """The key of the tree that it was made in."""
        return self.directory.parent.name

    def takes(self, option: str) -> bool:
        """Whether the user half takes an option, of those that the harness gives."""
        return option in self.facts.get("options", OPTIONS)  # an older build is the tutorial's

    @property
    def objects(self) -> list[Path]:
        """What the program opens when it runs."""
        return [self.directory / file for file in self.facts["files"] if file != self.name]

    def older_than(self, sample: Sample) -> bool:
        """Whether a source was edited after this was made from it."""
        made = (self.directory / FACTS).stat().st_mtime
        return any(source.stat().st_mtime > made for source in sample.sources)

    @classmethod
    def load(cls, directory: Path) -> Build | None:
        """The build that was kept there, if it is whole."""
        facts = read_json(directory / FACTS)
        if not facts or facts.get("schema") != SCHEMA:
            return None
        files = facts["files"]
        return cls(directory, facts) if all((directory / file).exists() for file in files) else None


def build(
    tree: Tree, sample: Sample, tools: Toolchain, workspace: Workspace, shell: Shell,
    on_line: OnLine, tell: Callable[[str], None], *, mend: bool = False, trace: bool = False,
    keep: Path | None = None, aloud: bool = False,
) -> Build:  # fmt: skip
    """Build the pair, as far as it isn't built yet.

    Nothing is run where nothing changed, and the compilers alone, as make was heard
    to call them, where only the pair did; in every other case make decides.

    With `mend` a damaged tree is mended first, and `tell` hears of it; with
    `trace` the kernel half logs each packet; `keep` is where the result goes,
    if not where the workspace has builds; `aloud` has make try both halves in any
    case, so that each command is in the log.  Raises Damaged, what patching and
    kbuild raise, FileInTheWay, and NotBuilt if make's word can't be trusted.
    """
    if sample.user == LOADER:
        tell(f"{sample.name} has no user half of its own: {from_here(LOADER)} serves as it")
    directory = keep or workspace.build(tree.key, sample.name)
    pair = _pair(sample, trace=trace)
    order = Order(tree, sample, tools, directory, shell, on_line, trace, pair)
    if not mend and not aloud and tree.is_prepared():
        with workspace.locked(tree, dry=shell.dry):
            done = _again(order)
        if done:
            return done
    from xdplab import making  # here: with nothing changed none of it is needed

    return making.whole(order, workspace, tell, mend=mend, go_on=aloud)


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built, where it is kept, and who hears of it."""

    tree: Tree
    sample: Sample
    tools: Toolchain
    directory: Path
    shell: Shell
    on_line: OnLine
    trace: bool
    # its files, from samples/bpf: read once, or an edit meanwhile would be in the receipt alone
    pair: dict[Path, bytes]

    @property
    def log(self) -> Path:
        """What was run, and all that it said."""
        return self.directory / "build.log"

    @property
    def sums(self) -> dict[str, str]:
        """The SHA-256 of each."""
        return {str(name): hashlib.sha256(text).hexdigest() for name, text in self.pair.items()}


def _pair(sample: Sample, *, trace: bool) -> dict[Path, bytes]:
    """The files of the pair, from samples/bpf, as they are now."""
    pair = {sample.in_tree(source): source.read_bytes() for source in sample.sources}
    if trace:
        pair[Path(COMPAT.name)] += b"\n#define TRACE /* invoke build --trace */\n"
    return pair


def _again(order: Order) -> Build | None:
    """Make what isn't as the pair is now, without make; None if make has to decide."""
    kept, then = Build.load(order.directory), Receipt.load(order.directory)
    receipt = then.current(order.tools) if then else None
    if not kept or not receipt:
        return None
    if receipt is not then and not order.shell.dry:
        receipt.save(order.directory)
    stale = {*receipt.stale(order.sums), *_lost(order, kept)}
    if not stale and not changed_files(order):
        return _as_it_is(order, kept)
    from xdplab import making  # here too

    return making.again(order, kept, receipt, stale)


def _lost(order: Order, kept: Build) -> list[str]:
    """The objects that aren't there as they were made, or that what came of them isn't."""
    sample = order.sample
    results = dict(zip(sample.objects, (sample.object, sample.name), strict=True))
    places = (order.tree.samples, order.directory)
    return [
        made for made, result in results.items()
        if any(sum_of(place / result) != kept.facts["files"][result] for place in places)
    ]  # fmt: skip


def _as_it_is(order: Order, kept: Build) -> Build:
    """What is kept, as of now: what needs no compiler is as the pair has it."""
    facts = kept.facts | facts_of_pair(order.sample)
    if order.shell.dry:
        return kept
    if facts != kept.facts:
        write_json(order.directory / FACTS, facts)
    (order.directory / FACTS).touch()  # see Build.older_than
    return Build(order.directory, facts, unchanged=True)


# ---- the pair in samples/bpf


def changed_files(order: Order) -> dict[Path, bytes]:
    """The files of samples/bpf that aren't as the pair is now, and how they should be.

    Raises FileInTheWay, also if the tree's own sample of the name is made of other files.
    """
    tree, sample = order.tree, order.sample
    placed = tree.placed()
    changed = {}
    sources = {sample.in_tree(source): source for source in sample.sources}
    for name, text in order.pair.items():
        there = tree.samples / name
        if not there.exists():
            changed[name] = text
        elif there.read_bytes() != text:
            if placed.get(str(name)) != sum_of(there):
                raise FileInTheWay(there, sources[name])
            changed[name] = text
    for theirs in (tree.samples / f"{sample.name}{end}" for end in (".c", ".bpf.c")):
        if theirs.exists():
            raise FileInTheWay(theirs, sample.kern)
    return changed


def sum_of(path: Path) -> str:
    """A file's SHA-256; empty if there is none."""
    return sha256(path) if path.is_file() else ""


def from_here(path: Path) -> str:
    """The path as a person in this directory would write it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def cases_of(sample: Sample) -> dict[str, str] | None:
    """The file of the pair's packet cases, as build.json has it; None if there is none.

    It goes wherever the build goes: to a virtual machine, to a cluster.  Raises BadCases.
    """
    if not sample.cases.exists():
        return None
    try:
        return {"file": from_here(sample.cases), "text": sample.cases.read_text("utf-8")}
    except UnicodeDecodeError:
        raise BadCases(from_here(sample.cases), "", "it is no text in UTF-8") from None


def facts_of_pair(sample: Sample) -> dict[str, Any]:
    """What build.json has from the pair's own files, and from where they lie."""
    return {
        "sources": [str(source) for source in sample.sources],
        "options": sample.options,
        "announces": sample.announces,
        "cases": cases_of(sample),
    }
