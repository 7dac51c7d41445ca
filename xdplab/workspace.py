"""Where trees, builds and runs live, and which tree is the current one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from xdplab.errors import PathUnfit
from xdplab.files import read_json, write_json, write_whole
from xdplab.tree import Tree

KEPT = "readings.jsonl"  # a run's readings, an object a line: see formats.load
PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Workspace:
    """A directory of ours; all that the harness fetches and makes is below it."""

    root: Path

    @classmethod
    def at(cls, path: str | None) -> Workspace:
        """The workspace at `path`, or where the XDG specification puts caches."""
        root = Path(path).expanduser() if path else platformdirs.user_cache_path("xdplab")
        return cls(root.absolute())

    @property
    def trees(self) -> Path:
        """Where kernel trees are; raises PathUnfit if kbuild would refuse the place."""
        if set(str(self.root)) & set(" :\t"):
            raise PathUnfit(self.root)
        return self.root / "trees"

    @property
    def downloads(self) -> Path:
        """Packages and tarballs, kept until `invoke clean --trees`."""
        return self.root / "downloads"

    @property
    def repositories(self) -> Path:
        """Where trees out of git have their objects, a repository for each remote."""
        return self.root / "git"

    @property
    def kernels(self) -> Path:
        """Kernels that boot, a directory for each."""
        return self.root / "kernels"

    @property
    def indexes(self) -> Path:
        """What the distribution's suites have, as of the last time they were asked."""
        return self.root / "apt"

    @property
    def compilers(self) -> Path:
        """What compilers said of themselves."""
        return self.root / "compilers.json"

    @property
    def release_tools(self) -> Path:
        """The environment of the tools that list and audit dependencies."""
        return self.root / "release"

    def build(self, tree: str, sample: str) -> Path:
        """Where the result of building a sample in a tree is kept."""
        return self.root / "builds" / tree / sample

    def current_tree(self) -> Path | None:
        """The tree that the last setup left, if any."""
        pointer = self.root / "current"
        return Path(pointer.read_text().strip()) if pointer.exists() else None

    def set_current_tree(self, path: Path) -> None:
        """Let commands that name no tree mean this one."""
        write_whole(self.root / "current", f"{path}\n".encode())

    def owns(self, tree: Path) -> bool:
        """Whether a tree is ours to remove: not the user's own, nor a copy elsewhere."""
        return tree.is_relative_to(self.root / "trees")

    def foreign_trees(self) -> list[Path]:
        """The users' own trees that commands were told to work in."""
        return [Path(name) for name in read_json(self.root / "foreign-trees.json") or []]

    @contextlib.contextmanager
    def locked(self, tree: Tree, *, dry: bool = False) -> Iterator[None]:
        """Be the only process at work in a tree, and let clean know of it; raises Held."""
        known = self.foreign_trees()
        if tree.path not in known and not self.owns(tree.path) and not dry:
            write_json(self.root / "foreign-trees.json", [str(one) for one in [*known, tree.path]])
        with tree.locked(dry=dry):
            yield

    def new_run(self) -> RunRecord:
        """A new record for a run that begins now."""
        return RunRecord(self.root / "runs" / _name_of_now() / "run.json")

    def runs(self) -> Iterator[RunRecord]:
        """The records of all runs, the newest first."""
        for path in sorted(self.root.glob("runs/*/run.json"), reverse=True):
            yield RunRecord(path)

    def new_matrix(self) -> Path:
        """A directory for a matrix that begins now."""
        return self.root / "matrix" / _name_of_now()

    def new_bench(self) -> Path:
        """A directory for a bench that begins now."""
        return self.root / "bench" / _name_of_now()

    def new_torture(self) -> Path:
        """A directory for what a torture finds that begins now."""
        return self.root / "torture" / _name_of_now()

    def matrices(self) -> list[Path]:
        """What matrices found, the newest first."""
        return sorted(self.root.glob("matrix/*/matrix.json"), reverse=True)


def _name_of_now() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is remembered of a run, so that another terminal can find and end it."""

    path: Path

    @property
    def log(self) -> Path:
        """All that the run's binary printed."""
        return self.path.with_name("output.log")

    @property
    def readings(self) -> Path:
        """The readings that it keeps."""
        return self.path.with_name(KEPT)

    def read(self) -> dict[str, Any]:
        """Its fields; none if the record is a wreck."""
        return read_json(self.path) or {}

    def update(self, **fields: object) -> None:
        """Add or replace fields."""
        write_json(self.path, self.read() | fields)


def boot_id() -> str:
    """What tells this boot's program ids and process numbers from another's (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
