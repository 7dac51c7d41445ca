"""A pair is made in a tree: put into samples/bpf, compiled by kbuild, checked, kept.

What build.build() does where something changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xdplab import blame, damage, footprint, kbuild, patching, tracing
from xdplab.build import (
    FACTS,
    SCHEMA,
    Build,
    Order,
    changed_files,
    facts_of_pair,
    from_here,
    sum_of,
)
from xdplab.dialect import Dialect
from xdplab.errors import NotBuilt, UnfitKernelHalf
from xdplab.files import require_space, write_json, write_whole
from xdplab.process import Line, OnLine, Shell
from xdplab.receipt import Receipt, listing, take
from xdplab.recipe import Recipe
from xdplab.sample import LOADER, Sample
from xdplab.toolchain import Toolchain
from xdplab.tree import MEMORY, SAMPLES, Tree
from xdplab.workspace import Workspace

_WRITTEN = ("samples/bpf", "scripts", "tools/bpf", "tools/build", "tools/lib")  # by M=samples/bpf


def whole(
    order: Order, workspace: Workspace, tell: Callable[[str], None], *, mend: bool, go_on: bool
) -> Build:
    """Build by make, in a tree that is looked at, patched and prepared as far as need be."""
    tree, shell = order.tree, order.shell
    damage.require_whole(tree, shell, mend=mend)
    with workspace.locked(tree, dry=shell.dry):
        if mend:
            damage.mend(tree, shell, tell)
        changed_files(order)  # before anything is written
        patching.apply(tree, patching.plan(tree, order.sample.name), dry=shell.dry)
        kbuild.prepare(tree, order.tools, shell, order.on_line)
        done = _by_make(order, go_on=go_on)
        if not shell.dry:
            order.tools.remember(workspace.compilers)
        return done


def again(order: Order, kept: Build, receipt: Receipt, stale: Collection[str]) -> Build:
    """Make these objects anew as make was heard to, without it; the others are as they were kept.

    The caller holds the tree's lock.
    """
    tree = order.tree
    started = time.monotonic()
    with _making(order, stale, str(SAMPLES)):
        for made in sorted(stale):
            recipe = receipt.halves[made].recipe
            kbuild.make_again(
                tree, recipe, listing(tree, made), order.tools, order.shell, order.on_line,
                order.log,
            )  # fmt: skip
    if order.shell.dry:
        return kept
    seconds = time.monotonic() - started
    # a kernel half as it was kept was looked at then; but not for every user half
    known = kept if order.sample.object not in stale and order.sample.user != LOADER else None
    _check(order, "the compilers", known)
    _hand_out(order, receipt.renewed(tree, order.sums, stale, _placed_at(tree)))
    return _keep(order, kept.facts["command"], seconds, known)


def _by_make(order: Order, *, go_on: bool) -> Build:
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


@contextlib.contextmanager
def _making(order: Order, objects: Iterable[str], *below: str) -> Iterator[None]:
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


def _remove(order: Order, objects: Iterable[str]) -> None:
    """Take objects out of the tree, with what is linked of them, and kbuild's word on them."""
    for made in objects:
        linked = [] if made == order.sample.object else [order.sample.name]
        for name in (made, f".{made}.cmd", *linked):
            (order.tree.samples / name).unlink(missing_ok=True)


def _hand_out(order: Order, receipt: Receipt | None) -> None:
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


def _place(order: Order) -> None:
    """Put copies of the pair into samples/bpf, and remember that they are ours.

    A copy is only written if it differs.  Raises FileInTheWay rather than
    overwrite a file of the user's, or a copy that the user edited there.
    """
    tree, changed = order.tree, changed_files(order)
    for name, text in changed.items():
        write_whole(tree.samples / name, text)
    sums = {str(name): hashlib.sha256(text).hexdigest() for name, text in changed.items()}
    tree.remember(placed=tree.placed() | sums)


def _placed_at(tree: Tree) -> int:
    """When the pair was put there, in nanoseconds of the tree's disk: compilers ran since."""
    return tree.state(MEMORY).stat().st_ctime_ns


# ---- what the compiler says


def user_paths(sample: Sample, line: str) -> str:
    """A compiler's line with the user's own files in place of their copies.

    Up to v6.12 compilers say samples/bpf/NAME, from v6.13 on NAME alone.
    """
    shown = {str(sample.in_tree(source)): from_here(source) for source in sample.sources}
    return blame.file_of(shown).sub(lambda found: shown[found[1]], line)


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


def _check(order: Order, by: str, known: Build | None = None) -> None:
    """Raise NotBuilt unless the program and a BPF object with code in it are there.

    `known` is a build with the same BPF object.  Raises UnfitKernelHalf too.
    """
    sample = order.sample
    program, bpf_object = (order.tree.samples / name for name in (sample.name, sample.object))
    for path in (program, bpf_object):
        if not path.is_file():
            raise NotBuilt(path, "isn't there", order.log, by)
    if known:
        return
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


def _keep(
    order: Order, command: Sequence[str], seconds: float, known: Build | None = None
) -> Build:
    """Copy the result out of the tree, and write build.json last; `known` as for _check()."""
    tree, sample, directory = order.tree, order.sample, order.directory
    files = {}
    for name in (sample.name, sample.object):
        made, kept = tree.samples / name, directory / name
        if not kept.exists() or kept.read_bytes() != made.read_bytes():
            partial = kept.with_name(f".{name}.new")
            shutil.copy2(made, partial)
            partial.chmod(partial.stat().st_mode | 0o444)
            partial.replace(kept)
        files[name] = sum_of(kept)
    # root without CAP_DAC_OVERRIDE, see xdp_caps.h, opens what all may open
    directory.chmod(directory.stat().st_mode | 0o555)
    facts = {
        "schema": SCHEMA,
        "sample": sample.name,
        "tree": str(tree.path),
        "version": str(tree.version),
        "origin": tree.origin,
        "checked": tree.checked,
        "dialect": asdict(Dialect.of(tree)),
        "patches": [change.why for change in patching.recorded(tree)],
        "mended": damage.mended(tree),
        "trace": order.trace,
        "logs": known.facts["logs"] if known else _formats(tree, sample),
        "compilers": {"gcc": order.tools.gcc, "clang": order.tools.clang},
        "command": list(command),
        "log": str(order.log),
        "seconds": round(seconds, 3),
        "files": files,
        **facts_of_pair(sample),
    }
    write_json(directory / FACTS, facts)
    return Build(directory, facts)
