"""What make and compilers say when the tree itself is at fault, and when it isn't."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused, make_fake_tree
from support import LOGS, TREES

from xdplab import blame
from xdplab.process import Line
from xdplab.tree import Tree

TREE = TREES / "linux-6.1"
PAIR = ("xdp_ip_filter_kern.c", "xdp_ip_filter_user.c", "xdp_compat.h")

# words of gcc, clang, make, Kconfig and shells, each about a tree that lacks
# something or has something wrong; {tree} is where it is
BLAMED = [
    (
        """\
        In file included from ./include/linux/rcupdate.h:32:
        ./include/linux/context_tracking_irq.h:13:1: error: expected specifier-qualifier-list
        In file included from ./include/linux/rcupdate.h:27,
                         from arch/x86/kernel/asm-offsets.c:9:
        ./include/linux/sched.h:2: error: unterminated #ifndef
            2 | #ifndef _LINUX_SCHED_H
        make[2]: *** [scripts/Makefile.build:182: arch/x86/kernel/asm-offsets.s] Error 1
        """,
        "the tree itself is damaged: include/linux/sched.h:2: unterminated #ifndef",
        "copy include/linux/sched.h",
    ),
    (
        """\
        In file included from samples/bpf/xdp_ip_filter_kern.c:3:
        ./include/uapi/linux/bpf.h:1:2: error: unterminated conditional directive
        #ifndef _UAPI_LINUX_BPF_H
        samples/bpf/xdp_ip_filter_kern.c:9:1: error: unknown type name 'u32'
        """,
        "the tree itself is damaged: include/uapi/linux/bpf.h:1: unterminated conditional",
        "copy include/uapi/linux/bpf.h",
    ),
    (
        "{tree}/samples/bpf/../../include/linux/a.h:90:2: error: #endif without #if",
        "the tree itself is damaged: include/linux/a.h:90: #endif without #if",
        "invoke setup --kernel v6.1",
    ),
    (
        """\
        scripts/Makefile.build:44: scripts/Makefile.lib: No such file or directory
        make[1]: *** No rule to make target 'scripts/Makefile.lib'.  Stop.
        make: *** [Makefile:500: scripts_basic] Error 2
        """,
        "the tree has no scripts/Makefile.lib",
        "copy scripts/Makefile.lib",
    ),
    (
        "make[2]: *** No rule to make target 'scripts/mod/file2alias.c', needed by"
        " 'scripts/mod/file2alias.o'.  Stop.",
        "the tree has nothing to make scripts/mod/file2alias.c of, for scripts/mod/file2alias.o",
        "copy it, or what it is made of",
    ),
    (
        """\
        lib/Kconfig.debug:1876: can't open file "arch/x86/Kconfig.debug"
        make[2]: *** [scripts/kconfig/Makefile:85: allnoconfig] Error 1
        """,
        "the tree has no arch/x86/Kconfig.debug",
        "copy arch/x86/Kconfig.debug",
    ),
    (
        """\
        sh: 1: ./scripts/clang-version.sh: Permission denied
        init/Kconfig:25: syntax error
        """,
        "scripts/clang-version.sh can't be executed",
        "chmod +x scripts/clang-version.sh",
    ),
    (
        "/bin/bash: line 1: ./scripts/mkcompile_h: Permission denied",
        "scripts/mkcompile_h can't be executed",
        "noexec",
    ),
    (
        """\
        kernel/bounds.c:13:10: fatal error: linux/log2.h: No such file or directory
           13 | #include <linux/log2.h>
              |          ^~~~~~~~~~~~~~
        compilation terminated.
        """,
        "has not all its headers: kernel/bounds.c:13: linux/log2.h: No such file or directory",
        "copy that header",
    ),
    (
        """\
        libbpf.c:54:10: fatal error: 'hashmap.h' file not found
        #include "hashmap.h"
        """,
        "has not all its headers: tools/lib/bpf/libbpf.c:54: 'hashmap.h' file not found",
        "copy that header",
    ),
    (
        """\
        kernel/bounds.c:9:1: error: expected ';' before 'int'
        make[2]: *** [scripts/Makefile.build:116: kernel/bounds.s] Error 1
        """,
        "the tree itself does not compile: kernel/bounds.c:9: expected ';' before 'int'",
        "it is not your pair",
    ),
]

# the pair's own faults, this machine's, and what nobody can say
NOT_BLAMED = [
    "samples/bpf/xdp_ip_filter_kern.c:9:1: error: unterminated #if",
    """\
    In file included from samples/bpf/xdp_ip_filter_kern.c:3:
    ./include/linux/a.h:9:1: error: unknown type name 'nonsense'
    """,
    """\
    samples/bpf/xdp_ip_filter_kern.c:9:1: error: unknown type name 'u33'
    tools/lib/bpf/libbpf.c:1:1: error: who comes first?
    """,
    "make[2]: *** No rule to make target 'samples/bpf/xdp_ip_filter_user.c', needed by"
    " 'samples/bpf/xdp_ip_filter_user.o'.  Stop.",
    """\
    scripts/sign-file.c:25:10: fatal error: openssl/opensslv.h: No such file or directory
       25 | #include <openssl/opensslv.h>
    """,
    "/usr/include/libelf.h:3:1: error: expected ';'",
    "make[2]: *** No rule to make target '/usr/lib/gcc/13/include/stddef.h', needed by 'x.o'.",
    "ld: cannot find -lelf",
    "",
]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A tree with a pair in it."""
    tree = Tree.at(shutil.copytree(TREE, tmp_path / "linux"))
    tree.remember(placed=dict.fromkeys(PAIR, "sha256"))
    return tree


def lines(words: str, tree: Tree) -> list[Line]:
    said = textwrap.dedent(words).replace("{tree}", str(tree.path)).splitlines()
    return [Line("err", line) for line in said]


@pytest.mark.parametrize(("words", "fault", "cure"), BLAMED)
def test_the_trees_own_fault_is_named(words: str, fault: str, cure: str, tree: Tree) -> None:
    found = blame.of(tree, lines(words, tree))
    assert found
    assert fault in found.words
    assert cure in found.cure


@pytest.mark.parametrize("words", NOT_BLAMED)
def test_the_tree_is_not_blamed_for_what_is_not_its_own(words: str, tree: Tree) -> None:
    assert blame.of(tree, lines(words, tree)) is None


@pytest.mark.parametrize("log", sorted((LOGS / "compilers").iterdir()), ids=lambda log: log.stem)
def test_warnings_and_faults_of_a_pair_blame_no_tree(log: Path, tree: Tree) -> None:
    assert blame.of(tree, lines(log.read_text(), tree)) is None


# ---- from make to the error

HEADER = """\
#ifndef A_H
#define A_H
#ifdef __KERNEL__
struct a { int b; };
#endif
"""
COMPILED = """
prepare0: bounds
bounds:
> gcc -Iinclude -c -o /dev/null kernel/bounds.c
"""


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A tree whose preparation compiles a file that includes a header without its last #endif."""
    linux = make_fake_tree(tmp_path / "linux")
    with (linux / "Makefile").open("a") as makefile:
        makefile.write(COMPILED)
    (linux / "include/linux/a.h").write_text(HEADER)
    (linux / "kernel/bounds.c").write_text("#include <linux/a.h>\n")
    return linux


def test_a_header_that_lost_an_endif_is_named_by_setup_and_by_build(
    invoke: Invoke, linux: Path
) -> None:
    for command in ("setup", "build"):
        outcome = invoke(command, "--tree", linux)
        assert_refused(
            outcome, 3, "the tree itself is damaged: include/linux/a.h:1: unterminated #ifndef",
            "copy include/linux/a.h from the same release", "whole log: ",
        )  # fmt: skip
    (linux / "include/linux/a.h").write_text(HEADER + "#endif\n")
    assert invoke("build", "--tree", linux).code == 0


def test_a_header_that_is_gone_is_named(invoke: Invoke, linux: Path) -> None:
    (linux / "include/linux/a.h").unlink()
    outcome = invoke("setup", "--tree", linux)
    assert_refused(outcome, 3, "not all its headers", "kernel/bounds.c:1: linux/a.h")


def test_a_source_that_is_gone_is_named(invoke: Invoke, linux: Path) -> None:
    with (linux / "Makefile").open("a") as makefile:
        makefile.write("bounds: scripts/mod/elfconfig.c\n")
    assert_refused(invoke("setup", "--tree", linux), 3, "nothing to make scripts/mod/elfconfig.c")


def test_one_script_without_exec_bits_is_named(invoke: Invoke, linux: Path) -> None:
    script = linux / "scripts/cc-version.sh"
    script.write_text("#!/bin/sh\n")
    for number in range(3):  # most of them have theirs
        (linux / f"scripts/{number}.sh").write_text("#!/bin/sh\n")
        (linux / f"scripts/{number}.sh").chmod(0o755)
    with (linux / "Makefile").open("a") as makefile:
        makefile.write("allnoconfig: version\nversion:\n> @:; ./scripts/cc-version.sh\n")
    outcome = invoke("setup", "--tree", linux)
    assert_refused(outcome, 3, "scripts/cc-version.sh can't be executed", "chmod +x scripts/cc-")
