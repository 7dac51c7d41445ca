"""A kernel tree: where it is, what version, whose, and what was done to it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from xdplab.errors import Denied, NotAKernelTree, PathUnfit, SomebodyElses, Unfinished
from xdplab.files import locked, read_json, write_json, write_whole
from xdplab.version import KernelVersion

SAMPLES = Path("samples/bpf")
MAKEFILE = SAMPLES / "Makefile"
STATE = Path(".xdplab")
MEMORY = "tree.json"  # in it: see Tree.remember
_LAST_MADE = "include/generated/asm-offsets.h"  # by kbuild.prepare(); gone after make mrproper
_NEEDED = ("Makefile", "Kbuild", "scripts", str(MAKEFILE), "tools/lib/bpf")

# What git has in its directory while an operation is under way, as git-status(1)
# looks for it.  Not a bisection: that is what people build for.
_UNDER_WAY = (
    ("rebase-merge", "rebase"),
    ("rebase-apply/applying", "am"),
    ("rebase-apply", "rebase"),
    ("MERGE_HEAD", "merge"),
    ("CHERRY_PICK_HEAD", "cherry-pick"),
    ("REVERT_HEAD", "revert"),
)


class Origin(StrEnum):
    """Where a tree came from."""

    GIT = "git"
    DISTRO = "distro"
    TARBALL = "tarball"
    EXISTING = "existing"  # the user's own: nothing of it is ours to remove


@dataclass(frozen=True, slots=True)
class Tree:
    """Kernel sources on disk."""

    path: Path
    version: KernelVersion
    origin: Origin

    @classmethod
    def at(cls, path: Path) -> Tree:
        """The tree at `path`.

        Raises NotAKernelTree, naming what it lacks, and PathUnfit if kbuild
        would refuse its path.
        """
        path = path.expanduser().resolve()
        missing = [name for name in _NEEDED if not (path / name).exists()]
        if missing:
            raise NotAKernelTree(path, missing)
        version = KernelVersion.of_makefile((path / "Makefile").read_text(errors="replace"))
        if not version:
            raise NotAKernelTree(path, ["VERSION in its Makefile"])
        if set(str(path)) & set(" :"):
            raise PathUnfit(path)
        tree = cls(path, version, Origin.EXISTING)
        origin = str(tree.recall("origin"))
        return replace(tree, origin=Origin(origin)) if origin in list(Origin) else tree

    @property
    def key(self) -> str:
        """A directory name that no other tree has."""
        return f"{self.path.name}-{hashlib.sha256(bytes(self.path)).hexdigest()[:8]}"

    @property
    def samples(self) -> Path:
        """The directory that the tutorial works in."""
        return self.path / SAMPLES

    def state(self, name: str) -> Path:
        """A file of the harness's own, in the tree, so that it moves with it."""
        return self.path / STATE / name

    @property
    def git_dir(self) -> Path | None:
        """Its git directory: ".git", or what a worktree's file of that name leads to.

        A repository that the tree is only somewhere in doesn't count.  See
        gitrepository-layout(5).
        """
        place = self.path / ".git"
        if place.is_file():
            return self.path / place.read_text().removeprefix("gitdir:").strip()
        return place if place.is_dir() else None

    def require_ready(self) -> None:
        """Raise what speaks against writing into the tree, before anything is written.

        SomebodyElses: root would leave files in a user's tree that only root can
        remove.  Denied, and Unfinished in the middle of a git operation.
        """
        owner = self.path.stat().st_uid
        if os.geteuid() == 0 != owner:
            raise SomebodyElses(self.path, _user_name(owner))
        if not os.access(self.path, os.W_OK | os.X_OK):  # false for root too where all is read-only
            raise Denied(self.path)
        git_dir = self.git_dir
        for name, operation in _UNDER_WAY:
            if git_dir and (git_dir / name).exists():
                raise Unfinished(self.path, operation)

    def is_prepared(self, *, all_samples: bool = False) -> bool:
        """Whether kbuild.prepare() has nothing to do."""
        enough = ("all",) if all_samples else ("sample", "all")
        return self.recall("prepared") in enough and (self.path / _LAST_MADE).exists()

    @contextlib.contextmanager
    def locked(self, *, dry: bool = False) -> Iterator[None]:
        """Be the only process at work in this tree; raises Held."""
        if not dry and not self.state(".gitignore").exists():
            write_whole(self.state(".gitignore"), b"*\n")  # not every vendor's leaves out dot files
        with locked(self.state("lock"), dry=dry):
            yield

    def remember(self, *, dry: bool = False, **fields: object) -> None:
        """Note facts about the tree in its state."""
        if dry:
            return
        state = self.state(MEMORY)
        write_json(state, {"origin": self.origin} | (read_json(state) or {}) | fields)

    def forget(self) -> None:
        """Forget all but where it came from: it is as it was found."""
        checked = self.checked
        shutil.rmtree(self.path / STATE)
        if self.origin is not Origin.EXISTING:
            self.remember(checked=checked)

    @property
    def checked(self) -> str:
        """What was checked of it when it was fetched, and what couldn't be."""
        if self.origin is Origin.EXISTING:
            return "not checked: it is your own"
        return str(self.recall("checked") or "not checked: nothing is on record")

    def placed(self) -> dict[str, str]:
        """The copies of the pair that are in samples/bpf, and the SHA-256 of each."""
        placed = self.recall("placed")
        return placed if isinstance(placed, dict) else {}

    def recall(self, field: str) -> object:
        """A fact that was remembered, or None."""
        return (read_json(self.state(MEMORY)) or {}).get(field)


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"#{number}"  # as sudo(8) takes it
