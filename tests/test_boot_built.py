"""A kernel built from a tree: what it has got, what is built anew, and the tree as it was.

Most of it in a tree of a few lines, whose kernel is a small ELF file; one real
kernel is built and booted if XDPLAB_TEST_SLOW is set, for it takes minutes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    FAKE,
    PATIENCE,
    Invoke,
    assert_refused,
    copied,
    make_fake_tree,
    path_without,
    processes_in,
    snapshot,
    wait_until,
)

from xdplab.boot import Kernel, built
from xdplab.errors import NotAConfig
from xdplab.process import Line
from xdplab.tree import Tree
from xdplab.workspace import Workspace

# Like kbuild: it refuses to build elsewhere from sources that were built in, what it
# makes goes into $(O), and an option that no Kconfig tells of is dropped.
MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 1
SUBLEVEL = 0
EXTRAVERSION =

.DEFAULT_GOAL := all
mrproper:
\t@rm -rf .config include/config include/generated init/stale.h
.PHONY: mrproper
ifdef O
include Makefile.kernel
else
include Makefile.samples
endif
"""
KERNEL = """\
objects := $(O)/init/main.o $(O)/net/core/dev.o
ifneq ($(wildcard .config include/config),)
$(error the source tree is not clean, please run make mrproper)
endif
allnoconfig:
\t@$(PAUSE_CONFIG)
\t@mkdir -p $(O)/init $(O)/net/core $(O)/include/config
\t@sed -n 's/^config /CONFIG_/p' Kconfig > $(O)/offered
\t@grep -wFf $(O)/offered $(KCONFIG_ALLCONFIG) > $(O)/.config
\t@echo 6.1.0 > $(O)/include/config/kernel.release
$(O)/%.o: %.c
\t@echo "  CC      $*.o"
\t@$(CC) -c -o $@ $<
vmlinux: $(O)/vmlinux
$(O)/vmlinux: $(objects)
\t@$(PAUSE)
\t@echo "  LD      vmlinux"
\t@$(CC) -g -o $@ $(objects)
bzImage: vmlinux
\t@mkdir -p $(O)/arch/x86/boot
\t@cp $(O)/vmlinux $(O)/arch/x86/boot/bzImage
.PHONY: allnoconfig vmlinux bzImage
"""


def kconfig(*without: str) -> str:
    options = built.options(built.FRAGMENT)
    names = (name.removeprefix("CONFIG_") for name in options if name not in without)
    return "".join(f"config {name}\n\tbool\n\n" for name in names)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that a kernel can be built from."""
    tree = make_fake_tree(tmp_path / "linux")
    files = {
        "Makefile": MAKEFILE,
        "Makefile.kernel": KERNEL,
        "Makefile.samples": textwrap.dedent(FAKE["Makefile"]),
        "Kconfig": kconfig(),
        "init/main.c": "int main(void) { return 0; }\n",
        "net/core/dev.c": "int dev;\n",
    }
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    return tree


def make_kernel(invoke: Invoke, tree: Path, timeout: float = PATIENCE) -> Kernel:
    """Build a kernel from the tree."""
    outcome = invoke("kernel", "--tree", tree, timeout=timeout)
    assert outcome.code == 0, outcome.err
    kernel = built.of(Tree.at(tree).key, Workspace(invoke.workspace))
    assert kernel
    assert outcome.out.startswith(f"{kernel.image}: Linux {kernel.release}, in ")
    return kernel


def facts(kernel: Kernel) -> dict[str, Any]:
    found = json.loads(kernel.image.with_name("kernel.json").read_text())
    assert isinstance(found, dict)
    return found


def place(invoke: Invoke) -> Path:
    """Where the kernel is made."""
    (found,) = invoke.workspace.glob("builds/*/vm-kernel")
    return found


def compiled(invoke: Invoke) -> list[str]:
    """What the last call compiled, by make's word."""
    lines = (place(invoke) / "kernel.log").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("  CC ")]


def sources_of(tree: Path) -> dict[str, tuple[int, int, int]]:
    """The tree as it is, but for the harness's notes in it."""
    found = snapshot(tree)
    return {
        name: stat for name, stat in found.items() if "/.xdplab" not in name and name != str(tree)
    }


# ---- the result


def test_a_kernel_is_kept_with_what_it_is(invoke: Invoke, tree: Path) -> None:
    kernel = make_kernel(invoke, tree)
    assert (kernel.release, kernel.source, kernel.modules) == ("6.1.0", "tree", None)
    assert kernel.image.name == "vmlinux"
    assert subprocess.run([kernel.image], check=False).returncode == 0
    sections = subprocess.run(
        ["readelf", "--sections", "--wide", kernel.image],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert ".debug" not in sections
    assert kernel.config
    assert "CONFIG_BPF_SYSCALL=y" in kernel.config.read_text().splitlines()
    known = facts(kernel)
    assert known["tree"] == str(tree)
    assert "gcc" in str(known["compiler"])
    assert known["log"] == str(place(invoke) / "kernel.log")


def test_a_tree_without_pvh_gives_a_bzimage(invoke: Invoke, tree: Path) -> None:
    (tree / "Kconfig").write_text(kconfig("CONFIG_PVH"))
    outcome = invoke("kernel", "--tree", tree)
    assert outcome.code == 0, outcome.err
    assert (
        "without CONFIG_PVH: the tree has no such option; upstream has it since v5.0" in outcome.err
    )
    kernel = built.of(Tree.at(tree).key, Workspace(invoke.workspace))
    assert kernel
    assert kernel.image.name == "bzImage"
    assert facts(kernel)["dropped"].keys() >= {"CONFIG_PVH"}


def test_the_tree_is_not_written_to(invoke: Invoke, tree: Path) -> None:
    assert invoke("setup", "--tree", tree).code == 0
    assert invoke("build", "--tree", tree).code == 0
    before = sources_of(tree)
    make_kernel(invoke, tree)
    assert sources_of(tree) == before
    assert invoke("build", "--tree", tree).code == 0  # the samples' configuration is theirs still


def test_what_builds_left_in_the_tree_is_no_source(invoke: Invoke, tree: Path) -> None:
    assert invoke("build", "--tree", tree).code == 0
    make_kernel(invoke, tree)
    taken = place(invoke) / "source"
    assert (taken / "init/main.c").samefile(tree / "init/main.c")
    for name in (".config", ".xdplab", "include/generated", "samples/bpf/xdp_ip_filter"):
        assert (tree / name).exists()
        assert not (taken / name).exists()


def test_a_tree_that_its_user_built_in(invoke: Invoke, tree: Path) -> None:
    (tree / ".config").write_text("CONFIG_THEIRS=y\n")
    (tree / "init/stale.h").write_text("made by make\n")
    before = sources_of(tree)
    make_kernel(invoke, tree)
    assert not (place(invoke) / "source/init/stale.h").exists()
    assert sources_of(tree) == before
    make_kernel(invoke, tree)
    assert compiled(invoke) == []


def test_a_dry_run_changes_nothing(invoke: Invoke, tree: Path) -> None:
    before = snapshot(tree.parent)
    outcome = invoke("--dry", "kernel", "--tree", tree)
    assert outcome.code == 0
    tools = [command.split(" && LC_ALL=C.UTF-8 ")[-1].split()[0] for command in outcome.commands()]
    assert tools[-3:] == ["rsync", "make", "make"]
    assert snapshot(tree.parent) == before


# ---- what is asked for


def test_all_that_the_machine_needs_is_asked_for() -> None:
    asked = built.options(built.FRAGMENT)
    assert built.NEEDED.keys() <= asked.keys()
    assert built.SINCE.keys() <= asked.keys()
    assert set(built.OF_BTF) <= asked.keys()


@pytest.mark.parametrize(
    ("pahole", "kinds", "why"),
    [
        (False, "BTF_KIND_ENUM64 = 19", "pahole, which makes it, is not installed"),
        (True, "BTF_KIND_FLOAT = 16", "the kernel could not read what today's pahole writes"),
        (True, "BTF_KIND_ENUM64 = 19", None),
    ],
)
def test_btf_where_pahole_and_the_kernel_can(
    invoke: Invoke, tree: Path, tmp_path: Path, *, pahole: bool, kinds: str, why: str | None
) -> None:
    (tree / "include/uapi/linux").mkdir(parents=True, exist_ok=True)
    (tree / "include/uapi/linux/btf.h").write_text(f"enum {{ {kinds} }};\n")
    path = path_without(tmp_path / "path", "pahole")
    if pahole:
        (tmp_path / "path/pahole").symlink_to("/bin/true")
    outcome = invoke("kernel", "--tree", tree, env={"PATH": path})
    assert outcome.code == 0, outcome.err
    kernel = built.of(Tree.at(tree).key, Workspace(invoke.workspace))
    assert kernel
    assert kernel.config
    assert ("CONFIG_DEBUG_INFO_BTF=y" in kernel.config.read_text()) == (why is None)
    assert facts(kernel)["dropped"].get("CONFIG_DEBUG_INFO_BTF") == why


def test_an_option_that_is_dropped_is_named(invoke: Invoke, tree: Path) -> None:
    (tree / "Kconfig").write_text(kconfig("CONFIG_XDP_SOCKETS"))
    outcome = invoke("kernel", "--tree", tree)
    assert outcome.code == 0
    told = [line for line in outcome.err.splitlines() if line.startswith("without CONFIG_XDP")]
    assert told == ["without CONFIG_XDP_SOCKETS: the tree has no such option"]


def test_a_tree_that_lacks_what_the_machine_needs_is_refused(invoke: Invoke, tree: Path) -> None:
    (tree / "Kconfig").write_text(kconfig(*built.NEEDED))
    outcome = invoke("kernel", "--tree", tree)
    told = [f"{name} ({use}): the tree has no such" for name, use in built.NEEDED.items()]
    assert_refused(outcome, 2, *told, "--tree")
    assert not (invoke.workspace / "kernels").exists()


def test_options_of_the_users_own_come_last(invoke: Invoke, tree: Path, tmp_path: Path) -> None:
    (tree / "Kconfig").write_text(f"{kconfig()}config KASAN\n\tbool\n")
    options = tmp_path / "mine"
    options.write_text("# mine\n\nCONFIG_KASAN=y\nCONFIG_UBSAN=y\n# CONFIG_DUMMY is not set\n")
    outcome = invoke("kernel", "--tree", tree, "--config", options)
    assert outcome.code == 0, outcome.err
    assert "without CONFIG_UBSAN: the tree has no such option" in outcome.err
    kernel = built.of(Tree.at(tree).key, Workspace(invoke.workspace))
    assert kernel
    assert kernel.config
    got = kernel.config.read_text().splitlines()
    assert {"CONFIG_KASAN=y", "CONFIG_DUMMY=n"} <= set(got)
    options.write_text("CONFIG_VIRTIO_NET=n\n")
    refused = invoke("kernel", "--tree", tree, "--config", options)
    assert_refused(refused, 2, "CONFIG_VIRTIO_NET (the network card)", "--config")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"CONFIG_A=y\nKASAN=y\n", "line 2 is no option: 'KASAN=y'"),
        (b"CONFIG_A=\n", "line 1 is no option"),
        (b"\x7fELF\xff\xfe", "it is no text"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_of_options_that_is_none(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "options"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(NotAConfig, match=str(file)) as raised:
        built.options(file)
    assert why in raised.value.message


# ---- what is built anew


def test_a_second_call_compiles_nothing(invoke: Invoke, tree: Path) -> None:
    make_kernel(invoke, tree)
    assert sorted(compiled(invoke)) == ["init/main.o", "net/core/dev.o"]
    make_kernel(invoke, tree)
    assert compiled(invoke) == []


@pytest.mark.parametrize("anew", [True, False])
def test_only_the_file_that_was_edited_is_compiled(
    invoke: Invoke, tree: Path, *, anew: bool
) -> None:
    make_kernel(invoke, tree)
    edited = tree / "net/core/dev.c"
    if anew:  # as most editors do
        edited.unlink()
    edited.write_text("int dev, other;\n")
    make_kernel(invoke, tree)
    assert compiled(invoke) == ["net/core/dev.o"]


def test_a_file_that_is_gone_is_gone(invoke: Invoke, tree: Path) -> None:
    make_kernel(invoke, tree)
    (tree / "net/core/dev.c").unlink()
    outcome = invoke("kernel", "--tree", tree)
    assert outcome.code == 0, outcome.err  # its object is there still
    assert not (place(invoke) / "source/net/core/dev.c").exists()


def test_a_kernel_that_does_not_compile(invoke: Invoke, tree: Path) -> None:
    before = make_kernel(invoke, tree)
    (tree / "net/core/dev.c").write_text("int dev = ;\n")
    outcome = invoke("kernel", "--tree", tree)
    assert_refused(outcome, 3, "make vmlinux failed", "net/core/dev.c:1", "kernel.log")
    assert "int dev = ;" in outcome.err
    assert built.of(Tree.at(tree).key, Workspace(invoke.workspace)) == before


def test_on_another_disk_the_sources_are_copied(tree: Path) -> None:
    memory = Path("/dev/shm")  # noqa: S108  # for its disk, not for its name
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tree.stat().st_dev:
        pytest.skip("there is no other disk")
    workspace = memory / f"xdplab-test-{os.getpid()}"
    invoke = Invoke(workspace)
    try:
        make_kernel(invoke, tree)
        make_kernel(invoke, tree)
        assert compiled(invoke) == []
        assert not (place(invoke) / "source/init/main.c").samefile(tree / "init/main.c")
    finally:
        assert invoke("clean", "--trees").code == 0
    assert not workspace.exists()


# ---- ended, and taken back


@pytest.mark.parametrize("moment", ["PAUSE_CONFIG", "PAUSE"])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_ended_in_the_middle_it_goes_on_when_called_again(
    invoke: Invoke, tree: Path, moment: str, end: signal.Signals
) -> None:
    there = tree.parent / "there"
    pause = {moment: f"touch {there} && exec sleep 9"}
    with invoke.start("kernel", "--tree", tree, env=pause) as background:
        wait_until(there.exists)
        background.process.send_signal(end)
        outcome = background.wait()
    assert outcome.code == (130 if end == signal.SIGINT else -end)
    wait_until(lambda: not processes_in(invoke.workspace))
    assert not built.of(Tree.at(tree).key, Workspace(invoke.workspace))
    make_kernel(invoke, tree)
    assert (compiled(invoke) == []) == (moment == "PAUSE")


def test_two_at_once(invoke: Invoke, tree: Path) -> None:
    there = tree.parent / "there"
    pause = {"PAUSE": f"touch {there} && exec sleep 60"}
    with invoke.start("kernel", "--tree", tree, env=pause) as first:
        wait_until(there.exists)
        assert_refused(invoke("kernel", "--tree", tree), 69, "vm-kernel", "process")
        assert invoke("build", "--tree", tree).code == 0  # samples have the tree to themselves
        assert first.interrupt().code == 130


def test_clean_leaves_the_kernel_and_with_trees_takes_it(invoke: Invoke, tree: Path) -> None:
    before = sources_of(tree)
    kernel = make_kernel(invoke, tree)
    assert invoke("clean").code == 0
    assert not (invoke.workspace / "builds").exists()
    assert Kernel.load(kernel.image.parent) == kernel
    assert sources_of(tree) == before
    assert invoke("clean", "--trees").code == 0
    assert not invoke.workspace.exists()


# ---- the real thing


@pytest.mark.tree
@pytest.mark.skipif(
    not os.environ.get("XDPLAB_TEST_SLOW"),
    reason="building a kernel takes minutes; set XDPLAB_TEST_SLOW to do it",
)
def test_a_real_kernel_boots(fetched: Callable[[str], Path], invoke: Invoke) -> None:
    with copied(fetched("6.1")) as tree:
        before = sources_of(tree)
        kernel = make_kernel(invoke, tree, timeout=3600)
        assert sources_of(tree) == before
        assert facts(kernel)["dropped"].keys() <= {"CONFIG_DEBUG_INFO_BTF"}
        lines = (tree / "net/core/dev.c").read_text()
        (tree / "net/core/dev.c").unlink()  # it is a link to another tree's
        (tree / "net/core/dev.c").write_text(lines + "\n")
        kernel = make_kernel(invoke, tree, timeout=3600)
        objects = [name for name in compiled(invoke) if name.startswith("net/")]
        assert objects == ["net/core/dev.o"]
        assert invoke("build", "--tree", tree).code == 0
        proved = invoke("verify", "--on=vm", "--dev=eth0", "--mode=native", "--tree", tree)
        assert proved.code == 0, proved.out + proved.err
        assert f"-kernel {kernel.image} " in proved.err


def test_how_far_it_is_is_told_with_each_hundred_files() -> None:
    heard: list[Line] = []
    told: list[str] = []
    hear = built.counted(heard.append, lambda phase, *_: told.append(phase))
    lines = [Line("out", f"  {'HOSTCC' if n % 2 else 'CC'}  {n}.o") for n in range(250)]
    lines += [Line("out", "  LD  vmlinux"), Line("err", "warning: CC ")]
    for line in lines:
        hear(line)
    assert heard == lines
    assert told == ["compiling: 100 files so far", "compiling: 200 files so far"]
