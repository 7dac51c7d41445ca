"""Files that are written whole or not at all, and locks that die with their holder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from xdplab.errors import Held, NoSpace, Wrecked

_TO_SIGN = 1.0  # seconds for who has taken a lock to write down who that is


def write_whole(path: Path, content: bytes, mode: int | None = None) -> None:
    """Put `content` at `path` in one step, keeping the mode of what was there if none is given."""
    path = path.resolve()  # what a symbolic link leads to, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode is None:
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask()
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    temporary.unlink(missing_ok=True)  # of a process of the same number, that was killed
    try:
        with _begun(temporary) as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            if not temporary.exists():
                # link(2) would take the link's name itself: with a directory it is linkat(2)
                name, nowhere = f"/proc/self/fd/{file.fileno()}", file.fileno()
                os.link(name, temporary, src_dir_fd=nowhere, follow_symlinks=True)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _begun(temporary: Path) -> IO[bytes]:
    """A file without a name, so that a kill leaves none; where there can't be one, of that name."""
    try:
        descriptor = os.open(temporary.parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # see open(2)
            raise
        return temporary.open("xb")
    return os.fdopen(descriptor, "wb")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON that a person can read too."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """What write_json wrote; None if there is nothing.  Raises Wrecked."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # no JSON, not even text, or far too deep
        raise Wrecked(path) from error


def sha256(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Stamp = list[int]  # a file's size, when it was written, and when it was changed in any way


def stamp(path: str) -> Stamp | None:
    """What tells a file from a later one of its name; None if there is none.

    The last is its st_ctime of stat(2), in nanoseconds, which nobody can set: an
    edit shows that keeps size and date, or a file with an older date in its place.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  # a Path takes as long again, and there are many
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def require_space(path: Path, needed: int) -> None:
    """Raise NoSpace unless `needed` bytes are free on the disk of `path`."""
    while not path.exists():
        path = path.parent
    if shutil.disk_usage(path).free < needed:
        raise NoSpace.on(path, needed)


@contextlib.contextmanager
def locked(path: Path, *, dry: bool = False) -> Iterator[None]:
    """Hold `path` as a lock; raises Held, naming who has it and since when.

    The kernel drops a flock(2) with its process, so a dead one never holds it.
    A dry run changes nothing, and needs none.
    """
    if dry:
        yield
        return
    with _taken(path) as file:
        file.truncate(0)
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        file.write(f"process {os.getpid()} ({command}), since {time.strftime('%F %T')}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _taken(path: Path) -> IO[str]:
    """The file, opened and locked; raises Held.

    Who has just taken it may not have written down yet who that is, and who removes what
    the lock is for removes the file too, which is then nobody's lock any more.
    """
    deadline = time.monotonic() + _TO_SIGN
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("a+"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    stack.pop_all()
                    return file
            except FileNotFoundError:  # it is being removed
                continue
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip()
                if _lives(holder) or time.monotonic() > deadline:
                    raise Held(path.parent, holder or "another process") from None
        time.sleep(0.01)


def _lives(holder: str) -> bool:
    """Whether the process is there that has signed a lock."""
    signed = re.match(r"process (\d+) ", holder)
    return signed is not None and Path(f"/proc/{signed[1]}").exists()


def mounted(kind: str) -> Iterator[str]:
    """Where file systems of a kind are mounted, as this process sees it (proc(5))."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, one, *_ = line.split()
        if one == kind:
            yield place
