"""scripts/bootstrap, run for real; no test here lets it install a package."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
GROUPS = {"build", "run", "vm", "dev", "cluster", "fuzz"}
FUZZ = "requirements-fuzz.lock"
LOCKS = ("requirements.lock", "requirements-cluster.lock", FUZZ)
MANAGERS = ("apt", "dnf", "pacman", "zypper")
BASH_SCRIPTS = sorted(
    script for script in SCRIPTS.iterdir() if script.read_text().startswith("#!/usr/bin/env bash\n")
)
AS_NOBODY = ("unshare", "--user")  # no user is mapped, so not even root is root in there


def bootstrap(
    checkout: Path, *arguments: str, path: str | None = None, under: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*under, str(checkout / "scripts/bootstrap"), *arguments],
        cwd="/",
        env={**os.environ, "PATH": path or os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def path_without(directory: Path, *hidden: str) -> str:
    """Return a PATH that leads to all that this one leads to, but for the hidden commands."""
    for name in hidden:
        if shutil.which(name, path="/usr/sbin:/sbin"):
            pytest.skip(f"{name} is in a directory that bootstrap always looks in")
    directory.mkdir()
    for folder in filter(os.path.isdir, os.get_exec_path()):
        for command in Path(folder).iterdir():
            link = directory / command.name
            if command.name not in hidden and not link.is_symlink():
                link.symlink_to(command)
    return str(directory)


def rows() -> list[list[str]]:
    lines = (SCRIPTS / "packages").read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing to install but empty locks."""
    checkout = tmp_path / "a check out"
    shutil.copytree(SCRIPTS, checkout / "scripts")
    (checkout / "scripts/packages").write_text("")
    for lock in LOCKS:
        (checkout / lock).write_text("")
    return checkout


@pytest.fixture
def bare_checkout(checkout: Path) -> Path:
    """A checkout with the real table of packages."""
    shutil.copy(SCRIPTS / "packages", checkout / "scripts/packages")
    return checkout


def test_check_names_what_is_missing_and_its_package(bare_checkout: Path, tmp_path: Path) -> None:
    path = path_without(tmp_path / "bin", "clang", "llc")
    result = bootstrap(bare_checkout, "--check", "build", path=path)
    assert result.returncode == 1
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["clang", "clang"] in lines
    assert ["llc", "llvm"] in lines
    assert not (bare_checkout / ".venv").exists()


def test_check_looks_at_the_named_groups_only(bare_checkout: Path, tmp_path: Path) -> None:
    path = path_without(tmp_path / "bin", "clang", "shellcheck")
    result = bootstrap(bare_checkout, "--check", "dev", path=path)
    assert result.returncode == 1
    assert "shellcheck" in result.stdout
    assert "clang" not in result.stdout


def test_unknown_group(checkout: Path) -> None:
    result = bootstrap(checkout, "build", "biuld")
    assert result.returncode == 2
    assert "biuld" in result.stderr
    assert set(result.stderr.split()) >= GROUPS


def test_without_a_known_package_manager(bare_checkout: Path, tmp_path: Path) -> None:
    path = path_without(tmp_path / "bin", "clang", *MANAGERS)
    result = bootstrap(bare_checkout, "build", path=path)
    assert result.returncode == 69
    assert "clang" in result.stdout
    assert all(manager in result.stderr for manager in MANAGERS)


@pytest.mark.skipif(
    subprocess.run([*AS_NOBODY, "true"], capture_output=True, check=False).returncode != 0,
    reason="user namespaces are not allowed here",
)
@pytest.mark.skipif(not any(map(shutil.which, MANAGERS)), reason="no package manager here")
def test_neither_root_nor_sudo(bare_checkout: Path, tmp_path: Path) -> None:
    path = path_without(tmp_path / "bin", "clang", "sudo")
    result = bootstrap(bare_checkout, "build", path=path, under=AS_NOBODY)
    assert result.returncode == 69
    assert "administrator" in result.stderr
    assert "clang" in result.stderr.split()


def test_second_run_leaves_the_venv_alone(checkout: Path) -> None:
    first = bootstrap(checkout)
    assert first.returncode == 0, first.stderr
    stamp = checkout / ".venv/stamp"
    made = stamp.stat().st_mtime_ns
    assert bootstrap(checkout).returncode == 0
    assert bootstrap(checkout, "--check").returncode == 0
    assert stamp.stat().st_mtime_ns == made

    lock = checkout / "requirements.lock"
    lock.write_text("# changed\n")
    assert bootstrap(checkout, "--check").returncode == 1
    lock.write_text("")
    assert bootstrap(checkout, "--check").returncode == 0
    moved = checkout.rename(checkout.with_name("moved"))
    assert bootstrap(moved, "--check").returncode == 1


def test_dasks_library_is_installed_when_it_is_wanted_and_stays(checkout: Path) -> None:
    plain, cluster, _ = LOCKS
    assert f"making .venv from {plain}\n" in bootstrap(checkout).stdout
    assert f"from this {cluster}" in bootstrap(checkout, "--check", "cluster").stdout
    assert f"making .venv from {cluster}\n" in bootstrap(checkout, "cluster").stdout
    for groups in ((), ("build",), ("cluster",)):
        assert "making" not in bootstrap(checkout, *groups).stdout
    (checkout / cluster).write_text("# changed\n")
    assert f"making .venv from {cluster}\n" in bootstrap(checkout, "build").stdout


@pytest.mark.parametrize("lock", LOCKS[:2])
def test_the_fuzzer_comes_on_top_when_it_is_wanted_and_stays(lock: str, checkout: Path) -> None:
    other = ["cluster"] if lock != LOCKS[0] else []
    assert f"making .venv from {lock}\n" in bootstrap(checkout, *other).stdout
    assert f"making .venv from {lock} {FUZZ}\n" in bootstrap(checkout, "fuzz").stdout
    assert "making" not in bootstrap(checkout, "build").stdout
    (checkout / FUZZ).write_text("# changed\n")
    assert f"making .venv from {lock} {FUZZ}\n" in bootstrap(checkout).stdout


def test_the_locks_agree() -> None:
    plain, cluster, fuzz = (
        set(re.findall(r"^[\w.-]+==\S+", (SCRIPTS.parent / lock).read_text(), re.MULTILINE))
        for lock in LOCKS
    )
    assert plain < cluster
    assert {pin.partition("==")[0] for pin in fuzz} == {"atheris"}
    assert {pin.partition("==")[0] for pin in cluster - plain} >= {"dask", "distributed"}
    assert not {pin.partition("==")[0] for pin in plain} & {"dask", "distributed"}


def test_broken_venv_is_made_anew(checkout: Path) -> None:
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/nonexistent")  # as when the distribution's Python has moved on
    (checkout / ".venv/left-over").touch()
    assert bootstrap(checkout, "--check").returncode == 1
    assert bootstrap(checkout).returncode == 0
    subprocess.run([python, "-m", "pip", "--version"], check=True, capture_output=True)
    assert not (checkout / ".venv/left-over").exists()


def test_requirement_without_hash_is_refused(checkout: Path) -> None:
    (checkout / "requirements.lock").write_text("invoke==2.2.0\n")
    result = bootstrap(checkout)
    assert result.returncode == 69
    assert "hash" in result.stderr
    assert bootstrap(checkout, "--check").returncode == 1


def test_table_is_complete() -> None:
    for row in rows():
        assert len(row) == 2 + len(MANAGERS), row
        assert set(row[0].split(",")) <= GROUPS, row
        # they end up in a shell's command
        assert all(re.fullmatch(r"[A-Za-z0-9.+-]+", package) for package in row[2:]), row
    things = [row[1] for row in rows()]
    assert len(things) == len(set(things))
    assert {group for row in rows() for group in row[0].split(",")} == GROUPS


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", BASH_SCRIPTS, ids=lambda script: script.name)
def test_shellcheck(script: Path) -> None:
    result = subprocess.run(
        ["shellcheck", str(script)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
