"""Patching and building in real kernel trees."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import (
    PROJECT,
    Invoke,
    assert_refused,
    contents,
    copy_checkout,
    copy_pair,
    snapshot,
)
from unidiff.patch import PatchSet

pytestmark = pytest.mark.tree

MAKEFILE = "samples/bpf/Makefile"
PROGRAM, OBJECT = "xdp_ip_filter", "xdp_ip_filter_kern.o"


def built(invoke: Invoke, tree: Path, *arguments: str | Path) -> Path:
    """Build in the tree; gives the directory of the result."""
    outcome = invoke("build", "--tree", tree, *arguments)
    assert outcome.code == 0, outcome.err
    (facts,) = invoke.workspace.glob("builds/*/xdp_ip_filter/build.json")
    return facts.parent


def times(directory: Path) -> list[int]:
    """When the program and the BPF object were written."""
    return [(directory / name).stat().st_mtime_ns for name in (PROGRAM, OBJECT)]


def edit(file: Path, text: str) -> None:
    """Write a file anew: what is linked to the old one doesn't change."""
    file.unlink()
    file.write_text(text)


def unpatched(invoke: Invoke, tree: Path) -> str:
    """The text of samples/bpf/Makefile without any change of ours."""
    assert invoke("patch", "--revert", "--tree", tree).code == 0
    text = (tree / MAKEFILE).read_text()
    assert PROGRAM not in text
    return text


# ---- patch


def test_patch_shows_what_git_can_apply(invoke: Invoke, tree: Path, tmp_path: Path) -> None:
    unpatched(invoke, tree)
    diff = invoke("patch", "--show", "--tree", tree).out
    files = {file.path for file in PatchSet(diff)}
    before = {name: (tree / name).read_text() for name in files}
    assert MAKEFILE in files
    for name, text in before.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    assert invoke("patch", "--tree", tree).out == diff
    for name, text in before.items():
        assert (tree / name).read_text() == (tmp_path / name).read_text() != text


def test_patch_says_what_the_post_says(invoke: Invoke, tree: Path) -> None:
    unpatched(invoke, tree)
    assert invoke("patch", "--tree", tree).code == 0
    lines = (tree / MAKEFILE).read_text().splitlines()
    assert lines.count("tprogs-y += xdp_ip_filter") == 1
    assert lines.count("xdp_ip_filter-objs := xdp_ip_filter_user.o") == 1
    assert lines.count("always-y += xdp_ip_filter_kern.o") == 1


def test_patching_twice_is_patching_once(invoke: Invoke, tree: Path) -> None:
    assert invoke("patch", "--tree", tree).code == 0
    before = snapshot(tree / MAKEFILE)
    again = invoke("patch", "--tree", tree)
    assert (again.code, again.out) == (0, "")
    assert "has all of it already" in again.err
    assert snapshot(tree / MAKEFILE) == before


def test_revert_is_byte_for_byte(invoke: Invoke, tree: Path) -> None:
    original = unpatched(invoke, tree).encode()
    for _ in range(2):
        assert invoke("patch", "--tree", tree).code == 0
        assert (tree / MAKEFILE).read_bytes() != original
        assert invoke("patch", "--revert", "--tree", tree).code == 0
        assert (tree / MAKEFILE).read_bytes() == original


def test_revert_leaves_what_the_user_wrote_since(invoke: Invoke, tree: Path) -> None:
    original = unpatched(invoke, tree)
    first = original.index("\n") + 1
    mine = original[:first] + "# my first\n" + original[first:] + "# my last\n"
    try:
        assert invoke("patch", "--tree", tree).code == 0
        patched = (tree / MAKEFILE).read_text()
        edit(tree / MAKEFILE, patched[:first] + "# my first\n" + patched[first:] + "# my last\n")
        assert invoke("patch", "--revert", "--tree", tree).code == 0
        assert (tree / MAKEFILE).read_text() == mine
    finally:
        edit(tree / MAKEFILE, original)


def test_a_makefile_patched_by_hand_is_built_and_left_alone(invoke: Invoke, tree: Path) -> None:
    original = unpatched(invoke, tree)
    place = "always-y := $(tprogs-y)\n"
    before = f"tprogs-y += {PROGRAM}\n{PROGRAM}-objs := {PROGRAM}_user.o\n"
    mine = original.replace(place, f"{before}{place}always-y += {OBJECT}\n")
    assert mine != original
    try:
        edit(tree / MAKEFILE, mine)
        built(invoke, tree)
        assert (tree / MAKEFILE).read_text() == mine
        assert invoke("patch", "--revert", "--tree", tree).code == 0
        assert (tree / MAKEFILE).read_text() == mine
    finally:
        edit(tree / MAKEFILE, original)


def test_the_posts_own_lines_by_hand_are_built_and_left_alone(invoke: Invoke, tree: Path) -> None:
    original = unpatched(invoke, tree)
    by_hand = f"""
hostprogs-y += {PROGRAM}
{PROGRAM}-objs := bpf_load.o {PROGRAM}_user.o
always += {OBJECT}
"""
    place = "\nalways-y := $(tprogs-y)\n"
    mine = original.replace(place, f"{by_hand}{place}")
    assert mine != original
    try:
        edit(tree / MAKEFILE, mine)
        built(invoke, tree)
        assert by_hand.splitlines()[1] in (tree / MAKEFILE).read_text()
        assert invoke("patch", "--revert", "--tree", tree).code == 0
        assert (tree / MAKEFILE).read_text() == mine
    finally:
        edit(tree / MAKEFILE, original)


# ---- build


def test_build_from_nothing_and_back(invoke: Invoke, fresh_tree: Path) -> None:
    # as if it were the user's own: configured by somebody, unknown to the harness
    shutil.rmtree(fresh_tree / ".xdplab")
    before = snapshot(fresh_tree)
    directory = built(invoke, fresh_tree)
    assert os.access(directory / PROGRAM, os.X_OK)
    assert (fresh_tree / "samples/bpf" / PROGRAM).exists()
    assert invoke("clean").code == 0
    after = snapshot(fresh_tree)
    assert sorted(set(after) ^ set(before)) == []
    assert {name: stat[:2] for name, stat in after.items()} == {
        name: stat[:2] for name, stat in before.items()
    }


def test_build_json_tells_how_it_was_made(invoke: Invoke, tree: Path) -> None:
    directory = built(invoke, tree)
    facts = json.loads((directory / "build.json").read_text())
    assert facts["schema"] == 1
    assert facts["sample"] == PROGRAM
    assert facts["tree"] == str(tree)
    assert facts["version"].startswith(("6.1.", "5.10."))
    assert facts["dialect"]["programs"] == "tprogs-y"
    assert facts["trace"] is False
    assert facts["command"][0] == "make"
    assert "clang" in facts["compilers"]["clang"]
    assert {Path(source) for source in facts["sources"]} == {*PROJECT.glob("xdp_*.[ch]")}
    for name in (PROGRAM, OBJECT):
        made = (directory / name).read_bytes()
        assert facts["files"][name] == hashlib.sha256(made).hexdigest()
        assert made == (tree / "samples/bpf" / name).read_bytes()
    assert "$ " in Path(facts["log"]).read_text()


def test_a_second_build_changes_nothing_of_the_first(invoke: Invoke, tree: Path) -> None:
    directory = built(invoke, tree)
    before = times(directory)
    assert built(invoke, tree) == directory
    assert times(directory) == before


@pytest.mark.parametrize(
    ("half", "words", "others", "changes"),
    [
        ("kern", "return XDP_DROP;", "return XDP_ABORTED;", [False, True]),
        ("user", "stopping", "stopped", [True, False]),
    ],
)
def test_only_the_half_that_was_edited_changes(
    invoke: Invoke, tree: Path, tmp_path: Path,
    half: str, words: str, others: str, changes: list[bool],
) -> None:  # fmt: skip
    kern, user = copy_pair(tmp_path / "pair")
    directory = built(invoke, tree, "--sample", kern)
    before = times(directory)
    edited = kern if half == "kern" else user
    assert words in edited.read_text()
    edited.write_text(edited.read_text().replace(words, others))
    built(invoke, tree, "--sample", kern)
    assert [a != b for a, b in zip(times(directory), before, strict=True)] == changes


def test_an_edited_header_makes_both_anew(invoke: Invoke, tree: Path, tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    mine = Invoke(invoke.workspace, cwd=checkout)
    built(mine, tree)
    before = times(tree / "samples/bpf")  # the edit changes no byte of what is kept
    with (checkout / "xdp_compat.h").open("a") as file:
        file.write("/* edited */\n")
    built(mine, tree)
    after = times(tree / "samples/bpf")
    assert all(a > b for a, b in zip(after, before, strict=True))


def test_trace_logs_and_its_absence_does_not(invoke: Invoke, tree: Path) -> None:
    words = b"the ip address to filter is"
    directory = built(invoke, tree)
    quiet = (directory / OBJECT).read_bytes()
    assert words not in quiet
    built(invoke, tree, "--trace")
    assert words in (directory / OBJECT).read_bytes()
    assert json.loads((directory / "build.json").read_text())["trace"] is True
    built(invoke, tree)
    assert (directory / OBJECT).read_bytes() == quiet


# ---- what doesn't compile


@pytest.mark.parametrize("half", ["kern", "user"])
def test_an_error_is_shown_at_the_users_own_line(
    invoke: Invoke, tree: Path, tmp_path: Path, half: str
) -> None:
    pair = copy_pair(tmp_path / "pair")
    mended = pair[half == "user"].read_text()
    lines = mended.splitlines(keepends=True)
    pair[half == "user"].write_text("".join([*lines, "int wrong = nowhere;\n"]))
    outcome = invoke("build", "--tree", tree, "--sample", pair[0])
    assert_refused(outcome, 3, f"{pair[half == 'user']}:{len(lines) + 1}:", "nowhere")
    assert f"samples/bpf/{PROGRAM}_{half}.c:" not in outcome.err
    (log,) = invoke.workspace.glob("builds/*/*/build.log")
    assert "nowhere" in log.read_text()
    assert str(log) in outcome.err
    assert_refused(invoke("run", "--tree", tree, "--sample", pair[0]), 2, "not built")

    pair[half == "user"].write_text(mended)
    built(invoke, tree, "--sample", pair[0])


def test_an_object_without_a_program_is_no_build(
    invoke: Invoke, tree: Path, tmp_path: Path
) -> None:
    kern, _ = copy_pair(tmp_path / "pair")
    kern.write_text("int nothing;\n")
    outcome = invoke("build", "--tree", tree, "--sample", kern)
    assert_refused(outcome, 3, "make returned 0, but", OBJECT, "no BPF program")
    built(invoke, tree)


# ---- compilers, where a small tree will do


def test_another_clang_is_told_to_make(invoke: Invoke, fake_tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other/clang"
    other.parent.mkdir()
    other.write_text('#!/bin/sh\n[ "$1" != --version ] || echo other\nexec clang "$@"\n')
    other.chmod(0o755)
    made = fake_tree / "samples/bpf" / OBJECT
    built(invoke, fake_tree)
    before = made.stat().st_mtime_ns
    directory = built(invoke, fake_tree, "--clang", other)
    assert made.stat().st_mtime_ns > before
    facts = json.loads((directory / "build.json").read_text())
    assert f"CLANG={other}" in facts["command"]
    assert facts["compilers"]["clang"] == "other"


# ---- the user's own files, where a small tree will do


def test_a_file_of_the_users_is_not_overwritten(invoke: Invoke, fake_tree: Path) -> None:
    mine = fake_tree / f"samples/bpf/{PROGRAM}_kern.c"
    mine.write_text("/* mine */\n")
    outcome = invoke("build", "--tree", fake_tree)
    assert_refused(outcome, 2, str(mine), "move it away", "--sample")
    assert mine.read_text() == "/* mine */\n"
    assert invoke("clean").code == 0
    assert mine.read_text() == "/* mine */\n"


@pytest.fixture
def with_header(tmp_path: Path) -> Path:
    """The kernel half of a copy of the pair, with a header beside it."""
    kern, _ = copy_pair(tmp_path / "own")
    (tmp_path / "own/mine.h").write_text("#define MINE 1\n")
    kern.write_text('#include "mine.h"\n' + kern.read_text())
    return kern


def test_a_header_beside_the_pair_goes_along_and_out_again(
    invoke: Invoke, fake_tree: Path, with_header: Path
) -> None:
    def build() -> int:
        """When the BPF object was made."""
        outcome = invoke("build", "--tree", fake_tree, "--sample", with_header)
        assert outcome.code == 0, outcome.err
        return (fake_tree / f"samples/bpf/{PROGRAM}_kern.o").stat().st_mtime_ns

    before = contents(fake_tree)
    header, copy = with_header.with_name("mine.h"), fake_tree / "samples/bpf/mine.h"
    first = build()
    assert copy.read_bytes() == header.read_bytes()
    header.write_text("#define MINE 2\n")
    outcome = invoke("--dry", "run", "--on", "netns", "--sample", with_header, "--tree", fake_tree)
    assert "was edited since" in outcome.err
    assert build() > first
    assert copy.read_bytes() == header.read_bytes()
    assert invoke("clean").code == 0
    assert contents(fake_tree) == before


def test_a_header_of_the_trees_own_is_not_overwritten(
    invoke: Invoke, fake_tree: Path, with_header: Path
) -> None:
    theirs = fake_tree / "samples/bpf/mine.h"
    theirs.write_text("/* the tree's */\n")
    outcome = invoke("build", "--tree", fake_tree, "--sample", with_header)
    assert_refused(outcome, 2, str(theirs), "is there already")
    assert invoke("clean").code == 0
    assert theirs.read_text() == "/* the tree's */\n"


def test_a_copy_that_the_user_edited_in_the_tree_is_not_overwritten(
    invoke: Invoke, fake_tree: Path
) -> None:
    assert invoke("build", "--tree", fake_tree).code == 0
    copy = fake_tree / "samples/bpf/xdp_ip_filter_kern.c"
    copy.write_text(copy.read_text() + "/* an afternoon's work */\n")
    outcome = invoke("build", "--tree", fake_tree)
    assert_refused(outcome, 2, str(copy), "is there already")
    assert copy.read_text().endswith("/* an afternoon's work */\n")
    assert invoke("clean").code == 0
    assert copy.read_text().endswith("/* an afternoon's work */\n")


def test_the_users_own_copy_of_the_pair_is_used_and_kept(invoke: Invoke, fake_tree: Path) -> None:
    copy_pair(fake_tree / "samples/bpf")
    before = snapshot(*fake_tree.glob("samples/bpf/*.c"))
    built(invoke, fake_tree)
    assert invoke("clean").code == 0
    assert snapshot(*fake_tree.glob("samples/bpf/*.c")) == before


# ---- all samples, as in the post


def test_all_samples_are_built_too(invoke: Invoke, fresh_tree: Path) -> None:
    outcome = invoke("build", "--tree", fresh_tree, "--all-samples")
    assert outcome.code == 0, outcome.err
    objects = [path.stat().st_size for path in fresh_tree.glob("samples/bpf/*_kern.o")]
    assert len([size for size in objects if size > 400]) > 30  # 400: of an empty one
    # a sample that this clang, or this kernel's BTF, can't do is named, not hidden
    named = outcome.err.count("has no BPF program in it")
    assert len([size for size in objects if size <= 400]) <= named
