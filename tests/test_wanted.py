"""What a build reads: found by looking which files were opened, and kept in few rows."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Invoke

from xdplab import damage, footprint
from xdplab.sources import wanted
from xdplab.tree import Tree

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="was recorded on x86")


def test_what_is_read_is_seen_and_nothing_else(fake_tree: Path) -> None:
    tree = Tree.at(fake_tree)
    times = {path: path.stat().st_mtime_ns for path in fake_tree.rglob("*")}
    read = wanted.watch(tree)
    assert read() == set()
    (fake_tree / "Kbuild").read_text()
    (fake_tree / "samples/bpf/Makefile").read_text()
    if not read():
        pytest.skip("this disk is mounted noatime")
    assert read() == {"samples/bpf/Makefile", "Kbuild"}
    assert {path: path.stat().st_mtime_ns for path in fake_tree.rglob("*")} == times


def test_what_is_new_is_added_and_nothing_lost(fake_tree: Path, tmp_path: Path) -> None:
    tree, record = Tree.at(fake_tree), tmp_path / "read.txt"
    record.write_text("include/linux/old.h\n")
    new = wanted.learn(tree, {"scripts/Makefile", "Makefile", ".config"}, record)
    assert new == ["Makefile", "scripts/*"]
    assert wanted.recorded(record) == ["Makefile", "include/linux/old.h", "scripts/*"]
    assert wanted.learn(tree, {"scripts/Makefile"}, record) == []


def test_rows_have_what_was_read_and_little_more() -> None:
    read = {"include/big/a.h", "include/small/a.h", "Makefile", "arch/x86/tools/a.sh"}
    read |= {f"drivers/{number}/Kconfig" for number in range(200)}
    others = {"include/big/b.h": 2**20, "include/small/b.h": 10, "drivers/1/a.c": 10}
    others |= {"arch/sparc/Kconfig": 1, "drivers/new/Kconfig.debug": 1}
    sizes = dict.fromkeys(read, 1) | others
    rows = wanted.fold(read, sizes)
    assert len(rows) == 5
    extra = set(wanted.matching(sizes, rows)) - read
    assert extra == {"include/small/b.h", "drivers/new/Kconfig.debug"}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_only_this_machines_architecture_is_wanted(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    names = [f"arch/{name}/include/asm/types.h" for name in ("x86", "arm64", "riscv64")]
    assert len(wanted.chosen(names)) == 1


def test_a_header_for_samples_brings_the_one_that_is_found_before_it() -> None:
    names = ["include/uapi/linux/tcp.h", "include/linux/tcp.h", "include/linux/skbuff.h"]
    assert wanted.chosen(names) == names[:2]


@X86
def test_what_a_look_for_damage_reads_is_wanted() -> None:
    names = [name for name in damage.EVERY_TREE if name != "scripts/Kconfig.include"]
    assert set(wanted.chosen(names)) == set(names)


@X86
@pytest.mark.tree
def test_what_compilers_say_that_they_read_is_wanted(
    tree: Path, labs: Callable[[str], Invoke]
) -> None:
    built = Tree.at(tree)
    labs(str(built.version.series).removeprefix("v"))
    said = " ".join(path.read_text(errors="replace") for path in tree.rglob(".*.cmd"))
    said += (tree / "include/config/auto.conf.cmd").read_text()
    words = set(re.findall(r"[\w./+-]+", said.replace(f"{tree}/", "")))
    names = map(os.path.normpath, words)  # "./scripts/a.sh", "scripts/mod/../../include/a.h"
    files = {name for name in names if (tree / name).is_file() and not name.startswith("/")}
    files -= set(built.placed()) | set(footprint.made(built))
    assert len(files) > 1000
    assert files - set(wanted.chosen(files)) == set()
