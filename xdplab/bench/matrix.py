"""What a cell of a matrix costs: beside the bare boot of its kernel, and when there are more."""

from __future__ import annotations

import contextlib
import functools
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from xdplab import TUTORIAL, cases, matrix
from xdplab import build as building
from xdplab.bench.measure import Comparison, Figures, Goal, Means, Way, timed
from xdplab.boot import Kernel, kept, qemu
from xdplab.boot.initramfs import Entry, cpio
from xdplab.build import Build
from xdplab.cell import MODES, Cell, Tell, Trial, prove
from xdplab.errors import MissingTools, NoBoot
from xdplab.matrix import Plan, ThisMachine, places_here, require_passed
from xdplab.process import Shell
from xdplab.runner import Job
from xdplab.sample import Sample
from xdplab.testbed.vm import DEV, Cable, Parcel, Platform, Userland, opened

_IP = "192.168.1.78"
_ROUNDS = 3  # emulated, a boot takes seconds
_ROW = 4  # kernels of which each is looked at by itself
_POINTS = (1, 2, 4, 8)  # cells
_PATIENCE = 120.0  # seconds for a first line
_QUIET = Shell()  # the same commands again and again, in a directory of its own each

BARE, FIRST = "a guest with busybox alone, to its first line", "ours, to its first line"
BOOT, CELL = "ours, until a sample can be started", "a whole cell"
BOOTS, MATRIX = "their boots alone", "the matrix"
_MOST_BOOT, _MOST_CELL = 1.3, 1.2  # times the bare guest, times the cell's own boot

_NO_KERNEL = "no kernel is here: invoke verify --on vm --boot 6.1-cloud fetches one"

# The least that says something: the serial port to say it on is in what is mounted.
_BARE_INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
echo ready >/dev/ttyS2
read -r end </dev/ttyS2
"""


def comparisons(means: Means) -> Generator[Comparison]:
    """For some of the kernels that are here what a cell takes, then more and more cells.

    Nothing is fetched.  Raises what building the tutorial's pair in the current tree
    raises, and MissingTools.
    """
    kernels = _row(kept(means.workspace.kernels))
    if not kernels:
        yield Comparison("a cell", (Way(BARE, _never, skipped=_NO_KERNEL),))
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        site = _Site.prepared(means, Path(scratch))
        for kernel in kernels[:: -(-len(kernels) // _ROW)]:
            yield from _one_cell(site, kernel)
        with site.place() as place:
            parcels = {one.release: site.packed(one, place / one.release) for one in kernels}
            for number in _POINTS:
                yield _cells(site, kernels, parcels, number)


def _row(here: Sequence[Kernel]) -> list[Kernel]:
    """The newest of each series, the oldest series first: as many as there are to be cells."""
    versions = {one.version: one for one in here if one.version}
    series = {version.series: versions[version] for version in sorted(versions)}
    return list(series.values())[-max(_POINTS) :]


def _never() -> Figures:
    raise AssertionError("a way that is skipped was tried")


@dataclass(frozen=True, slots=True)
class _Site:
    """What all guests of the stage have in common."""

    means: Means
    build: Build
    userland: Userland
    bare: Path  # the archive of a guest with busybox alone
    scratch: Path
    tell: Tell  # hears what vm.opened tells, each thing once

    @classmethod
    def prepared(cls, means: Means, scratch: Path) -> _Site:
        """The pair built, and what goes into guests packed."""
        shell, workspace = means.shell, means.workspace
        build = building.build(
            means.tree(), Sample.find(TUTORIAL), means.toolchain(), workspace, shell,
            lambda _: None, means.say,
        )  # fmt: skip
        frames = cases.frames(build, _IP)
        bare = scratch / "bare.cpio"
        bare.write_bytes(_bare())
        userland = Userland.of(build, frames, workspace, shell)
        return cls(means, build, userland, bare, scratch, functools.cache(means.say))

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A new directory, for one guest."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as directory:
            yield Path(directory)

    def packed(self, kernel: Kernel, place: Path) -> Parcel:
        """The pair in a guest of that kernel, as a matrix packs it once for all of a kernel's."""
        return Platform.of(kernel, DEV).parcel(self.userland, place)


def _bare() -> bytes:
    """A file system with busybox alone."""
    busybox = shutil.which("busybox")
    if not busybox:
        raise MissingTools(["busybox"], "vm")
    return cpio(
        [
            *(Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev")),
            Entry("bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes()),
            Entry("init", stat.S_IFREG | 0o755, _BARE_INIT),
        ]
    )


# ---- one cell


def _one_cell(site: _Site, kernel: Kernel) -> Iterator[Comparison]:
    with site.place() as place:
        parcel = site.packed(kernel, place)
        ways = {
            BARE: partial(_first_line, site, parcel.image, site.bare),
            FIRST: partial(_first_line, site, parcel.image, parcel.initramfs),
            BOOT: partial(_boot, site, parcel),
            CELL: partial(_prove, site, kernel),
        }
        how = f"invoke verify --on vm --boot {kernel.release} --dev {DEV} --mode native"
        goals = [(FIRST, _MOST_BOOT, ""), (CELL, _MOST_CELL, BOOT)]
        yield Comparison(
            f"a cell on Linux {kernel.release}",
            tuple(Way(name, timed(deed), how) for name, deed in ways.items()),
            tuple(
                Goal(way, quantity, most, than=than)
                for way, most, than in goals
                for quantity in ("s", "cpu s")
            ),
            rounds=_ROUNDS,
            note="the same kernel and QEMU's same options; a cell's packing is in it",
        )


def _first_line(site: _Site, image: Path, archive: Path) -> None:
    """Boot until the guest's init says something; raises NoBoot."""
    engine = qemu.engines(site.means.workspace, _QUIET, site.tell)[0]
    argv = qemu.argv(engine, image, archive, card=True)
    with (
        site.place() as place,
        Cable.laid(place),
        _QUIET.start(argv, cwd=place) as running,
        contextlib.suppress(TimeoutError),
    ):
        if any(line.stream == "out" for line in running.lines(_PATIENCE)):
            return
    raise NoBoot(image, "its init says nothing", "")


def _boot(site: _Site, parcel: Parcel) -> None:
    workspace = site.means.workspace
    with site.place() as place, opened(parcel, place, workspace, _QUIET, site.tell):
        pass


def _prove(site: _Site, kernel: Kernel) -> None:
    job = Job(_IP, DEV, "native")
    with site.place() as place:
        parcel = site.packed(kernel, place)
        trial = Trial(Cell(kernel.release, "", "native"), kernel.release, parcel, site.build, job)
        result = prove(trial, place, site.means.workspace, _QUIET, site.tell, lambda _: None)
    require_passed([result])


# ---- several


def _cells(
    site: _Site, kernels: Sequence[Kernel], parcels: Mapping[str, Parcel], number: int
) -> Comparison:
    """So many cells: kernels, as far as there are so many, and both modes of each else."""
    modes = list(MODES)[: 1 if number <= len(kernels) else 2]
    row = kernels[: number // len(modes)]
    skipped = ""
    if len(row) * len(modes) < number:
        skipped = f"that takes {number // len(modes)} kernels, and {len(kernels)} are here"

    def boots() -> None:
        with ThreadPoolExecutor(places_here()) as pool:
            for future in [
                pool.submit(_boot, site, parcels[one.release]) for one in row for _ in modes
            ]:
                future.result()

    words = f"invoke matrix --kernels={','.join(k.release for k in row)} --modes={','.join(modes)}"
    return Comparison(
        f"{number} cells at once" if number > 1 else "a single one",
        (
            Way(BOOTS, timed(boots), skipped=skipped),
            Way(MATRIX, timed(partial(_matrix, site, row, modes)), words,
                skipped=skipped),
        ),
        rounds=_ROUNDS,
        point=("cells", float(number)),
        note=f"{places_here()} guests at a time; the pair is built, and the kernels are here",
    )  # fmt: skip


def _matrix(site: _Site, row: Sequence[Kernel], modes: Sequence[str]) -> None:
    means, by_release = site.means, {kernel.release: kernel for kernel in row}
    plan = Plan.of(TUTORIAL, by_release, [], modes, _IP, DEV)
    machines = ThisMachine(means.workspace, _QUIET)
    with tempfile.TemporaryDirectory(dir=site.scratch) as directory:
        found = matrix.run(
            plan,
            matrix.Means(
                means.workspace, _QUIET, means.toolchain,
                lambda spec, _: by_release[spec], machines, site.tell,
            ),
            Path(directory), [], lambda *_: None,
        )  # fmt: skip
        require_passed(found)
