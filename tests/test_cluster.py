"""Cells on a Dask cluster: a real scheduler and real workers, on loopback; some are lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    PATIENCE,
    PROJECT,
    Background,
    Invoke,
    assert_refused,
    copy_checkout,
    path_without,
    processes_in,
    wait_until,
)

from xdplab.boot.qemu import KERNEL_LOG, QEMU
from xdplab.errors import WorkerLost
from xdplab.report import JSON

pytest.importorskip("distributed", reason="the extra cluster is not installed")

KERNEL = "6.1-cloud"
ADDRESS = r"Scheduler at: +(\S+)\n"
LOGS = {"commands.log", "kernel.log", "output.log"}


# ---- a cluster


@dataclass
class Worker:
    """A worker's process, and the directory that it works in."""

    process: subprocess.Popen[bytes]
    directory: Path
    log: Path

    @property
    def address(self) -> str:
        found = re.search(r"Start worker at: +(\S+)", self.log.read_text())
        assert found, self.log.read_text()
        return found[1]

    def guests(self) -> list[int]:
        """Its QEMUs."""
        return processes_in(self.directory)

    def scratch(self) -> list[Path]:
        """The directories of the cells that it has under way."""
        return [*self.directory.glob("dask-scratch-space/worker-*/cell-*")]

    def boots(self) -> bool:
        """Whether a kernel has said something: long after the client heard that it boots."""
        logs = [cell / "cell" / KERNEL_LOG for cell in self.scratch()]
        return any(log.exists() and log.stat().st_size for log in logs)


@dataclass
class Cluster:
    """A scheduler, and the workers that a test starts."""

    directory: Path
    scheduler: subprocess.Popen[bytes]
    address: str
    workers: list[Worker] = field(default_factory=list)

    def start(self, cwd: Path = PROJECT, path: str | None = None) -> Worker:
        """Start a worker with room for one cell, in a checkout."""
        directory = self.directory / f"worker-{len(self.workers)}"
        directory.mkdir()
        log = directory.with_suffix(".log")
        process = dask(
            *("worker", self.address, "--host=127.0.0.1", "--no-nanny", "--no-dashboard"),
            *("--nthreads=1", f"--local-directory={directory}"),
            log=log, cwd=cwd, env={"PATH": path} if path else {},
        )  # fmt: skip
        self.workers.append(Worker(process, directory, log))
        return self.workers[-1]

    def complete(self) -> None:
        """Wait until the scheduler knows all workers."""
        wait_until(lambda: all("Registered to" in one.log.read_text() for one in self.workers))

    def alive(self) -> list[Worker]:
        """The workers that were not killed."""
        return [worker for worker in self.workers if worker.process.poll() is None]

    def at_work(self) -> list[Worker]:
        """The workers that have a guest, once one of them boots."""
        wait_until(lambda: any(worker.boots() for worker in self.alive()))
        return [worker for worker in self.alive() if worker.boots()]

    def require_idle(self) -> None:
        """Nothing is left of any cell, in time."""
        wait_until(lambda: not any(worker.guests() for worker in self.workers))
        wait_until(lambda: not any(worker.scratch() for worker in self.alive()))


def dask(*arguments: str, log: Path, cwd: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start one of Dask's commands."""
    workspace = {"INVOKE_WORKSPACE": str(log.with_name("workspace"))}
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            cwd=cwd, env=os.environ | workspace | env, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster without workers."""
    directory = tmp_path / "cluster"
    directory.mkdir()
    log = directory / "scheduler.log"
    scheduler = dask(
        *("scheduler", "--host=127.0.0.1", "--port=0", "--no-dashboard"),
        log=log, cwd=PROJECT, env={},
    )  # fmt: skip
    cluster = Cluster(directory, scheduler, "")
    try:
        wait_until(lambda: re.search(ADDRESS, log.read_text()))
        cluster.address = re.findall(ADDRESS, log.read_text())[0]
        yield cluster
    finally:
        for process in [*(worker.process for worker in cluster.workers), scheduler]:
            process.kill()
            process.wait(PATIENCE)
        cluster.require_idle()


# ---- cells


@pytest.fixture(scope="module")
def lab(matrix_labs: Callable[..., Invoke]) -> Invoke:
    """The command line, with a tree of 6.1 and a kernel of the same series."""
    return matrix_labs(KERNEL)


@contextlib.contextmanager
def matrix(lab: Invoke, cluster: Cluster, *options: str) -> Iterator[Background]:
    """A matrix on the cluster, under way."""
    arguments = ("matrix", f"--kernels={KERNEL}", f"--cluster={cluster.address}", *options)
    with lab.start(*arguments) as background:
        yield background


def last(lab: Invoke) -> dict[str, Any]:
    """What the last matrix found."""
    found: dict[str, Any] = json.loads(
        sorted(lab.workspace.glob(f"matrix/*/{JSON}"))[-1].read_text()
    )
    return found


@pytest.mark.tree
def test_a_cell_whose_worker_is_lost_is_proved_by_another(lab: Invoke, cluster: Cluster) -> None:
    for _ in range(2):
        cluster.start()
    cluster.complete()
    with matrix(lab, cluster) as background:
        victim = cluster.at_work()[0]
        survivor = next(worker for worker in cluster.workers if worker is not victim)
        victim.process.kill()
        outcome = background.wait()
    assert outcome.code == 0, outcome.out + outcome.err
    assert f"{victim.address} was lost in the midst of it; {survivor.address} tries it" in (
        outcome.err
    )
    found = last(lab)
    cells = {cell["mode"]: cell for cell in found["cells"]}
    assert {mode: cell["outcome"] for mode, cell in cells.items()} == {
        "generic": "passed",
        "native": "passed",
    }
    # the packet cases go along with the build
    assert all("48 packet cases hold" in str(cell["checks"]) for cell in cells.values())
    tried = sorted(cell["workers"] for cell in cells.values())
    assert tried == sorted([[survivor.address], [victim.address, survivor.address]])
    assert found["host"]["cluster"] == f"2 workers at {cluster.address}"
    # all is here, and nothing tells of places that are not
    for cell in cells.values():
        assert set(cell["logs"]) == LOGS
        for path in map(Path, cell["logs"].values()):
            assert path.is_relative_to(lab.workspace)
        assert "Linux version" in Path(cell["logs"]["kernel.log"]).read_text()
        assert "cpu 0, value = 3" in Path(cell["logs"]["output.log"]).read_text()
        assert f"$ {cell['commands'][0]}\n" in Path(cell["logs"]["commands.log"]).read_text()
        assert str(cluster.directory) not in json.dumps(cell)
        assert Path(cell["logs"]["kernel.log"]).with_name("run.json").exists()
    cluster.require_idle()


@pytest.mark.tree
def test_each_file_is_sent_once_and_goes_with_the_matrix(lab: Invoke, cluster: Cluster) -> None:
    worker = cluster.start()
    cluster.complete()
    with matrix(lab, cluster) as background:
        outcome = background.wait()
    assert outcome.code == 0, outcome.out + outcome.err
    assert {tuple(cell["workers"]) for cell in last(lab)["cells"]} == {(worker.address,)}
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        sent = client.run_on_scheduler(
            lambda dask_scheduler: [
                event["count"]
                for _, event in dask_scheduler.get_events("all")
                if event.get("action") == "scatter"
            ]
        )
        # two cells of one build on one kernel: its image, and the guest's file system
        assert sent == [1, 1]
        assert client.has_what()[worker.address] == ()
    cluster.require_idle()


@pytest.mark.tree
def test_the_guests_end_with_the_client(lab: Invoke, cluster: Cluster) -> None:
    for _ in range(2):
        cluster.start()
    cluster.complete()
    for number, code in {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}.items():
        with matrix(lab, cluster) as background:
            cluster.at_work()
            background.process.send_signal(number)
            outcome = background.wait()
        assert outcome.code == code, outcome.err
        assert "Traceback" not in outcome.err
        cluster.require_idle()


@pytest.mark.tree
def test_a_cluster_that_is_gone_is_no_fault_of_the_samples(lab: Invoke, cluster: Cluster) -> None:
    for victim in ("worker", "scheduler"):
        worker = cluster.start()
        cluster.complete()
        with matrix(lab, cluster, "--modes=native") as background:
            cluster.at_work()
            (worker.process if victim == "worker" else cluster.scheduler).kill()
            outcome = background.wait()
        assert_refused(outcome, 69, "1 could not be tried")
        (cell,) = last(lab)["cells"]
        assert cell["outcome"] == "error"
        assert cell["reason"] == WorkerLost([worker.address], "").message
        cluster.require_idle()


# ---- clusters that can't be used


def refused(invoke: Invoke, address: str, code: int, *words: str) -> None:
    assert_refused(invoke("matrix", f"--cluster={address}"), code, *words)
    assert not (invoke.workspace / "matrix").exists()


@pytest.mark.parametrize("address", ["somewhere", "http://127.0.0.1:8786", "tcp://h:port", ""])
def test_an_address_that_none_can_have(invoke: Invoke, address: str) -> None:
    refused(invoke, address, 2, f"--cluster can't be {address!r}")


def test_certificates_are_dasks_own_business(invoke: Invoke) -> None:
    refused(invoke, "tls://127.0.0.1:8786", 2, "TLS")


def test_nobody_is_there(invoke: Invoke) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = "tcp://{}:{}".format(*other.getsockname())
        refused(invoke, address, 69, f"a Dask scheduler at {address} can't be reached", "no answer")
    refused(invoke, address, 69, f"a Dask scheduler at {address} can't be reached", "refused")


def test_a_cluster_without_workers(invoke: Invoke, cluster: Cluster) -> None:
    refused(invoke, cluster.address, 69, "has no worker", f"dask worker {cluster.address}")
    worker = cluster.start()
    cluster.complete()
    refused(invoke, worker.address, 69, "what answers there is a Worker")


def test_workers_that_can_not_do_it_are_named(
    invoke: Invoke, cluster: Cluster, tmp_path: Path
) -> None:
    without = path_without(tmp_path / "bin", QEMU)
    old = path_without(tmp_path / "old", QEMU)
    (tmp_path / "old" / QEMU).write_text("#!/bin/sh\necho QEMU emulator version 5.2.0\n")
    (tmp_path / "old" / QEMU).chmod(0o755)
    edited = copy_checkout(tmp_path / "edited")
    with (edited / "xdplab/verify.py").open("a") as file:
        file.write("# edited\n")
    workers = {
        f"not found on PATH: {QEMU}": cluster.start(path=without),
        "QEMU 7.2 or newer is needed": cluster.start(path=old),
        "it has xdplab ": cluster.start(cwd=edited),
        "it can't use this library: ModuleNotFoundError": cluster.start(cwd=tmp_path),
    }
    cluster.complete()
    outcome = invoke("matrix", f"--cluster={cluster.address}")
    assert_refused(outcome, 69, "scripts/bootstrap vm cluster")
    for words, worker in workers.items():
        assert f"{worker.address}: {words}" in outcome.err
    assert not (invoke.workspace / "matrix").exists()


def test_dask_is_an_extra(workspace: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for package in Path(pytest.__file__).parents[1].iterdir():
        if not re.match(r"dask|distributed", package.name) and package.suffix != ".pth":
            (packages / package.name).symlink_to(package)
    finished = subprocess.run(
        [tmp_path / "venv/bin/python", "-m", "invoke", "matrix", "--cluster=127.0.0.1:8786"],
        cwd=PROJECT, env=os.environ | {"INVOKE_WORKSPACE": str(workspace)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 69, finished.stderr
    assert finished.stderr.startswith("error: a cluster needs Dask's library")
    assert "scripts/bootstrap cluster" in finished.stderr
