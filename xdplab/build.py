"""A sample in a tree becomes a build: patched in, compiled by kbuild, checked, kept."""

from __future__ import annotations

import hashlib
import math
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xdplab import blame, damage, footprint, kbuild, patching, tracing
from xdplab.dialect import Dialect
from xdplab.errors import BadCases, FileInTheWay, NotBuilt, UnfitKernelHalf
from xdplab.files import read_json, require_space, write_json, write_whole
from xdplab.kbuild import OnLine
from xdplab.process import Finished, Line, Shell
from xdplab.sample import COMPAT, LOADER, OPTIONS, Sample
from xdplab.toolchain import Toolchain
from xdplab.tree import Tree
from xdplab.workspace import Workspace

_FACTS = "build.json"
SCHEMA = 1  # of build.json

_WRITTEN = ("samples/bpf", "scripts", "tools/bpf", "tools/build", "tools/lib")  # by M=samples/bpf


@dataclass(frozen=True, slots=True)
class Build:
    """What came out: a directory with the program, its BPF object, build.json and the log."""

    directory: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """The sample's name."""
        return str(self.facts["sample"])

    @property
    def program(self) -> Path:
        """The user half; it loads the object from its own directory."""
        return self.directory / self.name

    @property
    def tree_key(self) -> str:
        """The key of the tree that it was made in."""
        return self.directory.parent.name

    def takes(self, option: str) -> bool:
        """Whether the user half takes an option, of those that the harness gives."""
        return option in self.facts.get("options", OPTIONS)  # an older build is the tutorial's

    @property
    def objects(self) -> list[Path]:
        """What the program opens when it runs."""
        return [self.directory / file for file in self.facts["files"] if file != self.name]

    def older_than(self, sample: Sample) -> bool:
        """Whether a source was edited after this was made from it."""
        made = (self.directory / _FACTS).stat().st_mtime
        return any(source.stat().st_mtime > made for source in sample.sources)

    @classmethod
    def load(cls, directory: Path) -> Build | None:
        """The build that was kept there, if it is whole."""
        facts = read_json(directory / _FACTS)
        if not facts or facts.get("schema") != SCHEMA:
            return None
        files = facts["files"]
        return cls(directory, facts) if all((directory / file).exists() for file in files) else None


def build(
    tree: Tree, sample: Sample, tools: Toolchain, workspace: Workspace, shell: Shell,
    on_line: OnLine, tell: Callable[[str], None], *, mend: bool = False, trace: bool = False,
    keep: Path | None = None, aloud: bool = False,
) -> Build:  # fmt: skip
    """Build the pair, as far as it isn't built yet; make decides what is stale.

    With `mend` a damaged tree is mended first, and `tell` hears of it; with
    `trace` the kernel half logs each packet; `keep` is where the result goes,
    if not where the workspace has builds; `aloud` compiles both halves in any case,
    and has each command in the log.  Raises Damaged, what patching and kbuild
    raise, FileInTheWay, and NotBuilt if make's word can't be trusted.
    """
    directory = keep or workspace.build(tree.key, sample.name)
    log = directory / "build.log"
    damage.require_whole(tree, shell, mend=mend)
    if sample.user == LOADER:
        tell(f"{sample.name} has no user half of its own: {_from_here(LOADER)} serves as it")
    with workspace.locked(tree, dry=shell.dry):
        if mend:
            damage.mend(tree, shell, tell)
        _changed(tree, sample, trace=trace)  # before anything is written
        patching.apply(tree, patching.plan(tree, sample.name), dry=shell.dry)
        kbuild.prepare(tree, tools, shell, on_line)
        with footprint.recorded(tree, *_WRITTEN, log=log, dry=shell.dry):
            if not shell.dry:
                require_space(directory, 50 * 2**20)
                directory.mkdir(parents=True, exist_ok=True)
                log.unlink(missing_ok=True)
                place(tree, sample, tools, trace=trace)
                for made in sample.objects if aloud else ():
                    (tree.samples / made).unlink(missing_ok=True)
            started = time.monotonic()
            try:
                finished = kbuild.make_sample(tree, sample, tools, shell, on_line, log, aloud=aloud)
            except BaseException:
                # make takes a half-made object for a finished one
                (tree.samples / sample.object).unlink(missing_ok=True)
                raise
        if shell.dry:
            return Build(directory, {"sample": sample.name, "options": sample.options})
        _check(tree, sample, log)
        seconds = time.monotonic() - started
        return _keep(tree, sample, tools, directory, finished, seconds, trace=trace)


@dataclass(frozen=True, slots=True)
class AllSamples:
    """What came of building every sample: objects with BPF code in them, and without."""

    good: tuple[Path, ...]
    empty: tuple[Path, ...]
    log: Path


def build_all_samples(
    tree: Tree, tools: Toolchain, workspace: Workspace, shell: Shell, on_line: OnLine
) -> AllSamples:
    """Build the tree's own samples too, the post's way, with what that needs of the tree.

    A clang that fails is not make's failure here: what it left is told apart.
    """
    log = workspace.build(tree.key, "all-samples") / "build.log"
    with workspace.locked(tree, dry=shell.dry):
        kbuild.prepare(tree, tools, shell, on_line, all_samples=True)
        if not shell.dry:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
        with footprint.recorded(tree, *_WRITTEN, log=log, dry=shell.dry):
            kbuild.make_all_samples(tree, tools, shell, on_line, log)
    return all_samples_in(tree, log)


def all_samples_in(tree: Tree, log: Path) -> AllSamples:
    """What building every sample left in a tree."""
    objects = sorted([*tree.samples.glob("*_kern.o"), *tree.samples.glob("*.bpf.o")])
    wrong = {path: _why_no_bpf(path) for path in objects}
    return AllSamples(
        tuple(path for path in objects if not wrong[path]),
        tuple(path for path in objects if wrong[path]),
        log,
    )


# ---- the pair in samples/bpf


def place(tree: Tree, sample: Sample, tools: Toolchain, *, trace: bool) -> None:
    """Put copies of the pair into samples/bpf, and remember that they are ours.

    A copy is only written if it differs, so that make sees what changed.
    Raises FileInTheWay rather than overwrite a file of the user's, or a copy
    that the user edited there.
    """
    changed = _changed(tree, sample, trace=trace)
    for name, text in changed.items():
        write_whole(tree.samples / name, text)
    tree.remember(
        placed=tree.placed() | {str(name): _sha256(tree.samples / name) for name in changed}
    )
    # the rule for BPF objects knows no header files, and no compiler but today's
    bpf_object = tree.samples / sample.object
    headers = [tree.samples / sample.in_tree(header) for header in sample.headers]
    if _older(bpf_object, headers) or tree.recall("clang") != tools.clang:
        bpf_object.unlink(missing_ok=True)
        tree.remember(clang=tools.clang)


def _changed(tree: Tree, sample: Sample, *, trace: bool) -> dict[Path, bytes]:
    """The files of samples/bpf that aren't as the pair is now, and how they should be.

    Raises FileInTheWay, also if the tree's own sample of the name is made of other files.
    """
    placed = tree.placed()
    changed = {}
    for source in sample.sources:
        name, text = sample.in_tree(source), source.read_bytes()
        if trace and name.name == COMPAT.name:
            text += b"\n#define TRACE /* invoke build --trace */\n"
        there = tree.samples / name
        if not there.exists():
            changed[name] = text
        elif there.read_bytes() != text:
            if placed.get(str(name)) != _sha256(there):
                raise FileInTheWay(there, source)
            changed[name] = text
    for theirs in (tree.samples / f"{sample.name}{end}" for end in (".c", ".bpf.c")):
        if theirs.exists():
            raise FileInTheWay(theirs, sample.kern)
    return changed


def _older(path: Path, sources: Iterable[Path]) -> bool:
    """Whether a file that was made is not newer than all of these."""
    made = path.stat().st_mtime if path.exists() else math.inf
    return any(source.stat().st_mtime >= made for source in sources)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- what the compiler says


def user_paths(sample: Sample, line: str) -> str:
    """A compiler's line with the user's own files in place of their copies.

    Up to v6.12 compilers say samples/bpf/NAME, from v6.13 on NAME alone.
    """
    shown = {str(sample.in_tree(source)): _from_here(source) for source in sample.sources}
    return blame.file_of(shown).sub(lambda found: shown[found[1]], line)


def _from_here(path: Path) -> str:
    """The path as a person in this directory would write it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def about_pair(sample: Sample, lines: Sequence[Line]) -> list[str]:
    """What compilers said of the pair, in their words: each message with its context."""
    ours = blame.file_of(str(sample.in_tree(source)) for source in sample.sources)
    return [
        user_paths(sample, line)
        for message in blame.messages(lines)
        if any(map(ours.search, message))
        for line in message
    ]


# ---- the result


def _check(tree: Tree, sample: Sample, log: Path) -> None:
    """Raise NotBuilt unless the program and a BPF object with code in it are there."""
    program, bpf_object = tree.samples / sample.name, tree.samples / sample.object
    for path in (program, bpf_object):
        if not path.is_file():
            raise NotBuilt(path, "isn't there", log)
    wrong = _why_no_bpf(bpf_object)
    if wrong:
        bpf_object.unlink()
        raise NotBuilt(bpf_object, wrong, log)
    _require_runnable(sample, bpf_object)


def _require_runnable(sample: Sample, bpf_object: Path) -> None:
    """Raise UnfitKernelHalf for what compiles, and yet can't be loaded or attached."""
    from elftools.elf.elffile import ELFFile  # here: it takes a while to import

    with bpf_object.open("rb") as file:
        elf = ELFFile(file)
        if not elf.get_section_by_name("license"):
            raise UnfitKernelHalf(
                sample.kern, "it has no licence, and the kernel has many helpers for GPL only",
                'add: char _license[] SEC("license") = "GPL";',
            )  # fmt: skip
        programs = [symbol.name for symbol in _programs(elf)]
    if not programs:
        raise UnfitKernelHalf(
            sample.kern, "no function of it is in a section: libbpf finds no program",
            'write SEC("xdp") before the function that gets the packets',
        )  # fmt: skip
    if len(programs) > 1 and sample.user == LOADER:
        raise UnfitKernelHalf(
            sample.kern, f"it has {len(programs)} programs: {', '.join(programs)}",
            "leave one of them, or write a user half that knows which to attach:"
            f" {sample.name}_user.c",
        )  # fmt: skip


def _programs(elf: Any) -> Iterator[Any]:
    """The functions that are programs, as libbpf has it: global, and in a section of their own."""
    sections = dict(enumerate(elf.iter_sections()))
    for symbol in elf.get_section_by_name(".symtab").iter_symbols():
        kind, bind = symbol["st_info"]["type"], symbol["st_info"]["bind"]
        section = sections.get(symbol["st_shndx"])
        if (kind, bind) == ("STT_FUNC", "STB_GLOBAL") and section and section.name != ".text":
            yield symbol


def _why_no_bpf(path: Path) -> str:
    """Why a file is no BPF object with a program in it; empty if it is one."""
    from elftools.common.exceptions import ELFError  # here: it takes a while to import
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            if elf["e_machine"] != "EM_BPF":
                return "is no BPF object"
            if any(_code(elf)):
                return ""
    except ELFError as error:
        return f"is no ELF file ({error})"
    return "has no BPF program in it"


def _code(elf: Any) -> Iterator[bytes]:
    """The instructions of an ELF file, section by section."""
    from elftools.elf.constants import SH_FLAGS

    for section in elf.iter_sections():
        if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR and section["sh_size"]:
            yield section.data()


# bpf_trace_printk() and bpf_trace_vprintk(), of enum bpf_func_id in include/uapi/linux/bpf.h
_LOGGING = {6, 177}
_CALL = 0x85  # BPF_JMP | BPF_CALL


def _formats(tree: Tree, sample: Sample) -> list[str] | None:
    """What the kernel half may log: its string literals; None if it calls nothing that logs."""
    from elftools.elf.elffile import ELFFile  # here: it takes a while to import

    with (tree.samples / sample.object).open("rb") as file:
        called = {
            helper
            for code in _code(ELFFile(file))
            for opcode, registers, helper in struct.iter_unpack("<BBxxi", code)
            if opcode == _CALL and not registers  # else it calls a function of its own
        }
    if not called & _LOGGING:
        return None
    sources = [sample.kern, *sample.headers]
    return tracing.formats("\n".join(one.read_text(errors="replace") for one in sources))


def cases_of(sample: Sample) -> dict[str, str] | None:
    """The file of the pair's packet cases, as build.json has it; None if there is none.

    It goes wherever the build goes: to a virtual machine, to a cluster.  Raises BadCases.
    """
    if not sample.cases.exists():
        return None
    try:
        return {"file": _from_here(sample.cases), "text": sample.cases.read_text("utf-8")}
    except UnicodeDecodeError:
        raise BadCases(_from_here(sample.cases), "", "it is no text in UTF-8") from None


def _keep(
    tree: Tree, sample: Sample, tools: Toolchain, directory: Path, finished: Finished,
    seconds: float, *, trace: bool,
) -> Build:  # fmt: skip
    """Copy the result out of the tree, and write build.json last."""
    files = {}
    for name in (sample.name, sample.object):
        made, kept = tree.samples / name, directory / name
        if not kept.exists() or kept.read_bytes() != made.read_bytes():
            partial = kept.with_name(f".{name}.new")
            shutil.copy2(made, partial)
            partial.replace(kept)
        files[name] = _sha256(kept)
    facts = {
        "schema": SCHEMA,
        "sample": sample.name,
        "sources": [str(source) for source in sample.sources],
        "tree": str(tree.path),
        "version": str(tree.version),
        "origin": tree.origin,
        "dialect": asdict(Dialect.of(tree)),
        "patches": [change.why for change in patching.recorded(tree)],
        "mended": damage.mended(tree),
        "trace": trace,
        "logs": _formats(tree, sample),
        "options": sample.options,
        "announces": sample.announces,
        "compilers": {"gcc": tools.gcc, "clang": tools.clang},
        "command": list(finished.argv),
        "log": str(directory / "build.log"),
        "seconds": round(seconds, 3),
        "files": files,
        "cases": cases_of(sample),
    }
    write_json(directory / _FACTS, facts)
    return Build(directory, facts)
