"""A sample in a tree becomes a build: patched in, compiled by kbuild, checked, kept."""

from __future__ import annotations

import contextlib
import hashlib
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
from xdplab.process import Line, Shell
from xdplab.receipt import Receipt, listing, take
from xdplab.recipe import Recipe
from xdplab.sample import COMPAT, LOADER, OPTIONS, Sample
from xdplab.toolchain import Toolchain
from xdplab.tree import MEMORY, SAMPLES, Tree
from xdplab.workspace import Workspace

_FACTS = "build.json"
SCHEMA = 1  # of build.json

_WRITTEN = ("samples/bpf", "scripts", "tools/bpf", "tools/build", "tools/lib")  # by M=samples/bpf


@dataclass(frozen=True, slots=True)
class Build:
    """What came out: a directory with the program, its BPF object, build.json and the log."""

    directory: Path
    facts: dict[str, Any]
    unchanged: bool = False  # there was nothing to do

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
    """Build the pair, as far as it isn't built yet.

    Nothing is run where nothing changed, and the compilers alone, as make was heard
    to call them, where only the pair did; in every other case make decides.

    With `mend` a damaged tree is mended first, and `tell` hears of it; with
    `trace` the kernel half logs each packet; `keep` is where the result goes,
    if not where the workspace has builds; `aloud` has make try both halves in any
    case, so that each command is in the log.  Raises Damaged, what patching and
    kbuild raise, FileInTheWay, and NotBuilt if make's word can't be trusted.
    """
    if sample.user == LOADER:
        tell(f"{sample.name} has no user half of its own: {_from_here(LOADER)} serves as it")
    directory = keep or workspace.build(tree.key, sample.name)
    pair = _pair(sample, trace=trace)
    order = _Order(tree, sample, tools, directory, shell, on_line, trace, pair)
    if not mend and not aloud and kbuild.is_prepared(tree):
        with workspace.locked(tree, dry=shell.dry):
            done = _again(order)
        if done:
            return done
    damage.require_whole(tree, shell, mend=mend)
    with workspace.locked(tree, dry=shell.dry):
        if mend:
            damage.mend(tree, shell, tell)
        _changed(order)  # before anything is written
        patching.apply(tree, patching.plan(tree, sample.name), dry=shell.dry)
        kbuild.prepare(tree, tools, shell, on_line)
        done = _by_make(order, go_on=aloud)
        if not shell.dry:
            tools.remember(workspace.compilers)
        return done


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be built, where it is kept, and who hears of it."""

    tree: Tree
    sample: Sample
    tools: Toolchain
    directory: Path
    shell: Shell
    on_line: OnLine
    trace: bool
    # its files, from samples/bpf: read once, or an edit meanwhile would be in the receipt alone
    pair: dict[Path, bytes]

    @property
    def log(self) -> Path:
        """What was run, and all that it said."""
        return self.directory / "build.log"

    @property
    def sums(self) -> dict[str, str]:
        """The SHA-256 of each."""
        return {str(name): hashlib.sha256(text).hexdigest() for name, text in self.pair.items()}


def _pair(sample: Sample, *, trace: bool) -> dict[Path, bytes]:
    """The files of the pair, from samples/bpf, as they are now."""
    pair = {sample.in_tree(source): source.read_bytes() for source in sample.sources}
    if trace:
        pair[Path(COMPAT.name)] += b"\n#define TRACE /* invoke build --trace */\n"
    return pair


def _again(order: _Order) -> Build | None:
    """Make what isn't as the pair is now, without make; None if make has to decide."""
    tree = order.tree
    kept, then = Build.load(order.directory), Receipt.load(order.directory)
    receipt = then.current(order.tools) if then else None
    if not kept or not receipt:
        return None
    if receipt is not then and not order.shell.dry:
        receipt.save(order.directory)
    stale = {*receipt.stale(order.sums), *_lost(order, kept)}
    if not stale and not _changed(order):
        return _as_it_is(order, kept)
    started = time.monotonic()
    with _making(order, stale, str(SAMPLES)):
        for made in sorted(stale):
            recipe = receipt.halves[made].recipe
            kbuild.make_again(
                tree, recipe, listing(tree, made), order.shell, order.on_line, order.log
            )
    if order.shell.dry:
        return kept
    seconds = time.monotonic() - started
    _check(order, "the compilers")
    _hand_out(order, receipt.renewed(tree, order.sums, stale, _placed_at(tree)))
    return _keep(order, kept.facts["command"], seconds)


def _by_make(order: _Order, *, go_on: bool) -> Build:
    """Have make make both halves, and say how."""
    tree, sample, shell = order.tree, order.sample, order.shell
    started = time.monotonic()
    with _making(order, sample.objects, *_WRITTEN):
        finished = kbuild.make_sample(
            tree, sample, order.tools, shell, order.on_line, order.log, go_on=go_on
        )
    if shell.dry:
        return Build(order.directory, {"sample": sample.name, "options": sample.options})
    seconds = time.monotonic() - started
    _check(order, "make")
    heard = {made: Recipe.heard(tree, made, finished.text()) for made in sample.objects}
    recipes = {made: recipe for made, recipe in heard.items() if recipe}
    known = recipes.keys() == heard.keys()
    _hand_out(
        order, take(tree, order.tools, order.sums, recipes, _placed_at(tree)) if known else None
    )
    return _keep(order, finished.argv, seconds)


def _lost(order: _Order, kept: Build) -> list[str]:
    """The objects that aren't there as they were made, or that what came of them isn't."""
    sample = order.sample
    results = dict(zip(sample.objects, (sample.object, sample.name), strict=True))
    places = (order.tree.samples, order.directory)
    return [
        made for made, result in results.items()
        if any(_sum(place / result) != kept.facts["files"][result] for place in places)
    ]  # fmt: skip


def _as_it_is(order: _Order, kept: Build) -> Build:
    """What is kept, as of now: what needs no compiler is as the pair has it."""
    facts = kept.facts | _of_pair(order.sample)
    if order.shell.dry:
        return kept
    if facts != kept.facts:
        write_json(order.directory / _FACTS, facts)
    (order.directory / _FACTS).touch()  # see Build.older_than
    return Build(order.directory, facts, unchanged=True)


@contextlib.contextmanager
def _making(order: _Order, objects: Iterable[str], *below: str) -> Iterator[None]:
    """Put the pair into the tree, and have these objects made of it, or none of them.

    They are taken away before: whenever this is killed, none is there that was
    made of another pair.
    """
    tree = order.tree
    with footprint.recorded(tree, *below, log=order.log, dry=order.shell.dry):
        if order.shell.dry:
            yield
            return
        require_space(order.directory, 50 * 2**20)
        order.directory.mkdir(parents=True, exist_ok=True)
        order.log.unlink(missing_ok=True)
        _remove(order, objects)
        _place(order)
        try:
            yield
        except BaseException:
            _remove(order, objects)  # make takes a half-made object for a finished one
            raise


def _remove(order: _Order, objects: Iterable[str]) -> None:
    """Take objects out of the tree, with what is linked of them, and kbuild's word on them."""
    for made in objects:
        linked = [] if made == order.sample.object else [order.sample.name]
        for name in (made, f".{made}.cmd", *linked):
            (order.tree.samples / name).unlink(missing_ok=True)


def _hand_out(order: _Order, receipt: Receipt | None) -> None:
    """Put a receipt beside the build, before build.json; without one make decides next time."""
    if receipt:
        receipt.save(order.directory)
    else:
        Receipt.remove(order.directory)


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


def _place(order: _Order) -> None:
    """Put copies of the pair into samples/bpf, and remember that they are ours.

    A copy is only written if it differs.  Raises FileInTheWay rather than
    overwrite a file of the user's, or a copy that the user edited there.
    """
    tree, changed = order.tree, _changed(order)
    for name, text in changed.items():
        write_whole(tree.samples / name, text)
    sums = {str(name): hashlib.sha256(text).hexdigest() for name, text in changed.items()}
    tree.remember(placed=tree.placed() | sums)


def _placed_at(tree: Tree) -> int:
    """When the pair was put there, in nanoseconds of the tree's disk: compilers ran since."""
    return tree.state(MEMORY).stat().st_ctime_ns


def _changed(order: _Order) -> dict[Path, bytes]:
    """The files of samples/bpf that aren't as the pair is now, and how they should be.

    Raises FileInTheWay, also if the tree's own sample of the name is made of other files.
    """
    tree, sample = order.tree, order.sample
    placed = tree.placed()
    changed = {}
    sources = {sample.in_tree(source): source for source in sample.sources}
    for name, text in order.pair.items():
        there = tree.samples / name
        if not there.exists():
            changed[name] = text
        elif there.read_bytes() != text:
            if placed.get(str(name)) != _sum(there):
                raise FileInTheWay(there, sources[name])
            changed[name] = text
    for theirs in (tree.samples / f"{sample.name}{end}" for end in (".c", ".bpf.c")):
        if theirs.exists():
            raise FileInTheWay(theirs, sample.kern)
    return changed


def _sum(path: Path) -> str:
    """A file's SHA-256; empty if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


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


def _check(order: _Order, by: str) -> None:
    """Raise NotBuilt unless the program and a BPF object with code in it are there."""
    sample = order.sample
    program, bpf_object = (order.tree.samples / name for name in (sample.name, sample.object))
    for path in (program, bpf_object):
        if not path.is_file():
            raise NotBuilt(path, "isn't there", order.log, by)
    wrong = _why_no_bpf(bpf_object)
    if wrong:
        bpf_object.unlink()
        raise NotBuilt(bpf_object, wrong, order.log, by)
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


def _of_pair(sample: Sample) -> dict[str, Any]:
    """What build.json has from the pair's own files, and from where they lie."""
    return {
        "sources": [str(source) for source in sample.sources],
        "options": sample.options,
        "announces": sample.announces,
        "cases": cases_of(sample),
    }


def _keep(order: _Order, command: Sequence[str], seconds: float) -> Build:
    """Copy the result out of the tree, and write build.json last."""
    tree, sample, directory = order.tree, order.sample, order.directory
    files = {}
    for name in (sample.name, sample.object):
        made, kept = tree.samples / name, directory / name
        if not kept.exists() or kept.read_bytes() != made.read_bytes():
            partial = kept.with_name(f".{name}.new")
            shutil.copy2(made, partial)
            partial.replace(kept)
        files[name] = _sum(kept)
    facts = {
        "schema": SCHEMA,
        "sample": sample.name,
        "tree": str(tree.path),
        "version": str(tree.version),
        "origin": tree.origin,
        "dialect": asdict(Dialect.of(tree)),
        "patches": [change.why for change in patching.recorded(tree)],
        "mended": damage.mended(tree),
        "trace": order.trace,
        "logs": _formats(tree, sample),
        "compilers": {"gcc": order.tools.gcc, "clang": order.tools.clang},
        "command": list(command),
        "log": str(order.log),
        "seconds": round(seconds, 3),
        "files": files,
        **_of_pair(sample),
    }
    write_json(directory / _FACTS, facts)
    return Build(directory, facts)
