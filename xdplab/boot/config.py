"""A kernel's configuration: what it says of the kernel before that is booted."""

from __future__ import annotations

import contextlib
import gzip
import re
from pathlib import Path

from xdplab.boot import Kernel
from xdplab.errors import WithoutBpf

RUNNING = Path("/proc/config.gz")  # where the kernel has CONFIG_IKCONFIG_PROC

_SET = re.compile(r"^(CONFIG_\w+)=(.*)$", re.MULTILINE | re.ASCII)


def read(path: Path) -> dict[str, str]:
    """The options that are set, with their values as they are written: y, m, 64, "none"."""
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return dict(_SET.findall(text.decode(errors="replace")))


def read_first(*paths: Path) -> dict[str, str] | None:
    """What the first configuration says that can be read; None if none can."""
    for path in paths:
        with contextlib.suppress(OSError):  # it isn't there, or not for us to read
            return read(path)
    return None


def require_bpf(kernel: Kernel) -> None:
    """Raise WithoutBpf if the kernel is known to have no bpf(2)."""
    if kernel.config and read(kernel.config).get("CONFIG_BPF_SYSCALL") != "y":
        raise WithoutBpf(kernel.release, kernel.config)
