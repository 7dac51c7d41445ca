"""Which compilers a build uses: found among small programs that only say their version."""

import shutil
from pathlib import Path

import pytest

from xdplab.errors import LabError, MissingTools, NotACompiler, UnlikeTools
from xdplab.toolchain import Toolchain, installed

LLVM = ("clang", "llc", "opt", "llvm-dis", "llvm-objcopy", "llvm-readelf")


class Machine:
    """A PATH with nothing on it but what a test installs."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "usr/bin"
        self.lib = root / "usr/lib"
        self.bin.mkdir(parents=True)

    def program(self, path: Path, says: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        return path

    def gcc(self, name: str, release: int) -> None:
        self.program(self.bin / name, f"{name} (Distribution) {release}.1.0")

    def llvm(self, release: int, *, suffix: str = "", only: tuple[str, ...] = LLVM) -> None:
        """As Debian does it: all of a release in one directory, and links to it on PATH."""
        home = self.lib / f"llvm-{release}/bin"
        for tool in LLVM:
            says = "clang" if tool == "clang" else "LLVM"
            self.program(home / tool, f"Distribution {says} version {release}.0.6")
            if tool in only:
                (self.bin / f"{tool}{suffix}").symlink_to(home / tool)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    for tool in ("sh", "setpriv", "make", "g++", "ld", "flex", "bison", "bc", "perl", "python3"):
        (made.bin / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(made.bin))
    return made


def test_the_usual_names_need_no_word_to_make(machine: Machine) -> None:
    machine.gcc("gcc", 12)
    machine.llvm(14)
    found = Toolchain.find()
    assert found.variables == []
    assert found.gcc == "gcc (Distribution) 12.1.0"
    assert found.clang == "Distribution clang version 14.0.6"


def test_a_numbered_clang_brings_the_tools_of_its_number(machine: Machine) -> None:
    machine.gcc("gcc", 12)
    machine.llvm(14)
    machine.llvm(19, suffix="-19")
    assert Toolchain.find(clang="clang-19").variables == [
        "CLANG=clang-19", "LLC=llc-19", "OPT=opt-19", "LLVM_DIS=llvm-dis-19",
        "LLVM_OBJCOPY=llvm-objcopy-19", "LLVM_READELF=llvm-readelf-19",
    ]  # fmt: skip


def test_where_nothing_is_called_clang_the_newest_is_taken(machine: Machine) -> None:
    machine.gcc("gcc", 12)
    machine.llvm(9, suffix="-9")
    machine.llvm(16, suffix="-16")
    assert installed("clang") == ["clang-16", "clang-9"]
    assert Toolchain.find().commands["CLANG"] == "clang-16"


def test_a_tool_of_another_release_on_path_is_passed_over(machine: Machine) -> None:
    machine.gcc("gcc", 12)
    machine.llvm(19, only=("clang",))
    machine.llvm(14, only=LLVM[1:])
    commands = Toolchain.find().commands
    assert commands["CLANG"] == "clang"
    assert commands["LLC"] == str(machine.lib / "llvm-19/bin/llc")


def test_unlike_releases_are_no_toolchain(machine: Machine) -> None:
    machine.gcc("gcc", 12)
    machine.llvm(14, only=LLVM[1:])
    machine.program(machine.bin / "clang", "clang version 19.1.7")
    with pytest.raises(UnlikeTools, match="clang is LLVM 19, but llc is 14") as error:
        Toolchain.find()
    assert "llvm-19" in error.value.cure


def test_a_named_gcc_is_for_both_eras_of_the_user_half(machine: Machine) -> None:
    machine.gcc("gcc", 12)
    machine.gcc("gcc-14", 14)
    machine.llvm(14)
    found = Toolchain.find("gcc-14")
    assert found.variables == ["CC=gcc-14", "HOSTCC=gcc-14"]
    assert found.gcc == "gcc-14 (Distribution) 14.1.0"


def test_a_compiler_may_be_named_by_its_path(machine: Machine, tmp_path: Path) -> None:
    machine.gcc("gcc", 12)
    machine.llvm(14)
    path = machine.program(tmp_path / "opt/x86_64-linux-gnu-gcc-15", "gcc-15 (me) 15.1.0")
    assert Toolchain.find(str(path)).commands["CC"] == str(path)


@pytest.mark.parametrize("given", ["", "gcc-99", "gcc; true", "gcc -O0", "$(true)gcc", "true"])
def test_what_is_no_gcc_is_refused_with_what_is_there(machine: Machine, given: str) -> None:
    machine.gcc("gcc", 12)
    machine.gcc("gcc-14", 14)
    machine.program(machine.bin / "true", "")
    machine.llvm(14)
    with pytest.raises(NotACompiler) as error:
        Toolchain.find(given)
    assert repr(given) in error.value.message
    assert "gcc, gcc-14" in error.value.cure


@pytest.mark.parametrize("missing", ["gcc", "clang", "llvm-dis", "bison"])
def test_what_is_missing_is_named(machine: Machine, missing: str) -> None:
    machine.gcc("gcc", 12)
    machine.llvm(14)
    (machine.bin / missing).unlink()
    home = machine.lib / "llvm-14/bin" / missing
    if home.exists():
        home.unlink()
    with pytest.raises(MissingTools, match=missing) as error:
        Toolchain.find()
    assert isinstance(error.value, LabError)
    assert error.value.cure == "scripts/bootstrap build"
