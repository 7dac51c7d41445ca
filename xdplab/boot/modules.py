"""Kernel modules: those that a kernel needs for a piece of hardware, in the order of loading.

What depends on what is read from the modules themselves, where modpost writes it
at the end of a build: packages come without modules.dep, which depmod(8) makes
of the same facts when they are installed.
"""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from xdplab.boot import Kernel, config
from xdplab.errors import ModulesUnfit, NoDriver

_BUILTIN = "modules.builtin"

CARD = ("virtio_pci", "virtio_net")  # what QEMU's virtio-net-pci needs
VETH = ("veth",)

# Which option makes a driver a part of the kernel, or a module.
_OPTIONS: Mapping[str, str] = {
    "virtio_pci": "CONFIG_VIRTIO_PCI",
    "virtio_net": "CONFIG_VIRTIO_NET",
    "veth": "CONFIG_VETH",
}


@dataclass(frozen=True, slots=True)
class Module:
    """A module's file, as it is in the directory: perhaps compressed."""

    name: str
    path: Path

    def content(self) -> bytes:
        """The ELF file that insmod(8) takes; raises ModulesUnfit."""
        unpack = _UNPACK[self.path.suffix]
        try:
            return unpack(self.path.read_bytes())
        except Exception as error:  # each of these libraries has an error of its own
            raise ModulesUnfit(self.path, f"it is damaged: {error}") from error

    def info(self) -> dict[str, str]:
        """What modinfo(8) shows; of a field that is there several times the first."""
        from elftools.elf.elffile import ELFFile  # here: it takes a while to import

        content = io.BytesIO(self.content())
        try:
            section = ELFFile(content).get_section_by_name(".modinfo")
            text = section.data().decode(errors="replace") if section else ""
        except Exception as error:  # of a damaged file the library has more errors than its own
            raise ModulesUnfit(self.path, f"it is no whole ELF file: {error}") from error
        if not text:
            raise ModulesUnfit(self.path, "it is no kernel module: it has no .modinfo")
        rows = [row.partition("=") for row in text.split("\0")]
        return {field: value for field, _, value in reversed(rows)}


def _unzstd(content: bytes) -> bytes:
    import zstandard

    return bytes(zstandard.ZstdDecompressor().stream_reader(content).read())


_UNPACK: Mapping[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".zst": _unzstd,
}


def needed(kernel: Kernel, drivers: Iterable[str]) -> list[Module]:
    """What has to be loaded for these drivers, in this order; nothing for what is built in.

    Where neither a configuration nor a directory of modules tells, they are
    taken for built in.  Raises NoDriver if the kernel is known not to have one,
    ModulesUnfit if the modules are another kernel's.
    """
    options = config.read(kernel.config) if kernel.config else None
    wanted = []
    for driver in drivers:
        option = _OPTIONS[driver]
        value = options.get(option) if options is not None else None
        if options is not None and not value:
            raise NoDriver(kernel.release, driver, f"{kernel.config} has no {option}")
        if value == "m" and not kernel.modules:
            raise NoDriver(kernel.release, driver, "it is a module, and no modules are with it")
        if value != "y":
            wanted.append(driver)
    return closure(kernel.modules, wanted, kernel.release) if kernel.modules else []


def closure(directory: Path, wanted: Iterable[str], release: str) -> list[Module]:
    """The modules with all that they depend on, each after what it depends on.

    `directory` is a release's, as depmod(8) takes it.  Raises NoDriver for what is
    neither there nor built in, ModulesUnfit if one is for another release.
    """
    here, done = available(directory), set(builtin(directory))
    ordered = []

    def add(name: str) -> None:
        if name in done:
            return
        done.add(name)
        if name not in here:
            raise NoDriver(release, name, f"it is neither built in nor in {directory}")
        info = here[name].info()
        made_for = info.get("vermagic", "").partition(" ")[0]
        if made_for != release:
            why = f"it was built for Linux {made_for or 'of no known release'}, not {release}"
            raise ModulesUnfit(here[name].path, why)
        for other in filter(None, info.get("depends", "").split(",")):
            add(_name(other))
        ordered.append(here[name])

    for name in wanted:
        add(name)
    return ordered


def copy(directory: Path, to: Path, drivers: Iterable[str], release: str) -> None:
    """Copy from a release's modules those for the drivers that it has, as far as they are any."""
    here = available(directory)
    to.mkdir(parents=True)
    for module in closure(directory, [name for name in drivers if name in here], release):
        copied = to / module.path.relative_to(directory)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module.path, copied)
    shutil.copyfile(directory / _BUILTIN, to / _BUILTIN)


def available(directory: Path) -> dict[str, Module]:
    """The modules in a directory by name; what came later than the kernel stands before its own.

    So it is for depmod(8), unless it is told otherwise: updates/ before kernel/.
    """
    files = sorted(
        _files(directory), key=lambda path: not path.is_relative_to(directory / "kernel")
    )
    return {_name(path.name): Module(_name(path.name), path) for path in files}


def _files(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*.ko*"):
        if path.suffix in _UNPACK and ".ko" in path.suffixes[-2:]:
            yield path


def builtin(directory: Path) -> list[str]:
    """The modules that are a part of the kernel, as kbuild lists them in modules.builtin."""
    listing = directory / _BUILTIN
    lines = listing.read_text(errors="replace").split() if listing.exists() else []
    return [_name(Path(line).name) for line in lines]


def _name(file: str) -> str:
    """A module's name: the kernel writes it with underscores, whatever its file is called."""
    return file.partition(".ko")[0].replace("-", "_")
