"""Changes to a tree: planned, applied, shown, taken back byte for byte."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ERAS, TREES, contents, copied, git

from xdplab import patching
from xdplab.dialect import Dialect
from xdplab.errors import BadSeries, CannotRevert, PatchDoesNotApply
from xdplab.files import write_json
from xdplab.patching import SERIES, Change, SeriesEntry, plan_makefile, read_series, undo
from xdplab.tree import MAKEFILE, Tree
from xdplab.version import Range

SAMPLE = "xdp_ip_filter"
PROGRAMS = f"tprogs-y += {SAMPLE}"
OBJECTS = f"{SAMPLE}-objs := {SAMPLE}_user.o"
ALWAYS = f"always-y += {SAMPLE}_kern.o"

NEW = Dialect.of(Tree.at(TREES / "linux-6.1"))

# Where the post puts its lines: at the end of the list of programs, beside the
# other XDP programs' objects, at the end of the list of what is always built.
PLACED = {
    "linux-5.0": [
        ("hostprogs-y += xdp_drop", f"hostprogs-y += {SAMPLE}", ""),
        ("xdp_drop-objs := bpf_load.o xdp_drop_user.o", OBJECTS, ""),
        ("always += xdp_drop_kern.o", f"always += {SAMPLE}_kern.o", ""),
    ],
    "linux-5.4": [
        ("hostprogs-y += hash_grow", f"hostprogs-y += {SAMPLE}", ""),
        ("xdp_drop-objs := xdp_drop_user.o", OBJECTS,
         "hash_grow-objs := bpf_load.o hash_grow_user.o"),
        ("always += xdp_drop_kern.o", f"always += {SAMPLE}_kern.o", ""),
    ],
    "vendor": [
        ("  xdp_monitor", PROGRAMS, ""),
        ("endif", OBJECTS, "sock_count-objs ::= sock_count_user.o"),
        ("endif", ALWAYS, ""),
    ],
    "linux-4.19": [
        ("\t       xdp_monitor", f"hostprogs-y += {SAMPLE}", ""),
        ("\t\t    xdp_monitor_user.o", OBJECTS,
         "trace_open-objs := bpf_load.o trace_open_user.o"),
        ("always += xdp_monitor_kern.o", f"always += {SAMPLE}_kern.o", ""),
    ],
    "linux-5.6": [
        ("tprogs-y += xdp_drop\t# with a comment behind a tab", PROGRAMS, ""),
        ("xdpsock-objs := xdpsock_user.o", OBJECTS,
         "hash_grow-objs := bpf_load.o hash_grow_user.o"),
        ("\t    xdp_drop_kern.o", ALWAYS, ""),
    ],
    "linux-5.10": [
        ("tprogs-y += hash_grow", PROGRAMS, "LIBBPF = $(TOOLS_PATH)/lib/bpf/libbpf.a"),
        ("xdp_monitor-objs := xdp_monitor_user.o", OBJECTS,
         "hash_grow-objs   := bpf_load.o hash_grow_user.o"),
        ("always-y += hash_grow_kern.o", ALWAYS, "ifeq ($(ARCH), arm)"),
    ],
    "linux-6.1": [
        ("tprogs-y += xdp_monitor", PROGRAMS, ""),
        ("xdp_monitor-objs := xdp_monitor_user.o $(XDP_SAMPLE)", OBJECTS, ""),
        ("always-y += xdp_drop_kern.o", ALWAYS, ""),
    ],
    **dict.fromkeys(("linux-5.15", "linux-5.17", "linux-6.8", "linux-6.13"), (
        ("tprogs-y += xdp_drop", PROGRAMS, ""),
        ("xdp_drop-objs := xdp_drop_user.o $(XDP_SAMPLE)", OBJECTS, ""),
        ("always-y += sock_count_kern.o", ALWAYS, ""),
    )),
    "linux-7.2": [
        ("tprogs-y += xdp_router_ipv4", PROGRAMS, ""),
        ("xdp_router_ipv4-objs := xdp_router_ipv4_user.o $(XDP_SAMPLE)", OBJECTS,
         "trace_open-objs := trace_open_user.o"),
        ("always-y += trace_open.bpf.o", ALWAYS, ""),
    ],
}  # fmt: skip


def makefile(tree: Tree) -> Path:
    return tree.path / MAKEFILE


def patched(tree: Tree, sample: str = SAMPLE) -> list[Change]:
    """Patch the tree; gives what changed."""
    changes = patching.plan(tree, sample)
    patching.apply(tree, changes)
    return changes


def edit(tree: Tree, change: Callable[[bytes], bytes]) -> None:
    makefile(tree).write_bytes(change(makefile(tree).read_bytes()))


def added_lines(before: str, after: str) -> list[tuple[str, str, str]]:
    """The lines of `after` that `before` lacks, between their neighbours."""
    old, new = before.split("\n"), after.split("\n")
    added: list[tuple[str, str, str]] = []
    for index, line in enumerate(new):
        if index - len(added) < len(old) and line == old[index - len(added)]:
            continue
        added.append((new[index - 1], line, new[index + 1]))
    assert len(new) - len(added) == len(old)
    return added


@pytest.fixture(params=ERAS)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    """A tree of each era."""
    return copied(request.param, tmp_path)


@pytest.fixture
def one_tree(tmp_path: Path) -> Tree:
    """A tree, where the era doesn't matter; no patch of the series concerns it."""
    return copied("linux-6.1", tmp_path)


# ---- the plan


@pytest.mark.parametrize("era", ERAS)
def test_lines_are_placed_where_the_post_places_them(era: str) -> None:
    tree = Tree.at(TREES / era)
    before = makefile(tree).read_text()
    assert added_lines(before, plan_makefile(before, Dialect.of(tree), SAMPLE)) == list(PLACED[era])


@pytest.mark.parametrize("era", ERAS)
def test_planning_changes_nothing(era: str, tmp_path: Path) -> None:
    tree = copied(era, tmp_path)
    before = contents(tmp_path)
    assert patching.plan(tree, SAMPLE)
    assert contents(tmp_path) == before


def test_a_second_plan_is_empty(tree: Tree) -> None:
    assert patched(tree)
    assert patching.plan(tree, SAMPLE) == []


def test_lines_are_not_added_into_conditionals() -> None:
    text = "tprogs-y := a\nifdef X\ntprogs-y += b\nelse\ntprogs-y += c\nendif\nalways-y := d\n"
    after = plan_makefile(text, NEW, SAMPLE)
    assert after.startswith(f"tprogs-y := a\n{PROGRAMS}\n")


def test_lists_that_are_all_conditional_are_followed_by_ours() -> None:
    text = "ifdef X\ntprogs-y += b\nifdef Y\ntprogs-y += c\nendif\nendif\n\nalways-y := d\n"
    assert f"endif\nendif\n{PROGRAMS}\n{OBJECTS}\n\n" in plan_makefile(text, NEW, SAMPLE)


def test_a_line_behind_a_last_one_without_newline_is_a_line_of_its_own() -> None:
    text = "tprogs-y := a\na-objs := a_user.o\nalways-y := a_kern.o"
    after = plan_makefile(text, NEW, SAMPLE)
    assert after.splitlines() == [
        "tprogs-y := a", PROGRAMS, "a-objs := a_user.o", OBJECTS, "always-y := a_kern.o", ALWAYS,
    ]  # fmt: skip


def test_line_ends_are_those_of_the_file(tree: Tree) -> None:
    edit(tree, lambda text: text.replace(b"\n", b"\r\n"))
    patched(tree)
    text = makefile(tree).read_bytes()
    assert text.count(b"\n") == text.count(b"\r\n")
    assert f"{OBJECTS}\r\n".encode() in text


@pytest.mark.parametrize("by_hand", [
    f"tprogs-y += {SAMPLE}",
    f"tprogs-y+={SAMPLE} another",
    f"tprogs-y += another \\\n\t{SAMPLE}",
])  # fmt: skip
def test_a_line_by_hand_is_neither_added_again_nor_taken_back(by_hand: str, one_tree: Tree) -> None:
    edit(one_tree, lambda text: text.replace(b"\n\n", b"\n" + by_hand.encode() + b"\n\n", 2))
    before = makefile(one_tree).read_text()
    patched(one_tree)
    added = added_lines(before, makefile(one_tree).read_text())
    assert [line for _, line, _ in added] == [OBJECTS, ALWAYS]
    patching.revert(one_tree)
    assert makefile(one_tree).read_text() == before


# The post's three lines, word for word, as a hand puts them into any tree.
THE_POSTS = (
    f"hostprogs-y += {SAMPLE}",
    f"{SAMPLE}-objs := bpf_load.o {SAMPLE}_user.o",
    f"always += {SAMPLE}_kern.o",
)
WITHOUT_HOSTPROGS = f"hostprogs-y := $(filter-out {SAMPLE},$(hostprogs-y))"
# What has to be added so that it can be built.
HELPED = {
    **dict.fromkeys(("linux-4.19", "linux-5.0", "linux-5.4"), ()),
    **dict.fromkeys(("linux-5.6", "linux-5.10", "vendor"), (PROGRAMS, ALWAYS, WITHOUT_HOSTPROGS)),
    **dict.fromkeys(
        ("linux-5.15", "linux-5.17", "linux-6.1", "linux-6.8", "linux-6.13", "linux-7.2"),
        (PROGRAMS, OBJECTS, ALWAYS, WITHOUT_HOSTPROGS),
    ),
}


def by_hand(tree: Tree, lines: Sequence[str] = THE_POSTS) -> str:
    """Put lines at the end, where nothing assigns anew what they extend; gives the text then."""
    added = "".join(f"{line}\n" for line in lines)
    makefile(tree).write_text(f"{makefile(tree).read_text().rstrip()}\n\n{added}")
    return makefile(tree).read_text()


def test_the_posts_own_lines_are_left_and_helped(tree: Tree) -> None:
    before = by_hand(tree)
    patched(tree)
    after = makefile(tree).read_text()
    added = [line for _, line, _ in added_lines(before, after)]
    assert sorted(added) == sorted(HELPED[tree.path.name])
    if OBJECTS in added:  # the last assignment counts
        assert after.index(THE_POSTS[1]) < after.index(OBJECTS)
    if WITHOUT_HOSTPROGS in added:
        assert after.index(THE_POSTS[0]) < after.index(WITHOUT_HOSTPROGS)
    assert patching.plan(tree, SAMPLE) == []
    patching.revert(tree)
    assert makefile(tree).read_text() == before


@pytest.mark.parametrize(
    ("by", "helped"),
    [
        ([f"{SAMPLE}-objs := bpf_load.o $(LIBBPF) {SAMPLE}_user.o"], True),
        ([f"{SAMPLE}-objs := bpf_load.o", f"{SAMPLE}-objs += {SAMPLE}_user.o"], True),
        ([THE_POSTS[1], OBJECTS], False),
        ([OBJECTS, THE_POSTS[1]], True),
        ([f"{SAMPLE}-objs := {SAMPLE}_user.o more.o"], False),
        ([f"{SAMPLE}-objs := more.o", f"{SAMPLE}-objs += {SAMPLE}_user.o"], False),
        (["ifdef X", THE_POSTS[1], "endif"], True),
        ([f"# {THE_POSTS[1]}", OBJECTS], False),
    ],
)
def test_only_objects_that_cannot_be_built_are_replaced(
    by: list[str], helped: bool, one_tree: Tree
) -> None:
    before = by_hand(one_tree, by)
    patched(one_tree)
    added = added_lines(before, makefile(one_tree).read_text())
    assert [previous for previous, line, _ in added if line == OBJECTS] == (
        [by[-1]] if helped else []
    )


@pytest.mark.parametrize("word", ["hostprogs", "hostprogs-$(CONFIG_X)"])
def test_another_list_of_programs_loses_the_sample_and_nothing_else(
    word: str, one_tree: Tree
) -> None:
    before = by_hand(one_tree, [f"{word} += a_host_tool {SAMPLE}"])
    patched(one_tree)
    line = WITHOUT_HOSTPROGS if "-" in word else WITHOUT_HOSTPROGS.replace("-y", "")
    assert line in [line for _, line, _ in added_lines(before, makefile(one_tree).read_text())]


def test_a_word_in_a_comment_is_not_there(one_tree: Tree) -> None:
    edit(one_tree, lambda text: text + f"# {PROGRAMS}\ntprogs-y += b # {SAMPLE} \n".encode())
    patched(one_tree)
    assert f"{PROGRAMS}\n" in makefile(one_tree).read_text().replace(f"# {PROGRAMS}\n", "")


# ---- apply and revert


def test_revert_is_byte_for_byte(tree: Tree) -> None:
    before = contents(tree.path)
    changes = patched(tree)
    assert contents(tree.path) != before
    assert patching.revert(tree) == list(dict.fromkeys(one.file for one in reversed(changes)))
    assert contents(tree.path) == before
    assert patching.recorded(tree) == []


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n", b"# \xff\xfe caf\xe9", b"\x0c\x1c\x85\n"])
def test_foreign_bytes_survive(ending: bytes, last: bytes, tree: Tree) -> None:
    edit(tree, lambda text: text.replace(b"\n", ending) + last)
    before = makefile(tree).read_bytes()
    patched(tree)
    assert last in makefile(tree).read_bytes()
    patching.revert(tree)
    assert makefile(tree).read_bytes() == before


def test_revert_without_changes_does_nothing(one_tree: Tree) -> None:
    assert patching.revert(one_tree) == []


def test_dry_runs_do_nothing(one_tree: Tree) -> None:
    before = contents(one_tree.path)
    patching.apply(one_tree, patching.plan(one_tree, SAMPLE), dry=True)
    assert contents(one_tree.path) == before
    assert patching.recorded(one_tree) == []
    patched(one_tree)
    after = contents(one_tree.path)
    assert patching.revert(one_tree, dry=True) == [str(MAKEFILE)]
    assert contents(one_tree.path) == after


def test_samples_one_after_the_other(tree: Tree) -> None:
    before = contents(tree.path)
    patched(tree)
    patched(tree, "another_filter")
    after = makefile(tree).read_text()
    assert f"{SAMPLE}_kern.o\n" in after
    assert "another_filter_kern.o\n" in after
    patching.revert(tree)
    assert contents(tree.path) == before


def test_files_keep_their_modes(one_tree: Tree) -> None:
    makefile(one_tree).chmod(0o640)
    for step in (lambda: patched(one_tree), lambda: patching.revert(one_tree)):
        step()
        assert makefile(one_tree).stat().st_mode & 0o7777 == 0o640


def test_a_file_with_two_changes_is_never_between_them(
    one_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = patching.plan(one_tree, SAMPLE)[0]
    second = Change(first.file, first.after, f"{first.after}# more\n", "")
    written: list[tuple[Path, str]] = []
    monkeypatch.setattr(patching, "_write", lambda path, text: written.append((path, text)))
    patching.apply(one_tree, [first, second])
    assert written == [(one_tree.path / first.file, second.after)]


def test_a_crash_between_record_and_write_does_no_harm(tree: Tree) -> None:
    before = contents(tree.path)
    changes = patching.plan(tree, SAMPLE)
    write_json(tree.state("changes.json"), [asdict(change) for change in changes])
    assert patching.revert(tree) == []
    assert contents(tree.path) == before


def test_work_goes_on_after_a_crash_between_record_and_write(tree: Tree) -> None:
    before = contents(tree.path)
    changes = patching.plan(tree, SAMPLE)
    write_json(tree.state("changes.json"), [asdict(change) for change in changes])
    edit(tree, lambda text: b"# an edit\n" + text)
    patched(tree)
    patching.revert(tree)
    edit(tree, lambda text: text.removeprefix(b"# an edit\n"))
    assert contents(tree.path) == before


# ---- revert after other edits


def test_a_line_of_ours_that_the_user_removed_stays_away(tree: Tree) -> None:
    before = contents(tree.path)
    patched(tree)
    edit(tree, lambda text: text.replace(f"{OBJECTS}\n".encode(), b""))
    patching.revert(tree)
    assert contents(tree.path) == before


def test_a_line_of_ours_that_the_user_edited_is_the_users(one_tree: Tree) -> None:
    before = makefile(one_tree).read_text()
    patched(one_tree)
    edit(one_tree, lambda text: text.replace(PROGRAMS.encode(), PROGRAMS.encode() + b" another"))
    patching.revert(one_tree)
    (added,) = added_lines(before, makefile(one_tree).read_text())
    assert added[1] == f"{PROGRAMS} another"


def test_lines_behind_a_last_line_that_had_no_newline_stay_lines() -> None:
    change = Change("file", "a\nb", "a\nb\nours\n", "a test")
    assert undo(change, change.after + "c\n") == "a\nb\nc\n"


def test_a_file_that_the_user_removed_stays_away(one_tree: Tree) -> None:
    patched(one_tree)
    makefile(one_tree).unlink()
    assert patching.revert(one_tree) == []
    assert not makefile(one_tree).exists()


def test_lines_that_the_user_moved_are_taken_back_too(one_tree: Tree) -> None:
    patched(one_tree)
    lines = makefile(one_tree).read_text().splitlines(keepends=True)
    ours = [line for line in reversed(lines) if SAMPLE in line]
    others = [line for line in lines if SAMPLE not in line]
    makefile(one_tree).write_text("".join(ours + others))
    patching.revert(one_tree)
    assert makefile(one_tree).read_text() == "".join(others)


# An edit is a list of steps; each goes to a place among the lines as they are then.
foreign = st.one_of(
    st.sampled_from(sorted({line for era in ERAS for line in
                            (TREES / era / MAKEFILE).read_text().splitlines()})),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")),
)  # fmt: skip
steps = st.lists(
    st.tuples(st.sampled_from(("insert", "delete", "replace")), st.integers(0, 10**6), foreign),
    max_size=12,
)
Steps = Sequence[tuple[str, int, str]]


def edited(lines: Sequence[str], ours: Sequence[str], steps: Steps) -> list[str]:
    """The lines after the steps, none of which touches one of ours."""
    now = list(lines)
    for kind, number, line in steps:
        others = [index for index, known in enumerate(now) if known not in ours]
        if kind == "insert":
            now.insert(number % (len(now) + 1), f"{line}\n")
        elif others:
            index = others[number % len(others)]
            now[index : index + 1] = [f"{line}\n"] if kind == "replace" else []
    return now


# Lines of a Makefile; conditionals and continued lines come to their end.
plain = foreign.filter(lambda line: not re.match(r"\s*(if|else|endif)|.*\\\s*$", line))
by_hands = st.sampled_from([*THE_POSTS, PROGRAMS, OBJECTS, ALWAYS, "tprogs-$(X)+=a \\\n b"])
blocks = st.recursive(
    st.lists(by_hands | plain, max_size=8),
    lambda inner: st.builds(
        lambda above, held, below: [*above, "ifdef X", *held, "endif", *below], inner, inner, inner
    ),
    max_leaves=8,
)


@given(blocks, st.sampled_from(("\n", "\r\n")))
def test_any_makefile_is_patched_once_and_can_be_had_back(lines: list[str], ending: str) -> None:
    before = ending.join([*lines, "# the end"])
    after = plan_makefile(before, NEW, SAMPLE)
    assert plan_makefile(after, NEW, SAMPLE) == after
    assert undo(Change(str(MAKEFILE), before, after, "a test"), after) == before


@pytest.mark.parametrize("era", ERAS)
@given(steps=steps)
def test_revert_leaves_a_users_edit_of_other_lines(era: str, steps: Steps) -> None:
    tree = Tree.at(TREES / era)
    before = makefile(tree).read_text().rstrip("\n") + "\n"
    after = plan_makefile(before, Dialect.of(tree), SAMPLE)
    ours = [f"{line}\n" for _, line, _ in PLACED[era]]
    now = edited(after.splitlines(keepends=True), ours, steps)
    reverted = undo(Change(str(MAKEFILE), before, after, "a test"), "".join(now))
    assert reverted == "".join(line for line in now if line not in ours)


# ---- conflicts


def with_replacement(tree: Tree) -> Change:
    """A change that replaces a line, as the patches of the series do."""
    before = makefile(tree).read_text()
    change = Change(str(MAKEFILE), before, before.replace("-objs := sock", "-objs := other"), "why")
    patching.apply(tree, [change])
    return change


def test_an_edit_of_our_own_line_is_a_conflict_and_nothing_is_written(one_tree: Tree) -> None:
    patched(one_tree)
    with_replacement(one_tree)
    edit(one_tree, lambda text: text.replace(b"other_count_user.o", b"mine.o"))
    before = contents(one_tree.path)
    with pytest.raises(CannotRevert) as conflict:
        patching.revert(one_tree)
    number = makefile(one_tree).read_text().split("\n").index("sock_count-objs := mine.o") + 1
    assert f"{makefile(one_tree)}:{number} was edited" in conflict.value.message
    assert "why" in conflict.value.cure
    assert contents(one_tree.path) == before
    assert len(patching.recorded(one_tree)) == 2


def test_after_a_conflict_is_solved_revert_works(one_tree: Tree) -> None:
    before = contents(one_tree.path)
    change = with_replacement(one_tree)
    edit(one_tree, lambda text: text.replace(b"other_count", b"mine"))
    with pytest.raises(CannotRevert):
        patching.revert(one_tree)
    makefile(one_tree).write_text(change.after)
    patching.revert(one_tree)
    assert contents(one_tree.path) == before


def test_a_replacement_taken_back_by_hand_is_left_so(one_tree: Tree) -> None:
    with_replacement(one_tree)
    edit(one_tree, lambda text: text.replace(b"other", b"sock") + b"# mine\n")
    before = makefile(one_tree).read_bytes()
    patching.revert(one_tree)
    assert makefile(one_tree).read_bytes() == before


def test_a_line_that_we_deleted_comes_back_to_its_place() -> None:
    change = Change("file", "a\nb\nc\n", "a\nc\n", "a test")
    assert undo(change, "x\na\ny\nc\n") == "x\na\nb\ny\nc\n"
    assert undo(change, "c\na\n") in ("c\na\nb\n", "b\nc\na\n")


@pytest.mark.parametrize(("was", "became"), [("\n", "\r\n"), ("\r\n", "\n")])
@pytest.mark.parametrize("edited", ["", "mine"])
def test_a_change_is_found_again_in_other_line_ends(was: str, became: str, edited: str) -> None:
    def text(lines: str, ending: str) -> str:
        return "".join(line + ending for line in lines.split())

    change = Change("file", text("a b c", was), text("a x c y", was), "a test")
    assert undo(change, text(f"a x c {edited} y", became)) == text(f"a b c {edited}", became)


# ---- the diff


@pytest.mark.parametrize("tool", [["git", "apply"], ["patch", "-p1"]], ids=lambda tool: tool[0])
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_the_diff_does_the_same(tool: list[str], ending: str, tree: Tree, tmp_path: Path) -> None:
    edit(tree, lambda text: text.replace(b"\n", ending.encode()) + b"# caf\xe9")
    other = tmp_path / "other"
    subprocess.run(["cp", "-a", tree.path, other], check=True)
    changes = patched(tree)
    diff = "".join(change.diff() for change in changes).encode(errors="surrogateescape")
    git(other, "init")
    subprocess.run([*tool, "--verbose"], input=diff, cwd=other, capture_output=True, check=True)
    assert contents(other) == contents(tree.path)


def test_the_diff_of_a_last_line_without_newline_applies(tmp_path: Path) -> None:
    before, after = "a\nb", "a\nb\nc\n"
    (tmp_path / "file").write_text(before)
    diff = Change("file", before, after, "a test").diff()
    assert diff.count("\\ No newline at end of file\n") == 1
    subprocess.run(["patch", "-p1"], input=diff, cwd=tmp_path, text=True, check=True)
    assert (tmp_path / "file").read_text() == after


@given(st.lists(foreign), st.lists(foreign))
def test_a_change_undone_is_what_was_before(before: list[str], after: list[str]) -> None:
    change = Change("file", "\n".join(before), "\n".join(after), "a test")
    assert undo(change, change.after) == change.before
    assert undo(change, change.before) == change.before


# ---- the series

XREALLOC = SERIES.with_name("libsubcmd-xrealloc.patch")
PATCHED = "tools/lib/subcmd/subcmd-util.h"
ENTRY = SeriesEntry(XREALLOC, Range.parse("", "v5.17"), "gcc 12")


def series(directory: Path, *lines: str) -> Path:
    """A series file, beside two patches."""
    for name in ("a.patch", "b.patch"):
        (directory / name).touch()
    path = directory / "series"
    path.write_text("\n".join(["# the patches", "", *lines, ""]))
    return path


@pytest.fixture
def old_tree(tmp_path: Path) -> Tree:
    """A tree that needs the patch."""
    return copied("linux-5.10", tmp_path)


def test_a_series_is_read_in_its_order(tmp_path: Path) -> None:
    path = series(tmp_path, "b.patch  - v5.17  it has\treasons", "a.patch 5.4 - why")
    assert read_series(path) == [
        SeriesEntry(tmp_path / "b.patch", Range.parse("-", "5.17"), "it has\treasons"),
        SeriesEntry(tmp_path / "a.patch", Range.parse("5.4", "-"), "why"),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a.patch - v5.17", "four fields are needed"),
        ("a.patch", "four fields are needed"),
        ("a.patch five - why", "'five' is not a kernel version"),
        ("a.patch - v5.x why", "'v5.x' is not a kernel version"),
        ("c.patch - - why", "there is no .*/c.patch"),
    ],
)
def test_a_bad_line_of_a_series_is_named_with_its_number(
    line: str, why: str, tmp_path: Path
) -> None:
    path = series(tmp_path, "a.patch - - fine", line)
    with pytest.raises(BadSeries, match=rf"{path}:4: {why}.*: {line!r}"):
        read_series(path)


def test_every_patch_is_in_the_series_with_its_reason() -> None:
    entries = read_series()
    assert sorted(entry.patch for entry in entries) == sorted(SERIES.parent.glob("*.patch"))
    assert all("upstream" in entry.why for entry in entries)


def test_a_patch_of_the_series_is_part_of_the_plan(old_tree: Tree) -> None:
    assert [change.file for change in patched(old_tree)] == [str(MAKEFILE), PATCHED]
    upstream = (TREES / "linux-6.1" / PATCHED).read_text()
    function = upstream[upstream.index("static inline") : upstream.index("#define")]
    assert function in (old_tree.path / PATCHED).read_text()


def test_the_version_decides_whether_a_patch_is_tried(old_tree: Tree) -> None:
    (old_tree.path / "Makefile").write_text("VERSION = 5\nPATCHLEVEL = 17\n")
    changes = patching.plan(Tree.at(old_tree.path), SAMPLE)
    assert [change.file for change in changes] == [str(MAKEFILE)]


def test_a_tree_that_has_the_patch_already_is_left_alone(one_tree: Tree) -> None:
    assert patching.plan_patch(one_tree, ENTRY) == []


def test_a_sparse_tree_without_the_files_needs_no_patch(tmp_path: Path) -> None:
    assert patching.plan_patch(copied("linux-4.19", tmp_path), ENTRY) == []


def test_a_patch_that_fits_neither_way_is_named(old_tree: Tree) -> None:
    util = old_tree.path / PATCHED
    util.write_text(util.read_text().replace("void *ret = realloc(ptr, size)", "void *ret"))
    before = contents(old_tree.path)
    with pytest.raises(PatchDoesNotApply, match=f"{XREALLOC.name} does not apply to .*{PATCHED}"):
        patching.plan(old_tree, SAMPLE)
    assert contents(old_tree.path) == before


def test_what_a_vendor_changed_in_another_way_is_left_alone(old_tree: Tree) -> None:
    util = old_tree.path / PATCHED
    util.write_text(util.read_text().replace("ret = realloc(ptr, 1)", "ret = malloc(1)"))
    assert [change.file for change in patched(old_tree)] == [str(MAKEFILE)]


@pytest.mark.parametrize(
    ("word", "other"),
    [("static inline void", "static void"), ("#define is_null", "\n\n#define is_nil")],
)
def test_a_patch_applies_where_lines_further_off_differ(
    word: str, other: str, old_tree: Tree
) -> None:
    util = old_tree.path / PATCHED
    util.write_text("/* a vendor's */\n" + util.read_text().replace(word, other))
    assert [change.file for change in patched(old_tree)] == [str(MAKEFILE), PATCHED]
    assert "realloc(ptr, 1)" not in util.read_text()
    assert other in util.read_text()


# which patches the fixture trees need
PATCHED_TREES = {
    "linux-4.19": {"libbpf-perf-event-type"},
    "linux-5.0": {
        *("dtc-yylloc", "libbpf-check-abi", "libsubcmd-xrealloc"),
        *("samples-bpf-log-buf", "selinux-af-max"),
    },
    "linux-6.8": {"samples-syscall-nrs"},
    "linux-6.13": {"libbpf-c23-llvm", "libbpf-c23-path", "libbpf-c23-suffix"},
}


@pytest.mark.parametrize("era", PATCHED_TREES)
def test_each_patch_that_a_tree_needs_is_taken_in_and_out(era: str, tmp_path: Path) -> None:
    tree = copied(era, tmp_path)
    before = contents(tree.path)
    concerned = [entry for entry in read_series() if tree.version in entry.versions]
    needed = [entry for entry in concerned if patching.plan_patch(tree, entry)]
    assert {entry.patch.stem for entry in needed} == PATCHED_TREES[era]
    for entry in needed:
        changes = patching.plan_patch(tree, entry)
        patching.apply(tree, changes)
        changed = {name for name, text in contents(tree.path).items() if text != before[name]}
        assert changed == {change.file for change in changes} != set()
        assert patching.plan_patch(tree, entry) == []
        patching.revert(tree)
        assert contents(tree.path) == before


def test_every_patch_has_a_tree_that_it_is_tried_on() -> None:
    assert {entry.patch.stem for entry in read_series()} == set().union(*PATCHED_TREES.values())


def test_a_tree_that_has_all_patches_asks_git_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = copied("linux-5.0", tmp_path)
    assert {change.file for change in patched(tree)} > {str(MAKEFILE), PATCHED}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert patching.plan(tree, SAMPLE) == []


@pytest.mark.parametrize("edited", ["static inline", "\treturn ret;", "#define"])
def test_edits_beside_a_patch_survive_its_revert(edited: str, old_tree: Tree) -> None:
    util = old_tree.path / PATCHED
    before = util.read_text()
    patched(old_tree)
    util.write_text(util.read_text().replace(edited, f"/* mine */\n{edited}"))
    patching.revert(old_tree)
    assert util.read_text() == before.replace(edited, f"/* mine */\n{edited}")


def test_an_edit_in_the_middle_of_a_patch_is_a_conflict(old_tree: Tree) -> None:
    patched(old_tree)
    util = old_tree.path / PATCHED
    util.write_text(util.read_text().replace("\t\tdie(", "\t\tabort(); //"))
    before = contents(old_tree.path)
    with pytest.raises(CannotRevert, match=rf"{util}:\d+ was edited"):
        patching.revert(old_tree)
    assert contents(old_tree.path) == before


@pytest.mark.parametrize("header", ["", f"diff --git a/{PATCHED} b/{PATCHED}\n"])
def test_patches_apply_below_another_git_repository(
    header: str, old_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "a.patch").write_text(XREALLOC.read_text().replace("--- a/", f"{header}--- a/"))
    entry = SeriesEntry(tmp_path / "a.patch", Range.parse("", ""), "why")
    assert [change.file for change in patching.plan_patch(old_tree, entry)] == [PATCHED]


def test_a_users_git_configuration_plays_no_part(
    old_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[core]\nautocrlf = true\n[apply]\nwhitespace = error\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    (change,) = patching.plan_patch(old_tree, ENTRY)
    assert "\r" not in change.after


def test_two_patches_of_one_file_are_both_applied(old_tree: Tree, tmp_path: Path) -> None:
    text = (old_tree.path / PATCHED).read_text()
    first = text.replace("#include <stdlib.h>", "#include <stdio.h>")
    second = first.replace("is_null", "is_nothing")
    (tmp_path / "a.patch").write_text(Change(PATCHED, text, first, "").diff())
    (tmp_path / "b.patch").write_text(Change(PATCHED, first, second, "").diff())
    before = contents(old_tree.path)
    both = tmp_path / "series"
    both.write_text("a.patch - - first\nb.patch - - second\n")
    patching.apply(old_tree, patching.plan(old_tree, SAMPLE, both))
    assert (old_tree.path / PATCHED).read_text() == second
    assert patching.plan(old_tree, SAMPLE, both) == []
    patching.revert(old_tree)
    assert contents(old_tree.path) == before


def test_a_patch_of_the_samples_makefile_is_applied_on_top_of_the_lines(
    old_tree: Tree, tmp_path: Path
) -> None:
    text = makefile(old_tree).read_text()
    other = text.replace("TPROGS_CFLAGS += -Wall -O2", "TPROGS_CFLAGS += -O2")
    (tmp_path / "a.patch").write_text(Change(str(MAKEFILE), text, other, "").diff())
    (tmp_path / "series").write_text("a.patch - - why\n")
    before = contents(old_tree.path)
    patching.apply(old_tree, patching.plan(old_tree, SAMPLE, tmp_path / "series"))
    after = makefile(old_tree).read_text()
    assert "TPROGS_CFLAGS += -O2" in after
    assert f"{PROGRAMS}\n" in after
    patching.revert(old_tree)
    assert contents(old_tree.path) == before
