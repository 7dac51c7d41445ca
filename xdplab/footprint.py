"""What a build leaves in a tree, remembered, so that the tree can be had back as it was found.

kbuild writes one to three thousand files: the configuration, generated headers,
scripts, libbpf.  `make mrproper` would miss some of them (the program, libbpf)
and take others that aren't ours.  Old trees leave directories with nothing in
them too (.tmp_versions, up to v5.3): a name that ends in "/" is a directory.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from xdplab.files import read_json, write_json
from xdplab.tree import STATE, Tree

_CREATED = "created.json"
_BEFORE = "before.json"  # there only while something is being made
# what binutils' ar writes until it is whole, and leaves when it is killed; libraries alone
# are made by it, and none in samples/bpf itself, where a pair's program may have such a name
_HALF_MADE = re.compile(r"(tools|samples/bpf/\w+)/(.+/)?st[a-zA-Z0-9]{6}")
_SLACK = 1_000_000_000  # nanoseconds from make's last word to its last file, after a kill -9

Stamp = list[int]  # a file's size, and when it was last written, in nanoseconds


@contextlib.contextmanager
def recorded(tree: Tree, *below: str, log: Path, dry: bool = False) -> Iterator[None]:
    """Remember which files come into being below these directories of the tree meanwhile.

    What a process made that was killed meanwhile is booked by the next call, up
    to the last that its `log` tells: what came later is the user's.
    """
    if dry:
        yield
        return
    _settle(tree)
    created = _created(tree)
    # what somebody wrote to since isn't ours any more
    _write_created(tree, {name: stamp for name, stamp in created.items() if _is(tree, name, stamp)})
    names = sorted(names_below(tree, below))
    write_json(tree.state(_BEFORE), {"below": below, "names": names, "log": str(log)})
    try:
        yield
    finally:
        _book(tree, below, names, math.inf)


def _settle(tree: Tree) -> None:
    """Book what a killed process made, if there was one."""
    left = read_json(tree.state(_BEFORE))
    if left:
        log = Path(left["log"])
        last = log.stat().st_mtime_ns + _SLACK if log.exists() else 0
        _book(tree, left["below"], left["names"], last)


def _book(tree: Tree, below: Sequence[str], before: Sequence[str], last: float) -> None:
    """Add what is new below these directories, and ours made anew, if not after `last`."""
    created = _created(tree)
    now = names_below(tree, below)
    ours = (now - set(before)) | (now & created.keys())
    for name in sorted(ours):
        path = tree.path / name
        if path.lstat().st_ctime_ns > last:
            continue
        if _HALF_MADE.fullmatch(name) and name not in before:
            path.unlink()
        else:
            created[name] = _stamp(path)
    _write_created(tree, created)
    tree.state(_BEFORE).unlink()


def made(tree: Tree) -> list[str]:
    """The names of what builds left in the tree."""
    return sorted(_created(tree))


def _created(tree: Tree) -> dict[str, Stamp]:
    return read_json(tree.state(_CREATED)) or {}


def _write_created(tree: Tree, created: dict[str, Stamp]) -> None:
    write_json(tree.state(_CREATED), created)


def _is(tree: Tree, name: str, stamp: Stamp) -> bool:
    """Whether the file is as it was booked; one that is gone is nobody's."""
    return os.path.lexists(tree.path / name) and _stamp(tree.path / name) == stamp


def remove(tree: Tree) -> tuple[int, list[str]]:
    """Remove those files, and directories that are left empty.

    Gives how many went, and the names of those that somebody wrote to since:
    they are left, and theirs.
    """
    _settle(tree)
    removed, kept = 0, []
    directories: set[Path] = set()
    for name, stamp in _created(tree).items():
        path = tree.path / name
        if name.endswith("/"):
            directories.add(Path(name))
            continue
        if not os.path.lexists(path):
            continue
        if not _is(tree, name, stamp):
            kept.append(name)
            continue
        path.unlink()
        removed += 1
        directories.update(Path(name).parents)
    for directory in sorted(directories, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):  # not empty
            (tree.path / directory).rmdir()
    tree.state(_CREATED).unlink(missing_ok=True)
    return removed, kept


def names_below(tree: Tree, below: Sequence[str]) -> set[str]:
    """Every file and directory below these directories, by its name from the tree's top."""
    found: set[str] = set()
    top = f"{tree.path}/"
    for start in below:
        for directory, names, files in os.walk(tree.path / start):
            if directory.rstrip("/.") == str(tree.path):
                names[:] = [name for name in names if name not in (str(STATE), ".git")]
            prefix = f"{directory}/".removeprefix(top)
            found.update(prefix + file for file in files)
            found.update(f"{prefix}{name}/" for name in names)
    return found


def _stamp(path: Path) -> Stamp:
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return [0, 0]  # what is written into it makes it no other directory
    return [status.st_size, status.st_mtime_ns]
