"""The guest's only file system: a cpio archive, packed here, unpacked into memory by the kernel.

The format is "newc", of the kernel's Documentation/driver-api/early-userspace/
buffer-format.rst.  It has an init of ours, the sample, busybox for a shell, and the
shared libraries that these need: nothing else of this machine.
"""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xdplab.errors import MissingTools
from xdplab.process import Shell

INIT = PurePosixPath("/init")  # what the kernel starts
SAMPLE = PurePosixPath("/sample")  # where the pair is in the guest
TOOLS = PurePosixPath("/tools")  # see testbed.tools
FRAMES = PurePosixPath("/frames")  # that are to be run through the program
MODULES = PurePosixPath("/modules")

# what ldd(1) prints of a library, or of the loader itself
_LIBRARY = re.compile(r"(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)")
# what the harness calls in the guest; a busybox may have been built without looking for
# them in itself
_APPLETS = ("ip", "mount", "ping", "sh")
_CONSOLE = (5, 1)  # Documentation/admin-guide/devices.txt


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory, symbolic link or character device of the archive."""

    name: str  # without the leading slash
    mode: int  # as in stat(2), with the type
    data: bytes = b""  # a link's is what it leads to
    device: tuple[int, int] = (0, 0)  # major and minor


# What is in every guest beside files.  The console the kernel opens for init before anything
# is mounted.
_MADE = (
    *(Entry(name, stat.S_IFDIR | 0o755) for name in ("dev", "proc", "sys", "run", "tmp")),
    *(Entry(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox") for applet in _APPLETS),
    Entry("dev/console", stat.S_IFCHR | 0o600, device=_CONSOLE),
)


def cpio(entries: Iterable[Entry]) -> bytes:
    """Pack an archive; directories must come before what is in them."""
    packed = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        fields = (
            *(number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0),
            *(*entry.device, len(name), 0),
        )
        packed += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        packed += bytes(-len(packed) % 4) + entry.data
        packed += bytes(-len(packed) % 4)
    return bytes(packed)


def userland(files: Mapping[PurePosixPath, bytes], programs: Iterable[Path], shell: Shell) -> bytes:
    """The archive that a sample runs in: these files, a shell, and libraries.

    `programs` are those of the files that need libraries.  Raises MissingTools without
    busybox or ldd.
    """
    missing = [name for name in ("busybox", "ldd") if not shutil.which(name)]
    if missing:
        raise MissingTools(missing, "vm")
    busybox = Path(str(shutil.which("busybox")))
    content: dict[PurePosixPath, bytes] = {
        PurePosixPath("/bin/busybox"): busybox.read_bytes(),
        **files,
    }
    for library in libraries([busybox, *programs], shell):
        content[PurePosixPath(library)] = library.read_bytes()
    return cpio([*_entries(content), *_MADE])


def drivers(modules: Iterable[tuple[str, bytes]]) -> bytes:
    """An archive of modules, by their names: the kernel takes one archive after the other."""
    return cpio(_entries({MODULES / name: data for name, data in modules}))


def libraries(programs: Iterable[Path], shell: Shell) -> list[Path]:
    """The shared libraries that programs need, and their loader; of a static one none."""
    said = shell.ask(["ldd", *programs], env={"LC_ALL": "C.UTF-8"}).text()
    return list(dict.fromkeys(map(Path, _LIBRARY.findall(said))))


def _entries(content: Mapping[PurePosixPath, bytes]) -> Iterator[Entry]:
    directories = {parent for path in content for parent in path.parents if parent.name}
    for directory in sorted(directories):
        yield Entry(_name(directory), stat.S_IFDIR | 0o755)
    for path, data in content.items():
        yield Entry(_name(path), stat.S_IFREG | 0o755, data)


def _name(path: PurePosixPath) -> str:
    return str(path.relative_to("/"))
