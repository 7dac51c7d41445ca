"""The words of samples/bpf, read out of trees."""

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ERAS, TREES, copied

from xdplab.dialect import PROBES, Dialect, Probe, assigns
from xdplab.errors import NotAKernelTree, UnknownDialect
from xdplab.tree import MAKEFILE, Tree
from xdplab.version import KernelVersion

FIELDS = {field.name for field in dataclasses.fields(Dialect)}

THE_POSTS = Dialect(
    programs="hostprogs-y",
    objects="-objs",
    always="always",
    loader="bpf_load",
    helpers='"bpf_helpers.h"',
    libbpf="tools/lib/bpf",
    obj="samples/bpf",
    one_needs="prepare0 scripts",
    all_need="headers_install",
    all_samples="samples/bpf/",
    vmlinux="",
)
FROM_V5_4 = dataclasses.replace(
    THE_POSTS, all_need="headers_install modules_prepare", all_samples="M=samples/bpf"
)
FROM_V5_6 = dataclasses.replace(
    FROM_V5_4, programs="tprogs-y", always="always-y", helpers="<bpf/bpf_helpers.h>"
)
FROM_V5_15 = dataclasses.replace(FROM_V5_6, loader="libbpf", vmlinux="VMLINUX_BTF")
FROM_V5_16 = dataclasses.replace(FROM_V5_15, libbpf="samples/bpf/libbpf")
FROM_V6_13 = dataclasses.replace(FROM_V5_16, obj=".")

EXPECTED = {
    "linux-4.19": THE_POSTS,
    "linux-5.0": THE_POSTS,
    "linux-5.4": FROM_V5_4,
    "linux-5.6": FROM_V5_6,
    "linux-5.10": FROM_V5_6,
    "linux-5.15": FROM_V5_15,
    "linux-5.17": FROM_V5_16,
    "linux-6.1": FROM_V5_16,
    "linux-6.8": FROM_V5_16,
    "linux-6.13": FROM_V6_13,
    "linux-7.2": FROM_V6_13,
    "vendor": FROM_V5_6,  # back-ported to v5.4
}


def edit(tree: Tree, word: str, other: str) -> None:
    makefile = tree.path / MAKEFILE
    makefile.write_text(makefile.read_text().replace(word, other))


@pytest.mark.parametrize("era", ERAS)
def test_each_era_has_its_words(era: str) -> None:
    assert Dialect.of(Tree.at(TREES / era)) == EXPECTED[era]


@pytest.mark.parametrize("era", ERAS)
def test_the_version_plays_no_part(era: str, tmp_path: Path) -> None:
    tree = copied(era, tmp_path)
    top = tree.path / "Makefile"
    top.write_text(re.sub(r"^(VERSION|PATCHLEVEL) = .*", r"\1 = 3", top.read_text(), flags=re.M))
    assert Dialect.of(Tree.at(tree.path)) == EXPECTED[era]


@pytest.mark.parametrize("word", ["hostprogs-y", "hostprogs", "tprogs-y"])
def test_a_word_that_ends_in_another_is_told_apart(word: str, tmp_path: Path) -> None:
    tree = copied("linux-6.1", tmp_path)
    edit(tree, "tprogs-y", word)
    assert Dialect.of(tree).programs == word


def test_both_lists_side_by_side_mean_the_newer_one(tmp_path: Path) -> None:
    tree = copied("linux-6.1", tmp_path)
    with (tree.path / MAKEFILE).open("a") as makefile:
        makefile.write("hostprogs-y := a_host_tool\n")
    assert Dialect.of(tree).programs == "tprogs-y"


@pytest.mark.parametrize(
    "comment", ["# tprogs-y := was tried\n", "# was tried: \\\ntprogs-y := x\n"]
)
def test_words_in_comments_do_not_count(comment: str, tmp_path: Path) -> None:
    tree = copied("linux-4.19", tmp_path)
    makefile = tree.path / MAKEFILE
    makefile.write_text(comment + makefile.read_text())
    assert Dialect.of(tree).programs == "hostprogs-y"


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n# \xff\xfe\n"])
@pytest.mark.parametrize("era", ERAS)
def test_neither_line_ends_nor_foreign_bytes_matter(
    era: str, ending: bytes, tmp_path: Path
) -> None:
    tree = copied(era, tmp_path)
    for makefile in (tree.path / MAKEFILE, tree.path / "Makefile"):
        text = re.sub(rb"(?<!\\)\n", ending, makefile.read_bytes())
        makefile.write_bytes(text if ending != b"\r\n" else text.replace(b"\\\n", b"\\\r\n"))
    assert Dialect.of(tree) == EXPECTED[era]


def test_samples_of_one_file_each_have_no_list_of_objects(tmp_path: Path) -> None:
    tree = copied("linux-6.1", tmp_path)
    edit(tree, "-objs", "-parts")
    with pytest.raises(UnknownDialect, match="objects: looked for"):
        Dialect.of(tree)
    (tree.path / "scripts/Makefile.host").write_text("host-cobjs := $($(m)-objs)\n")
    assert Dialect.of(tree).objects == "-objs"


# ---- what nobody knows


def test_an_unknown_dialect_tells_what_was_looked_for_and_what_is_there() -> None:
    with pytest.raises(UnknownDialect) as unknown:
        Dialect.of(Tree.at(TREES / "unknown"))
    message = unknown.value.message
    assert re.findall(r"(\w+): looked for", message) == ["programs", "always"]
    for probe in PROBES:
        if probe.field in ("programs", "always"):
            assert f"{probe.value} in {probe.file}" in message
    assert message.count(f"{MAKEFILE} assigns progs-y, extra-always-y, ") == 2


def test_a_tree_without_its_helpers_lacks_only_them(tmp_path: Path) -> None:
    tree = copied("linux-6.1", tmp_path)
    (tree.path / "tools/lib/bpf/bpf_helpers.h").unlink()
    with pytest.raises(UnknownDialect, match="helpers: looked for") as unknown:
        Dialect.of(tree)
    assert "tprogs-y" not in unknown.value.message
    for place in ("tools/lib", "tools/testing/selftests"):
        assert f"there is no {place}/bpf/bpf_helpers.h" in unknown.value.message


def test_a_makefile_without_any_word_says_so(tmp_path: Path) -> None:
    tree = copied("linux-6.1", tmp_path)
    (tree.path / MAKEFILE).write_text("# nothing\n")
    with pytest.raises(UnknownDialect, match=f"{MAKEFILE} assigns nothing"):
        Dialect.of(tree)


@pytest.mark.parametrize("needed", ["Kbuild", "samples/bpf/Makefile"])
def test_what_is_no_kernel_tree_is_not_read_at_all(needed: str, tmp_path: Path) -> None:
    tree = copied("linux-6.1", tmp_path)
    (tree.path / needed).unlink()
    with pytest.raises(NotAKernelTree, match=needed):
        Tree.at(tree.path)


# ---- the table


def test_probes_and_fields_are_the_same() -> None:
    assert list(dict.fromkeys(probe.field for probe in PROBES)) == [
        field.name for field in dataclasses.fields(Dialect)
    ]


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: f"{probe.field}-{probe.value}")
def test_each_row_explains_itself(probe: Probe) -> None:
    bounds = [KernelVersion.parse(text) for text in (probe.since, probe.until) if text]
    assert bounds == sorted(set(bounds))
    assert re.fullmatch(r"[0-9a-f]{12}|", probe.commit)
    assert probe.means.endswith(".")
    assert probe.since or not probe.commit


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_row_that_always_hits_is_the_last_of_its_field(field: str) -> None:
    patterns = [(probe.file, probe.pattern) for probe in PROBES if probe.field == field]
    assert all(pattern for file, pattern in patterns[:-1] if file == patterns[-1][0])


def test_a_file_that_is_not_there_is_no_hit() -> None:
    assert not any(probe.hits(None) for probe in PROBES)


VARIABLES = ("tprogs-y", "hostprogs-y", "hostprogs", "always-y", "always", "VMLINUX_BTF")
blanks = st.text(" \t", max_size=3)
operators = st.sampled_from(("=", "+=", ":=", "::=", ":::=", "?="))


@given(st.sampled_from(VARIABLES), blanks, blanks, operators, st.sampled_from(("", " x", "x")))
def test_an_assignment_is_known_however_it_is_spelled(
    variable: str, before: str, after: str, operator: str, rest: str
) -> None:
    line = f"{before}{variable}{after}{operator}{rest}"
    assert [word for word in VARIABLES if re.match(assigns(word), line)] == [variable]


@pytest.mark.parametrize(
    ("line", "known"),
    [
        ("hostprogs-$(CONFIG_X) += a", "hostprogs-y"),
        ("always-${CONFIG_X}+=a", "always-y"),
        ("hostprogs-m += a", None),
        ("xtprogs-y := a", None),
        ("tprogs-y", None),
        ("# tprogs-y := a", None),
        ("a: tprogs-y := b", None),
        ("tprogs-y-and-more := a", None),
    ],
)
def test_what_is_an_assignment_of_what(line: str, known: str | None) -> None:
    found = [word for word in VARIABLES if re.match(assigns(word), line)]
    assert found == ([known] if known else [])
