"""Trees that were damaged on their way: seen before anything is written, mended, brought back."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused, make_fake_tree, snapshot
from hypothesis import given
from hypothesis import strategies as st
from support import ERAS, TREES, git

from xdplab import damage, lifecycle
from xdplab.damage import EVERY_TREE, KINDS, File, Kind, Look
from xdplab.process import Shell
from xdplab.tree import STATE, Tree
from xdplab.workspace import PROJECT

WHOLE = Look((), ())

SCRIPT = "#!/bin/sh\necho 120000\n"
EXECUTABLE = ("scripts/cc-version.sh", "scripts/setlocalversion", "arch/x86/tools/relocs.sh")
NOT_EXECUTABLE = "scripts/nsdeps"  # upstream's too, amid many that are


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A small tree whose make calls a script, as Kconfig does."""
    tree = make_fake_tree(tmp_path / "linux")
    for name in (*EXECUTABLE, NOT_EXECUTABLE):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(SCRIPT)
    for name in EXECUTABLE:
        (tree / name).chmod(0o755)
    with (tree / "Makefile").open("a") as file:
        file.write("allnoconfig: version\nversion:\n> @./scripts/cc-version.sh\n")
    (tree / "Kconfig").write_text('mainmenu "Tests"\n')
    (tree / "scripts/logo.bin").write_bytes(b"a\r\n\0b\r\n")
    (tree / "scripts/mixed.txt").write_bytes(b"a\r\nb\n")
    return tree


def lose_exec_bits(tree: Path) -> None:
    for name in EXECUTABLE:
        (tree / name).chmod(0o640)


def gain_carriage_returns(tree: Path) -> None:
    for path in tree.rglob("*"):
        if path.is_file() and path.name not in ("logo.bin", "mixed.txt"):
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def both(tree: Path) -> None:
    lose_exec_bits(tree)
    gain_carriage_returns(tree)


DAMAGE = pytest.mark.parametrize(
    "hurt", [lose_exec_bits, gain_carriage_returns, both], ids=lambda hurt: hurt.__name__
)
Hurt = Callable[[Path], None]


def state(tree: Path) -> dict[str, tuple[int, bytes]]:
    """All files of the tree but the harness's own: their modes, and their bytes."""
    return {
        str(path.relative_to(tree)): (path.stat().st_mode, path.read_bytes())
        for path in tree.rglob("*")
        if path.is_file() and not {str(STATE), ".git"} & set(path.relative_to(tree).parts)
    }


def look(path: Path) -> Look:
    return damage.look(Tree.at(path))


def mend(path: Path) -> None:
    damage.mend(Tree.at(path), Shell(), lambda _: None)


def revert(path: Path) -> list[str]:
    """Take everything back; gives what was done."""
    return lifecycle.revert(Tree.at(path))


# ---- healthy trees


@pytest.mark.parametrize("era", ERAS)
def test_a_healthy_tree_of_any_era_is_not_flagged(era: str, tmp_path: Path) -> None:
    tree = Path(shutil.copytree(TREES / era, tmp_path / era))
    for name in EVERY_TREE:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    assert look(tree) == WHOLE


def test_what_a_healthy_tree_has_of_its_own_is_not_flagged(linux: Path) -> None:
    (linux / "Makefile").write_text(
        (linux / "Makefile").read_text()
        + "-include scripts/Makefile.local\n"
        + "include scripts/Makefile.$(KIND)\n"
        + "include $(srctree)/include/config/auto.conf\n"
    )
    assert look(linux) == WHOLE


def test_there_is_nothing_to_mend_in_a_healthy_tree(invoke: Invoke, linux: Path) -> None:
    before = state(linux)
    for command in ("setup", "build"):
        outcome = invoke(command, "--mend", "--tree", linux)
        assert outcome.code == 0, outcome.err
        assert "nothing to mend" in outcome.err
    after = state(linux)
    assert {name: after[name] for name in before if name != "samples/bpf/Makefile"} == {
        name: before[name] for name in before if name != "samples/bpf/Makefile"
    }


# ---- refused, shown, mended, brought back


@DAMAGE
@pytest.mark.parametrize("command", ["setup", "build"])
@pytest.mark.parametrize("dry", [False, True], ids=["", "dry"])
def test_a_damaged_tree_is_refused_and_nothing_written(
    invoke: Invoke, linux: Path, hurt: Hurt, command: str, dry: bool
) -> None:
    hurt(linux)
    before = snapshot(linux.parent)
    outcome = invoke(*(["--dry"] if dry else []), command, "--tree", linux)
    assert_refused(outcome, 2, "is damaged", "--mend", "invoke patch --revert")
    assert not outcome.commands()
    assert snapshot(linux.parent) == before


@pytest.mark.parametrize(
    ("hurt", "words"),
    [
        (lose_exec_bits, "4 scripts without their exec bits, arch/x86/tools/relocs.sh first"),
        (gain_carriage_returns, "files with CRLF line ends, Kbuild"),
    ],
)
def test_how_many_files_are_hurt_and_the_first_is_told(
    invoke: Invoke, linux: Path, hurt: Hurt, words: str
) -> None:
    (linux / "Kbuild").write_text("# empty\n")
    hurt(linux)
    assert_refused(invoke("setup", "--tree", linux), 2, words)


@DAMAGE
def test_a_dry_mend_changes_nothing_and_says_what_it_would_do(
    invoke: Invoke, linux: Path, hurt: Hurt
) -> None:
    hurt(linux)
    before = snapshot(linux.parent)
    outcome = invoke("--dry", "setup", "--mend", "--tree", linux)
    assert outcome.code == 0, outcome.err
    assert "would mend " in outcome.err
    assert snapshot(linux.parent) == before


@DAMAGE
@pytest.mark.parametrize("undo", [["patch", "--revert"], ["clean"]], ids=" ".join)
def test_a_mended_tree_is_built_and_brought_back_exactly(
    invoke: Invoke, linux: Path, hurt: Hurt, undo: list[str]
) -> None:
    hurt(linux)
    before = state(linux)
    outcome = invoke("setup", "--mend", "--tree", linux)
    assert outcome.code == 0, outcome.err
    assert "mended " in outcome.err
    assert look(linux) == WHOLE
    assert invoke("build").code == 0  # without being told again
    assert invoke("build", "--mend").code == 0
    outcome = invoke(*undo)
    assert outcome.code == 0, outcome.err
    assert "mended files" in outcome.err
    after = state(linux)
    assert {name: after[name] for name in before} == before
    if undo == ["clean"]:
        assert after == before
        assert not (linux / STATE).exists()


@DAMAGE
def test_what_was_patched_and_built_before_is_brought_back_in_order(
    invoke: Invoke, linux: Path, tmp_path: Path, hurt: Hurt
) -> None:
    hurt(twin := Path(shutil.copytree(linux, tmp_path / "twin")))
    assert invoke("build", "--tree", linux).code == 0
    hurt(linux)  # a checkout by another system's git, say
    assert invoke("build", "--mend", "--tree", linux).code == 0
    outcome = invoke("clean")
    assert outcome.code == 0, outcome.err
    assert state(linux).items() >= state(twin).items()


def test_a_patch_in_a_tree_with_carriage_returns_is_no_obstacle(
    invoke: Invoke, linux: Path
) -> None:
    gain_carriage_returns(linux)
    before = state(linux)
    assert invoke("patch", "--tree", linux).code == 0
    assert invoke("build", "--mend", "--tree", linux).code == 0
    assert invoke("clean").code == 0
    assert state(linux) == before


def test_what_a_build_was_made_from_is_in_its_record(invoke: Invoke, linux: Path) -> None:
    lose_exec_bits(linux)
    assert invoke("build", "--mend", "--tree", linux).code == 0
    (record,) = invoke.workspace.glob("builds/*/xdp_ip_filter/build.json")
    assert '"4 scripts without their exec bits' in record.read_text()


@DAMAGE
def test_another_tree_of_the_same_files_is_not_mended_along(
    linux: Path, tmp_path: Path, hurt: Hurt
) -> None:
    hurt(linux)
    subprocess.run(["cp", "-al", linux, tmp_path / "other"], check=True)
    before = state(tmp_path / "other")
    mend(linux)
    assert look(linux) == WHOLE
    assert state(tmp_path / "other") == before


# ---- what others did since


@DAMAGE
@pytest.mark.parametrize("name", EXECUTABLE[:2])
def test_a_file_that_was_edited_since_is_left_and_named(linux: Path, hurt: Hurt, name: str) -> None:
    hurt(linux)
    before = state(linux)
    mend(linux)
    (linux / name).write_text("#!/bin/sh\necho mine\n")
    edited = state(linux)[name]
    assert f"left {linux / name}: somebody wrote to it since" in revert(linux)
    assert state(linux) == before | {name: edited}
    assert revert(linux) == []


def test_a_file_that_is_gone_since_is_nobodys(linux: Path) -> None:
    lose_exec_bits(linux)
    before = state(linux)
    mend(linux)
    (linux / EXECUTABLE[2]).unlink()
    revert(linux)
    del before[EXECUTABLE[2]]
    assert state(linux) == before


@pytest.mark.parametrize(
    ("hurt", "again"),
    [(lose_exec_bits, "mode"), (gain_carriage_returns, "content"), (both, "mode"),
     (both, "content"), (both, "mode and content")],
)  # fmt: skip
def test_damage_that_comes_back_is_seen_and_mended_again(
    linux: Path, hurt: Hurt, again: str
) -> None:
    hurt(linux)
    before = state(linux)
    mend(linux)
    mode, content = before[EXECUTABLE[0]]  # git checkout of one file
    if "content" in again:
        (linux / EXECUTABLE[0]).write_bytes(content)
    if "mode" in again:
        (linux / EXECUTABLE[0]).chmod(mode)
    assert look(linux).kinds
    mend(linux)
    assert look(linux) == WHOLE
    revert(linux)
    assert state(linux) == before


# ---- kill -9

KILLED = """
import os, signal, sys
from pathlib import Path
from xdplab import damage, lifecycle
from xdplab.process import Shell
from xdplab.tree import Tree

write, left = damage.File.write, int(sys.argv[3])

def counting(file, path):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    write(file, path)

damage.File.write = counting
tree = Tree.at(Path(sys.argv[1]))
damage.mend(tree, Shell(), print) if sys.argv[2] == "mend" else damage.revert(tree)
"""


def kill(what: str, tree: Path, after: int) -> None:
    """Run a mend, or its way back, and kill it after so many files."""
    command = [sys.executable, "-c", KILLED, str(tree), what, str(after)]
    assert subprocess.run(command, cwd=PROJECT, check=False).returncode == -9


AFTER = pytest.mark.parametrize("after", [0, 1, 3])


@DAMAGE
@AFTER
def test_a_mend_that_was_killed_shows_and_is_brought_back(
    linux: Path, hurt: Hurt, after: int
) -> None:
    hurt(linux)
    before = state(linux)
    kill("mend", linux, after)
    assert look(linux).kinds
    assert not any("somebody wrote" in line for line in revert(linux))
    assert state(linux) == before


@DAMAGE
@AFTER
def test_a_mend_that_was_killed_is_gone_on_with(linux: Path, hurt: Hurt, after: int) -> None:
    hurt(linux)
    before = state(linux)
    kill("mend", linux, after)
    mend(linux)
    assert look(linux) == WHOLE
    revert(linux)
    assert state(linux) == before


@DAMAGE
@AFTER
def test_a_way_back_that_was_killed_is_gone_on_with(linux: Path, hurt: Hurt, after: int) -> None:
    hurt(linux)
    before = state(linux)
    mend(linux)
    kill("revert", linux, after)
    assert not any("somebody wrote" in line for line in revert(linux))
    assert state(linux) == before


# ---- each file by itself


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@given(
    content=st.lists(st.sampled_from([b"#!", b"a", b"\r", b"\n", b"\r\n", b"\0", b"\xff"])).map(
        b"".join
    ),
    mode=st.integers(0, 0o7777),
)
def test_what_is_mended_has_one_way_back(kind: Kind, content: bytes, mode: int) -> None:
    file = File(content, mode)
    mended = kind.mended(file)
    assert not kind.hurts(mended)
    assert not kind.hurts(file) or kind.damaged(mended) == file


def test_a_script_may_be_executed_by_those_who_may_read_it() -> None:
    bits = KINDS[0]
    assert [bits.mended(File(b"#!/bin/sh", mode)).mode for mode in (0o644, 0o600, 0o640)] == [
        0o755, 0o700, 0o750,
    ]  # fmt: skip


# ---- what is missing


def lose(tree: Path, *names: str) -> None:
    for name in names:
        (tree / name).unlink()


@pytest.mark.parametrize("command", ["setup", "build"])
@pytest.mark.parametrize("options", [[], ["--mend"]], ids=["", "mend"])
def test_missing_files_are_named_and_nothing_written(
    invoke: Invoke, linux: Path, command: str, options: list[str]
) -> None:
    lose(linux, "scripts/Makefile.lib", "tools/build/Makefile.include")
    lose_exec_bits(linux)
    before = snapshot(linux.parent)
    outcome = invoke(command, *options, "--tree", linux)
    assert_refused(
        outcome, 2, "no scripts/Makefile.lib, no tools/build/Makefile.include",
        "4 scripts", "invoke setup --kernel v6.1", "--mend mends the rest",
    )  # fmt: skip
    assert snapshot(linux.parent) == before


@pytest.mark.parametrize(
    ("file", "line", "named"),
    [
        ("Makefile", "include scripts/Makefile.clang", "scripts/Makefile.clang"),
        ("Makefile", "include $(srctree)/scripts/Makefile.clang", "scripts/Makefile.clang"),
        ("scripts/Kbuild.include", "b := -f $(srctree)/scripts/Makefile.c o", "scripts/Makefile.c"),
        ("scripts/Makefile.build", "  include scripts/Makefile.c # always", "scripts/Makefile.c"),
        ("tools/lib/bpf/Makefile", "VERSION_SCRIPT\t:= libbpf.map", "tools/lib/bpf/libbpf.map"),
    ],
)
def test_what_the_trees_own_makefiles_name_must_be_there(
    linux: Path, file: str, line: str, named: str
) -> None:
    (linux / named).touch()
    with (linux / file).open("a") as makefile:
        makefile.write(f"{line}\n")
    assert look(linux) == WHOLE
    lose(linux, named)
    assert look(linux) == Look((named,), ())


def test_what_git_has_is_put_back_by_the_command_that_is_told(invoke: Invoke, linux: Path) -> None:
    (linux / ".gitignore").write_text("*.lib\n")
    git(linux, "init")
    git(linux, "add", "--all")
    git(linux, "commit", "--message", "a release, as somebody uploaded it")
    lose(linux, "scripts/Makefile.lib", "scripts/Makefile.host")
    outcome = invoke("setup", "--tree", linux)
    assert_refused(outcome, 2, "no scripts/Makefile.host, no scripts/Makefile.lib", "--kernel v6.1")
    (cure,) = (line for line in outcome.err.splitlines() if "checkout HEAD" in line)
    subprocess.run(shlex.split(cure), check=True, capture_output=True)
    assert look(linux) == Look(("scripts/Makefile.lib",), ())


def test_in_git_carriage_returns_have_a_cure_of_gits_own(invoke: Invoke, linux: Path) -> None:
    gain_carriage_returns(linux)
    git_cure = "core.autocrlf false"
    assert git_cure not in invoke("setup", "--tree", linux).err
    git(linux, "init")
    assert_refused(invoke("setup", "--tree", linux), 2, git_cure)


def test_a_fetched_tree_that_is_damaged_is_named_too(
    invoke: Invoke, linux: Path, tmp_path: Path
) -> None:
    lose_exec_bits(linux)
    tarball = tmp_path / "linux.tar.gz"
    subprocess.run(["tar", "caf", tarball, linux.name], cwd=linux.parent, check=True)
    fetch = ["setup", "--source=tarball", f"--remote={tarball}", "--kernel=v6.1"]
    assert_refused(invoke(*fetch), 2, "4 scripts without", "--mend")
    outcome = invoke(*fetch, "--mend")
    assert outcome.code == 0, outcome.err
    assert "mended 4 scripts" in outcome.err
    assert os.access(invoke.workspace / "trees/tarball-v6.1/scripts/cc-version.sh", os.X_OK)
