"""A run's counters for Prometheus: on a port of the loopback interface, or in a file.

They are there for as long as the run: values that nobody brings up to date any more
would be taken for true.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from xdplab.counters import Reading
from xdplab.errors import NoPort, NotANumber, NotWritable
from xdplab.files import write_whole
from xdplab.runner import Run

if TYPE_CHECKING:  # it takes a while to import
    from prometheus_client import CollectorRegistry, Metric

Target = int | Path | None  # a port, a file, or nobody

_ADDRESS = "127.0.0.1"
_LABELS = ("dev", "mode", "program")
_INFO = ("dev", "mode", "program", "tag", "ip", "on", "release")
_HEAD = b"# HELP xdp_"  # what a file of ours begins with


def target(given: str | None) -> Target:
    """What `--prometheus` means: a number is a port, all else a file.

    Raises NotANumber for no port, NotWritable for a file that isn't ours to write.
    """
    if given is None:
        return None
    if re.fullmatch(r"[+-]?\d+", given):
        if not 0 <= int(given) <= 65535:
            raise NotANumber("--prometheus", given, "a port from 0 to 65535, or a file")
        return int(given)
    path = Path(given).expanduser().absolute()
    why = _against(path)
    if why:
        raise NotWritable("--prometheus", path, why)
    return path


def _against(path: Path) -> str:
    """Why a file must not be written; empty if it may."""
    if not path.parent.is_dir():
        return "its directory is not there"
    if not path.exists():
        return ""
    if not path.is_file():
        return "it is no regular file"
    try:
        ours = path.read_bytes()[: len(_HEAD)] in (_HEAD, b"")
    except OSError as error:
        return str(error.strerror)
    return "" if ours else "it is there, and holds something else than such metrics"


class Metrics:
    """The last reading of a run, as Prometheus has it."""

    def __init__(self) -> None:
        self._run: Run | None = None
        self._reading: Reading | None = None

    def of(self, run: Run) -> None:
        """Show this run from now on."""
        self._run = run
        run.sinks.append(self._take)

    def _take(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        """The metrics: none before the first reading.  Called by threads of the client's."""
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        run, reading = self._run, self._reading
        if not run or not reading:
            return
        program = run.program
        labels = [program.dev, program.mode, str(program.program)]
        dropped = CounterMetricFamily(
            "xdp_dropped_packets", "Packets dropped since the program was attached.",
            labels=("cpu", *_LABELS),
        )  # fmt: skip
        for cpu, count in reading.per_cpu.items():
            dropped.add_metric([str(cpu), *labels], count)
        yield dropped
        read = GaugeMetricFamily(
            "xdp_reading_timestamp_seconds", "When the counters were read, since the epoch.",
            labels=_LABELS,
        )  # fmt: skip
        read.add_metric(labels, reading.at)
        yield read
        about = InfoMetricFamily("xdp_program", "The program, and where it is.", labels=_INFO)
        place = run.place
        values = [*labels, program.tag, run.ip, place.where, place.release]
        about.add_metric(values, {})
        yield about


@contextlib.contextmanager
def exported(to: Target, tell: Callable[[str], None]) -> Iterator[Callable[[Run], None]]:
    """Gives what makes a run's counters known, until the block is left.

    `tell` hears where they are.  Raises NoPort and NotWritable at once, before there
    is a run.
    """
    from prometheus_client import CollectorRegistry

    metrics, registry = Metrics(), CollectorRegistry()
    registry.register(metrics)
    if to is None:
        yield lambda _: None
    elif isinstance(to, int):
        with _served(to, registry) as url:
            tell(f"for Prometheus: {url}")
            yield metrics.of
    else:
        with _written(to, registry) as write:

            def show(run: Run) -> None:
                metrics.of(run)
                run.sinks.append(lambda _: write())

            yield show


@contextlib.contextmanager
def _served(port: int, registry: CollectorRegistry) -> Iterator[str]:
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, _ADDRESS, registry)
    except OSError as error:  # in use, or below 1024 and not root
        raise NoPort(port, error.strerror or str(error)) from None
    try:
        yield f"http://{_ADDRESS}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def _written(path: Path, registry: CollectorRegistry) -> Iterator[Callable[[], None]]:
    from prometheus_client import generate_latest

    def write() -> None:
        write_whole(path, generate_latest(registry), mode=0o644)  # its reader is another user

    try:
        write()
    except OSError as error:
        raise NotWritable("--prometheus", path, error.strerror or str(error)) from None
    try:
        yield write
    finally:
        path.unlink(missing_ok=True)
