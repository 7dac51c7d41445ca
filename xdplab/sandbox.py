"""A build shut in: bubblewrap(1) runs make where it can spoil nothing but what it builds.

There is no network.  All of the disk can be read, as a compiler must, and only the places
of the build can be written to.  What holds keys, or leads out by a UNIX socket that a
file system can't guard, isn't there: the home directory, /run and /tmp.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from xdplab.errors import LeadsOut, MissingTools, NoSandbox
from xdplab.process import Argv, Shell
from xdplab.tree import SAMPLES, STATE

_TOOL = "bwrap"
# namespaces of its own: user, pid, net, ipc, uts, cgroup; no terminal to type into; no rights
_SHUT_IN = (_TOOL, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
_DISK = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc")
_EMPTY = ("/run", "/tmp")  # noqa: S108  # they are new, and gone with it
_SETTINGS = {"TMPDIR": "/tmp", "CCACHE_DISABLE": "1"}  # noqa: S108  # the cache is in the home


def require(shell: Shell) -> None:
    """Raise MissingTools without bubblewrap, and NoSandbox where it isn't let do its work."""
    if not shutil.which(_TOOL):
        raise MissingTools([_TOOL], "build")
    tried = shell.ask([*_SHUT_IN, *_DISK, "true"])
    if tried.code:
        raise NoSandbox(tried.text("err"))


def around(argv: Argv, cwd: Path, writes: Iterable[Path], commands: Iterable[str]) -> Argv:
    """The command, shut in, that may write below these places, and is to find these commands.

    What decides what programs of the user's do later, git's configuration, can't be
    written even there.
    """
    home = Path.home().resolve()
    hidden = [Path(place) for place in _EMPTY] + ([home] if home.parent != home else [])
    words: list[str | Path] = [*_SHUT_IN, *_DISK]
    for place in hidden:
        if place.is_dir():
            words += ["--tmpfs", place]
    for place in _shown(hidden, commands):
        words += ["--ro-bind", place, place]
    for place in (one.resolve() for one in writes):
        words += ["--bind", place, place]
        if (place / ".git").exists():
            words += ["--ro-bind", place / ".git", place / ".git"]
    if home in hidden and home.is_dir():
        words += ["--remount-ro", home]  # what was written there would seem to be kept
    for name, value in _SETTINGS.items():
        words += ["--setenv", name, value]
    return [*words, "--chdir", cwd, "--", *argv]


def _shown(hidden: Sequence[Path], commands: Iterable[str]) -> Iterator[Path]:
    """Directories in hidden places with programs that a build needs: PATH's, and compilers'.

    A compiler has headers beside its bin.
    """
    places = [Path(place) for place in os.get_exec_path()]
    for found in filter(None, map(shutil.which, commands)):
        places.append(Path(found).resolve().parent.parent)
    for place in dict.fromkeys(one.resolve() for one in places):
        inside = [one for one in hidden if place.is_relative_to(one) and place != one]
        if inside and place.is_dir():
            yield place


def require_inside(tree: Path) -> None:
    """Raise LeadsOut if what the harness is going to write to or read isn't in the tree.

    A link that a makefile left there would have it overwrite or copy any file of the user's.
    """
    tree = tree.resolve()
    places = [tree / SAMPLES, tree / STATE]
    for place in [*places, *(path for one in places for path in one.rglob("*"))]:
        if not place.resolve().is_relative_to(tree):
            raise LeadsOut(place, place.resolve())
