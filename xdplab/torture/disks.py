"""File systems that a desk is laid on, and that have no room, or can't be written to.

A quota is one of Btrfs: like ENOSPC, and unlike the quotas of others, it binds root too
(btrfs-qgroup(8)).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xdplab.errors import CommandFailed
from xdplab.torture.ground import Ground

_LARGE = 8 * 2**30  # bytes, more than anything here takes or asks for
_BTRFS = "mkfs.btrfs", "btrfs"
_GROUP = "0/256"  # the quota group of the first subvolume that is made
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Disk:
    """A tmpfs, and what its limit is called."""

    name: str
    ground: Ground
    place: Path  # where it is mounted, for those on the ground

    @contextlib.contextmanager
    def mounted(self, template: Path) -> Iterator[Path]:
        """A copy of the template on it, for the block; gives where it is seen from here."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        self._mount()
        try:
            seen = Path(f"/proc/{self.ground.bench.netns}/root") / self.place.relative_to("/")
            shutil.copytree(template, seen, symlinks=True, dirs_exist_ok=True)
            yield seen
        finally:
            self._umount()

    def limit(self, seen: Path, room: int) -> None:
        """Let it take so many bytes more."""
        taken = os.statvfs(seen)
        used = (taken.f_blocks - taken.f_bfree) * taken.f_frsize
        self._do("mount", "-o", f"remount,size={used + room}", self.place)

    def lift(self) -> None:
        """Let it take as much as it likes."""
        self._do("mount", "-o", f"remount,size={_LARGE}", self.place)

    def forbid(self) -> None:
        """Let nothing be written to it."""
        self._do("mount", "-o", "remount,ro", self.place)

    def allow(self) -> None:
        """Let it be written to."""
        self._do("mount", "-o", "remount,rw", self.place)

    def _mount(self) -> None:
        self._do("mount", "-t", "tmpfs", "-o", f"size={_LARGE}", "desk", self.place)

    def _umount(self) -> None:
        self._do("umount", "--lazy", self.place)

    def _do(self, *command: str | Path) -> str:
        bench = self.ground.bench
        return bench.shell.run([*bench.enter, *command]).text()


class Quota(Disk):
    """A subvolume of a Btrfs in a file, and its quota.

    That is spoken to by way of the whole file system, whose root has none: in the subvolume
    itself even to lift a limit may take more than it lets.
    """

    __slots__ = ()

    def limit(self, seen: Path, room: int) -> None:
        """Let it take so many bytes more; what is only in memory is written out before."""
        shown = self._do("btrfs", "qgroup", "show", "--raw", "--sync", self._whole)
        (used,) = (line.split()[1] for line in shown.splitlines() if line.startswith(_GROUP))
        self._limit(f"{int(used) + room}")

    def lift(self) -> None:
        """Let it take as much as it likes."""
        self._limit("none")

    def why_not(self) -> str:
        """Why there can be none here; empty if there can."""
        if missing := [one for one in _BTRFS if not shutil.which(one)]:
            return f"there is no {missing[0]}: it comes with btrfs-progs"
        empty = self.place.with_name("nothing")
        empty.mkdir()
        try:
            with self.mounted(empty) as seen:
                self.limit(seen, _BLOCK)
                (seen / "file").write_bytes(bytes(100 * _BLOCK))
        except CommandFailed as error:
            return error.message
        except OSError:
            return ""
        return "a quota of Btrfs doesn't bind root here"

    @property
    def _whole(self) -> Path:
        return self.place.with_name("btrfs")

    def _mount(self) -> None:
        image = self.place.with_name("disk")
        image.unlink(missing_ok=True)
        with image.open("wb") as file:
            file.truncate(_LARGE)
        self._whole.mkdir(exist_ok=True)
        self._do("mkfs.btrfs", "--quiet", image)
        self._do("mount", "-o", "loop", image, self._whole)
        self._do("btrfs", "quota", "enable", self._whole)
        self._do("btrfs", "subvolume", "create", self._whole / "desk")
        self._do("mount", "--bind", self._whole / "desk", self.place)

    def _umount(self) -> None:
        super()._umount()
        self._do("umount", "--lazy", self._whole)

    def _limit(self, size: str) -> None:
        self._do("btrfs", "qgroup", "limit", size, _GROUP, self._whole)
