"""Kernels that boot: where they come from, and a virtual machine for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xdplab.version import KernelVersion


@dataclass(frozen=True, slots=True)
class Kernel:
    """Something that boots, on this disk."""

    release: str  # what `uname -r` says when it runs
    version: KernelVersion | None  # None: the release doesn't say
    image: Path  # for QEMU: an ELF vmlinux with a PVH entry, or else the bzImage
    modules: Path | None  # the directory with its modules.dep; None: all is built in
    config: Path | None
