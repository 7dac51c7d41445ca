"""Step 1 and 3 of the tutorial: a tree, configured, with the headers that a build needs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from xdplab import damage, kbuild, patching
from xdplab.errors import (
    LabError,
    NoKernelInIt,
    NotAKernelTree,
    NotToBeHad,
    Unreachable,
)
from xdplab.files import locked
from xdplab.process import OnLine, Shell
from xdplab.sources import Report, Tell, distro, git, tarball
from xdplab.toolchain import Toolchain
from xdplab.tree import Origin, Tree
from xdplab.trees import fetched
from xdplab.version import KernelVersion
from xdplab.workspace import Workspace


class Source(StrEnum):
    """Where a tree is to come from."""

    AUTO = "auto"  # git; the distribution's package where the remote can't be reached
    GIT = "git"
    DISTRO = "distro"
    TARBALL = "tarball"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `invoke setup` was asked for."""

    version: KernelVersion | None  # None: whatever the tarball holds
    source: Source = Source.AUTO
    tree: Path | None = None
    remote: str | None = None

    @classmethod
    def of(cls, kernel: str | None, default: str, source: Source, tree: Path | None,
           remote: str | None) -> Wanted:  # fmt: skip
        """What the options say; `default` is the version of who names none.

        A remote that is called like a tarball is one.  Raises NotAVersion.
        """
        if source is Source.AUTO and remote and tarball.is_called_like_one(remote):
            source = Source.TARBALL
        if kernel is None and source is Source.TARBALL and remote:
            return cls(None, source, tree, remote)
        return cls(KernelVersion.parse(default if kernel is None else kernel), source, tree, remote)

    def satisfied_by(self, tree: Tree) -> bool:
        """Whether the tree is what was asked for: the whole number, or only its series."""
        return not self.version or self.version.covers(tree.version)

    @property
    def name(self) -> str:
        """The directory for it in the workspace; of a series the distribution has the number."""
        if not self.version:
            return f"tarball-{tarball.label(str(self.remote))}"
        series = self.source is Source.DISTRO and not self.version.exact
        return f"{self.source}-{self.version.series if series else self.version.tag}"


def obtain(
    wanted: Wanted, workspace: Workspace, tools: Toolchain, shell: Shell, report: Report,
    on_line: OnLine, tell: Tell, *, mend: bool = False,
) -> Tree | None:  # fmt: skip
    """Get the tree, make it ready to build, and make it the current one.

    With `mend` a damaged tree is mended first.  `tell` hears of each thing that
    was done, and nothing if all was there.  Gives no tree in a dry run that
    would fetch one.  Raises what the sources, Tree.require_ready and damage raise.
    """
    tree = Tree.at(wanted.tree) if wanted.tree else _present(wanted, workspace)
    if not tree:
        tree = _fetch(wanted, workspace, shell, report, tell)
    if not tree:
        return None
    tree.require_ready()
    damage.require_whole(tree, shell, mend=mend)
    if not workspace.owns(tree.path) and not shell.dry:
        tell(f"{tree.path} is yours: what is written into it, invoke clean takes out again")
    with workspace.locked(tree, dry=shell.dry):
        if mend:
            damage.mend(tree, shell, tell)
        if not tree.is_prepared():
            changes = patching.plan_series(tree)
            patching.apply(tree, changes, dry=shell.dry)
            for change in changes:
                tell(f"patched {change.file}: {change.why}")
            kbuild.prepare(tree, tools, shell, on_line)
            tell("configured it, and made the headers and scripts that a sample needs")
    if workspace.current_tree() != tree.path and not shell.dry:
        workspace.set_current_tree(tree.path)
        tell("made it the current tree")
    return tree


def _present(wanted: Wanted, workspace: Workspace) -> Tree | None:
    for tree in fetched(workspace):
        fits = wanted.version and wanted.satisfied_by(tree)
        if fits and wanted.source in (Source.AUTO, tree.origin):
            return tree
    return None


def _fetch(
    wanted: Wanted, workspace: Workspace, shell: Shell, report: Report, tell: Tell
) -> Tree | None:
    if wanted.source is not Source.AUTO:
        return _fetch_from(wanted, workspace, shell, report, tell)
    try:
        return _fetch_from(replace(wanted, source=Source.GIT), workspace, shell, report, tell)
    except Unreachable as unreachable:
        tell(f"{unreachable.message}; taking the distribution's package instead")
    return _fetch_from(replace(wanted, source=Source.DISTRO), workspace, shell, report, tell)


def _fetch_from(
    wanted: Wanted, workspace: Workspace, shell: Shell, report: Report, tell: Tell
) -> Tree | None:
    """Fetch into NAME.partial, and give it its name when it is whole."""
    whole = workspace.trees / wanted.name
    partial = whole.with_name(f"{wanted.name}.partial")
    if not shell.dry:
        partial.parent.mkdir(parents=True, exist_ok=True)
    with locked(workspace.root / "locks" / wanted.name / "lock", dry=shell.dry):
        if not whole.exists():
            checked = _bring(wanted, partial, workspace, shell, report, tell)
            if shell.dry:
                return None
            _keep(wanted, partial, whole, checked)
            tell(f"fetched Linux {Tree.at(whole).version} from {wanted.source} into {whole}")
    tree = Tree.at(whole)
    _require(wanted, tree)
    return tree


def _bring(
    wanted: Wanted, partial: Path, workspace: Workspace, shell: Shell, report: Report, tell: Tell
) -> str:
    """Fetch it; gives what was checked of it."""
    remote, version = wanted.remote, wanted.version
    if version is None or wanted.source is Source.TARBALL:  # without one the tarball decides
        place = (remote or tarball.default_url(version)) if version else str(remote)
        return tarball.fetch(place, partial, workspace.downloads, shell, report, tell)
    if wanted.source is Source.GIT:
        place = remote or git.default_remote(version)
        store = workspace.repositories / git.label(place)
        return git.fetch(version, place, partial, store, shell, report, tell)
    downloads, indexes = workspace.downloads, workspace.indexes
    return distro.fetch(version, partial, downloads, indexes, shell, report, tell)


def _keep(wanted: Wanted, partial: Path, whole: Path, checked: str) -> None:
    """Give the tree its name, if it is one, and the one that was asked for."""
    try:
        found = Tree.at(partial)
        _require(wanted, found)
    except LabError as error:
        shutil.rmtree(partial)
        if isinstance(error, NotAKernelTree):
            raise NoKernelInIt(_source(wanted), error.missing) from error
        raise
    found.remember(origin=Origin(wanted.source), checked=checked)
    partial.rename(whole)
    if wanted.source is Source.GIT:
        git.moved(whole)


def _require(wanted: Wanted, tree: Tree) -> None:
    """Raise NotToBeHad if the source gave another version than was asked for."""
    if not wanted.satisfied_by(tree):
        asked = wanted.version.tag if wanted.version else "such version"
        raise NotToBeHad(asked, _source(wanted), [str(tree.version)])


def _source(wanted: Wanted) -> str:
    return wanted.remote or f"the {wanted.source}"
