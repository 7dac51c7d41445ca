"""A run's counters for Prometheus, on a port and in a file: read by its own server too."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import Background, Invoke, assert_refused, wait_until
from prometheus_client.parser import text_string_to_metric_families

from xdplab.errors import NoPort, NotANumber, NotWritable
from xdplab.exporting import exported, target

COUNT = 4


# ---- what --prometheus takes


def test_a_number_is_a_port_and_all_else_a_file(tmp_path: Path) -> None:
    assert target(None) is None
    assert (target("0"), target("9435"), target("65535")) == (0, 9435, 65535)
    assert target(f"{tmp_path}/x.prom") == tmp_path / "x.prom"


@pytest.mark.parametrize("given", ["-1", "65536", "99999999"])
def test_a_port_that_is_none(given: str) -> None:
    with pytest.raises(NotANumber, match=given):
        target(given)


def test_files_that_are_not_ours_to_write(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine\n")
    for name, why in (("no/x", "not there"), (".", "regular"), ("notes", "something else")):
        with pytest.raises(NotWritable, match=why):
            target(f"{tmp_path}/{name}")
    with pytest.raises(NotWritable, match="regular"):
        target("/dev/null")
    assert (tmp_path / "notes").read_text() == "mine\n"


def test_what_a_run_left_that_was_killed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "left").write_text("# HELP xdp_dropped_packets_total Packets\n")
    assert target(f"{tmp_path}/left") == tmp_path / "left"


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NoPort, match="in use"), exported(port, lambda _: None):
            pass


# ---- of a real run


@contextlib.contextmanager
def running(lab: Invoke, *options: str) -> Iterator[Background]:
    """`invoke run` in a namespace, with packets that were dropped."""
    with lab.start("run", "--on=netns", "--interval=0.1", "--rounds=0", *options) as background:
        background.wait_for("attached:")
        sent = lab("send", "--on=netns", f"--count={COUNT}")
        assert sent.code == 0, sent.err
        yield background


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """By a metric's name its labels and values, as Prometheus' own client reads them."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def dropped(text: str) -> float:
    return sum(value for _, value in samples(text).get("xdp_dropped_packets_total", []))


def fetched_from(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  # of the test's own
        return str(answer.read().decode())


def url_of(background: Background) -> str:
    background.wait_for("for Prometheus: ")
    found = re.search(r"for Prometheus: (http://127\.0\.0\.1:\d+/metrics)", background.err)
    assert found
    return found[1]


@pytest.mark.tree
@pytest.mark.root
def test_a_port_serves_the_counters_and_ends_with_the_run(lab: Invoke) -> None:
    with running(lab, "--prometheus=0", "--csv") as background:
        url = url_of(background)
        wait_until(lambda: dropped(fetched_from(url)) == COUNT)
        metrics = samples(fetched_from(url))
        outcome = background.interrupt()
    assert outcome.code == 0, outcome.err
    assert set(metrics) == {
        "xdp_dropped_packets_total", "xdp_reading_timestamp_seconds", "xdp_program_info",
    }  # fmt: skip
    labels, _ = metrics["xdp_dropped_packets_total"][0]
    assert labels.keys() == {"cpu", "dev", "mode", "program"}
    assert (labels["dev"], labels["mode"]) == ("lo", "skb")
    about, _ = metrics["xdp_program_info"][0]
    assert about["tag"] in outcome.err
    assert about["on"] == "netns"
    with pytest.raises(OSError, match="refused"):
        fetched_from(url)
    # beside it the other consumers have had the same readings
    *_, last = csv.DictReader(io.StringIO(outcome.out))
    assert int(last["total"]) == COUNT
    (newest,) = sorted(lab.workspace.glob("runs/*/readings.jsonl"))[-1:]
    kept = [json.loads(line) for line in newest.read_text().splitlines()]
    assert len(kept) == len(outcome.out.splitlines()) - 1
    assert kept[-1]["total"] == COUNT
    drawn = lab("plot")
    assert f"{COUNT} packets counted" in drawn.out
    assert "lo, skb mode, drops 192.168.1.78, on netns" in drawn.out
    assert lab("plot", "--run", newest.parent.name).out == drawn.out


@pytest.mark.tree
@pytest.mark.root
def test_a_file_is_always_whole_and_goes_with_the_run(lab: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "xdp.prom"
    with running(lab, f"--prometheus={file}", "--plain") as background:
        wait_until(lambda: dropped(file.read_text()) == COUNT)
        assert file.stat().st_mode & 0o777 == 0o644
        outcome = background.interrupt()
    assert outcome.code == 0, outcome.err
    assert f"total {COUNT} (cpu " in outcome.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tree
@pytest.mark.root
def test_what_can_not_be_had_is_told_before_anything_is_attached(
    lab: Invoke, tmp_path: Path
) -> None:
    for options, words in (
        (["--json", "--csv"], ["--json and --csv", "together"]),
        (["--prometheus=70000"], ["--prometheus", "70000"]),
        ([f"--prometheus={tmp_path}/no/x"], [f"{tmp_path}/no/x", "--prometheus"]),
    ):
        outcome = lab("run", "--on=netns", *options)
        assert_refused(outcome, 2, *words)
        assert not outcome.commands()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = lab("run", "--on=netns", f"--prometheus={port}")
    assert_refused(outcome, 2, f"port {port}", "in use")
    assert not outcome.commands()


# ---- Prometheus itself


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextlib.contextmanager
def prometheus(directory: Path, scraped: str) -> Iterator[str]:
    """The server of Prometheus, which scrapes an address; gives its own."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed")
    config, address = directory / "prometheus.yml", f"127.0.0.1:{free_port()}"
    config.write_text(
        "global: {scrape_interval: 250ms, scrape_timeout: 250ms}\n"
        f"scrape_configs:\n- job_name: xdp\n  static_configs: [{{targets: ['{scraped}']}}]\n"
    )
    argv = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
    ]  # fmt: skip
    with (directory / "log").open("w") as log, subprocess.Popen(argv, stderr=log) as server:
        try:
            yield f"http://{address}"
        finally:
            server.terminate()


def asked(server: str, query: str) -> list[Any]:
    """What Prometheus knows; nothing as long as it doesn't answer."""
    with contextlib.suppress(OSError):
        answer = json.loads(fetched_from(f"{server}/api/v1/query?query={quote(query)}"))
        return list(answer["data"]["result"])
    return []


@pytest.mark.tree
@pytest.mark.root
def test_prometheus_scrapes_a_run(lab: Invoke, tmp_path: Path) -> None:
    with running(lab, "--prometheus=0") as background:
        address = url_of(background).split("/")[2]
        with prometheus(tmp_path, address) as server:
            query = "sum by (dev, mode) (xdp_dropped_packets_total)"
            wait_until(lambda: asked(server, query), 60)
            (found,) = asked(server, query)
            (series,) = asked(server, "xdp_program_info")
    assert found["metric"] == {"dev": "lo", "mode": "skb"}
    assert found["value"][1] == str(COUNT)
    assert series["metric"]["instance"] == address
    assert series["metric"]["ip"] == "192.168.1.78"
