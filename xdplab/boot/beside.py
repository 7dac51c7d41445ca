"""What lies beside a kernel's image: its configuration and its modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

BOOT = Path("/boot")  # of this machine

# From the image's directory on: as distributions install a kernel (in /boot, or
# since 2025 with its modules), as make(1) leaves it in a tree, and as people put
# it who keep several.
_CONFIGS = ("config-{release}", "config", ".config", "../../../.config")
_MODULES = (
    *("modules", "modules/lib/modules/{release}", "."),
    *("lib/modules/{release}", "../lib/modules/{release}", "../usr/lib/modules/{release}"),
    *("../../..", "/lib/modules/{release}"),
)

_IMAGES = ("bzImage", "arch/x86/boot/bzImage", "vmlinuz", "vmlinux")


def config(image: Path, release: str) -> Path | None:
    """The kernel's configuration, if it is there."""
    return next((path for path in _places(image, _CONFIGS, release) if path.is_file()), None)


def modules(image: Path, release: str) -> Path | None:
    """The directory of the kernel's modules, if it is there."""
    places = _places(image, _MODULES, release)
    return next((path for path in places if (path / "modules.builtin").is_file()), None)


def _places(image: Path, names: tuple[str, ...], release: str) -> Iterator[Path]:
    for name in names:
        yield (image.parent / name.format(release=release)).resolve()


def image_in(directory: Path) -> Path | None:
    """The image in a directory that was named in its place."""
    return next((directory / name for name in _IMAGES if (directory / name).is_file()), None)
