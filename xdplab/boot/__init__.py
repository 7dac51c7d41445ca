"""Kernels that boot: where they come from, and a virtual machine for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from xdplab.errors import AlteredKernel, NotAVersion
from xdplab.files import read_json, sha256, write_json
from xdplab.version import KernelVersion

_FACTS = "kernel.json"
_FILES = ("image", "modules", "config")  # its fields that name them
SCHEMA = 1  # of kernel.json


class Source(StrEnum):
    """Where a kernel that boots is from."""

    DISTRO = "distro"
    TREE = "tree"  # built here
    IMAGE = "image"  # a file of the user's


@dataclass(frozen=True, slots=True)
class Kernel:
    """Something that boots, on this disk."""

    release: str  # what `uname -r` says when it runs
    version: KernelVersion | None  # None: the release doesn't say
    image: Path  # for QEMU: an ELF vmlinux with a PVH entry, or else the bzImage
    modules: Path | None  # the directory of its modules; None: there is none, or none is needed
    config: Path | None
    source: Source = Source.IMAGE

    def keep(self, directory: Path, **facts: object) -> None:
        """Write its kernel.json, last of all: a directory that has one holds a whole kernel.

        Files in the directory are named from there, so that it can be renamed, and their
        SHA-256 is recorded: see `altered`.
        """
        files = {"image": self.image, "modules": self.modules, "config": self.config}
        named = {
            "schema": SCHEMA,
            "release": self.release,
            "version": str(self.version) if self.version else None,
            "source": self.source,
            **{name: _from(directory, path) for name, path in files.items()},
            "sha256": _sums(directory, files.values()),
        }
        write_json(directory / _FACTS, named | facts)

    @classmethod
    def load(cls, directory: Path) -> Kernel | None:
        """The kernel that was kept there, if it is whole."""
        facts = recorded(directory)
        if not facts:
            return None
        files = [directory / facts[name] if facts[name] else None for name in _FILES]
        image, modules, config = files
        if not image or not all(file.exists() for file in files if file):
            return None
        version = KernelVersion.parse(facts["version"]) if facts["version"] else None
        return cls(facts["release"], version, image, modules, config, Source(facts["source"]))


def kept(directory: Path) -> list[Kernel]:
    """The kernels that are kept in the directories below one, whole."""
    found = (Kernel.load(path.parent) for path in directory.glob(f"*/{_FACTS}"))
    return [kernel for kernel in found if kernel]


def recorded(directory: Path) -> dict[str, Any] | None:
    """What a directory's kernel.json says; None if it has none, or one of another schema."""
    facts: dict[str, Any] | None = read_json(directory / _FACTS)
    return facts if facts and facts.get("schema") == SCHEMA else None


def require_unaltered(kernel: Kernel) -> Kernel:
    """Give a kernel that was built here; raise AlteredKernel if it isn't what was built."""
    changed = altered(kernel.image.parent)
    if changed:
        raise AlteredKernel(kernel.image.parent, changed)
    return kernel


def altered(directory: Path) -> list[str]:
    """The files of a kernel that is kept there, that aren't those that were kept.

    By their SHA-256; all of them, if none was recorded.
    """
    facts = recorded(directory) or {}
    noted = facts.get("sha256", {})
    files = [directory / facts[name] for name in _FILES if facts.get(name)]
    now = _sums(directory, files)
    return sorted(name for name in {*noted, *now} if noted.get(name) != now.get(name))


def _sums(directory: Path, files: Iterable[Path | None]) -> dict[str, str]:
    """The SHA-256 of those files, and of all in those directories, that are in a directory."""
    ours = [path for path in files if path and path.is_relative_to(directory)]
    single = [file for path in ours for file in [path, *path.rglob("*")] if file.is_file()]
    return {str(file.relative_to(directory)): sha256(file) for file in single}


def version_of(release: str) -> KernelVersion | None:
    """The version that a release begins with, if it does."""
    try:
        return KernelVersion.parse(release)
    except NotAVersion:
        return None


def _from(directory: Path, path: Path | None) -> str | None:
    if not path:
        return None
    return str(path.relative_to(directory) if path.is_relative_to(directory) else path)
