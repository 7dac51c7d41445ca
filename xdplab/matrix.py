"""A sample proved on a row of kernels: planned, built, and tried in machines side by side."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import re
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, ParamSpec, Protocol, TypeVar
from urllib.parse import quote

from xdplab import blame, cases, making
from xdplab import build as building
from xdplab.boot import Kernel, choice, qemu, version_of
from xdplab.build import Build
from xdplab.cell import MODES, Cell, Result, Tell, Trial, judge, prove
from xdplab.errors import (
    CompilerGaveUp,
    Held,
    LabError,
    MakeFailed,
    ModeRefused,
    NotAChoice,
    NotACompiler,
    NotAllPassed,
    NotAllTried,
    NotAnImage,
    NotAVersion,
    NoTree,
)
from xdplab.process import Line, Running, Shell
from xdplab.runner import Job
from xdplab.sample import Sample
from xdplab.sources import Report
from xdplab.survey import trials
from xdplab.testbed.vm import Parcel, Platform, Userland
from xdplab.toolchain import Toolchain
from xdplab.tree import Tree
from xdplab.trees import fetched, find
from xdplab.verify import Outcome
from xdplab.version import KernelVersion
from xdplab.workspace import Workspace

NO_NATIVE = ("lo",)  # interfaces whose driver has no native XDP
_OWN = 256  # MiB that a QEMU takes beside its guest's memory
_PATIENCE = 600.0  # seconds for who else works in a tree or fetches a kernel to be done

# What words for a kernel or a compiler can be wrong with, whatever is had here.
_MISSPELT = (NotAVersion, NotAnImage, NotACompiler)

At = Callable[[Cell, str], None]  # hears what a cell is at
_Given = ParamSpec("_Given")
_Got = TypeVar("_Got")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a matrix is asked to prove."""

    sample: str  # as --sample has it
    name: str  # of the sample
    kernels: tuple[str, ...]
    compilers: tuple[str, ...]  # one that is empty is the machine's own
    modes: tuple[str, ...]
    ip: str
    dev: str

    @classmethod
    def of(
        cls, sample: str, kernels: Iterable[str], compilers: Iterable[str], modes: Iterable[str],
        ip: str, dev: str,
    ) -> Plan:  # fmt: skip
        """The plan that options ask for, each thing once.

        Raises NotAChoice, NotAnAddress and NotASample.
        """
        rows, columns, ways = (tuple(dict.fromkeys(each)) for each in (kernels, compilers, modes))
        for mode in ways or ("",):
            if mode not in MODES:
                raise NotAChoice("--modes", mode, MODES)
        if not rows:
            raise NotAChoice("--kernels", "", ["versions, with commas between"])
        Job(ip, dev)  # raises what speaks against these two
        name = Sample.find(sample).name
        return cls(sample, name, rows, columns or ("",), ways, ip, dev)

    @property
    def cells(self) -> list[Cell]:
        """All that is to be proved, row by row."""
        every = itertools.product(self.kernels, self.compilers, self.modes)
        return [Cell(*one) for one in every]

    def again(self, cell: Cell, tree: Path) -> tuple[str, ...]:
        """The commands that prove a cell by itself."""
        sample = [f"--sample={self.sample}"]
        compiler = [f"--{kind}={name}" for kind, name in named(cell.compiler).items()]
        where = ["--on=vm", f"--boot={cell.kernel}", f"--dev={self.dev}"]
        job = [f"--mode={MODES[cell.mode]}", f"--ip={self.ip}"]
        return (
            shlex.join(["invoke", "build", f"--tree={tree}", *sample, *compiler]),
            shlex.join(["invoke", "verify", f"--tree={tree}", *sample, *where, *job]),
        )


def named(compiler: str) -> dict[str, str]:
    """What to call Toolchain.find with for a compiler beside the other kind's usual one."""
    return trials([compiler] if compiler else [])[0]


@dataclass(frozen=True, slots=True)
class Means:
    """What a matrix works with."""

    workspace: Workspace
    shell: Shell
    toolchain: Callable[..., Toolchain]  # see Lab.toolchain
    kernel: Callable[[str, Report], Kernel | None]  # finds or fetches it: see choice.find
    machines: Machines
    tell: Tell

    @classmethod
    def of(
        cls, workspace: Workspace, shell: Shell, toolchain: Callable[..., Toolchain],
        machines: Machines, tell: Tell,
    ) -> Means:  # fmt: skip
        """What is to be had here, to be tried on those machines; `tell` hears what was fetched."""

        def kernel(spec: str, report: Report) -> Kernel | None:
            return choice.find(spec, workspace, shell, report, tell)

        return cls(workspace, shell, toolchain, kernel, machines, tell)


def tree_for(version: KernelVersion | None, workspace: Workspace) -> Tree:
    """The tree of that kernel's series, or else the current one; raises NoTree.

    An object without CO-RE relocations runs on other kernels than its tree's too.
    """
    current: list[Tree] = []
    with contextlib.suppress(NoTree):
        current.append(find(workspace, None))
    for tree in [*current, *fetched(workspace)]:
        if version and tree.version.series == version.series:
            return tree
    if not current:
        raise NoTree(version.series if version else None)
    return current[0]


def show(plan: Plan, workspace: Workspace, shell: Shell) -> None:
    """Echo what a matrix comes to, for a dry run: each build, and what is proved with it."""
    proofs: dict[str, list[str]] = {}
    for cell in plan.cells:
        tree = tree_for(version_of(cell.kernel), workspace)
        build, proof = plan.again(cell, tree.path)
        proofs.setdefault(build, []).append(proof)
    for build, those in proofs.items():
        for command in (build, *those):
            shell.echo(command)


def take_over(plan: Plan, earlier: Iterable[Result], name: str) -> list[Result]:
    """What an earlier matrix, of that name, found passed of what is to be proved now."""
    passed = {one.cell: one for one in earlier if one.outcome is Outcome.PASSED}
    return [
        replace(passed[cell], taken_from=passed[cell].taken_from or name)
        for cell in plan.cells
        if cell in passed
    ]


# ---- the run


def run(
    plan: Plan, means: Means, directory: Path, taken: Sequence[Result], at: At
) -> Generator[Result]:  # fmt: skip
    """Prove all cells but those that were taken over; gives each result as it comes.

    Kernels are found and pairs built one after the other, then cells are tried side
    by side.  Interrupted, it ends all machines, gives what had finished, and
    raises KeyboardInterrupt.  Raises NotAVersion, NotAnImage, NotACompiler and NoTree
    before anything is built.
    """
    done = {result.cell for result in taken}
    cells = [cell for cell in plan.cells if cell not in done]
    workshop = _Workshop(plan, means, directory, at)
    for cell in cells:
        workshop.check(cell)
    yield from taken
    try:
        ready: list[Trial] = []
        for cell in cells:
            try:
                ready.append(workshop.trial(cell))
            except (LabError, OSError) as error:
                yield Result(cell, *judge([], error), again=workshop.again(cell))
        with closing(_tried(ready, directory, means, at)) as results:
            for result in results:
                yield replace(result, again=workshop.again(result.cell))
    finally:
        workshop.clear()


class _Workshop:
    """What cells share: kernels, compilers, builds and guests, each had once, or not to be had."""

    def __init__(self, plan: Plan, means: Means, directory: Path, at: At) -> None:
        self._plan = plan
        self._means = means
        self._builds = directory / "builds"
        self._guests = directory / "guests"
        self._at = at
        self._sample = Sample.find(plan.sample)
        self._kernel = Once(self._find)
        self._tools = Once(lambda compiler: means.toolchain(**named(compiler)))
        self._build = Once(self._make)
        self._platform = Once(lambda spec: Platform.of(self._kernel(spec), plan.dev))
        self._userland = Once(self._furnish)
        self._parcel = Once(self._pack)

    def check(self, cell: Cell) -> None:
        """Raise what is wrong with the words for a cell; what they lead to is judged later."""
        self._at(cell, "finding")
        for had, word in ((self._kernel, cell.kernel), (self._tools, cell.compiler)):
            try:
                had(word)
            except _MISSPELT:
                raise
            except LabError:
                continue
        self.tree(cell)
        self._at(cell, "waiting")

    def tree(self, cell: Cell) -> Tree:
        """The tree to build in."""
        try:
            version = self._kernel(cell.kernel).version
        except LabError:
            version = version_of(cell.kernel)
        return tree_for(version, self._means.workspace)

    def again(self, cell: Cell) -> tuple[str, ...]:
        """The commands that prove it by itself."""
        return self._plan.again(cell, self.tree(cell).path)

    def trial(self, cell: Cell) -> Trial:
        """All that it takes to prove the cell; raises why it can't be had."""
        plan = self._plan
        if cell.mode == "native" and plan.dev in NO_NATIVE:
            raise ModeRefused(plan.dev, cell.mode, "it is no hardware, and has no driver for that")
        kernel = self._kernel(cell.kernel)
        self._at(cell, "building")
        where = self.tree(cell), cell.compiler
        build = self._build(*where)
        parcel = self._parcel(cell.kernel, *where)
        self._at(cell, "waiting")
        job = Job(plan.ip, plan.dev, MODES[cell.mode])
        return Trial(cell, kernel.release, parcel, build, job)

    def _find(self, spec: str) -> Kernel:
        cells = [cell for cell in self._plan.cells if cell.kernel == spec]

        def report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
            for cell in cells:
                self._at(cell, phase.split(maxsplit=1)[0])

        kernel = patiently(partial(self._means.kernel, spec, report), self._means.tell)
        assert kernel  # noqa: S101  # only a dry run has none
        return kernel

    def clear(self) -> None:
        """Remove the guests."""
        shutil.rmtree(self._guests, ignore_errors=True)

    def _furnish(self, tree: Tree, compiler: str) -> Userland:
        build = self._build(tree, compiler)
        frames = cases.frames(build, self._plan.ip)
        return Userland.of(build, frames, self._means.workspace, self._means.shell)

    def _pack(self, spec: str, tree: Tree, compiler: str) -> Parcel:
        self._guests.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=self._guests))
        return self._platform(spec).parcel(self._userland(tree, compiler), directory)

    def _make(self, tree: Tree, compiler: str) -> Build:
        heard: list[Line] = []
        tree.require_ready()
        keep = self._builds / tree.key / (quote(compiler, safe="") or "own")
        make = partial(
            building.build, tree, self._sample, self._tools(compiler), self._means.workspace,
            self._means.shell, heard.append, self._means.tell, keep=keep,
        )  # fmt: skip
        try:
            return patiently(make, self._means.tell)
        except MakeFailed as error:
            said = making.user_paths(self._sample, blame.first_error(heard))
            context = making.about_pair(self._sample, heard)
            raise CompilerGaveUp(said, context, error.cure) if said else error from error


class Once(Generic[_Given, _Got]):
    """A function that is called once for the same arguments, and gives or raises the same again."""

    def __init__(self, function: Callable[_Given, _Got]) -> None:
        self._function = function
        self._got: dict[object, _Got | Exception] = {}
        self._lock = threading.Lock()

    def __call__(self, *args: _Given.args, **kwargs: _Given.kwargs) -> _Got:
        """What it gave, or raises the LabError or OSError that it raised."""
        with self._lock:
            if args not in self._got:
                try:
                    self._got[args] = self._function(*args, **kwargs)
                except (LabError, OSError) as error:
                    self._got[args] = error
            got = self._got[args]
        if isinstance(got, Exception):
            raise got
        return got


def patiently(function: Callable[[], _Got], tell: Callable[[str], None]) -> _Got:
    """Call it again and again while another process holds what it needs; `tell` hears that once."""
    deadline = time.monotonic() + _PATIENCE
    told = False
    while True:
        try:
            return function()
        except Held as held:
            if time.monotonic() > deadline:
                raise
            if not told:
                tell(f"{held.message}: waiting")
            told = True
        time.sleep(0.5)


# ---- side by side


def places(cores: int, free: int, guest: int) -> int:
    """How many machines may run at once; at least one.  Memory in MiB."""
    return max(1, min(cores, free // (guest + _OWN)))


def available_memory(meminfo: str) -> int:
    """MiB that can be had without swapping: MemAvailable of /proc/meminfo, see proc(5)."""
    found = re.search(r"^MemAvailable: +(\d+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) // 1024 if found else 0


def _tried(ready: Sequence[Trial], directory: Path, means: Means, at: At) -> Generator[Result]:
    """Prove cells in threads, as many at once as the machines take."""
    tell = Once(means.tell)  # they all have the same to tell
    with ThreadPoolExecutor(means.machines.places) as pool:
        futures = {
            pool.submit(
                means.machines.prove, trial, directory / _directory_name(number, trial.cell),
                tell, partial(at, trial.cell),
            ): trial.cell
            for number, trial in enumerate(ready, start=1)
        }  # fmt: skip
        yield from gathered(futures, means.machines.stop)


def _directory_name(number: int, cell: Cell) -> str:
    """A directory's name that no other cell has, and that tells people which it is."""
    return f"{number:02}-{re.sub(r'[^a-zA-Z0-9.]+', '-', str(cell))[-60:]}"


def gathered(futures: Mapping[Future[Result], Cell], stop: Callable[[], None]) -> Generator[Result]:
    """Results as they come.  What ends this early stops the rest; Ctrl-C loses none that is there.

    `stop` is to end all that runs.
    """
    waiting = dict(futures)
    try:
        for future in as_completed(futures):
            yield _result(future, waiting.pop(future))
    except KeyboardInterrupt:
        yield from [_result(future, cell) for future, cell in waiting.items() if future.done()]
        raise
    finally:
        for future in waiting:
            future.cancel()
        stop()


def _result(future: Future[Result], cell: Cell) -> Result:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        return Result(cell, *judge([], error))
    raise error


class Leash:
    """The commands that threads have under way, so that all can be ended at once."""

    def __init__(self) -> None:
        self._held: list[Running] = []
        self._is_cut = False
        self._lock = threading.Lock()

    def hold(self, running: Running) -> None:
        """Remember it; end it at once if it comes too late."""
        with self._lock:
            self._held.append(running)
        if self._is_cut:
            running.end()

    def cut(self) -> None:
        """End all that are under way, and all that are yet to come."""
        with self._lock:
            self._is_cut = True
            held = list(self._held)
        for running in held:
            running.end()


class Machines(Protocol):
    """What cells are proved on: this machine, or the workers of a cluster."""

    @property
    def places(self) -> int:
        """How many cells may be handed over at once."""

    @property
    def host(self) -> dict[str, str]:
        """What guests run on, by name."""

    def prove(self, trial: Trial, directory: Path, tell: Tell, at: Tell) -> Result:
        """See cell.prove; called by several threads."""

    def stop(self) -> None:
        """End all that is under way, and all that is yet to come."""


@dataclass(frozen=True, slots=True)
class ThisMachine(Machines):
    """Guests run here, as many side by side as there is room for."""

    workspace: Workspace
    shell: Shell
    leash: Leash = field(default_factory=Leash)

    @property
    def places(self) -> int:
        """As many as cores and memory allow."""
        return places_here()

    @property
    def host(self) -> dict[str, str]:
        """This machine's kernel, and how QEMU runs guests; raises what qemu.require raises."""
        return host_here(self.workspace, self.shell)

    def prove(self, trial: Trial, directory: Path, tell: Tell, at: Tell) -> Result:
        """Prove it right here."""
        shell = replace(self.shell, hold=self.leash.hold)
        return prove(trial, directory, self.workspace, shell, tell, at)

    def stop(self) -> None:
        """End all QEMUs."""
        self.leash.cut()


def places_here() -> int:
    """How many guests this machine has room for."""
    free = available_memory(Path("/proc/meminfo").read_text())
    return places(len(os.sched_getaffinity(0)), free, qemu.MEMORY)


def host_here(workspace: Workspace, shell: Shell) -> dict[str, str]:
    """What guests run on here, by name; raises what qemu.require raises."""
    version = qemu.require(Shell())
    engine = qemu.engines(workspace, shell, lambda _: None)[0]
    return {"Linux": platform.release(), "QEMU": f"{version}, {engine.name}"}


# ---- what it comes to


def require_passed(results: Iterable[Result]) -> None:
    """Raise NotAllPassed if something failed, or else NotAllTried if it could not be tried."""
    words: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    for result in results:
        words[result.outcome].append(str(result.cell))
    cure = "the reasons are above; --only-failed tries these again, and no others"
    if words[Outcome.FAILED]:
        raise NotAllPassed(words[Outcome.FAILED], cure)
    untried = words[Outcome.ERROR] + words[Outcome.SKIPPED]
    if untried:
        raise NotAllTried(untried, cure)
