"""What a build runs that follows another: make, the compilers alone, or nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import (
    KERNELS,
    Invoke,
    contents,
    copy_pair,
    make_fake_tree,
    modules,
    processes_in,
    wait_until,
)

from xdplab import lifecycle, receipt
from xdplab.bench import build as bench
from xdplab.bench.measure import Means
from xdplab.build import Build, build
from xdplab.errors import FileInTheWay, Held, MakeFailed, NotBuilt
from xdplab.process import Running, Shell
from xdplab.receipt import Receipt
from xdplab.sample import Sample
from xdplab.toolchain import Toolchain
from xdplab.torture import small
from xdplab.tree import Tree
from xdplab.workspace import Workspace

KERN = """\
#include <tree.h>
#include "mine.h"
#define SECTION(name) __attribute__((section(name), used))
SECTION("xdp") int program(void *packet) { return MINE + TREE; }
char _license[] SECTION("license") = "GPL";
"""
USER = """\
#include <tree.h>
#include "xdp_compat.h"
int main(void) { return TREE; }
"""
COMPAT = "#define COMPAT 1\n"


@dataclass
class Desk:
    """A pair, a tree, and a workspace; `said` is what the last build ran."""

    pair: Path
    linux: Path
    workspace: Workspace
    clang: str | None = None
    trace: bool = False
    sandboxed: bool = False

    def build(self, shell: Shell | None = None) -> Build:
        """Build the pair; raises what build() raises."""
        self.said: list[str] = []
        ours = replace(shell or Shell(), echo=self.said.append)
        return build(
            Tree.at(self.linux), Sample.find(str(self.pair / "mine_kern.c")),
            replace(Toolchain.find(clang=self.clang), sandboxed=self.sandboxed),
            self.workspace, ours,
            lambda _: None, lambda _: None, trace=self.trace,
        )  # fmt: skip

    @property
    def ran(self) -> str:
        """What the last build ran: "make", "clang", "gcc", both, or nothing."""
        words = ("make ", "clang -I", "gcc -I")
        found = [word.split()[0] for word in words if any(word in line for line in self.said)]
        return " ".join(found)

    def edit(self, name: str, before: str, after: str) -> None:
        """Replace words of a file of the pair."""
        file = self.pair / name
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after))

    def code(self) -> bytes:
        """The BPF object that is kept."""
        (found,) = self.workspace.root.glob("builds/*/mine/mine_kern.o")
        return found.read_bytes()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A pair that isn't built yet."""
    return laid(tmp_path)


def laid(tmp_path: Path) -> Desk:
    """A desk in a directory."""
    linux = make_fake_tree(tmp_path / "linux")
    (linux / "Makefile").write_text(small.makefile("6.1", "libbpf"))
    (linux / "include/tree.h").write_text("#define TREE 1\n")
    pair = tmp_path / "pair"
    pair.mkdir()
    files = {"mine_kern.c": KERN, "mine_user.c": USER, "mine.h": "#define MINE 1\n",
             "xdp_compat.h": COMPAT}  # fmt: skip
    for name, text in files.items():
        (pair / name).write_text(text)
    return Desk(pair, linux, Workspace(tmp_path / "workspace"))


@pytest.fixture
def built(desk: Desk) -> Desk:
    """A pair that make has built."""
    assert not desk.build().unchanged
    assert desk.ran == "make"
    return desk


# ---- nothing changed


def test_nothing_is_run_where_nothing_changed(built: Desk) -> None:
    made = contents(built.workspace.root)
    for _ in range(2):
        assert built.build().unchanged
        assert built.said == []
    assert contents(built.workspace.root).keys() == made.keys()


# of the library: what looks whether anything changed, and what every command needs
LOOKS = {"errors", "options", "lab", "workspace", "tree", "trees", "version", "files", "process"}
LOOKS |= {
    "logs",
    "view",
    "view.text",
    "view.stage",
    "toolchain",
    "sample",
    "build",
    "receipt",
    "recipe",
}


def test_what_only_looks_imports_nothing_that_builds(built: Desk) -> None:
    asked = ("build", f"--tree={built.linux}", f"--sample={built.pair}")
    imported = modules(Invoke(built.workspace.root), *asked)
    ours = {name.removeprefix("xdplab.") for name in imported if name.startswith("xdplab.")}
    assert ours == LOOKS
    assert not imported & {"rich", "elftools", "git", "jinja2", "platform"}


def test_a_kernel_half_that_is_as_it_was_is_not_read_again(built: Desk) -> None:
    built.edit("mine_user.c", "return TREE", "return 70")
    asked = ("build", f"--tree={built.linux}", f"--sample={built.pair}")
    imported = modules(Invoke(built.workspace.root), *asked)
    assert "xdplab.making" in imported
    assert "elftools" not in imported
    assert built.build().unchanged


def test_what_was_only_touched_did_not_change(built: Desk) -> None:
    time.sleep(0.01)
    for file in built.pair.iterdir():
        file.touch()
    result = built.build()
    assert (result.unchanged, built.said) == (True, [])
    assert not result.older_than(Sample.find(str(built.pair)))


def test_cases_that_came_since_are_in_the_result(built: Desk) -> None:
    (built.pair / "mine_cases.toml").write_text("# none yet\n")
    result = built.build()
    assert result.unchanged
    (kept,) = built.workspace.root.glob("builds/*/mine")
    assert Build.load(kept) == replace(result, unchanged=False)
    assert result.facts["cases"]["text"] == "# none yet\n"


def test_a_copy_that_is_gone_from_the_tree_comes_back(built: Desk) -> None:
    copy = built.linux / "samples/bpf/mine.h"
    copy.unlink()
    built.build()
    assert built.ran == ""
    assert copy.read_bytes() == (built.pair / "mine.h").read_bytes()


# ---- the pair changed


@pytest.mark.parametrize(
    ("name", "before", "after", "ran"),
    [
        ("mine_kern.c", "MINE + TREE", "MINE + 70", "clang"),
        ("mine_kern.c", "MINE + TREE", "TREE + MINE", "clang"),  # the same size
        ("mine_user.c", "return TREE", "return 70", "gcc"),
        ("mine.h", "MINE 1", "MINE 2", "clang"),
        ("xdp_compat.h", "COMPAT 1", "COMPAT 2", "gcc"),
    ],
)
def test_what_reads_an_edited_file_is_made_anew(
    built: Desk, name: str, before: str, after: str, ran: str
) -> None:
    was = (built.pair / name).stat()
    built.edit(name, before, after)
    os.utime(built.pair / name, ns=(was.st_atime_ns, was.st_mtime_ns))  # it doesn't tell
    built.build()
    assert built.ran == ran
    assert all(line.startswith(f"(cd {built.linux} && LC_ALL=") for line in built.said)
    assert built.build().unchanged


def test_an_edit_is_compiled_as_make_does_it(built: Desk) -> None:
    built.edit("mine_kern.c", "MINE + TREE", "MINE + 70")
    built.edit("mine_user.c", "return TREE", "return 70")
    result = built.build()
    assert built.ran == "clang gcc"
    directly = contents(result.directory)
    Receipt.remove(result.directory)
    built.build()
    assert built.ran == "make"
    by_make = contents(result.directory)
    assert [directly[name] for name in ("mine", "mine_kern.o")] == [
        by_make[name] for name in ("mine", "mine_kern.o")
    ]


def test_a_printed_command_can_be_pasted(built: Desk) -> None:
    built.edit("mine_kern.c", "MINE + TREE", "MINE + 70")
    built.build()
    made = built.linux / "samples/bpf/mine_kern.o"
    before = made.read_bytes()
    made.unlink()
    for line in built.said:
        subprocess.run(["bash", "-c", line], check=True)
    assert made.read_bytes() == before


def test_a_header_that_is_new_is_heeded_from_then_on(built: Desk) -> None:
    (built.pair / "new.h").write_text("#define NEW 1\n")
    (built.linux / "include/newer.h").write_text("#define NEWER 1\n")
    built.edit("mine_kern.c", "MINE + TREE", "NEW + NEWER")
    built.edit("mine_kern.c", "#include <tree.h>", '#include <newer.h>\n#include "new.h"')
    time.sleep(0.01)
    built.build()
    assert built.ran == "clang gcc"  # it may lie before another of its name, for either
    (built.pair / "new.h").write_text("#define NEW 2\n")
    built.build()
    assert built.ran == "clang"
    (built.linux / "include/newer.h").write_text("#define NEWER 2\n")
    built.build()
    assert built.ran == "make"


def test_tracing_is_a_change_of_the_pair(built: Desk) -> None:
    built.trace = True
    assert built.build().facts["trace"]
    assert built.ran == "gcc"  # which alone reads xdp_compat.h here
    assert built.build().unchanged
    built.trace = False
    assert not built.build().facts["trace"]
    assert built.ran == "gcc"


def test_another_pair_of_the_name_is_another_pair(built: Desk, tmp_path: Path) -> None:
    first = built.code()
    shutil.copytree(built.pair, tmp_path / "other")
    other = replace(built, pair=tmp_path / "other")
    assert other.build().facts["sources"][0] == str(tmp_path / "other/mine_kern.c")
    assert other.ran == ""
    other.edit("mine.h", "MINE 1", "MINE 2")
    other.build()
    assert (other.ran, other.code() == first) == ("clang", False)
    built.build()
    assert (built.ran, built.code() == first) == ("clang", True)


# ---- anything else changed


def in_place(file: Path) -> None:
    """Another byte, the same size and date."""
    was, text = file.stat(), file.read_bytes()
    with file.open("r+b") as opened:
        opened.write(text.replace(b"1", b"2"))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


def by_an_older_one(file: Path) -> None:
    other = file.with_name("older")
    other.write_bytes(file.read_bytes().replace(b"1", b"2"))
    os.utime(other, (0, 0))
    other.replace(file)


def appended(file: Path) -> None:
    with file.open("a") as opened:
        opened.write("\n")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("include/tree.h", appended),
        ("include/tree.h", in_place),
        ("include/tree.h", by_an_older_one),
        (".config", appended),
        ("Makefile", appended),
        ("samples/bpf/Makefile", appended),
        ("scripts/Kbuild.include", appended),
        ("tools/lib/bpf/libbpf.c", appended),
        ("tools/lib/bpf/libbpf.a", appended),
        ("tools/lib/bpf/libbpf.a", Path.unlink),
        ("include/generated/asm-offsets.h", Path.unlink),
    ],
)
def test_make_decides_when_the_tree_changed(
    built: Desk, name: str, change: Callable[[Path], None]
) -> None:
    time.sleep(0.01)  # the clock of files goes by ticks
    change(built.linux / name)
    built.build()
    assert built.ran == "make"
    assert built.build().unchanged


def test_what_was_written_anew_in_the_same_words_did_not_change(built: Desk) -> None:
    header = built.linux / "include/tree.h"
    text = header.read_bytes()
    header.unlink()
    header.write_bytes(text)
    os.link(header, header.with_name("another_link"))
    assert built.build().unchanged
    assert built.said == []


def test_a_header_of_the_machines_counts_too(built: Desk, tmp_path: Path) -> None:
    header = tmp_path / "machines.h"
    header.write_text("#define MACHINES 1\n")
    built.edit("mine_user.c", "#include <tree.h>", f'#include <tree.h>\n#include "{header}"')
    time.sleep(0.01)
    built.build()
    assert (built.ran, built.build().unchanged) == ("gcc", True)
    header.write_text("#define MACHINES 2\n")
    built.build()
    assert built.ran == "make"


def test_patches_that_were_taken_back_are_applied_again(built: Desk) -> None:
    lifecycle.revert(Tree.at(built.linux))
    built.build()
    assert built.ran == "make"
    assert "mine_kern.o" in (built.linux / "samples/bpf/Makefile").read_text()


def compiler(file: Path, says: str) -> None:
    file.write_text(f'#!/bin/sh\n[ "$1" != --version ] || echo {says}\nexec clang "$@"\n')
    file.chmod(0o755)


def test_make_decides_when_the_compiler_is_another(built: Desk, tmp_path: Path) -> None:
    built.clang = str(tmp_path / "clang")
    for says in ("one", "two"):
        compiler(tmp_path / "clang", says)
        assert built.build().facts["compilers"]["clang"] == says
        assert built.ran == "make"
        assert built.build().unchanged
    appended(tmp_path / "clang")  # as much as is seen of an upgrade that says the same
    built.build()
    assert built.ran == "make"


@pytest.mark.parametrize("name", ["KCFLAGS", "CPATH"])
def test_make_decides_when_what_it_takes_from_the_environment_changed(
    built: Desk, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("NOBODY_HEEDS_IT", "1")
    assert built.build().unchanged
    monkeypatch.setenv(name, "-DHEEDED" if name == "KCFLAGS" else str(built.pair))
    built.build()
    assert built.ran == "make"
    assert built.build().unchanged


def test_make_decides_when_the_harness_is_another(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt, "PROJECT", tmp_path / "project")
    rule = tmp_path / "project/patches/series"
    rule.parent.mkdir(parents=True)
    rule.touch()
    time.sleep(0.01)
    desk.build()
    assert desk.build().unchanged
    rule.write_text("# another\n")
    desk.build()
    assert desk.ran == "make"


def test_a_build_of_before_there_were_receipts_is_made_by_make(built: Desk) -> None:
    (kept,) = built.workspace.root.glob("builds/*/mine")
    Receipt.remove(kept)
    built.build()
    assert built.ran == "make"


def test_a_source_that_was_written_to_meanwhile_is_not_trusted(desk: Desk) -> None:
    """make may have read it before or after: it is asked again."""

    def meddle(running: Running) -> None:
        if "V=1" in running.argv:
            time.sleep(0.01)
            (desk.linux / "include/tree.h").touch()

    desk.build(Shell(hold=meddle))
    desk.build()
    assert desk.ran == "make"
    assert desk.build().unchanged


# ---- what was made is gone, or isn't what it was


@pytest.mark.parametrize("half", ["mine", "mine_kern.o"])
@pytest.mark.parametrize("change", [Path.unlink, lambda file: os.truncate(file, 100)])
@pytest.mark.parametrize("where", ["tree", "workspace"])
def test_what_is_lost_is_made_anew(
    built: Desk, half: str, change: Callable[[Path], None], where: str
) -> None:
    code = built.code()
    (kept,) = built.workspace.root.glob("builds/*/mine")
    change((built.linux / "samples/bpf" if where == "tree" else kept) / half)
    result = built.build()
    assert built.ran in ("gcc" if half == "mine" else "clang", "make")
    assert built.code() == code
    assert subprocess.run([result.program], check=False).returncode == 1
    assert built.build().unchanged


def test_two_workspaces_share_a_tree(built: Desk, tmp_path: Path) -> None:
    first = built.code()
    other = replace(built, workspace=Workspace(tmp_path / "other"))
    built.edit("mine.h", "MINE 1", "MINE 2")
    other.build()
    assert other.ran == "make"
    built.edit("mine.h", "MINE 2", "MINE 1")
    built.build()
    assert (built.ran, built.code()) == ("clang", first)
    built.edit("mine.h", "MINE 1", "MINE 2")
    other.build()  # its pair is as it was then: what is in the tree isn't
    assert (other.ran, other.code() == first) == ("clang", False)


def test_a_copy_by_hand_is_no_build(built: Desk) -> None:
    code = built.code()
    built.edit("mine.h", "MINE 1", "MINE 2")
    copy = built.linux / "samples/bpf/mine.h"
    copy.write_bytes((built.pair / "mine.h").read_bytes())
    built.build()
    assert (built.ran, built.code() == code) == ("clang", False)


def test_a_copy_that_was_edited_is_not_overwritten(built: Desk) -> None:
    copy = built.linux / "samples/bpf/mine.h"
    copy.write_text("#define MINE 7\n")
    for _ in range(2):
        with pytest.raises(FileInTheWay):
            built.build()
    assert copy.read_text() == "#define MINE 7\n"


# ---- what goes wrong


@pytest.mark.parametrize("name", ["mine_kern.c", "mine_user.c"])
def test_what_does_not_compile_is_no_build(built: Desk, name: str) -> None:
    code = built.code()
    built.edit(name, "TREE", "nowhere")
    for _ in range(2):
        with pytest.raises(MakeFailed) as caught:
            built.build()
        assert "nowhere" in caught.value.said
        assert built.ran == ("clang" if name == "mine_kern.c" else "gcc")
    built.edit(name, "nowhere", "TREE")  # as it was when all was well
    built.build()
    assert built.ran == ("clang" if name == "mine_kern.c" else "gcc")
    assert built.code() == code
    assert (built.linux / "samples/bpf/mine").exists()


def test_a_half_without_a_program_is_no_build(built: Desk) -> None:
    built.edit("mine_kern.c", "int program(void *packet) { return MINE + TREE; }", "int x;")
    for _ in range(2):
        with pytest.raises(NotBuilt, match="the compilers returned 0, but"):
            built.build()


@pytest.mark.parametrize("when", range(3))
def test_a_build_that_is_killed_is_none(built: Desk, when: int) -> None:
    built.edit("mine_kern.c", "MINE + TREE", "MINE + 70")
    built.edit("mine_user.c", "return TREE", "return 70")
    left = iter(range(when, -1, -1))

    def kill(_: Running) -> None:
        if not next(left):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        built.build(Shell(hold=kill))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    wait_until(lambda: not processes_in(built.linux))  # a compiler has children of its own
    result = built.build()
    assert "gcc" in built.ran
    assert subprocess.run([result.program], check=False).returncode == 70
    directly = built.code()
    Receipt.remove(result.directory)
    built.build()
    assert built.code() == directly
    lifecycle.as_found(Tree.at(built.linux))
    assert not list(built.linux.glob("samples/bpf/*mine*"))


def test_a_dry_run_tells_and_changes_nothing(built: Desk) -> None:
    dry = Shell(dry=True)
    before = contents(built.linux), contents(built.workspace.root)
    built.build(dry)
    assert built.said == []
    built.edit("mine_kern.c", "MINE + TREE", "MINE + 70")
    built.build(dry)
    assert built.ran == "clang"
    assert (contents(built.linux), contents(built.workspace.root)) == before


def test_two_at_once_are_one_too_many(built: Desk) -> None:
    with built.workspace.locked(Tree.at(built.linux)), pytest.raises(Held):
        built.build()


def test_all_of_it_is_taken_out_again(desk: Desk) -> None:
    before = contents(desk.linux)
    desk.build()
    desk.edit("mine_kern.c", "MINE + TREE", "MINE + 70")
    desk.edit("mine_user.c", "return TREE", "return 70")
    desk.build()
    assert desk.ran == "clang gcc"
    lifecycle.as_found(Tree.at(desk.linux))
    shutil.rmtree(desk.linux / ".xdplab", ignore_errors=True)
    assert contents(desk.linux) == before


# ---- real trees


@pytest.mark.tree
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_real_tree_knows_what_changed(
    invoke: Invoke, fetched: Callable[[str], Path], tmp_path: Path, kernel: str
) -> None:
    # no copy of hard links: a link that another test run makes meanwhile is a change of the file
    original = Tree.at(fetched(kernel))
    means = Means(Workspace(tmp_path), Shell(), Toolchain.find, lambda: original, lambda _: None)
    with bench.copied(means) as desk:
        _knows_what_changed(invoke, desk.tree.path, *copy_pair(tmp_path / "pair"))


def _knows_what_changed(invoke: Invoke, tree: Path, kern: Path, user: Path) -> None:

    def ran() -> tuple[str, ...]:
        outcome = invoke("build", "--tree", tree, "--sample", kern)
        assert outcome.code == 0, outcome.err
        said = outcome.commands()
        words = {"make": "make ", "clang": "-c 'clang ", "gcc": "-c 'gcc "}
        return tuple(name for name, word in words.items() if any(word in one for one in said))

    def objects() -> list[bytes]:
        (kept,) = invoke.workspace.glob("builds/*/xdp_ip_filter")
        return [(kept / name).read_bytes() for name in ("xdp_ip_filter", "xdp_ip_filter_kern.o")]

    assert ran() == ("make",)
    assert ran() == ()
    kern.write_text(kern.read_text().replace("XDP_DROP;", "XDP_ABORTED;"))
    assert ran() == ("clang",)
    user.write_text(user.read_text().replace("stopping", "stopped"))
    assert ran() == ("gcc",)
    directly = objects()
    (kept,) = invoke.workspace.glob("builds/*/xdp_ip_filter")
    Receipt.remove(kept)
    assert ran() == ("make",)
    assert objects() == directly
    header = tree / "include/uapi/linux/if_ether.h"
    text = header.read_text()
    for other in (f"{text}\n", text):
        header.write_text(other)
        assert ran() == ("make",)
        assert ran() == ()
