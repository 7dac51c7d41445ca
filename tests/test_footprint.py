"""What builds leave in a tree, and only that, is taken out again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xdplab import footprint
from xdplab.tree import Tree
from xdplab.workspace import PROJECT

FIXTURE = Path(__file__).parent / "trees/linux-6.1"

KILLED = """
import os, signal, sys
from pathlib import Path
from xdplab import footprint
from xdplab.tree import Tree
tree, log = Tree.at(Path(sys.argv[1])), Path(sys.argv[2])
with footprint.recorded(tree, *sys.argv[3:], log=log):
    (tree.samples / "made.o").write_text("made")
    log.write_text("CC made.o")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree.at(shutil.copytree(FIXTURE, tmp_path / "linux"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "build.log"


def files(tree: Tree) -> set[str]:
    return {
        str(path.relative_to(tree.path))
        for path in tree.path.rglob("*")
        if path.is_file() and ".xdplab" not in path.parts
    }


def kill_in_the_middle(tree: Tree, log: Path, *below: str) -> None:
    command: list[str | Path] = [sys.executable, "-c", KILLED, tree.path, log, *below]
    assert subprocess.run(command, cwd=PROJECT, check=False).returncode == -9


def later(path: Path, log: Path) -> None:
    """Write a file as long after the kill as a person takes: the log is that much older."""
    path.write_text("mine")
    os.utime(log, (path.stat().st_mtime - 60, path.stat().st_mtime - 60))


def test_what_is_made_is_removed_and_nothing_else(tree: Tree, log: Path) -> None:
    before = files(tree)
    with footprint.recorded(tree, "", log=log):
        (tree.path / "include/generated").mkdir(parents=True)
        (tree.path / "include/generated/a.h").write_text("")
    assert footprint.remove(tree) == (1, [])
    assert files(tree) == before
    assert not (tree.path / "include").exists()


def test_a_directory_goes_if_it_is_empty_and_was_made_meanwhile(tree: Tree, log: Path) -> None:
    theirs = tree.path / "theirs"
    theirs.mkdir()
    with footprint.recorded(tree, "", log=log):
        for name in ("empty/below", "used"):
            (tree.path / name).mkdir(parents=True)
    (tree.path / "used/mine").write_text("the user's")
    assert footprint.remove(tree) == (0, [])
    assert theirs.exists()
    assert not (tree.path / "empty").exists()
    assert (tree.path / "used/mine").read_text() == "the user's"


def test_what_a_killed_process_made_is_removed_too(tree: Tree, log: Path) -> None:
    before = files(tree)
    kill_in_the_middle(tree, log, "samples/bpf")
    with footprint.recorded(tree, "samples/bpf", log=log):
        pass
    assert footprint.remove(tree) == (1, [])
    assert files(tree) == before


def test_a_half_made_library_goes_and_a_program_of_such_a_name_stays(tree: Tree, log: Path) -> None:
    theirs, left = (tree.path / "tools/lib/bpf" / name for name in ("stTheirs", "stAB12cd"))
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.touch()
    with footprint.recorded(tree, "samples/bpf", "tools/lib", log=log):
        for path in (left, tree.samples / "stfilter"):
            path.touch()
    assert not left.exists()
    assert theirs.exists()
    assert footprint.made(tree) == ["samples/bpf/stfilter"]


def test_clean_right_after_a_kill_finds_what_was_made(tree: Tree, log: Path) -> None:
    before = files(tree)
    kill_in_the_middle(tree, log, "samples/bpf")
    footprint.remove(tree)
    assert files(tree) == before


def test_a_killed_process_that_saw_less_makes_nobodys_files_ours(tree: Tree, log: Path) -> None:
    before = files(tree)
    kill_in_the_middle(tree, log, "samples/bpf")
    with footprint.recorded(tree, "", log=log):  # sees all of the tree
        pass
    footprint.remove(tree)
    assert files(tree) == before


def test_files_that_came_after_the_kill_are_the_users(tree: Tree, log: Path) -> None:
    kill_in_the_middle(tree, log, "samples/bpf")
    later(tree.samples / "mine.c", log)
    with footprint.recorded(tree, "samples/bpf", log=log):
        pass
    footprint.remove(tree)
    assert (tree.samples / "mine.c").read_text() == "mine"


def test_a_file_that_the_user_wrote_to_since_is_left(tree: Tree, log: Path) -> None:
    config = tree.path / ".config"
    with footprint.recorded(tree, "", log=log):
        config.write_text("ours")
    config.write_text("the user's")
    with footprint.recorded(tree, "", log=log):
        pass  # a build that doesn't touch it makes it no more ours
    assert footprint.remove(tree) == (0, [])
    assert config.read_text() == "the user's"
