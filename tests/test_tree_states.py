"""Trees that aren't to be written to now, or not by this user; and that git sees nothing of us."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused, make_fake_tree, no_root, snapshot
from support import git

COMMANDS = ("setup", "patch", "build")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A tree in git, and a branch that conflicts with the one that is checked out."""
    tree = make_fake_tree(tmp_path / "linux")
    git(tree, "init", "--initial-branch=master")
    commit(tree, "a release")
    git(tree, "checkout", "-b", "other")
    (tree / "Kbuild").write_text("# theirs\n")
    commit(tree, "theirs")
    git(tree, "checkout", "master")
    (tree / "Kbuild").write_text("# ours\n")
    commit(tree, "ours")
    return tree


def commit(tree: Path, message: str) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "--message", message)


def stops(tree: Path, *arguments: str) -> None:
    """Run a git command that ends in a conflict."""
    with pytest.raises(subprocess.CalledProcessError):
        git(tree, *arguments)


def apply_mail(tree: Path) -> None:
    mail = git(tree, "format-patch", "--stdout", "-1", "other")
    (tree.parent / "mail").write_text(mail)
    stops(tree, "am", str(tree.parent / "mail"))


UNDER_WAY: list[tuple[str, Callable[[Path], None]]] = [
    ("rebase", lambda tree: stops(tree, "rebase", "other")),
    ("rebase", lambda tree: stops(tree, "rebase", "--apply", "other")),
    ("am", apply_mail),
    ("merge", lambda tree: stops(tree, "merge", "other")),
    ("cherry-pick", lambda tree: stops(tree, "cherry-pick", "other")),
    ("revert", lambda tree: stops(tree, "revert", "other")),
]


@pytest.mark.parametrize(("operation", "begin"), UNDER_WAY)
def test_a_tree_in_the_middle_of_a_git_operation_is_left_alone(
    invoke: Invoke, repository: Path, operation: str, begin: Callable[[Path], None]
) -> None:
    begin(repository)
    before = snapshot(repository.parent)
    for command in (["setup"], ["patch"], ["build", "--mend"], ["--dry", "build"]):
        outcome = invoke(*command, "--tree", repository)
        assert_refused(
            outcome, 2, f"in the middle of a git {operation}",
            f"git {operation} --continue", f"git {operation} --abort",
        )  # fmt: skip
    assert snapshot(repository.parent) == before
    git(repository, operation, "--abort")
    assert invoke("build", "--tree", repository).code == 0


def test_in_a_worktree_too(invoke: Invoke, repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", str(tmp_path / "side"), "other")
    stops(tmp_path / "side", "merge", "master")
    assert_refused(invoke("build", "--tree", tmp_path / "side"), 2, "git merge --abort")
    assert invoke("build", "--tree", repository).code == 0  # nothing is under way there


def test_a_bisection_is_what_people_build_for(invoke: Invoke, repository: Path) -> None:
    git(repository, "bisect", "start", "HEAD", "HEAD~1")
    assert invoke("build", "--tree", repository).code == 0


# ---- git sees nothing


def test_git_says_of_a_dirty_tree_afterwards_what_it_said_before(
    invoke: Invoke, repository: Path
) -> None:
    (repository / "Kbuild").write_text("# edited\n")
    (repository / "samples/bpf/Makefile").write_text(
        (repository / "samples/bpf/Makefile").read_text() + "# edited\n"
    )
    (repository / "notes").write_text("mine\n")

    def said() -> list[str]:
        return [git(repository, *words) for words in (["status", "--porcelain"], ["diff"])]

    before = said()
    assert invoke("build", "--tree", repository).code == 0
    assert ".xdplab" not in said()[0]  # this .gitignore knows no dot files: there is none
    assert invoke("clean").code == 0
    assert said() == before


def test_the_repository_that_a_tree_lies_in_is_not_touched(invoke: Invoke, tmp_path: Path) -> None:
    project = tmp_path / "project"
    tree = make_fake_tree(project / "linux")
    git(project, "init")
    commit(project, "a project with a kernel in it")
    stops(project, "cherry-pick", "HEAD")  # its own affair: the tree is only somewhere in it
    before = snapshot(project / ".git")
    assert invoke("build", "--tree", tree).code == 0
    assert snapshot(project / ".git") == before
    assert ".xdplab" not in git(project, "status", "--porcelain", "--untracked-files=all")
    assert invoke("clean").code == 0
    assert git(project, "status", "--porcelain") == ""


# ---- whose


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a tree away")
@pytest.mark.parametrize(("number", "name"), [(65534, "nobody"), (54321, "#54321")])
@pytest.mark.parametrize("command", COMMANDS)
def test_root_does_not_work_in_another_users_tree(
    invoke: Invoke, tmp_path: Path, number: int, name: str, command: str
) -> None:
    tree = make_fake_tree(tmp_path / "linux")
    os.chown(tree, number, number)
    before = snapshot(tmp_path)
    outcome = invoke(command, "--tree", tree)
    assert_refused(outcome, 2, f"is {name}'s", f"run this as {name}", "copy the tree")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_disk(tmp_path: Path, command: str) -> None:
    tree = make_fake_tree(tmp_path / "linux")
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    under = ("unshare", "--mount", "sh", "-c", script, tree)
    if no_root() or subprocess.run([*under, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    before = snapshot(tmp_path)
    outcome = Invoke(tmp_path / "workspace")(command, "--tree", tree, under=under)
    assert_refused(outcome, 2, f"no permission for {tree}", "copy it")
    assert snapshot(tmp_path) == before
