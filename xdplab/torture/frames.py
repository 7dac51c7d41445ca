"""Promise 4, right verdicts: frames by chance through each sample, and no disagreement."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from xdplab import TUTORIAL, runner
from xdplab.bench.measure import Means
from xdplab.bench.place import Place
from xdplab.boot import Kernel, choice, qemu
from xdplab.boot.guest import splats
from xdplab.build import Build
from xdplab.errors import CannotRun, LabError
from xdplab.runner import Job, Run
from xdplab.testbed import prog_run
from xdplab.testbed.vm import GuestBench, Vm
from xdplab.torture import Name
from xdplab.torture.ground import made
from xdplab.torture.ordeal import Finding, Ordeal, Try
from xdplab.torture.programs import FILTER, LOUD, LOUD_SINCE, built
from xdplab.torture.trials import (
    ADDRESS,
    Filter,
    Here,
    Inside,
    Loud,
    Trial,
    Tutorial,
    remarks,
    require_quiet,
)
from xdplab.workspace import RunRecord, Workspace

KERNELS = ("5.10-cloud", "7.2-cloud")  # the oldest and the newest that are packaged
# of a try: its trials, and the frames of each; in a guest a filter takes seconds to load,
# and 50,000 frames one
TRIALS, FRAMES = 8, 50_000
JOB = Job(ADDRESS, mode="skb", interval=0.1, rounds=0)
_SELDOM = 0.1  # of all tries those that read the verifier's log
_KMSG = Path("/dev/kmsg")

Agrees = Callable[[Trial], Finding | None]


@dataclass(frozen=True, slots=True)
class Frames:
    """The samples, on this kernel and in guests."""

    place: Place
    builds: Sequence[Build]
    kernels: Mapping[str, Kernel | None]  # by release; None: the one that runs
    processes: Executor
    workspace: Workspace  # for guests
    loud: Sequence[Build] = ()  # copies that print the verifier's log: see programs.LOUD
    trials: int = TRIALS
    each: int = FRAMES

    def once(self, rng: Random) -> Try:
        """A sample on a kernel: trials one after another, each with other rules."""
        release, kernel = rng.choice(list(self.kernels.items()))
        if self.loud and rng.random() < _SELDOM:
            loud = rng.choice(self.loud)
            kind = f"the verifier's log of {LOUD[loud.name]} on {release}"
            return Try(kind, finding=_heard(kernel, lambda: self._verified(kernel, loud)))
        build = rng.choice(self.builds)
        seeds = [f"{rng.getrandbits(64):x}" for _ in range(self.trials)]
        by_chance = partial(Trial.by_chance, build.name, number=self.each)
        trials = self.processes.map(by_chance, seeds)
        kind = f"{build.name} on {release}, {self.trials * self.each:,} frames"
        return Try(kind, finding=_heard(kernel, lambda: self._agrees(kernel, build, trials)))

    def _agrees(
        self, kernel: Kernel | None, build: Build, trials: Iterator[Trial]
    ) -> Finding | None:
        return self._in_guest(kernel, build, list(trials)) if kernel else self._here(build, trials)

    def _here(self, build: Build, trials: Iterator[Trial]) -> Finding | None:
        here = Here(self.place.bench)
        if build.name == FILTER:
            return _first(Filter(here, build).agrees, trials)
        with self.place.running(build, JOB) as run:
            return _through(run, here.verdicts, trials)

    def _in_guest(self, kernel: Kernel, build: Build, trials: Sequence[Trial]) -> Finding | None:
        with self._guest(kernel, build, trials) as bench:
            inside = Inside(bench, trials)
            if build.name == FILTER:
                return _first(Filter(inside, build).agrees, trials)
            record = RunRecord(bench.guest.directory / "run.json")
            with runner.started(build, JOB, bench, record) as run:
                return _through(run, inside.verdicts, trials)

    def _verified(self, kernel: Kernel | None, build: Build) -> Finding | None:
        if not kernel:
            return remarks(Here(self.place.bench), build)
        with self._guest(kernel, build, ()) as bench:
            return remarks(Inside(bench, ()), build)

    @contextlib.contextmanager
    def _guest(self, kernel: Kernel, build: Build, trials: Sequence[Trial]) -> Iterator[GuestBench]:
        with (
            tempfile.TemporaryDirectory(dir=self.place.scratch) as directory,
            guest(build, trials, kernel, self.workspace, self.place, Path(directory)) as bench,
        ):
            yield bench


def _heard(kernel: Kernel | None, deed: Callable[[], Finding | None]) -> Finding | None:
    """What is found by a deed, whatever it ends by, or told by this kernel meanwhile.

    A guest's log is read when it is switched off.
    """
    try:
        with heard_here() if kernel is None else contextlib.nullcontext(list[str]()) as log:
            finding = deed()
    except (LabError, Loud) as error:
        return Finding(f"{type(error).__name__}: {error}", said=getattr(error, "said", ""))
    reported = tuple(splats(log))
    return finding or (Finding("the kernel reported trouble", reported) if reported else None)


def _first(agrees: Agrees, trials: Iterator[Trial] | Sequence[Trial]) -> Finding | None:
    return next(filter(None, map(agrees, trials)), None)


def _through(
    run: Run, verdicts: Callable[[int, Trial], str], trials: Iterator[Trial] | Sequence[Trial]
) -> Finding | None:
    require_quiet("\n".join(run.remarks()))
    tutorial = Tutorial(run, verdicts)
    return _first(tutorial.agrees, trials) or tutorial.counted()


@contextlib.contextmanager
def guest(
    build: Build, trials: Sequence[Trial], kernel: Kernel, workspace: Workspace, place: Place,
    directory: Path,
) -> Iterator[GuestBench]:  # fmt: skip
    """A guest with a build in it, and beside it the trials' frames, a file each."""
    packed = directory / "packed"
    shutil.copytree(build.directory, packed)
    for number, trial in enumerate(trials):
        (packed / str(number)).write_text("\n".join(prog_run.request(trial.frames)) + "\n")
    files = [*build.facts["files"], *map(str, range(len(trials)))]
    loaded = dataclasses.replace(build, directory=packed, facts={**build.facts, "files": files})
    vm = Vm(kernel, loaded, "lo", directory, workspace)
    with vm.open(place.bench.shell, packets=False) as bench:
        bench.guest.tell("mount -t bpf bpf /sys/fs/bpf")
        yield bench


@contextlib.contextmanager
def heard_here() -> Iterator[list[str]]:
    """What this machine's kernel logs meanwhile; it is there at the end of the block."""
    log: list[str] = []
    descriptor = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(descriptor, 0, os.SEEK_END)
        yield log
        with contextlib.suppress(BlockingIOError):
            while True:
                with contextlib.suppress(BrokenPipeError):  # lines were lost, others follow
                    log.append(os.read(descriptor, 8192).decode(errors="replace"))
    finally:
        os.close(descriptor)


# ---- made


@contextlib.contextmanager
def opened(means: Means) -> Iterator[Ordeal]:
    """Both samples, a pool of processes for their models, and what kernels can be had."""
    kernels, skipped = _kernels(means)
    with made(means) as ground, processes() as pool:
        place = Place(ground.bench, ground.scratch)
        builds = built(means, ground, (TUTORIAL, FILTER))
        loud: Mapping[str, Build] = {}
        if means.tree().version < LOUD_SINCE:
            skipped["the verifier's log"] = f"libbpf prints it from {LOUD_SINCE.tag} on"
        else:
            loud = built(means, ground, LOUD)
        frames = Frames(place, [*builds.values()], kernels, pool, means.workspace, [*loud.values()])
        yield Ordeal(Name.FRAMES, 4, frames.once, skipped)


def _kernels(means: Means) -> tuple[dict[str, Kernel | None], dict[str, str]]:
    """By release what frames are tried on, and what can't be had, with why."""
    found: dict[str, Kernel | None] = {platform.release(): None}
    skipped = {}
    for spec in KERNELS:
        try:
            qemu.require(means.shell)
            kernel = choice.find(spec, means.workspace, means.shell, lambda *_, **__: None,
                                 lambda _: None)  # fmt: skip
        except CannotRun as error:
            skipped[f"in a guest of {spec}"] = f"{error.message}: {error.cure}"
        else:
            found |= {kernel.release: kernel} if kernel else {}
    return found, skipped


@contextlib.contextmanager
def processes() -> Iterator[Executor]:
    """A process for each CPU; they end with this one, whatever it ends by."""
    how = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=how, initializer=_end_with_parent) as pool:
        yield pool


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
