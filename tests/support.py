"""What several test files need: fixture trees, small kernels, and a look at what is on disk."""

import contextlib
import gzip
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from xdplab.tree import STATE, Tree

TREES = Path(__file__).parent / "trees"
LOGS = Path(__file__).parent / "logs"
ERAS = (
    *("linux-4.19", "linux-5.0", "linux-5.4", "linux-5.6", "linux-5.10", "linux-5.15"),
    *("linux-5.17", "linux-6.1", "linux-6.8", "linux-6.13", "linux-7.2", "vendor"),
)


def copied(era: str, to: Path) -> Tree:
    """A fixture tree, copied to where a test may change it."""
    return Tree.at(Path(shutil.copytree(TREES / era, to / era)))


def contents(directory: Path) -> dict[str, bytes]:
    """All files below a directory but the harness's own and git's, with what is in them."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not {str(STATE), ".git"} & set(path.relative_to(directory).parts)
    }


def git(directory: Path, *arguments: str) -> str:
    """What a git command prints; whose configuration is on this machine plays no part."""
    identity = ["-c", "user.name=A Test", "-c", "user.email=test@example.org"]
    finished = subprocess.run(
        ["git", *identity, *arguments],
        cwd=directory,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
        capture_output=True,
        check=True,
        text=True,
    )
    return finished.stdout


# ---- kernels that are small, and would not boot

RELEASE = "6.1.0-9-test"
XEN_ENTRY = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", 0x1000000)  # a note: PHYS32_ENTRY

_X86_64, _AARCH64 = 62, 183
MACHINES = {"x86_64": _X86_64, "arm64": _AARCH64}


def elf(
    sections: Sequence[tuple[str, int, bytes]], machine: str = "x86_64", kind: int = 2
) -> bytes:
    """An ELF file of sections (name, segment type or 0, content), laid out as ld(1) does."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name, _, _ in sections) + b".shstrtab\0"
    segments = [one for one in sections if one[1]]
    at = 64 + 56 * len(segments)
    headers, program, body = [bytes(64)], b"", b""
    for name, segment, content in [*sections, (".shstrtab", 0, names)]:
        place, where = names.index(name.encode() + b"\0"), at + len(body)
        type_ = {".shstrtab": 3, ".notes": 7}.get(name, 1)
        size = len(content)
        headers.append(struct.pack("<IIQQQQIIQQ", place, type_, 2, 0, where, size, 0, 0, 4, 0))
        if segment:
            program += struct.pack("<IIQQQQQQ", segment, 5, where, 0, 0, size, size, 4)
        body += content + bytes(-size % 8)
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, kind, MACHINES[machine], 1, 0x1000000,
        64, at + len(body), 0, 64, 56, len(segments), 64, len(headers), len(headers) - 1,
    )  # fmt: skip
    return header + program + body + b"".join(headers)


def vmlinux(
    release: str = RELEASE, *, pvh: bool = True, config: str | None = None, machine: str = "x86_64"
) -> bytes:
    """A file that says what a kernel says of itself."""
    text = bytes(range(256)) * 64 + f"Linux version {release} (me@here) #1 SMP\n\0".encode()
    if config is not None:
        text += b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED"
    return elf([(".text", 1, text), (".notes", 4, XEN_ENTRY if pvh else b"")], machine)


# the commands of scripts/Makefile.lib, of Linux 6.18
COMPRESSORS = {
    "gzip": ("gzip", "-n", "-f", "-9"),
    "bzip2": ("bzip2", "-9"),
    "lzma": ("xz", "--format=lzma", "-9"),
    "xz": ("xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB"),
    "lz4": ("lz4", "-l", "-9", "-", "-"),
    "zstd": ("zstd", "-22", "--ultra"),
}


def packed(content: bytes, compressor: str) -> bytes:
    """Compressed as kbuild does it, with the size behind it where the format has none there."""
    command = COMPRESSORS[compressor]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    made = subprocess.run(command, input=content, capture_output=True, check=True).stdout
    return made if compressor == "gzip" else made + struct.pack("<I", len(content))


def bzimage(payload: bytes, release: str = RELEASE, flags: int = 1, protocol: int = 0x20F) -> bytes:
    """A bzImage with this in it; see Documentation/arch/x86/boot.rst."""
    sectors = 3
    setup = bytearray((sectors + 1) * 512)
    code = bytes(64) + payload
    code += bytes(-len(code) % 16)
    for at, form, value in (
        (0x1F1, "<B", sectors), (0x1F4, "<I", len(code) // 16), (0x1FE, "<H", 0xAA55),
        (0x202, "<4s", b"HdrS"), (0x206, "<H", protocol), (0x20E, "<H", 0x300),
        (0x236, "<H", flags), (0x248, "<I", 64), (0x24C, "<I", len(payload)),
        (0x500, f"<{len(release) + 12}s", f"{release} (me@here)".encode()),
    ):  # fmt: skip
        struct.pack_into(form, setup, at, value)
    return bytes(setup) + code


def module(name: str, depends: Iterable[str] = (), release: str = RELEASE) -> bytes:
    """A kernel module with nothing in it but what modinfo(8) shows."""
    rows = [f"name={name}", f"depends={','.join(depends)}", f"vermagic={release} SMP mod_unload "]
    return elf([(".modinfo", 0, "\0".join([*rows, ""]).encode())], kind=1)


@contextlib.contextmanager
def gnupg_home() -> Iterator[Path]:
    """An empty GnuPG home, with a short name: there will be sockets in it."""
    home = Path(tempfile.mkdtemp(prefix="gpg-"))
    try:
        yield home
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
        while home.exists():  # the agent removes its sockets when it ends, in its own time
            shutil.rmtree(home, ignore_errors=True)
