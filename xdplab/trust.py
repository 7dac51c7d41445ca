"""What root may be told to run: a file that nobody can change who couldn't be root anyway.

That is the file itself, and everything on the way to it: who can write to a directory
can put another file, or a link, in the place of any that is in it.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from xdplab.errors import Changeable, MissingTools

SYSTEM = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")

# What is handed to sudo(8), which hands on what its own rules let through: nothing by which
# a program is told to load, to read or to run something else.
_HARMLESS = ("HOME", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LOGNAME", "TERM", "TZ", "USER")

_ROOT = 0


def environment() -> dict[str, str]:
    """The environment of what runs as root on behalf of an ordinary user."""
    kept = {name: os.environ[name] for name in _HARMLESS if name in os.environ}
    return {**kept, "PATH": os.pathsep.join(SYSTEM)}


def command(name: str) -> str:
    """The path of a command that nobody but root can change, wherever PATH leads first.

    Raises MissingTools if there is none, and Changeable if others can change each.
    """
    places = [place for place in (*SYSTEM, *os.get_exec_path()) if Path(place).is_absolute()]
    weak: list[tuple[Path, Path]] = []
    for found in (Path(place, name) for place in places if shutil.which(name, path=place)):
        if not (at := _weak(found, {_ROOT})):
            return str(found)
        weak.append((found, at))
    if weak:
        raise Changeable(*weak[0])
    raise MissingTools([name], "run")


def file(path: Path) -> Path:
    """The file, by its whole path.

    Raises Changeable if anybody can change it but root, this user, and who can change
    the harness itself, which is what calls for root.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  # links are followed one by one
    owners = {_ROOT, os.getuid(), Path(__file__).stat().st_uid}
    if weak := _weak(path, owners):
        raise Changeable(path, weak)
    return path


def _weak(path: Path, owners: Collection[int]) -> Path | None:
    """The first place on the way to a file where anybody else could put another."""
    for place in _way(path):
        status = place.lstat()
        if status.st_uid not in owners or _open_to_others(status):
            return place
    return None


def _way(path: Path) -> Iterator[Path]:
    """All that is looked up to find a file, links and where they lead (path_resolution(7))."""
    here, rest = Path("/"), list(path.parts[1:])
    yield here
    while rest:
        name = rest.pop(0)
        here = here.parent if name == ".." else here / name
        yield here
        if here.is_symlink():
            target = here.readlink()
            rest = [*(part for part in target.parts if part != "/"), *rest]
            here = Path("/") if target.is_absolute() else here.parent


def _open_to_others(status: os.stat_result) -> bool:
    """Whether others than its owner can write to it, or to what it holds.

    In a directory with the sticky bit, such as /tmp, nobody can touch what is another's.
    """
    if stat.S_ISLNK(status.st_mode) or (
        stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    ):
        return False
    by_group = status.st_mode & stat.S_IWGRP and not _own_group(status)
    return bool(by_group or status.st_mode & stat.S_IWOTH)


def _own_group(status: os.stat_result) -> bool:
    """Whether the group is one that many distributions give each user, with nobody else in it."""
    try:
        user, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    own = (group.gr_gid, group.gr_name) == (user.pw_gid, user.pw_name)
    return own and set(group.gr_mem) <= {user.pw_name}
