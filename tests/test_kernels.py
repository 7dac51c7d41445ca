"""`invoke kernels`: trees here and elsewhere, kernels that boot, for people and machines."""

from __future__ import annotations

import gzip
import json
import os
import platform
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, Invoke, make_fake_tree
from support import git

from xdplab.kernels import ListedKernel, State, bootable, packages, tagged
from xdplab.sources.distro import Offer
from xdplab.tree import Origin
from xdplab.version import KernelVersion

TREE = {
    "version": str, "source": str, "state": str, "path": str | None, "remote": str | None,
    "suite": str | None, "package": str | None, "package_version": str | None,
    "current": bool, "prepared": bool, "patched": bool, "samples": list,
}  # fmt: skip
KERNEL = {
    "release": str, "version": str | None, "state": str, "image": str | None,
    "bpf": bool | None, "suite": str | None, "package": str | None,
    "package_version": str | None,
}  # fmt: skip


def version(text: str) -> KernelVersion:
    return KernelVersion.parse(text)


@pytest.fixture
def no_suites(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose apt is configured for nothing."""
    configuration = tmp_path / "apt.conf"
    configuration.write_text(
        'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "/dev/null";\n'
    )
    return {"APT_CONFIG": str(configuration)}


@pytest.fixture
def remote(tmp_path: Path) -> str:
    """A repository with tags of kernels, old, new and to come."""
    repository = tmp_path / "remote"
    repository.mkdir()
    git(repository, "init", "--quiet")
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "Linux")
    for tag in ("v4.18", "v4.19", "v6.1-rc8", "v6.1", "v6.1.9", "v6.1.10", "v7.4-rc1", "v7.3"):
        git(repository, "tag", tag)
    return f"file://{repository}"


def inventory(invoke: Invoke, *options: str, env: dict[str, str]) -> dict[str, Any]:
    """What --json says, every object of it with every name that the documentation has."""
    outcome = invoke("kernels", "--json", *options, env=env)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    assert list(found) == ["schema", "trees", "kernels", "unanswered"]
    assert found["schema"] == 1
    documented = (PROJECT / "docs/readings.md").read_text()
    for fields, rows in ((TREE, found["trees"]), (KERNEL, found["kernels"])):
        assert all(f"`{name}`" in documented for name in fields)
        for row in rows:
            assert list(row) == list(fields)
            for name, kind in fields.items():
                assert isinstance(row[name], kind), name
    return found


# ---- the command


def test_where_there_is_nothing_the_running_kernel_is_left(
    invoke: Invoke, no_suites: dict[str, str]
) -> None:
    found = inventory(invoke, "--offline", env=no_suites)
    assert (found["trees"], found["unanswered"]) == ([], [])
    running = found["kernels"][0]
    assert (running["release"], running["state"]) == (platform.release(), "running")
    assert all(kernel["state"] == "installed" for kernel in found["kernels"][1:])
    assert not invoke.workspace.exists()


def test_offline_nobody_is_asked(invoke: Invoke, remote: str) -> None:
    outcome = invoke("kernels", "--offline", "--remote", remote)
    assert outcome.code == 0, outcome.err
    asking = ("ls-remote", "update --quiet", "download")
    assert not [command for command in outcome.commands() if any(map(command.count, asking))]
    assert "v7.3" not in outcome.out
    assert not invoke.workspace.exists()


def test_trees_that_are_here(
    invoke: Invoke, fake_tree: Path, tmp_path: Path, no_suites: dict[str, str]
) -> None:
    other = make_fake_tree(tmp_path / "other")
    subprocess.run(["tar", "caf", tmp_path / "x.tar.gz", "other"], cwd=tmp_path, check=True)
    setup = ("setup", "--source=tarball", "--kernel=6.1", "--remote", tmp_path / "x.tar.gz")
    for command in (setup, ("setup", "--tree", fake_tree), ("patch", "--tree", other)):
        assert invoke(*command).code == 0
    assert invoke("build", "--tree", fake_tree).code == 0
    trees = {row["path"]: row for row in inventory(invoke, "--offline", env=no_suites)["trees"]}
    assert set(trees) == {
        str(path) for path in (invoke.workspace / "trees/tarball-v6.1", fake_tree, other)
    }
    states = {
        row["source"]: [row[name] for name in ("current", "prepared", "patched", "samples")]
        for path, row in trees.items()
        if path != str(other)
    }
    assert states["tarball"] == [False, True, False, []]
    assert states["existing"] == [True, True, True, ["xdp_ip_filter"]]
    row = trees[str(other)]
    assert (row["prepared"], row["patched"], row["version"]) == (False, True, "6.1")
    assert {row["state"] for row in trees.values()} == {"here"}


def test_a_remotes_newest_releases_and_candidates(
    invoke: Invoke, remote: str, no_suites: dict[str, str]
) -> None:
    trees = inventory(invoke, "--remote", remote, env=no_suites)["trees"]
    assert [row["version"] for row in trees] == ["7.4-rc1", "7.3", "6.1.10", "4.19"]
    assert {(row["source"], row["state"], row["remote"]) for row in trees} == {
        ("git", "to be had", remote)
    }


def test_a_remote_out_of_reach_is_said_in_one_line(
    invoke: Invoke, no_suites: dict[str, str]
) -> None:
    found = inventory(invoke, "--remote=file:///nowhere/linux.git", env=no_suites)
    (said,) = found["unanswered"]
    assert said.startswith("file:///nowhere/linux.git can't be reached: ")
    assert found["trees"] == []
    outcome = invoke("kernels", "--remote=file:///nowhere/linux.git", env=no_suites)
    assert outcome.code == 0
    assert outcome.err.splitlines().count(said) == 1


def test_in_a_pipe_it_is_aligned_lines(
    invoke: Invoke, remote: str, no_suites: dict[str, str]
) -> None:
    lines = invoke("kernels", "--remote", remote, env=no_suites).out.splitlines()
    assert lines[0].split() == ["tree", "7.4-rc1", "git", "to", "be", "had", remote]
    assert all(line.startswith(("tree ", "kernel ")) for line in lines)
    columns = {line.index("git") for line in lines if line.startswith("tree")}
    columns |= {line.index("this machine") for line in lines if " this machine " in line}
    assert len(columns) == 1


def test_on_a_terminal_it_is_tables(workspace: Path, no_suites: dict[str, str]) -> None:
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "invoke", "kernels", "--offline"],
        cwd=PROJECT,
        env={**os.environ, **no_suites, "INVOKE_WORKSPACE": str(workspace), "COLUMNS": "120"},
        stdin=side,
        stdout=side,
        stderr=subprocess.DEVNULL,
    )
    os.close(side)
    shown = b""
    while chunk := _read(terminal):
        shown += chunk
    os.close(terminal)
    assert process.wait() == 0
    assert "│" in shown.decode()
    assert platform.release() in shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""


def test_a_reader_that_leaves_is_no_error(invoke: Invoke, no_suites: dict[str, str]) -> None:
    command = f"{sys.executable} -m invoke kernels --offline | true; exit ${{PIPESTATUS[0]}}"
    reader = subprocess.run(
        ["bash", "-c", command],
        cwd=PROJECT,
        env={**os.environ, **no_suites, "INVOKE_WORKSPACE": str(invoke.workspace)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (reader.returncode, "BrokenPipe" in reader.stderr) == (0, False)


@pytest.mark.tree
def test_the_distribution_is_asked_through_the_machines_own_mirror(
    trees_workspace: Path,
) -> None:
    found = inventory(Invoke(trees_workspace), "--remote=file:///nowhere", env={})
    offered = [row for row in found["trees"] if row["source"] == "distro" and row["suite"]]
    if not offered:
        pytest.skip(f"the distribution offers nothing here: {found['unanswered']}")
    versions = [version(row["version"]) for row in offered]
    assert versions == sorted(set(versions), reverse=True)
    for row in offered:
        assert version(row["package_version"]) == version(row["version"])
        assert row["package"].startswith("linux-source-")
    assert any(kernel["package"] for kernel in found["kernels"])
    again = inventory(Invoke(trees_workspace), "--offline", env={})
    assert [row for row in again["trees"] if row["suite"]] == offered


# ---- what is listed


def test_of_each_version_the_package_that_setup_takes_is_listed() -> None:
    offers = [
        Offer(version(number), f"linux-source-{version(number).series}", number, suite)
        for number, suite in (
            ("6.12.117-1~deb12u1", "bookworm-security"),
            ("6.12.117-1", "trixie"),
            ("6.12.118-1", "trixie-security"),
            ("7.3~rc7-1~exp1", "experimental"),
        )
    ]
    rows = [(str(tree.version), tree.offer) for tree in packages(offers)]
    assert rows == [("7.3-rc7", offers[3]), ("6.12.118", offers[2]), ("6.12.117", offers[0])]


@pytest.mark.parametrize(
    ("tags", "listed"),
    [
        ("", ""),
        ("v4.18.20 v4.18-rc1", ""),
        ("v4.19 v4.19.1 v4.20", "4.20 4.19.1"),
        ("v6.1 v6.2-rc1 v6.2-rc2 v6.1-rc8", "6.2-rc2 6.2-rc1 6.1"),
        ("v6.2-rc1", "6.2-rc1"),
        ("v6.2-rc1 v6.2", "6.2"),
    ],
)
def test_of_tags_the_newest_of_a_series_and_candidates_to_come(tags: str, listed: str) -> None:
    remotes = dict.fromkeys(map(version, tags.split()), "somewhere")
    trees = tagged(remotes)
    assert [str(tree.version) for tree in trees] == listed.split()
    assert {(tree.source, tree.remote) for tree in trees} <= {(Origin.GIT, "somewhere")}


def test_kernels_in_boot_and_what_their_configuration_says(tmp_path: Path) -> None:
    for name in ("6.1.0-47-amd64", "6.12.9+deb13-amd64", "linux", platform.release()):
        (tmp_path / f"vmlinuz-{name}").touch()
    (tmp_path / "config-6.1.0-47-amd64").write_text("CONFIG_BPF=y\nCONFIG_BPF_SYSCALL=y\n")
    (tmp_path / "config-6.12.9+deb13-amd64").write_text("# CONFIG_BPF_SYSCALL is not set\n")
    (tmp_path / f"config-{platform.release()}").write_text("CONFIG_BPF_SYSCALL=y\n")
    offer = Offer(version("6.1.170"), "linux-image-6.1.0-47-amd64", "6.1.170-3", "bookworm")
    running, *installed = bootable([offer], tmp_path)
    assert running.image == tmp_path / f"vmlinuz-{platform.release()}"
    assert (running.state, running.bpf) == (State.RUNNING, True)
    assert installed == [
        ListedKernel("6.12.9+deb13-amd64", version("6.12.9"), State.INSTALLED,
               tmp_path / "vmlinuz-6.12.9+deb13-amd64", bpf=False),
        ListedKernel("6.1.0-47-amd64", version("6.1"), State.INSTALLED,
               tmp_path / "vmlinuz-6.1.0-47-amd64", bpf=True),
        ListedKernel("linux", None, State.INSTALLED, tmp_path / "vmlinuz-linux"),
    ]  # fmt: skip


def test_without_a_boot_directory_the_running_kernel_is_listed(tmp_path: Path) -> None:
    (running,) = bootable([], tmp_path / "nowhere")
    assert (running.release, running.state, running.image) == (
        platform.release(), State.RUNNING, None,
    )  # fmt: skip


def test_the_running_kernels_own_configuration_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.gz"
    monkeypatch.setattr("xdplab.boot.config.RUNNING", config)
    for text, expected in (("CONFIG_BPF_SYSCALL=y\n", True), ("CONFIG_BPF=y\n", False)):
        config.write_bytes(gzip.compress(text.encode()))
        (running,) = bootable([], tmp_path)
        assert running.bpf is expected
    config.unlink()
    (running,) = bootable([], tmp_path)
    assert running.bpf is None
