"""Kernel images: what a file is, of which release, and the vmlinux that is packed in it.

Where things are in a bzImage says Documentation/arch/x86/boot.rst of the kernel.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from xdplab.errors import NotAnImage

_SETUP = struct.Struct("<B2xI6xH2x4sH6xH38xH16xII")
_SETUP_AT = 0x1F1
_BOOT_FLAG = 0xAA55
_OLDEST_PROTOCOL = 0x020C  # 2.12, of v3.8: the first that says whether it is of 64 bits
_IS_64_BIT = 1 << 0  # in xloadflags
_SECTOR, _PARAGRAPH = 512, 16

_RELEASE = re.compile(rb"\d[!-~]*")
_BANNER = re.compile(rb"Linux version (\d[!-~]*) ")  # init/version.c
_PHYS32_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY of xen/interface/elfnote.h

# Around the gzipped configuration in kernel/configs.c.
_CONFIG_BEGINS, _CONFIG_ENDS = b"IKCFG_ST", b"IKCFG_ED"

_LZ4_BLOCK = 8 * 2**20  # what each block of the legacy format unpacks to, but for the last

# What people name by mistake, told by what is at an offset in the file.
_SOMETHING_ELSE = (
    (56, b"ARM\x64", "it is a kernel for arm64"),
    (4, b"zimg", "it is a kernel for EFI firmware of another architecture"),
    (0x24, b"\x18\x28\x6f\x01", "it is a kernel for arm"),
    (0, b"\x27\x05\x19\x56", "it is an image for U-Boot"),
    (0, b"!<arch>\n", "it is a package or an archive"),
    (0, b"07070", "it is an initramfs"),
    (0, b"\x1f\x8b", "it is compressed as a whole, by gzip"),
    (0, b"\xfd7zXZ", "it is compressed as a whole, by xz"),
    (0, b"\x28\xb5\x2f\xfd", "it is compressed as a whole, by zstd"),
)

_ANEW = "copy or build it anew"
_PVH = "name the bzImage of the same build, arch/x86/boot/bzImage; or set CONFIG_PVH=y"


@dataclass(frozen=True, slots=True)
class Image:
    """What is known of a file that boots."""

    path: Path
    release: str  # what `uname -r` says when it runs
    unpacked: bytes | None = field(repr=False)  # a vmlinux that boots faster than the file
    config: bytes | None = field(repr=False)  # if it was built with CONFIG_IKCONFIG
    remark: str = ""  # why the file itself has to be booted, if it is a bzImage


class _Unfit(Exception):
    """Why a file, or what is packed in it, can't be booted."""

    def __init__(self, why: str, cure: str = "") -> None:
        super().__init__(why)
        self.cure = cure


class _Setup(NamedTuple):
    """The fields of a bzImage's setup header, `_SETUP`, in their order."""

    sectors: int
    paragraphs: int
    boot_flag: int
    magic: bytes
    protocol: int
    release_at: int
    flags: int
    payload_at: int
    payload_size: int


@dataclass(frozen=True, slots=True)
class _Vmlinux:
    """What an ELF kernel tells of itself."""

    release: str
    has_pvh_entry: bool
    config: bytes | None


def read(path: Path) -> Image:
    """Look at a bzImage or an ELF vmlinux, and unpack what is packed in it.

    QEMU starts an ELF kernel directly at its PVH entry, which in emulation saves
    the seconds that a bzImage takes to unpack itself.  Raises NotAnImage.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_SETUP_AT + _SETUP.size)
            file.seek(0)
            if head.startswith(b"\x7fELF"):
                return _of_elf(path, file)
            setup = _setup(head)
            return _of_bzimage(path, setup, file.read())
    except _Unfit as unfit:
        raise NotAnImage(path, str(unfit), unfit.cure) from unfit
    except OSError as error:
        raise NotAnImage(path, f"it can't be read: {error.strerror}") from error


# ---- bzImage


def _setup(head: bytes) -> _Setup:
    """The setup header; raises _Unfit if there is none, or not that of an x86_64 kernel."""
    setup = _Setup(*_SETUP.unpack_from(head.ljust(_SETUP_AT + _SETUP.size, b"\0"), _SETUP_AT))
    if setup.boot_flag != _BOOT_FLAG or setup.magic != b"HdrS":
        for at, magic, words in _SOMETHING_ELSE:
            if head.startswith(magic, at):
                raise _Unfit(words)
        raise _Unfit("it is neither a bzImage nor an ELF vmlinux")
    if setup.protocol < _OLDEST_PROTOCOL:
        raise _Unfit("it is a kernel from before v3.8, or none")
    if not setup.flags & _IS_64_BIT:
        raise _Unfit("it is a 32-bit kernel")
    return setup


def _of_bzimage(path: Path, setup: _Setup, content: bytes) -> Image:
    protected = ((setup.sectors or 4) + 1) * _SECTOR  # where the protected-mode code begins
    whole = protected + setup.paragraphs * _PARAGRAPH
    if len(content) < whole:
        raise _Unfit(f"it is truncated: {len(content)} bytes of {whole}", _ANEW)
    said = _RELEASE.match(content, _SECTOR + setup.release_at, protected)
    if not said:
        raise _Unfit("its header doesn't say its release")
    release = said[0].decode()
    begin = protected + setup.payload_at
    try:
        unpacked = _unpack(content[begin : begin + setup.payload_size])
        vmlinux = _vmlinux(io.BytesIO(unpacked), len(unpacked))
    except _Unsupported as unsupported:
        return Image(path, release, None, None, str(unsupported))
    if not vmlinux.has_pvh_entry:
        return Image(path, release, None, vmlinux.config, "it was built without CONFIG_PVH")
    return Image(path, release, unpacked, vmlinux.config)


class _Unsupported(Exception):
    """A payload that the kernel can unpack, and nobody here."""


def _through(opened: Callable[[BinaryIO], Any]) -> Callable[[bytes, int], bytes]:
    # one byte too many is asked for: to see one, and to read to the checksum at the end
    return lambda payload, size: opened(io.BytesIO(payload)).read(size + 1)


def _lz4(payload: bytes, _: int) -> bytes:
    """Unpack LZ4's legacy frame: its magic, then blocks with their sizes before them."""
    import lz4.block

    blocks, at = [], 4
    while at < len(payload):
        (length,) = struct.unpack_from("<I", payload, at)
        packed = payload[at + 4 : at + 4 + length]
        blocks.append(lz4.block.decompress(packed, uncompressed_size=_LZ4_BLOCK))
        at += 4 + length
    return b"".join(blocks)


def _zstd(file: BinaryIO) -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(file)


# How a payload begins, as in lib/decompress.c, and what unpacks it.
_FORMATS: Mapping[bytes, tuple[str, Callable[[bytes, int], bytes] | None]] = {
    b"\x1f\x8b": ("gzip", _through(gzip.open)),
    b"BZh": ("bzip2", _through(bz2.open)),
    b"\xfd7zXZ\0": ("xz", _through(lzma.open)),
    b"\x5d\0": ("lzma", _through(lzma.open)),
    b"\x02\x21\x4c\x18": ("lz4", _lz4),
    b"\x28\xb5\x2f\xfd": ("zstd", _through(_zstd)),
    b"\x89LZO": ("lzo", None),
}


def _unpack(payload: bytes) -> bytes:
    """Unpack a payload; its last four bytes say what size it has then.

    gzip's own format ends so; to the others kbuild appends them, as size_append
    of scripts/Makefile.lib.  Raises _Unsupported.
    """
    begins = next(filter(payload.startswith, _FORMATS), None)
    if begins is None:
        raise _Unsupported("how it is compressed is not known here")
    name, unpack = _FORMATS[begins]
    if not unpack:
        raise _Unsupported(f"{name} can't be unpacked here")
    size = int.from_bytes(payload[-4:], "little")
    try:
        unpacked = unpack(payload if name == "gzip" else payload[:-4], size)
    except Exception as error:  # each of these libraries has an error of its own
        raise _Unfit(f"it is damaged: {name} can't unpack what is in it: {error}", _ANEW) from error
    if len(unpacked) != size:
        raise _Unfit(f"it is damaged: {name} unpacks {len(unpacked)} bytes of {size}", _ANEW)
    return unpacked


# ---- ELF


def _of_elf(path: Path, file: BinaryIO) -> Image:
    vmlinux = _vmlinux(file, path.stat().st_size)
    if not vmlinux.has_pvh_entry:
        raise _Unfit("it is a vmlinux without a PVH entry, which QEMU can't start", _PVH)
    return Image(path, vmlinux.release, None, vmlinux.config)


def _vmlinux(file: BinaryIO, size: int) -> _Vmlinux:
    """What an ELF kernel of `size` bytes tells of itself; raises _Unfit."""
    from elftools.elf.elffile import ELFFile  # here: it takes a while to import

    with _damage_is_unfit():
        elf = ELFFile(file)
        if elf["e_machine"] != "EM_X86_64" or elf.elfclass != 64:
            raise _Unfit(f"it is an ELF file for {elf.get_machine_arch()}")
        segments = list(elf.iter_segments())
        ends = [one["p_offset"] + one["p_filesz"] for one in segments]
        end = max([elf["e_shoff"] + elf["e_shnum"] * elf["e_shentsize"], *ends])
        if size < end:
            raise _Unfit(f"it is truncated: {size} bytes of {end}", _ANEW)
        loaded = [one.data() for one in segments if one["p_type"] == "PT_LOAD"]
        notes = [
            note for one in segments if one["p_type"] == "PT_NOTE" for note in one.iter_notes()
        ]
    banner = next(filter(None, map(_BANNER.search, loaded)), None)
    if not banner:
        raise _Unfit('it is an ELF file, but no kernel: it has no "Linux version" in it')
    return _Vmlinux(
        banner[1].decode(),
        any((note["n_name"], note["n_type"]) == ("Xen", _PHYS32_ENTRY) for note in notes),
        next(filter(None, map(_config, loaded)), None),
    )


@contextlib.contextmanager
def _damage_is_unfit() -> Iterator[None]:
    try:
        yield
    except _Unfit:
        raise
    except Exception as error:  # of a damaged file the library has more errors than its own
        raise _Unfit(f"it is damaged: it is no whole ELF file: {error}", _ANEW) from error


def _config(loaded: bytes) -> bytes | None:
    """The configuration that CONFIG_IKCONFIG keeps in a kernel."""
    _, begun, rest = loaded.partition(_CONFIG_BEGINS)
    packed, ended, _ = rest.partition(_CONFIG_ENDS)
    try:
        return gzip.decompress(packed) if begun and ended else None
    except (OSError, EOFError, zlib.error):  # these were other bytes
        return None
