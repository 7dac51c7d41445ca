"""How long a build takes, beside what the tree and the compilers need for it by themselves.

All in a copy of what a build reads of the current tree, in a workspace of the bench's own.
From nothing, the floor is make alone, told what the harness tells it and no more: the
smallest configuration, the generated headers, and the one pair with libbpf by kbuild's own
rules.  After an edit, it is the compilers that make called for that half, by themselves.
With nothing changed, it is the start of a command that builds nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from xdplab import TUTORIAL, footprint, kbuild, lifecycle, patching
from xdplab import build as building
from xdplab.bench.measure import By, Comparison, Goal, Means, Way, timed
from xdplab.files import write_whole
from xdplab.process import Shell
from xdplab.receipt import Receipt
from xdplab.recipe import BASH, FLAGS
from xdplab.sample import Sample
from xdplab.sources import wanted
from xdplab.tree import SAMPLES, Tree
from xdplab.workspace import PROJECT, Workspace

_COMMAND, _CALL, _MAKE = "invoke build", "the build in it", "make"
_MAKES = "the calls of make that invoke --dry build prints"
_COLD, _EDITED, _UNCHANGED = 1.3, 3.0, 0.3  # at most: times, times, seconds


def comparisons(means: Means) -> Generator[Comparison]:
    """The tutorial's pair: from nothing, after an edit of either half, and after none."""
    with copied(means) as desk:
        yield desk.cold()
        desk.restore()
        desk.build()
        yield desk.edited("kern", "the kernel half edited")
        yield desk.edited("user", "the user half edited")
        desk.make()
        desk.build()  # once more for what make has just made anew
        yield desk.unchanged()


@contextlib.contextmanager
def copied(means: Means) -> Iterator[_Desk]:
    """What a build reads of the current tree, as it was found, and the pair."""
    original = means.tree()
    there = footprint.names_below(original, [""])
    placed = {f"{SAMPLES}/{name}" for name in original.placed()}
    ours = placed | {*footprint.made(original)}
    means.workspace.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=means.workspace.root, prefix="bench-") as scratch:
        place, pair = Path(scratch, "linux"), Path(scratch, "pair")
        for name in wanted.chosen({one for one in there if not one.endswith("/")} - ours):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(original.path / name, place / name, follow_symlinks=False)
        pair.mkdir()
        for file in PROJECT.glob(f"{TUTORIAL}_*.c"):
            shutil.copy2(file, pair)
        tree = Tree.at(place)
        found = frozenset(footprint.names_below(tree, [""]))
        yield _Desk(means, tree, pair, Workspace(Path(scratch, "workspace")), found)


@dataclass(frozen=True, slots=True)
class _Desk:
    """A tree and a pair to build in, and what is in the tree before a build."""

    means: Means
    tree: Tree
    pair: Path
    workspace: Workspace
    found: frozenset[str]

    @property
    def sample(self) -> Sample:
        """The pair, as it is now."""
        return Sample.find(str(self.pair / f"{TUTORIAL}_kern.c"))

    # ---- what is compared

    def cold(self) -> Comparison:
        """From the tree as it was found to the pair."""
        self.restore()
        printed: list[str] = []
        self.build(Shell(printed.append, dry=True))
        alone = [line for line in printed if " make " in line]
        return Comparison(
            f"{self.tree.version.tag}, from nothing",
            (
                Way("make alone", timed(partial(self._paste, alone)), _MAKES, self.patch),
                Way(_COMMAND, timed(self.invoke), "invoke build", self.restore),
            ),
            (Goal(_COMMAND, "s", _COLD),),
            rounds=3,
        )

    def edited(self, half: str, name: str) -> Comparison:
        """After each edit of a half; who doesn't look for edits is told nothing of them."""
        edit, compile_ = partial(self.edit, half), partial(self.compile, half)
        copy = self.tree.samples / f"{TUTORIAL}_{half}.c"
        return Comparison(
            f"{self.tree.version.tag}, {name}",
            (
                Way("the compilers", timed(compile_), "what invoke build prints after an edit"),
                Way(_CALL, timed(self.build), "xdplab.build.build()", edit),
                Way(_COMMAND, timed(self.invoke), "invoke build", edit),
                Way(_MAKE, timed(self.make), "make M=samples/bpf ...", copy.touch),
            ),
            (Goal(_CALL, "s", _EDITED), Goal(_COMMAND, "s", _EDITED)),
        )

    def unchanged(self) -> Comparison:
        """With nothing to do."""
        return Comparison(
            f"{self.tree.version.tag}, nothing changed",
            (
                Way("the start", timed(self.start), "invoke --list"),
                Way(_CALL, timed(self.build), "xdplab.build.build()"),
                Way(_COMMAND, timed(self.invoke), "invoke build"),
                Way(_MAKE, timed(self.make), "make M=samples/bpf ..."),
            ),
            (Goal(_COMMAND, "s", _UNCHANGED, By.FIGURE),),
        )

    # ---- what is measured

    def build(self, shell: Shell | None = None) -> None:
        """Build by the library, in this process."""
        tools = self.means.toolchain()
        building.build(
            self.tree, self.sample, tools, self.workspace, shell or self.means.shell,
            lambda _: None, lambda _: None,
        )  # fmt: skip
        tools.remember(self.workspace.compilers)

    def invoke(self) -> None:
        """Build by the command, start of Python and all."""
        self._command("build", f"--tree={self.tree.path}", f"--sample={self.sample.kern}")

    def start(self) -> None:
        """Start a command that builds nothing."""
        self._command("--list")

    def _command(self, *arguments: str) -> None:
        argv = [sys.executable, "-m", "invoke", *arguments]
        environment = {"INVOKE_WORKSPACE": str(self.workspace.root)}
        self.means.shell.run(argv, cwd=PROJECT, env=environment)

    def make(self) -> None:
        """Ask make for the pair, as the harness does where it can't know by itself."""
        kbuild.make_sample(
            self.tree, self.sample, self.means.toolchain(), self.means.shell, lambda _: None,
            self.tree.state("bench.log"),
        )  # fmt: skip

    def compile(self, half: str) -> None:
        """Run what make ran for a half."""
        receipt = Receipt.load(self.workspace.build(self.tree.key, TUTORIAL))
        assert receipt  # noqa: S101  # it was built just now
        recipe = receipt.halves[f"{TUTORIAL}_{half}.o"].recipe
        for command in recipe.commands:
            argv = [BASH, *FLAGS.split(), command]
            self.means.shell.run(argv, cwd=self.tree.path / recipe.directory)

    def _paste(self, lines: list[str]) -> None:
        for line in lines:
            self.means.shell.run([BASH, "-c", line])

    # ---- what is made ready

    def restore(self) -> None:
        """Have the tree as it was found, whoever built in it, and nothing kept."""
        if self.tree.state("").exists():
            lifecycle.as_found(self.tree)
        for name in footprint.names_below(self.tree, [""]) - self.found:
            if not name.endswith("/"):
                (self.tree.path / name).unlink()
        shutil.rmtree(self.workspace.root, ignore_errors=True)

    def patch(self) -> None:
        """Have a tree in which make alone can build the pair."""
        self.restore()
        sample, state = self.sample, self.tree.state("config")
        patching.apply(self.tree, patching.plan(self.tree, sample.name))
        write_whole(state, kbuild.CONFIG.encode())
        for source in sample.sources:
            shutil.copy2(source, self.tree.samples / sample.in_tree(source))

    def edit(self, half: str) -> None:
        """Write another comment at a half's end."""
        with (self.pair / f"{TUTORIAL}_{half}.c").open("a") as file:
            file.write(f"/* {time.monotonic_ns()} */\n")
