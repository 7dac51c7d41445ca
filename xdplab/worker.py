"""What a worker of a Dask cluster does for a matrix: it boots a cell's guest, and proves the cell.

Only this module and xdplab/cluster.py know Dask.  A worker is any `dask worker`
that can import this library.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import distributed
from distributed import Worker, WorkerPlugin, get_worker

from xdplab import cell
from xdplab.cell import Result, Trial, judge
from xdplab.errors import LabError
from xdplab.matrix import Leash, host_here, places_here
from xdplab.process import Shell
from xdplab.report import excerpt
from xdplab.workspace import PROJECT, Workspace

_MOST = 1_000_000  # characters of a log that travel


def _fingerprint() -> str:
    """What tells the sources of this library from those of another version."""
    digest = hashlib.sha256()
    for path in sorted((PROJECT / "xdplab").rglob("*.py")):
        digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


LIBRARY = _fingerprint()  # when it was imported: a worker that runs on has what it had then

# What a guest takes of a worker, as Dask counts it.  Workers with another version of
# the library, that come later, haven't got it, and are given nothing to do.
MACHINE = f"xdplab-{LIBRARY}"


def versions() -> dict[str, str]:
    """What must be the same on the client and its workers."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"xdplab": LIBRARY, "Python": python, "Dask": str(distributed.__version__)}


def about() -> dict[str, str]:
    """A worker's versions, and what its guests run on, or else its fault."""
    try:
        return versions() | host_here(_workspace(), Shell())
    except (LabError, OSError) as error:
        return versions() | {"fault": str(error)}


def _workspace() -> Workspace:
    """The worker's own: only what its machine can do is kept there."""
    return Workspace.at(os.environ.get("INVOKE_WORKSPACE"))


class Crew(WorkerPlugin):  # type: ignore[misc]
    """What a matrix has under way on a worker: it ends with its task, and with the worker.

    Dask can't interrupt a thread, but tells a plugin of a task that nobody wants
    any more: it was cancelled, or its client is gone.
    """

    def __init__(self) -> None:
        self._leashes: dict[str, Leash] = {}

    async def setup(self, worker: Worker) -> None:
        """Let the scheduler know how many guests the worker has room for."""
        if MACHINE not in worker.state.total_resources:  # another matrix may be running
            room = 0 if "fault" in about() else places_here()
            await worker.set_resources(**{MACHINE: room})

    def transition(self, key: str, start: str, finish: str, **_: Any) -> None:
        """End the guest of a task that is given up while it runs."""
        if (start, finish) == ("executing", "released"):
            threading.Thread(target=self._leash(key).cut).start()  # it may take seconds

    async def teardown(self, worker: Worker) -> None:
        """End them all."""
        for leash in [*self._leashes.values()]:
            await asyncio.to_thread(leash.cut)

    @contextlib.contextmanager
    def holding(self, key: str) -> Iterator[Leash]:
        """The leash of a task's guest."""
        try:
            yield self._leash(key)
        finally:
            del self._leashes[key]

    def _leash(self, key: str) -> Leash:
        return self._leashes.setdefault(key, Leash())


@dataclass(frozen=True, slots=True)
class Order:
    """A cell to be proved; its paths are the client's."""

    trial: Trial
    directory: Path  # where its logs will be
    crew: str  # the plugin's name, and where news go


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of it, as if the client had proved it, and the files for its directory."""

    result: Result
    files: dict[str, str]


def prove(order: Order, image: bytes, initramfs: bytes) -> Delivery:
    """Prove a cell in a directory of the worker's, which goes afterwards; a task of Dask's."""
    worker = get_worker()
    key = worker.get_current_task()
    crew: Crew = worker.plugins[order.crew]

    def tell(text: str) -> None:
        worker.log_event(order.crew, {"cell": key, "tell": text})

    def at(what: str) -> None:
        worker.log_event(order.crew, {"cell": key, "at": what})

    with (
        crew.holding(key) as leash,
        tempfile.TemporaryDirectory(prefix="cell-", dir=worker.local_directory) as scratch,
    ):
        place = Path(scratch)
        directory = place / "cell"
        directory.mkdir()
        trial = order.trial
        parcel = replace(trial.parcel, image=place / "kernel", initramfs=place / "initramfs")
        paths = {
            str(directory): str(order.directory),
            str(parcel.image): str(trial.parcel.image),
            str(parcel.initramfs): str(trial.parcel.initramfs),
        }
        try:
            parcel.image.write_bytes(image)
            parcel.initramfs.write_bytes(initramfs)
            result = cell.prove(
                replace(trial, parcel=parcel), directory, _workspace(), Shell(hold=leash.hold),
                tell, at,
            )  # fmt: skip
        except (LabError, OSError) as error:
            result = Result(trial.cell, *judge([], error), trial.release)
        return _at_home(result, directory, paths)


def _at_home(result: Result, directory: Path, paths: dict[str, str]) -> Delivery:
    """A result and its files, with the client's paths in place of the worker's."""

    def renamed(text: str) -> str:
        for there, here in paths.items():
            text = text.replace(there, here)
        return text

    texts = {
        path.name: path.read_bytes().decode(errors="backslashreplace")
        for path in sorted(directory.iterdir())
        if path.is_file()
    }
    return Delivery(
        replace(
            result,
            reason=renamed(result.reason),
            said=tuple(map(renamed, result.said)),
            logs={name: renamed(path) for name, path in result.logs.items()},
            commands=tuple(map(renamed, result.commands)),
        ),
        {name: excerpt(renamed(text), _MOST) for name, text in texts.items()},
    )
