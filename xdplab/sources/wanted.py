"""Which of a kernel tree's files a build reads: found by building, kept in read.txt.

`invoke survey --record` builds in whole trees, looks which files were opened, and
adds to read.txt what it hasn't got.  Its rows are

    DIRECTORY/*   the files of a directory, not those further below
    **/NAME*      files that are called so anywhere, but for other architectures
    FILE          one file

and {arch} is the machine's name in arch/.  A build that reads another file all
the same fetches it when it fails: see git.fetch_missing.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from xdplab.files import write_whole
from xdplab.tree import STATE, Tree

RECORD = Path(__file__).with_name("read.txt")

# What a sample of anybody's may include.  Where one of these isn't there, another of
# the same name is taken without a word: this machine's own, or what kbuild makes of
# asm-generic.  So is user space's where the kernel has a header for itself beside it.
# And the samples that the tree has are there to be read.
_API, _INTERNAL = "include/uapi/linux/", "include/linux/"
_ANY_SAMPLE = (_API, "arch/{arch}/include/", "tools/lib/bpf/", "samples/bpf/")

_GITS_OWN = (".gitattributes", ".gitignore")  # what git itself reads

_EVERYWHERE = 100  # directories: a name that is read in more of them is taken wherever it is
_SLACK = 2**18  # bytes: a directory whose unread files are less is taken as a whole

_ARCH = {"x86_64": "x86", "i686": "x86", "aarch64": "arm64", "ppc64le": "powerpc", "s390x": "s390"}


def chosen(names: Collection[str]) -> list[str]:
    """Those of a tree's files that a build reads, of all, by their names from its top."""
    internal = (_INTERNAL + name.removeprefix(_API) for name in names if name.startswith(_API))
    return matching(names, [*recorded(), *_ANY_SAMPLE, *internal, *_GITS_OWN])


def matching(names: Iterable[str], rows: Iterable[str]) -> list[str]:
    """Those of the names that a row has; one that ends in "/" has all below a directory."""
    here = {row.replace("{arch}", _arch()) for row in rows}
    directories = {row.removesuffix("/*") for row in here if row.endswith("/*")}
    anywhere = tuple(row[3:-1] for row in here if row.startswith("**/"))
    below = tuple(row for row in here if row.endswith("/"))

    def has(name: str) -> bool:
        directory, _, base = name.rpartition("/")
        return (
            name in here
            or directory in directories
            or name.startswith(below)
            or (base.startswith(anywhere) and concerns_here(name))
        )

    return list(filter(has, names))


def _arch() -> str:
    machine = os.uname().machine
    return _ARCH.get(machine, machine)


def concerns_here(name: str) -> bool:
    """Whether a file isn't another architecture's."""
    top, *below = name.split("/")
    return top != "arch" or len(below) < 2 or below[0] == _arch()


# ---- how it is found out


def watch(tree: Tree) -> Callable[[], set[str]]:
    """Gives what tells which files of the tree were read since: their access times moved.

    A file whose access is older than its change has it moved by every reader, also
    where a disk is mounted relatime (mount(8)); where it is noatime nothing is seen.
    Not for a checkout: git would take each file for changed, and read it.
    """
    sizes = _sizes(tree)
    for name in sizes:
        path = tree.path / name
        os.utime(path, ns=(0, path.stat().st_mtime_ns))

    def read() -> set[str]:
        there = (name for name in sizes if (tree.path / name).exists())
        return {name for name in there if (tree.path / name).stat().st_atime_ns}

    return read


def learn(tree: Tree, read: Collection[str], record: Path = RECORD) -> list[str]:
    """Add to the record what builds in a whole tree read and it hasn't got; gives the new rows."""
    rows, sizes = recorded(record), _sizes(tree)
    read = {name for name in read if not name.startswith(".")}  # a .config is somebody's own
    new = fold(read - set(matching(sizes, rows)), sizes)
    if new:
        write_whole(record, "".join(f"{row}\n" for row in sorted({*rows, *new})).encode())
    return new


def recorded(record: Path = RECORD) -> list[str]:
    """The rows on record."""
    return record.read_text().splitlines() if record.exists() else []


def fold(read: Collection[str], sizes: Mapping[str, int]) -> list[str]:
    """As few rows as reasonable that have these files, of a tree with files of these sizes.

    What is more than was read is what trees that nobody built yet may read instead.
    """
    arch = _arch()
    stems = Counter(_stem(name) for name in read)
    anywhere = {stem for stem, times in stems.items() if times > _EVERYWHERE}
    rows = {f"**/{stem}*" for stem in anywhere}
    unread: dict[str, int] = defaultdict(int)
    for name, size in sizes.items():
        unread[name.rpartition("/")[0]] += 0 if name in read else size
    for name in read:
        directory = name.rpartition("/")[0]
        here = concerns_here(name)
        if not (here and _stem(name) in anywhere):
            whole = here and directory and unread[directory] <= _SLACK
            row = f"{directory}/*" if whole else name
            rows.add(f"/{row}".replace(f"/{arch}/", "/{arch}/")[1:])
    return sorted(rows)


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def _sizes(tree: Tree) -> dict[str, int]:
    """Every file of the tree, and its bytes; not what links lead to."""
    found = {}
    for directory, below, files in os.walk(tree.path):
        if directory == str(tree.path):
            below[:] = [name for name in below if name not in (str(STATE), ".git")]
        for file in files:
            path = Path(directory, file)
            if not path.is_symlink():
                found[str(path.relative_to(tree.path))] = path.stat().st_size
    return found
