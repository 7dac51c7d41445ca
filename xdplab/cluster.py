"""Cells proved on the workers of a Dask cluster: found, looked at, and sent all that it takes.

What a worker does is in xdplab/worker.py.  Dask's library is an extra, imported
here only when a cluster is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
import sys
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdplab.cell import Result, Tell, Trial
from xdplab.errors import (
    NoDask,
    NotACluster,
    NoWorkers,
    UnfitWorkers,
    Unreachable,
    WorkerLost,
)
from xdplab.files import write_whole
from xdplab.matrix import Machines, ThisMachine
from xdplab.process import Shell
from xdplab.workspace import Workspace

if TYPE_CHECKING:  # it imports Dask's library
    from xdplab import worker

_RETURN = 10.0  # seconds for a worker's nanny to start it anew
_TRIES = 3  # of a cell whose files were lost with a worker; Dask counts the others
_PATIENCE = 3.0  # seconds for the scheduler to answer, and for a first worker to come


@contextlib.contextmanager
def machines(
    address: str | None, workspace: Workspace, shell: Shell, tell: Tell
) -> Iterator[Machines]:
    """The workers of the cluster at an address; without one, this machine.

    Raises NoDask, NotACluster, Unreachable, NoWorkers and UnfitWorkers.
    """
    if address is None:
        yield ThisMachine(workspace, shell)
        return
    try:
        import distributed
    except ModuleNotFoundError:
        raise NoDask from None
    # what Dask would say of a lost connection, the result says
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    _require_scheduler(address)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
        client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
    try:
        with Cluster.of(client, address) as cluster:
            yield cluster
    finally:
        client.close(timeout=_PATIENCE)


def _require_scheduler(address: str) -> None:
    """Raise NotACluster or Unreachable unless a scheduler answers there.

    A client that connects to something else waits for ever.
    """
    from distributed import Security, rpc

    async def ask() -> Any:
        means = Security().get_connection_args("client")  # certificates, of Dask's configuration
        async with rpc(address, connection_args=means, timeout=_PATIENCE - 1) as there:
            return await there.identity()

    try:
        kind = asyncio.run(asyncio.wait_for(ask(), _PATIENCE))["type"]
        fault = "" if kind == "Scheduler" else f"what answers there is a {kind}"
    except (ValueError, TypeError) as error:
        raise NotACluster(address, str(error)) from error
    except OSError:  # TimeoutError is one
        fault = _why_unreachable(address)
    if fault:
        cure = "start one: .venv/bin/python -m dask scheduler (see docs/cluster.md)"
        raise Unreachable(f"a Dask scheduler at {address}", fault, cure)


def _why_unreachable(address: str) -> str:
    """Why nobody answers: Dask tries again where it is refused, and then only says how long."""
    from distributed.comm.addressing import parse_address, parse_host_port

    _, place = parse_address(address)
    try:
        socket.create_connection(parse_host_port(place), _PATIENCE).close()
    except OSError as error:
        return _words(error)
    return f"no answer that Dask understands in {_PATIENCE:.0f} seconds"


def _words(error: BaseException) -> str:
    """What is at the root of an error; its kind, if it has no words."""
    root = error
    while root.__cause__:
        root = root.__cause__
    return str(root) or type(error).__name__


@dataclass(slots=True)
class _Sent:
    """A cell that was handed over, and who hears of it."""

    trial: Trial
    tell: Tell
    at: Tell
    future: Any = None  # Dask's
    workers: list[str] = field(default_factory=list)  # that began with it


class Cluster(Machines):
    """The workers of a cluster, for one matrix."""

    places: int = sys.maxsize  # the scheduler holds back what no worker has room for

    def __init__(self, client: Any, host: dict[str, str]) -> None:
        self._client = client
        self._host = host
        self._crew = f"xdplab-{uuid.uuid4().hex[:12]}"
        self._files: dict[str, Any] = {}  # Dask's futures, by the SHA-256 of what they hold
        self._sent: dict[str, _Sent] = {}
        self._is_stopped = False
        self._shipping = threading.Lock()
        self._submitting = threading.Lock()

    @classmethod
    @contextlib.contextmanager
    def of(cls, client: Any, address: str) -> Iterator[Cluster]:
        """The cluster that a client is connected to; raises NoWorkers and UnfitWorkers."""
        from xdplab import worker

        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise NoWorkers(address) from None
        known = client.run(worker.about, on_error="return")
        unfit = {one: _why_unfit(said, worker.versions()) for one, said in known.items()}
        if any(unfit.values()):
            raise UnfitWorkers(f"{one}: {why}" for one, why in sorted(unfit.items()) if why)
        cluster = cls(client, _summary(known, address))
        client.subscribe_topic(cluster._crew, cluster._hear)
        client.register_plugin(worker.Crew(), name=cluster._crew)
        try:
            yield cluster
        finally:
            # the scheduler is gone, and the workers know it; the client may have given it up
            with contextlib.suppress(OSError, AttributeError):
                client.unregister_worker_plugin(cluster._crew)

    @property
    def host(self) -> dict[str, str]:
        """What guests run on there."""
        return self._host

    def prove(self, trial: Trial, directory: Path, tell: Tell, at: Tell) -> Result:
        """Have a worker prove it, and another if that is lost.

        The files come into `directory`.  Raises WorkerLost when it was tried often
        enough, or nobody is left to try it.
        """
        import distributed

        from xdplab import worker

        sent = _Sent(trial, tell, at)
        order = worker.Order(trial, directory, self._crew)
        try:
            delivery = self._delivered(sent, order)
        except (CancelledError, distributed.KilledWorker, OSError) as error:
            raise WorkerLost(sent.workers, _words(error)) from error
        for name, text in delivery.files.items():
            write_whole(directory / name, text.encode())
        return replace(delivery.result, workers=tuple(sent.workers))

    def _delivered(self, sent: _Sent, order: worker.Order) -> worker.Delivery:
        """What came of it.

        As long as anybody has its files, Dask itself gives it to another worker.
        """
        delivery: worker.Delivery
        for number in range(1, _TRIES):
            try:
                delivery = self._submit(sent, order, number).result()
            except CancelledError:
                self._require_wanted()
                self._client.wait_for_workers(1, timeout=_RETURN)
            else:
                return delivery
        delivery = self._submit(sent, order, _TRIES).result()
        return delivery

    def _submit(self, sent: _Sent, order: worker.Order, number: int) -> Any:
        from xdplab import worker

        sent.at("sending")
        parcel = sent.trial.parcel
        files = [self._ship(path) for path in (parcel.image, parcel.initramfs)]
        sent.at("waiting")
        key = f"{self._crew}-{order.directory.name}-{number}"
        with self._submitting:
            self._require_wanted()
            self._sent[key] = sent
            sent.future = self._client.submit(
                worker.prove, order, *files, key=key, pure=False, resources={worker.MACHINE: 1}
            )
        return sent.future

    def _ship(self, path: Path) -> Any:
        """Give the cluster what is in a file, unless it has that."""
        with self._shipping:  # one after the other: a kernel is large
            self._require_wanted()
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if digest not in self._files or self._files[digest].cancelled():  # lost with a worker
                (self._files[digest],) = self._client.scatter([content], hash=False)
            return self._files[digest]

    def _require_wanted(self) -> None:
        if self._is_stopped:
            raise CancelledError

    def _hear(self, event: tuple[float, Mapping[str, str]]) -> None:
        """News from a worker."""
        news = event[1]
        sent, who = self._sent[news["cell"]], news["worker"]
        if who not in sent.workers:
            if sent.workers:
                lost = sent.workers[-1]
                sent.tell(f"{sent.trial.cell}: {lost} was lost in the midst of it; {who} tries it")
            sent.workers.append(who)
        if "at" in news:
            sent.at(news["at"])
        else:
            sent.tell(f"{who}: {news['tell']}")

    def stop(self) -> None:
        """Give up all cells; their guests end with them."""
        with self._submitting:
            self._is_stopped = True
            futures = [sent.future for sent in self._sent.values() if not sent.future.done()]
        if futures:
            with contextlib.suppress(OSError):
                self._client.cancel(futures)


def _why_unfit(about: Mapping[str, str] | Exception, ours: Mapping[str, str]) -> str:
    """Why a worker can't do what is asked of it; empty if it can."""
    if isinstance(about, Exception):
        return f"it can't use this library: {about}"
    other = [f"{name} {about.get(name)}, not {own}" for name, own in ours.items()
             if about.get(name) != own]  # fmt: skip
    return f"it has {', '.join(other)}" if other else about.get("fault", "")


def _summary(known: Mapping[str, Mapping[str, str]], address: str) -> dict[str, str]:
    """What the workers are and run on: each word once."""
    names = next(iter(known.values()))
    host = {name: ", ".join(sorted({about[name] for about in known.values()})) for name in names}
    return host | {"cluster": f"{len(known)} workers at {address}"}
