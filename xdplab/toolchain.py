"""The programs of a build: gcc for user space; clang, and the LLVM it came with, for BPF."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xdplab.errors import MissingTools, NotACompiler, UnlikeTools
from xdplab.files import read_json, stamp, write_json
from xdplab.process import Shell

# What make calls beside the compilers, from v4.19's libbpf to the newest tree's.
_MAKE = ("make", "g++", "ld", "flex", "bison", "bc", "perl", "python3")

# What samples/bpf/Makefile calls its tools: from v5.10 on an object goes through
# clang, opt, llvm-dis and llc, which only understand what their own release wrote.
_LLVM = {
    "CLANG": "clang",
    "LLC": "llc",
    "OPT": "opt",
    "LLVM_DIS": "llvm-dis",
    "LLVM_OBJCOPY": "llvm-objcopy",
    "LLVM_READELF": "llvm-readelf",
}
_GCC = ("CC", "HOSTCC")  # the user half is built with HOSTCC up to v5.4, with CC since
_NAME = re.compile(r"(?P<place>(?:[\w.+-]*/)*)(?:[\w+]+-)*?(?:gcc|clang)(?P<number>-[\d.]+)?", re.A)
_HEAD = 4  # lines in which all say their version; llc goes on with all it can compile for
_VERSION = re.compile(r"version (\d+)")


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Commands that are there, by the names that make has for them, and what they are."""

    commands: dict[str, str]
    gcc: str  # what `gcc --version` says of itself
    clang: str
    ccache: bool = False  # whether what gcc compiles is kept by ccache(1)
    # what they said, by file: see remember()
    answers: dict[str, Any] = field(default_factory=dict, compare=False)
    sandboxed: bool = False  # whether they run shut in: see sandbox

    @classmethod
    def find(
        cls, gcc: str | None = None, clang: str | None = None, *, memory: Path | None = None
    ) -> Toolchain:
        """The named compilers, or the machine's own; clang's tools are those of its release.

        Where nothing is called "clang", the newest clang-N is taken.  Whose version
        is in `memory`, a file, isn't asked again.  Raises NotACompiler, MissingTools
        (also for what make calls besides), and UnlikeTools if the LLVM tools on PATH
        are of another release than clang.
        """
        missing = [tool for tool in _MAKE if not shutil.which(tool)]
        if missing:
            raise MissingTools(missing, "build")
        gcc = _found(gcc, "gcc")
        clang = _found(clang, "clang")
        commands = dict.fromkeys(_GCC, gcc)
        commands |= {variable: _beside(clang, tool) for variable, tool in _LLVM.items()}
        asked = {name: commands[name] for name in ("CC", "CLANG", "LLC")}
        said, answers = _said(asked, (read_json(memory) if memory else None) or {})
        releases = [_VERSION.search(said[name]) for name in ("CLANG", "LLC")]
        clangs, llcs = (match[1] if match else "" for match in releases)
        if clangs != llcs:
            raise UnlikeTools(clang, clangs, commands["LLC"], llcs)
        gcc_says, clang_says = (said[name].strip().partition("\n")[0] for name in ("CC", "CLANG"))
        # Debian's ccache(1) has links of the compilers' names to be put first on PATH
        has_it = Path(str(shutil.which(gcc))).resolve().name == "ccache"
        ccache = not has_it and bool(shutil.which("ccache"))
        return cls(commands, gcc_says, clang_says, ccache, answers)

    def remember(self, memory: Path) -> None:
        """Keep what they said, for the next to find them."""
        known = read_json(memory) or {}
        if not self.answers.items() <= known.items():
            write_json(memory, known | self.answers)

    @property
    def called(self) -> list[str]:
        """The compilers, each once: they may lie anywhere."""
        return list(dict.fromkeys(self.commands.values()))

    @property
    def variables(self) -> list[str]:
        """What make has to be told: nothing about what is called as make expects."""
        usual = dict.fromkeys(_GCC, "gcc") | _LLVM
        told = self.commands | {
            name: f"ccache {self.commands[name]}" for name in _GCC if self.ccache
        }
        return [f"{name}={tool}" for name, tool in told.items() if tool != usual[name]]


def installed(kind: str) -> list[str]:
    """The numbered compilers of a kind on PATH, the newest first: ["clang-19", "clang-14"]."""
    numbers = {
        int(name.removeprefix(f"{kind}-"))
        for directory in os.get_exec_path()
        for name in _names_in(directory)
        if name.startswith(f"{kind}-") and name.removeprefix(f"{kind}-").isdecimal()
    }
    return [f"{kind}-{number}" for number in sorted(numbers, reverse=True)]


def _names_in(directory: str) -> list[str]:
    """The names in a directory; none in one of PATH's that isn't there, or is closed to us."""
    try:
        return [path.name for path in Path(directory).iterdir()]
    except OSError:
        return []


def _found(given: str | None, kind: str) -> str:
    """The command of that name, or the machine's own of that kind."""
    if given is None:
        command = kind if shutil.which(kind) else next(iter(installed(kind)), None)
        if not command:
            raise MissingTools([kind], "build")
        return command
    # make hands it to a shell
    if not _NAME.fullmatch(given) or kind not in Path(given).name or not shutil.which(given):
        raise NotACompiler(given, kind, [kind, *installed(kind)])
    return given


def _beside(clang: str, tool: str) -> str:
    """The tool of clang's own release: under a name like clang's, or in the same directory."""
    like = _NAME.fullmatch(clang)
    place, number = (like["place"], like["number"] or "") if like else ("", "")
    named = next(filter(shutil.which, [f"{place}{tool}{number}", f"{tool}{number}"]), None)
    # Debian's clang-19 is a link into /usr/lib/llvm-19/bin, where all of LLVM 19 is
    home = Path(shutil.which(clang) or clang).resolve().parent
    sibling = shutil.which(str(home / tool))
    if sibling and not (named and Path(str(shutil.which(named))).samefile(sibling)):
        return sibling
    if not named:
        raise MissingTools([f"{tool}{number}"], "build")
    return named


def _said(
    commands: Mapping[str, str], known: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    """What commands say of their versions, and what of that can be remembered, by file."""
    said, answers = {}, {}
    for name, command in commands.items():
        file = Path(str(shutil.which(command))).resolve()
        answer = known.get(str(file), {})
        now = stamp(str(file))
        if answer.get("stamp") != now:
            lines = Shell().ask([command, "--version"]).lines[:_HEAD]
            answer = {"stamp": now, "says": "\n".join(line.text for line in lines)}
        said[name] = answer["says"]
        if _speaks_for_itself(file):
            answers[str(file)] = answer
    return said, answers


def _speaks_for_itself(file: Path) -> bool:
    """Whether it is the compiler itself, and no script or ccache(1) that calls another file."""
    with file.open("rb") as opened:
        is_program = opened.read(4) == b"\x7fELF"
    return is_program and bool(_NAME.fullmatch(file.name) or file.name.startswith("llc"))
