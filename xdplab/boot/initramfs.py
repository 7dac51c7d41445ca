"""The guest's only file system: a cpio archive, packed here, unpacked into memory by the kernel.

The format is "newc", of the kernel's Documentation/driver-api/early-userspace/
buffer-format.rst.  It has busybox for a shell, `ip` to look at interfaces with,
the sample, and the shared libraries that these need: nothing else of this machine.
"""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xdplab import templates
from xdplab.errors import MissingTools
from xdplab.process import Shell

SAMPLE = PurePosixPath("/sample")  # where the pair is in the guest
TEST_RUN = PurePosixPath("/bin/test_run")  # see testbed.prog_run
MODULES = PurePosixPath("/modules")

# what ldd(1) prints of a library, or of the loader itself
_LIBRARY = re.compile(r"(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)")
# what init and the harness call in the guest; a busybox may have been built
# without looking for them in itself
_APPLETS = ("cat", "dd", "dmesg", "insmod", "kill", "mkfifo", "mount", "ping", "sh", "stty")
_CONSOLE = (5, 1)  # Documentation/admin-guide/devices.txt


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory, symbolic link or character device of the archive."""

    name: str  # without the leading slash
    mode: int  # as in stat(2), with the type
    data: bytes = b""  # a link's is what it leads to
    device: tuple[int, int] = (0, 0)  # major and minor


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


def pack(program: Path, files: Iterable[Path], modules: Iterable[tuple[str, bytes]],
         test_run: Path, shell: Shell) -> bytes:  # fmt: skip
    """The archive for a sample: its program, the files beside it, modules by name, the tool.

    Raises MissingTools without busybox, ip or ldd.
    """
    missing = [name for name in ("busybox", "ip", "ldd") if not shutil.which(name)]
    if missing:
        raise MissingTools(missing, "vm")
    tools = {tool: Path(str(shutil.which(tool))) for tool in ("busybox", "ip")}
    content: dict[PurePosixPath, bytes] = {
        PurePosixPath("/init"): templates.render("init.sh.j2", sample=SAMPLE).encode(),
        PurePosixPath("/bin/busybox"): tools["busybox"].read_bytes(),
        PurePosixPath("/sbin/ip"): tools["ip"].read_bytes(),
        TEST_RUN: test_run.read_bytes(),
        **{SAMPLE / file.name: file.read_bytes() for file in (program, *files)},
        **{MODULES / name: data for name, data in modules},
    }
    for library in libraries([program, test_run, *tools.values()], shell):
        content[PurePosixPath(library)] = library.read_bytes()
    return cpio(_entries(content))


def libraries(programs: Iterable[Path], shell: Shell) -> list[Path]:
    """The shared libraries that programs need, and their loader; of a static one none."""
    found: dict[Path, None] = {}
    for program in programs:
        said = shell.ask(["ldd", program], env={"LC_ALL": "C.UTF-8"}).text()
        found |= dict.fromkeys(map(Path, _LIBRARY.findall(said)))
    return list(found)


def _entries(content: dict[PurePosixPath, bytes]) -> Iterator[Entry]:
    directories = {PurePosixPath(name) for name in ("/dev", "/proc", "/sys", "/run", "/tmp")}  # noqa: S108
    directories |= {parent for path in content for parent in path.parents if parent.name}
    for directory in sorted(directories):
        yield Entry(_name(directory), stat.S_IFDIR | 0o755)
    for path, data in content.items():
        yield Entry(_name(path), stat.S_IFREG | 0o755, data)
    for applet in _APPLETS:
        yield Entry(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    # the kernel opens it for init before anything is mounted
    yield Entry("dev/console", stat.S_IFCHR | 0o600, device=_CONSOLE)


def _name(path: PurePosixPath) -> str:
    return str(path.relative_to("/"))
