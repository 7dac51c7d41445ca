"""`invoke setup`: each source, in whole and in pieces, and what is left when it fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import (
    Invoke,
    Outcome,
    assert_refused,
    contents,
    make_fake_tree,
    processes_in,
    snapshot,
    wait_until,
)
from support import TREES

from xdplab.files import locked

UNWANTED = "drivers/net/loopback.c"


def git(repository: Path, *arguments: str | Path) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.strip()


def serve(repository: Path) -> str:
    """Let a repository be fetched from as kernel.org's can be; gives its address."""
    git(repository, "config", "uploadpack.allowFilter", "true")
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    return f"file://{repository}"


@pytest.fixture
def remote(tmp_path: Path) -> str:
    """A repository of two commits and a few tags, at v6.1 the small tree."""
    repository = make_fake_tree(tmp_path / "remote")
    git(repository, "init", "--quiet")
    for tag in ("v5.9", "v5.10", "v6.2-rc1", "v6.2", "v6.12", "v6.1"):
        git(repository, "commit", "--quiet", "--allow-empty", "--message", f"Linux {tag}")
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "--allow-empty", "--amend", "--no-edit")
        git(repository, "tag", tag)
    return serve(repository)


def set_up(invoke: Invoke, *arguments: str | Path) -> Path:
    """Set a tree up, and check that it is whole: it can be patched, and is the current one."""
    outcome = invoke("setup", *arguments)
    assert outcome.code == 0, outcome.err
    tree = Path((invoke.workspace / "current").read_text().strip())
    assert (tree / ".config").read_text() == "CONFIG_64BIT=y\nCONFIG_MODULES=y\n"
    assert invoke("patch", "--show").out.startswith("--- a/samples/bpf/Makefile")
    assert outcome.out.startswith(f"{tree}: Linux 6.1")
    return tree


def trees(invoke: Invoke) -> list[str]:
    return [path.name for path in invoke.workspace.glob("trees/*")]


def without_locks(files: dict[str, tuple[int, int, int]]) -> dict[str, tuple[int, int, int]]:
    return {name: stat for name, stat in files.items() if not name.endswith("/lock")}


# ---- git


def test_git_fetches_one_commit_and_only_what_a_build_reads(invoke: Invoke, remote: str) -> None:
    tree = set_up(invoke, "--kernel=v6.1", "--source=git", "--remote", remote)
    assert git(tree, "describe", "--tags") == "v6.1"
    assert git(tree, "rev-list", "--count", "HEAD") == "1"
    assert not (tree / UNWANTED).exists()
    objects = git(tree, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split()
    assert git(tree, "rev-parse", "HEAD:Makefile") in objects
    assert git(tree, "rev-parse", f"HEAD:{UNWANTED}") not in objects


def test_git_status_is_clean_in_a_fetched_tree(invoke: Invoke, remote: str) -> None:
    tree = set_up(invoke, "--kernel=v6.1", "--source=git", "--remote", remote)
    changed = git(tree, "status", "--porcelain", "--untracked-files=no")
    assert changed == ""


@pytest.mark.parametrize("again", [["--kernel=v6.1"], ["--kernel=6.1", "--source=git"]])
def test_a_second_setup_does_nothing(invoke: Invoke, remote: str, again: list[str]) -> None:
    first = invoke("setup", "--kernel=v6.1", "--source=git", "--remote", remote)
    before = snapshot(invoke.workspace)
    second = invoke("setup", *again)
    assert second == Outcome(0, first.out, "")
    assert without_locks(snapshot(invoke.workspace)) == without_locks(before)


def test_a_build_that_misses_a_file_fetches_it_and_says_so(invoke: Invoke, remote: str) -> None:
    repository = Path(remote.removeprefix("file://"))
    top = repository / "Makefile"
    top.write_text(top.read_text().replace("test -f .config", f"cat {UNWANTED}"))
    git(repository, "commit", "--quiet", "--all", "--message", "Linux v6.1.1")
    git(repository, "tag", "--force", "v6.1")
    outcome = invoke("setup", "--kernel=v6.1", "--source=git", "--remote", remote)
    assert outcome.code == 0, outcome.err
    assert f"not fetched with the tree: {UNWANTED}" in outcome.err
    assert (invoke.workspace / "trees/git-v6.1" / UNWANTED).exists()
    assert len([line for line in outcome.commands() if "--stdin origin" in line]) == 2


def test_a_second_version_shares_the_first_ones_repository(invoke: Invoke, remote: str) -> None:
    for kernel in ("v6.2", "v6.1"):
        outcome = invoke("setup", "--kernel", kernel, "--source=git", "--remote", remote)
        # the small tree says 6.1 in every version
        assert outcome.code == (0 if kernel == "v6.1" else 69), outcome.err
    assert not [line for line in outcome.commands() if "--stdin origin" in line]
    assert len(list(invoke.workspace.glob("git/*"))) == 1
    assert invoke("clean", "--trees").code == 0
    assert not invoke.workspace.exists()


def test_a_version_that_the_remote_lacks(invoke: Invoke, remote: str) -> None:
    outcome = invoke("setup", "--kernel=v6.0", "--source=git", "--remote", remote)
    assert_refused(outcome, 69, "v6.0", "v5.10, v6.1, v6.2-rc1", "--kernel")
    assert invoke("build").code == 2  # no tree is set up


def test_a_remote_that_is_not_there(invoke: Invoke, tmp_path: Path) -> None:
    nowhere = f"file://{tmp_path}/nowhere"
    outcome = invoke("setup", "--kernel=v6.1", "--source=git", "--remote", nowhere)
    assert_refused(outcome, 69, nowhere, "can't be reached", "--source distro")
    set_up(invoke, "--tree", make_fake_tree(tmp_path / "linux"))


def test_a_remote_that_is_a_command_is_not_run(invoke: Invoke, tmp_path: Path) -> None:
    remote = f"ext::sh -c touch% {tmp_path}/executed"
    outcome = invoke("setup", "--kernel=v6.1", "--source=git", "--remote", remote)
    assert not (tmp_path / "executed").exists()
    assert_refused(outcome, 69, "ext")


@pytest.mark.tree
def test_auto_takes_the_distributions_package_where_the_remote_is_out_of_reach(
    invoke: Invoke, trees_workspace: Path, fetched: Callable[[str], Path]
) -> None:
    fetched("6.1")
    shutil.copytree(trees_workspace / "downloads", invoke.workspace / "downloads")
    outcome = invoke("setup", "--kernel=6.1", "--remote=file:///nowhere/linux.git")
    assert outcome.code == 0, outcome.err
    assert "file:///nowhere/linux.git can't be reached" in outcome.err
    assert "taking the distribution's package instead" in outcome.err
    assert "from distro; it says tprogs-y" in outcome.out
    assert "distro-6.1" in trees(invoke)


@pytest.mark.tree
def test_a_release_that_the_distribution_has_no_longer(
    invoke: Invoke, fetched: Callable[[str], Path]
) -> None:
    fetched("6.1")  # or why not
    outcome = invoke("setup", "--kernel=6.1.1", "--source=distro")
    assert_refused(outcome, 69, "the distribution has no v6.1.1; it has v", ", v6.1.", "--kernel")
    assert not any("download" in command for command in outcome.commands())


# ---- tarballs


def pack(tarball: Path, *tops: Path) -> Path:
    names = [top.name for top in tops]
    subprocess.run(["tar", "caf", tarball, *names], cwd=tops[0].parent, check=True)
    return tarball


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2"])
def test_a_tarball_that_is_a_file(
    invoke: Invoke, fake_tree: Path, tmp_path: Path, suffix: str
) -> None:
    tarball = pack(tmp_path / f"linux.tar.{suffix}", fake_tree)
    set_up(invoke, "--kernel=6.1", "--source=tarball", "--remote", tarball)
    assert trees(invoke) == ["tarball-v6.1"]


def test_a_tarball_that_is_downloaded(invoke: Invoke, fake_tree: Path, tmp_path: Path) -> None:
    tarball = pack(tmp_path / "linux.tar.gz", fake_tree)
    set_up(invoke, "--kernel=6.1", "--source=tarball", "--remote", f"file://{tarball}")
    (download,) = invoke.workspace.glob("downloads/*/linux.tar.gz")
    assert download.read_bytes() == tarball.read_bytes()


def test_a_tarball_decides_on_the_version_if_nobody_does(
    invoke: Invoke, fake_tree: Path, tmp_path: Path
) -> None:
    tarball = pack(tmp_path / "mine.tar.gz", fake_tree)
    command = ("setup", "--source=tarball", "--remote", tarball)
    outcome = invoke(*command, env={"INVOKE_KERNEL": "v5.10"})
    assert outcome.code == 0, outcome.err
    (tree,) = trees(invoke)
    assert tree.startswith("tarball-mine.tar.gz-")
    assert invoke(*command) == Outcome(0, outcome.out, "")


def test_a_tarball_of_another_version(invoke: Invoke, fake_tree: Path, tmp_path: Path) -> None:
    tarball = pack(tmp_path / "linux.tar.gz", fake_tree)
    outcome = invoke("setup", "--kernel=6.1.7", "--source=tarball", "--remote", tarball)
    assert_refused(outcome, 69, "v6.1.7", "it has 6.1", "--kernel")
    assert trees(invoke) == []


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "two tops", "no kernel", "gone"])
def test_a_tarball_that_is_no_kernels(
    invoke: Invoke, fake_tree: Path, tmp_path: Path, damage: str
) -> None:
    tarball = pack(tmp_path / "linux.tar.gz", fake_tree)
    if damage == "truncated":
        os.truncate(tarball, tarball.stat().st_size // 2)
    elif damage == "text":
        tarball.write_text("404 not found\n")
    elif damage == "empty":
        tarball.write_bytes(b"")
    elif damage == "two tops":
        pack(tarball, fake_tree, make_fake_tree(tmp_path / "another"))
    elif damage == "no kernel":
        (fake_tree / "samples/bpf/Makefile").unlink()
        pack(tarball, fake_tree)
    else:
        tarball.unlink()
    outcome = invoke("setup", "--kernel=6.1", "--source=tarball", "--remote", tarball)
    assert_refused(outcome, 2)
    assert trees(invoke) == []


# ---- a tree of the user's own


def test_a_users_configuration_is_used_as_it_is(invoke: Invoke, fake_tree: Path) -> None:
    config = fake_tree / ".config"
    config.write_text("# mine\nCONFIG_64BIT=y\n")
    config.chmod(0o600)
    before = snapshot(config)
    outcome = invoke("setup", "--tree", fake_tree)
    assert outcome.code == 0, outcome.err
    assert snapshot(config) == before
    assert not any("allnoconfig" in command for command in outcome.commands())
    assert any("prepare0" in command for command in outcome.commands())


def test_setup_patches_what_todays_tools_refuse_and_says_so(
    invoke: Invoke, fake_tree: Path
) -> None:
    top = fake_tree / "Makefile"
    top.write_text(top.read_text().replace("VERSION = 6", "VERSION = 5"))  # v5.1
    shutil.copytree(TREES / "linux-5.0/scripts/dtc", fake_tree / "scripts/dtc")
    before = contents(fake_tree)
    outcome = invoke("setup", "--tree", fake_tree)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("patched ") == 1
    assert "patched scripts/dtc/dtc-lexer.l: gcc 10 refuses dtc's second yylloc" in outcome.err
    lexer = "scripts/dtc/dtc-lexer.l"
    assert contents(fake_tree)[lexer] != before[lexer]
    assert "patched" not in invoke("setup", "--tree", fake_tree).err
    assert invoke("patch", "--tree", fake_tree, "--revert").code == 0
    assert contents(fake_tree)[lexer] == before[lexer]


def test_clean_removes_nothing_that_is_being_fetched(invoke: Invoke, fake_tree: Path) -> None:
    assert invoke("setup", "--tree", fake_tree).code == 0
    with locked(invoke.workspace / "locks/git-v6.1/lock"):
        who = f"process {os.getpid()} "
        assert_refused(invoke("clean", "--trees"), 69, "git-v6.1", who, "since")
        assert (invoke.workspace / "current").exists()
    assert invoke("clean", "--trees").code == 0
    assert not invoke.workspace.exists()


def test_clean_gives_a_users_tree_back_as_it_was(invoke: Invoke, fake_tree: Path) -> None:
    before = contents(fake_tree)
    set_up(invoke, "--tree", fake_tree)
    assert invoke("build").code == 0
    assert invoke("clean", "--trees").code == 0
    assert contents(fake_tree) == before


# ---- ended in the middle


MOMENTS = ("fetch --progress --depth=1", "--stdin origin", "worktree add", "prepare0")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_in_the_middle_it_goes_on_when_called_again(
    invoke: Invoke, remote: str, moment: str, end: signal.Signals
) -> None:
    setup = ["--kernel=v6.1", "--source=git", "--remote", remote]
    with invoke.start("setup", *setup, env={"PAUSE": "sleep 9"}) as background:
        wait_until(lambda: moment in background.err)
        background.process.send_signal(end)
        outcome = background.wait()
    assert outcome.code == (-end if end == signal.SIGKILL else 130)
    assert "Traceback" not in outcome.err
    wait_until(lambda: not processes_in(invoke.workspace))
    set_up(invoke, *setup)
    assert trees(invoke) == ["git-v6.1"]


def test_ctrl_c_says_how_to_go_on(invoke: Invoke, fake_tree: Path) -> None:
    with invoke.start("setup", "--tree", fake_tree, env={"PAUSE": "sleep 9"}) as background:
        wait_until(lambda: len(processes_in(fake_tree)) > 1)  # make, and what it called
        outcome = background.interrupt()
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "interrupted: the same command goes on from here"
    assert not processes_in(fake_tree)


# ---- the real thing


@pytest.fixture(scope="session")
def real_remote(trees_workspace: Path, fetched: Callable[[str], Path]) -> str:
    """A repository of one commit, tagged v6.1: the distribution's tree as it was packed."""
    fetched("6.1")
    repository = trees_workspace / "linux-6.1.git"
    if not repository.exists():
        (package,) = (trees_workspace / "downloads").glob("linux-source-6.1_*.deb")
        scratch = trees_workspace / "linux-6.1.git.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        subprocess.run(["dpkg-deb", "--extract", package, scratch], check=True)
        (tarball,) = scratch.glob("usr/src/*.tar.xz")
        subprocess.run(["tar", "xf", tarball, "--strip-components=1"], cwd=scratch, check=True)
        shutil.rmtree(scratch / "usr/src")
        git(scratch, "init", "--quiet")
        git(scratch, "-c", "core.compression=1", "add", "--force", "--all")
        git(scratch, "commit", "--quiet", "--message", "Linux 6.1")
        git(scratch, "tag", "v6.1")
        serve(scratch / ".git")
        (scratch / ".git").rename(repository)
        shutil.rmtree(scratch)
    return f"file://{repository}"


@pytest.mark.tree
def test_the_sparse_tree_is_enough_to_build_the_pair(invoke: Invoke, real_remote: str) -> None:
    outcome = invoke("setup", "--kernel=v6.1", "--source=git", "--remote", real_remote)
    assert outcome.code == 0, outcome.err
    assert "from git; it says tprogs-y and always-y" in outcome.out
    outcome = invoke("build")
    assert outcome.code == 0, outcome.err
    tree = invoke.workspace / "trees/git-v6.1"
    assert len(git(tree, "ls-files", "-t").split("\nH ")) < 10_000  # of some 80,000
    assert invoke("clean").code == 0
    assert git(tree, "status", "--porcelain") == ""
