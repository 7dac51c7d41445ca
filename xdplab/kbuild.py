"""The calls of make, in the order in which a tree needs them.

Nothing is built that one sample doesn't need.  What differs from tree to tree
is in its Dialect; see the kernel's Documentation/kbuild for the words.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from xdplab import blame, footprint, sandbox
from xdplab.dialect import Dialect
from xdplab.errors import MakeFailed, NoSpace, TreeFails
from xdplab.files import require_space, write_whole
from xdplab.process import Argv, Finished, OnLine, Shell
from xdplab.recipe import BASH, FLAGS, Recipe
from xdplab.sample import Sample
from xdplab.sources import git
from xdplab.toolchain import Toolchain
from xdplab.tree import SAMPLES, Origin, Tree

# What a sample needs of the configuration: without 64BIT an allnoconfig is a
# 32-bit kernel, whose struct pt_regs the BPF headers can't use; without MODULES
# make refuses M=.
CONFIG = "CONFIG_64BIT=y\nCONFIG_MODULES=y\n"

_PREPARE_LOG = "prepare.log"
_COPY = "config-of-yours"  # in the tree's state

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")


def prepare(
    tree: Tree, tools: Toolchain, shell: Shell, on_line: OnLine, *, all_samples: bool = False
) -> None:
    """Configure the tree and make the headers and scripts that a build needs, if need be.

    A configuration of the user's own is used, in a copy: kbuild writes into what
    it uses whatever today's compiler adds to it.  Raises UnknownDialect,
    MakeFailed, NoSpace, or TreeFails if the tree is to blame.
    """
    if tree.is_prepared(all_samples=all_samples):
        return
    require_space(tree.path, 200 * 2**20)
    dialect = Dialect.of(tree)
    if all_samples:
        complete(tree, shell)
    with footprint.recorded(tree, "", log=tree.state(_PREPARE_LOG), dry=shell.dry):
        make(tree, _configure(tree, shell, all_samples), tools, shell, on_line)
        needed = dialect.all_need if all_samples else dialect.one_needs
        make(tree, needed.split(), tools, shell, on_line)
    tree.remember(prepared="all" if all_samples else "sample", dry=shell.dry)


def complete(tree: Tree, shell: Shell) -> None:
    """Have all of a tree of which only what a sample needs was fetched."""
    if tree.origin is Origin.GIT:
        shell.run(["git", "sparse-checkout", "disable"], cwd=tree.path)  # fetches the rest


def _configure(tree: Tree, shell: Shell, all_samples: bool) -> list[str]:
    """What to tell make, the files for it in place."""
    theirs, copy, fragment = tree.path / ".config", tree.state(_COPY), tree.state("config")
    if _has_own_config(tree):
        if not shell.dry:
            write_whole(copy, theirs.read_bytes())
        return ["olddefconfig"]
    tree.remember(configured=True, dry=shell.dry)  # so that ours isn't taken for theirs
    if all_samples:
        return ["defconfig"]
    if not shell.dry:
        write_whole(fragment, CONFIG.encode())
    return [f"KCONFIG_ALLCONFIG={fragment.relative_to(tree.path)}", "allnoconfig"]


def _has_own_config(tree: Tree) -> bool:
    return (tree.path / ".config").exists() and not tree.recall("configured")


def make_sample(
    tree: Tree, sample: Sample, tools: Toolchain, shell: Shell, on_line: OnLine, log: Path,
    *, go_on: bool = False,
) -> Finished:  # fmt: skip
    """Build the one pair by the tree's own rules: its lists, narrowed on the command line.

    $(obj) is for make to fill in: "samples/bpf", or "." from v6.13 on.  It says
    each command, for recipe.Recipe to hear; with `go_on` the other half is tried
    where one fails.
    """
    dialect = Dialect.of(tree)
    lists = [
        f"{dialect.programs}={sample.name}",
        f"{dialect.always}=$(obj)/{sample.name} $(obj)/{sample.object}",
    ]
    how = ["-k"] if go_on else []
    rules = [f"SHELL={BASH}", f".SHELLFLAGS={FLAGS}"]
    return make(tree, [*how, f"M={SAMPLES}", "V=1", *lists, *rules], tools, shell, on_line, log)


def make_again(
    tree: Tree, recipe: Recipe, listing: Path, tools: Toolchain, shell: Shell, on_line: OnLine,
    log: Path,
) -> None:  # fmt: skip
    """Make one half by what make was heard to run for it, what it reads listed in a file.

    Raises MakeFailed, NoSpace, or TreeFails if the tree is to blame.
    """
    for command in recipe.again(listing):
        argv = [BASH, *FLAGS.split(), command]
        _run(tree, argv, tools, recipe.directory, command.split()[0], shell, on_line, log)


def make_all_samples(
    tree: Tree, tools: Toolchain, shell: Shell, on_line: OnLine, log: Path
) -> Finished:
    """Build every sample, as the post does; where they need a vmlinux's BTF, the host's."""
    dialect = Dialect.of(tree)
    wants_btf = dialect.vmlinux and VMLINUX_BTF.exists()
    btf = [f"{dialect.vmlinux}={VMLINUX_BTF}"] if wants_btf else []
    return make(tree, [dialect.all_samples, *btf], tools, shell, on_line, log)


def make(
    tree: Tree, arguments: Sequence[str], tools: Toolchain, shell: Shell, on_line: OnLine,
    log: Path | None = None, writes: Sequence[Path] = (),
) -> Finished:  # fmt: skip
    """Call make at the tree's top, with all processors and the compilers of `tools`.

    `log` is kept in the tree's state if none is named; in a sandbox only the tree can be
    written to, or what `writes` names instead.  Raises MakeFailed, NoSpace, or TreeFails if the
    tree is to blame, and what sandbox.require_inside raises.
    """
    log = log or tree.state(_PREPARE_LOG)
    if not shell.dry:
        log.parent.mkdir(parents=True, exist_ok=True)
    copy = tree.state(_COPY).relative_to(tree.path)
    config = [f"KCONFIG_CONFIG={copy}"] if _has_own_config(tree) else []
    targets = [word for word in arguments if "=" not in word]
    what = shlex.join(["make", *(targets or arguments[:1])])
    argv = ["make", f"-j{os.cpu_count()}", *arguments, *config, *tools.variables]
    return _run(tree, argv, tools, "", what, shell, on_line, log, writes)


def _run(
    tree: Tree, argv: Sequence[str], tools: Toolchain, directory: str, what: str, shell: Shell,
    on_line: OnLine, log: Path, writes: Sequence[Path] = (),
) -> Finished:  # fmt: skip
    given: Argv = argv
    if tools.sandboxed:
        sandbox.require_inside(tree.path)
        given = sandbox.around(argv, tree.path / directory, writes or [tree.path], tools.called)
    finished = shell.run(
        given,
        cwd=tree.path / directory,
        env={"LC_ALL": "C.UTF-8"},
        log=log,
        on_line=on_line,
        check=False,
        leaves=True,
    )
    if tools.sandboxed:
        sandbox.require_inside(tree.path)
    if finished.code and tree.origin is Origin.GIT:
        said = (line.text for line in finished.lines)
        if git.fetch_missing(tree.path, said, shell, lambda *_: None):
            return _run(tree, argv, tools, directory, what, shell, on_line, log, writes)
    if finished.code:
        if full := NoSpace.told(finished.text("out", "err")):
            raise full
        fault = blame.of(tree, finished.lines)
        if fault:
            raise TreeFails(what, fault.words, fault.cure, log)
        raise MakeFailed(what, log, finished.text("err"))
    return finished
