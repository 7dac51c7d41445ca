"""What builds with what: the pair built, verified and taken out again, tree by tree."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from xdplab import blame, footprint, lifecycle, testbed, verify
from xdplab import build as building
from xdplab.errors import CannotRun, LabError, MakeFailed, NotAllPassed, NoTree
from xdplab.files import read_json, write_json
from xdplab.process import Line, OnLine, Shell
from xdplab.runner import Job
from xdplab.sample import Sample
from xdplab.sources import wanted
from xdplab.toolchain import Toolchain
from xdplab.tree import Origin, Tree
from xdplab.trees import fetched, foreign
from xdplab.verify import Outcome
from xdplab.version import KernelVersion
from xdplab.workspace import PROJECT, Workspace

PROOFS = PROJECT / "docs" / "proofs.json"  # what was found, for docs/kernels.md
SCHEMA = 1  # of proofs.json


@dataclass(frozen=True, slots=True)
class Proof:
    """One tree with one pair of compilers: what was done, how long it took, and the outcome."""

    version: str
    source: str  # git, distro, tarball, or the name of the directory of somebody's own tree
    gcc: str  # what it says of itself
    clang: str
    outcome: Outcome
    reason: str = ""  # why it isn't passed
    dialect: dict[str, str] = field(default_factory=dict)
    patches: tuple[str, ...] = ()  # why each change to the tree was made
    mended: tuple[str, ...] = ()  # what was damaged
    prepare: float = 0.0  # seconds, from a clean tree on
    build: float = 0.0  # seconds, libbpf included
    kernel: str = ""  # whose version ran the pair

    @property
    def key(self) -> tuple[KernelVersion, str, str, str]:
        """What tells it from other proofs, and their order."""
        return KernelVersion.parse(self.version), self.source, self.gcc, self.clang


def prove(
    tree: Tree, sample: Sample, tools: Toolchain, workspace: Workspace, shell: Shell,
    on_line: OnLine, *, learn: bool = False,
) -> Proof:  # fmt: skip
    """Build from a clean tree, verify in a namespace of its own, take all of it back.

    What a tree or a compiler isn't up to is an outcome here, not an error.  With `learn`
    the files of a whole tree that were read get on record, for who fetches only those.
    """
    source = tree.path.name if tree.origin is Origin.EXISTING else str(tree.origin)
    kernel = platform.release().partition("-")[0]  # what follows is the machine's own affair
    proof = Proof(str(tree.version), source, tools.gcc, tools.clang, Outcome.PASSED, kernel=kernel)
    heard: list[Line] = []

    def hear(line: Line) -> None:
        on_line(line)
        heard.append(line)

    _take_back(tree, workspace)
    before = _listing(tree)
    read = wanted.watch(tree) if learn and not tree.git_dir else None
    try:
        proof = _prove(proof, tree, sample, tools, workspace, shell, hear)
    except LabError as error:
        outcome = Outcome.SKIPPED if isinstance(error, CannotRun) else Outcome.FAILED
        said = blame.first_error(heard) if isinstance(error, MakeFailed) else ""
        said = said or error.message
        proof = replace(proof, outcome=outcome, reason=said.replace(str(tree.path), tree.path.name))
    finally:
        opened = read() if read else set()
        _take_back(tree, workspace)
    if opened and proof.outcome is Outcome.PASSED:
        wanted.learn(tree, opened)
    left = sorted(_listing(tree).items() ^ before.items())
    if left:
        reason = f"the tree isn't as it was found: {left[0][0]}, of {len(left)}"
        proof = replace(proof, outcome=Outcome.FAILED, reason=reason)
    return proof


def _prove(
    proof: Proof, tree: Tree, sample: Sample, tools: Toolchain, workspace: Workspace,
    shell: Shell, on_line: OnLine,
) -> Proof:  # fmt: skip
    started = time.monotonic()
    build = building.build(
        tree, sample, tools, workspace, shell, on_line, tell=lambda _: None, mend=True
    )
    whole, made = time.monotonic() - started, build.facts["seconds"]
    proof = replace(
        proof,
        dialect=build.facts["dialect"],
        patches=tuple(why for why in build.facts["patches"] if sample.name not in why),
        mended=tuple(build.facts["mended"]),
        prepare=round(whole - made, 1),
        build=round(made, 1),
    )
    with testbed.named("netns", workspace).open(shell, packets=True) as bench:
        run = workspace.new_run()
        checks = list(verify.verify(build, Job("192.168.1.78"), bench, run, lambda _: None))
    broken = "; ".join(f"{check.claim}: {check.found}" for check in checks if not check.held)
    return replace(proof, outcome=Outcome.FAILED, reason=broken) if broken else proof


def _take_back(tree: Tree, workspace: Workspace) -> None:
    with workspace.locked(tree):
        lifecycle.as_found(tree)


def _listing(tree: Tree) -> dict[str, tuple[int, int]]:
    """Every file of the tree but the harness's own, with its mode and size."""
    names = (name for name in footprint.names_below(tree, [""]) if not name.endswith("/"))
    found = ((name, (tree.path / name).lstat()) for name in names)
    return {name: (status.st_mode, status.st_size) for name, status in found}


def trees(kernels: Sequence[str], paths: Sequence[str], workspace: Workspace) -> list[Tree]:
    """The trees at these paths and those of these versions that were set up; or else all of them.

    Raises NoTree for a version that none has, NotAVersion, NotAKernelTree.
    """
    known = [*fetched(workspace), *foreign(workspace)]
    found = [Tree.at(Path(path)) for path in paths]
    for version in map(KernelVersion.parse, kernels):
        fit = [tree for tree in known if version.covers(tree.version)]
        if not fit:
            raise NoTree(version.tag)
        found += fit
    found = found or known
    if not found:
        raise NoTree
    return sorted({tree.path: tree for tree in found}.values(), key=lambda tree: tree.version)


def trials(names: Iterable[str]) -> list[dict[str, str]]:
    """What to call Toolchain.find with to try each compiler beside the other kind's usual one."""
    return [{"clang" if "clang" in name else "gcc": name} for name in names] or [{}]


def survey(
    trees: Iterable[Tree], toolchains: Sequence[Toolchain], sample: Sample,
    workspace: Workspace, shell: Shell, on_line: OnLine, *, learn: bool = False,
) -> Iterator[Proof]:  # fmt: skip
    """Prove each tree with each toolchain, as prove(); a dry run only tells what that comes to."""
    for tree in trees:
        for tools in toolchains:
            if not shell.dry:
                yield prove(tree, sample, tools, workspace, shell, on_line, learn=learn)
                continue
            chosen = [f"--gcc={tools.commands['CC']}", f"--clang={tools.commands['CLANG']}"]
            shell.echo(shlex.join(["invoke", "build", f"--tree={tree.path}", *chosen]))
            shell.echo(shlex.join(["invoke", "verify", f"--tree={tree.path}"]))


def require_passed(proofs: Iterable[Proof]) -> None:
    """Raise NotAllPassed unless every proof passed, or was skipped for this machine's sake."""
    failed = [proof for proof in proofs if proof.outcome is Outcome.FAILED]
    if failed:
        raise NotAllPassed(
            [f"{one.version} with {one.gcc}, {one.clang}" for one in failed],
            "invoke build with that --tree, --gcc and --clang shows why",
        )


# ---- what was found, kept


def recorded(path: Path = PROOFS) -> list[Proof]:
    """The proofs on record, in their order."""
    rows = (read_json(path) or {}).get("proofs", [])
    found = [
        replace(
            Proof(**row),
            outcome=Outcome(row["outcome"]),
            patches=tuple(row["patches"]),
            mended=tuple(row["mended"]),
        )
        for row in rows
    ]
    return sorted(found, key=lambda proof: proof.key)


def recording(proofs: Iterable[Proof], path: Path = PROOFS) -> Iterator[Proof]:
    """Pass them on, each once it is on record; it replaces an earlier one of the same."""
    for proof in proofs:
        kept = {one.key: one for one in (*recorded(path), proof)}
        rows = [asdict(kept[key]) for key in sorted(kept)]
        write_json(path, {"schema": SCHEMA, "proofs": rows})
        yield proof
