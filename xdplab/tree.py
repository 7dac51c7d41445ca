"""A kernel tree: where it is, what version, whose, and what was done to it."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from xdplab.errors import NotAKernelTree, PathUnfit
from xdplab.files import locked, read_json, write_json
from xdplab.version import KernelVersion

SAMPLES = Path("samples/bpf")
MAKEFILE = SAMPLES / "Makefile"
STATE = Path(".xdplab")  # the kernel's own .gitignore leaves out names with a dot
_NEEDED = ("Makefile", "Kbuild", "scripts", str(MAKEFILE), "tools/lib/bpf")


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

    @contextlib.contextmanager
    def locked(self, *, dry: bool = False) -> Iterator[None]:
        """Be the only process at work in this tree; raises Held."""
        with locked(self.state("lock"), dry=dry):
            yield

    def remember(self, *, dry: bool = False, **fields: object) -> None:
        """Note facts about the tree in its state."""
        if dry:
            return
        state = self.state("tree.json")
        write_json(state, {"origin": self.origin} | (read_json(state) or {}) | fields)

    def forget(self) -> None:
        """Forget all but where it came from: it is as it was found."""
        shutil.rmtree(self.path / STATE)
        if self.origin is not Origin.EXISTING:
            self.remember()

    def recall(self, field: str) -> object:
        """A fact that was remembered, or None."""
        return (read_json(self.state("tree.json")) or {}).get(field)
