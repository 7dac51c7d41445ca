"""The words of samples/bpf, read out of trees."""

import dataclasses
from pathlib import Path

import pytest
from support import ERAS, TREES, copied

from xdplab.dialect import PROBES, Dialect, Probe
from xdplab.errors import NotAKernelTree, UnknownDialect
from xdplab.tree import MAKEFILE, Tree

OLD_HEADER, NEW_HEADER = '"bpf_helpers.h"', "<bpf/bpf_helpers.h>"
FIELDS = {field.name for field in dataclasses.fields(Dialect)}

needs_pattern = [probe for probe in PROBES if probe.pattern]


@pytest.mark.parametrize(
    ("era", "expected"),
    [
        ("linux-4.19", Dialect("hostprogs-y", "always", "bpf_load", OLD_HEADER)),
        ("linux-5.6", Dialect("tprogs-y", "always-y", "bpf_load", NEW_HEADER)),
        ("linux-5.10", Dialect("tprogs-y", "always-y", "bpf_load", NEW_HEADER)),
        ("linux-6.1", Dialect("tprogs-y", "always-y", "libbpf", NEW_HEADER)),
        ("linux-7.2", Dialect("tprogs-y", "always-y", "libbpf", NEW_HEADER)),
    ],
)
def test_each_era_has_its_words(era: str, expected: Dialect) -> None:
    assert Dialect.of(Tree.at(TREES / era)) == expected


@pytest.mark.parametrize("era", ERAS)
def test_the_version_plays_no_part(era: str, tmp_path: Path) -> None:
    tree = copied(era, tmp_path)
    expected = Dialect.of(tree)
    (tree.path / "Makefile").write_text("VERSION = 3\nPATCHLEVEL = 0\n")
    assert Dialect.of(Tree.at(tree.path)) == expected


@pytest.mark.parametrize("word", ["hostprogs-y", "hostprogs", "tprogs-y"])
def test_a_word_that_ends_in_another_is_told_apart(word: str, tmp_path: Path) -> None:
    tree = copied("linux-6.1", tmp_path)
    makefile = tree.path / MAKEFILE
    makefile.write_text(makefile.read_text().replace("tprogs-y", word))
    assert Dialect.of(tree).programs == word


def test_both_lists_side_by_side_mean_the_newer_one(tmp_path: Path) -> None:
    tree = copied("linux-6.1", tmp_path)
    with (tree.path / MAKEFILE).open("a") as makefile:
        makefile.write("hostprogs-y := a_host_tool\n")
    assert Dialect.of(tree).programs == "tprogs-y"


def test_words_in_comments_do_not_count(tmp_path: Path) -> None:
    tree = copied("linux-4.19", tmp_path)
    makefile = tree.path / MAKEFILE
    makefile.write_text("# tprogs-y := was tried\n" + makefile.read_text())
    assert Dialect.of(tree).programs == "hostprogs-y"


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n# \xff\xfe\n"])
def test_neither_line_ends_nor_foreign_bytes_matter(ending: bytes, tmp_path: Path) -> None:
    tree = copied("linux-5.10", tmp_path)
    makefile = tree.path / MAKEFILE
    makefile.write_bytes(makefile.read_bytes().replace(b"\n", ending))
    assert Dialect.of(tree).programs == "tprogs-y"


def test_an_unknown_dialect_tells_what_was_looked_for() -> None:
    with pytest.raises(UnknownDialect) as unknown:
        Dialect.of(Tree.at(TREES / "unknown"))
    message = unknown.value.message
    for probe in PROBES:
        lacking = probe.field in ("programs", "always")
        assert (f"{probe.value} in {probe.file}" in message) is lacking
    assert "helpers" not in message


def test_a_tree_without_its_helpers_lacks_only_them(tmp_path: Path) -> None:
    tree = copied("linux-6.1", tmp_path)
    (tree.path / "tools/lib/bpf/bpf_helpers.h").unlink()
    with pytest.raises(UnknownDialect, match="helpers: looked for") as unknown:
        Dialect.of(tree)
    assert "tprogs-y" not in unknown.value.message


@pytest.mark.parametrize("needed", ["Kbuild", "samples/bpf/Makefile"])
def test_what_is_no_kernel_tree_is_not_read_at_all(needed: str, tmp_path: Path) -> None:
    tree = copied("linux-6.1", tmp_path)
    (tree.path / needed).unlink()
    with pytest.raises(NotAKernelTree, match=needed):
        Tree.at(tree.path)


def test_probes_and_fields_are_the_same() -> None:
    assert {probe.field for probe in PROBES} == FIELDS


@pytest.mark.parametrize("probe", needs_pattern, ids=lambda probe: probe.value)
def test_a_pattern_hits_its_word_at_the_start_of_a_line_only(probe: Probe, tmp_path: Path) -> None:
    file = tmp_path / probe.file
    file.parent.mkdir(parents=True)
    for operator in (":=", "+=", "="):
        file.write_text(f"# first\n{probe.value} {operator} x\n")
        assert probe.hits(tmp_path)
        file.write_text(f"# first\nx{probe.value} {operator} x\n# {probe.value} {operator} x\n")
        assert not probe.hits(tmp_path)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: f"{probe.value}-{probe.file}")
def test_a_file_that_is_not_there_is_no_hit(probe: Probe, tmp_path: Path) -> None:
    assert not probe.hits(tmp_path)
    (tmp_path / probe.file).mkdir(parents=True)
    assert not probe.hits(tmp_path)
