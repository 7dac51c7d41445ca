"""A run of any length: what it keeps is bounded, and what it counts is what was sent.

The long form: invoke torture --only endurance --minutes 60
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest
from conftest import Invoke, wait_until

from xdplab import formats, logs, process
from xdplab.bench.measure import Means
from xdplab.counters import Reading
from xdplab.logs import Drain, LogFile, Tail
from xdplab.process import Shell
from xdplab.sending import live_frames
from xdplab.toolchain import Toolchain
from xdplab.torture import endurance
from xdplab.torture.endurance import Endurance, Size
from xdplab.torture.ground import made
from xdplab.tree import Tree
from xdplab.workspace import Workspace

# ---- what a run keeps


def written(path: Path, lines: int, part: int = 1000) -> list[str]:
    texts = [f"line {number}" for number in range(lines)]
    log = LogFile(path, part)
    for text in texts:
        log.write(text)
    log.close()
    return texts


def test_a_short_log_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    texts = written(path, 50)
    assert [one.name for one in tmp_path.iterdir()] == ["output.log"]
    assert logs.read(path).splitlines() == texts


def test_of_a_long_log_the_beginning_and_the_end_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    texts = written(path, 10_000)
    files = logs.parts(path)
    assert {*tmp_path.iterdir()} == {*files}
    assert all(0 < one.stat().st_size <= 1000 for one in files)
    lines = logs.read(path).splitlines()
    gap = next(at for at, line in enumerate(lines) if line.startswith("..."))
    assert lines[:gap] == texts[:gap]
    assert lines[gap + 1 :] == texts[gap + 1 - len(lines) :]
    assert gap > 50


def test_a_log_goes_on_where_another_command_left_it(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    path.write_text("$ a command\n")
    texts = written(path, 200)
    assert logs.read(path).startswith("$ a command\nline 0\n")
    assert logs.read(path).endswith(f"{texts[-1]}\n")


def test_a_line_longer_than_a_part_is_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    log = LogFile(path, 10)
    for text in ("x" * 100, "y" * 100):
        log.write(text)
    assert logs.read(path) == f"{'x' * 100}\n{'y' * 100}\n"


def test_who_follows_a_log_misses_nothing_when_it_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    log, texts, heard = LogFile(path, 1000), [f"line {number}" for number in range(2000)], []
    tail = Tail(path)
    for number, text in enumerate(texts):
        log.write(text)
        if number % 70 == 0:
            heard += tail.lines(last=False)
    assert heard + tail.lines(last=True) == texts


def test_what_was_read_of_a_drained_file_takes_no_room(tmp_path: Path) -> None:
    path, line, part, heard = tmp_path / "guest.out", "x" * 1000, 64 * 1024, 0
    with path.open("wb", buffering=0) as file:
        drain = Drain(path, part)
        for _ in range(1000):
            file.write(f"{line}\n".encode())
            found = drain.lines(last=False)
            assert set(found) <= {line}
            heard += len(found)
            assert path.stat().st_blocks * 512 <= 3 * part
    assert heard == 1000


def test_what_a_command_prints_is_heard_whole_and_kept_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LogFile", partial(LogFile, part=5000))
    path = tmp_path / "output.log"
    script = "for number in range(20000): print(number)"
    heard = Shell().run([sys.executable, "-c", script], log=path).text().splitlines()
    assert heard == [str(number) for number in range(20000)]
    kept = logs.read(path).splitlines()
    assert kept[0].startswith("$ ")
    assert kept[1:3] == ["0", "1"]
    assert kept[-1] == "19999"
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= 15_000


def test_readings_of_a_long_run_span_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "readings.jsonl"
    keep = formats.keeper(path, 8)
    for number in range(100):
        keep(Reading(1e9 + number, number, {0: number}))
        rounds = [one.round for one in formats.load(path)]
        assert len(rounds) <= 8
        every = rounds[1] if len(rounds) > 1 else 1
        assert rounds == list(range(0, number + 1, every))
    assert rounds == [0, 16, 32, 48, 64, 80, 96]


# ---- a run with packets all the time


@pytest.fixture
def run(
    labs: Callable[[str], Invoke], copies: Callable[[str], Path], tmp_path: Path
) -> Iterator[Endurance]:
    if not live_frames():
        pytest.skip("this kernel has no live frames: they came with v5.18")
    labs("6.1")
    tree = Tree.at(copies("6.1"))
    means = Means(Workspace(tmp_path), Shell(), Toolchain.find, lambda: tree, lambda _: None)
    with made(means) as ground, endurance.begun(means, ground) as it:
        it.seconds = 0.5
        yield it


@pytest.mark.root
@pytest.mark.tree
def test_all_that_is_sent_is_counted_and_nothing_grows(run: Endurance) -> None:
    random = Random(1)  # noqa: S311
    for _ in range(3):
        tried = run.once(random)
        assert not tried.finding
    assert "live frames" in tried.kind
    assert run.total == run.sent > 10_000
    assert run.sizes().keys() == endurance.GROWTH.keys()

    run.warm["Python"] = Size(1000, 1000)
    grown = run.once(random).finding
    assert grown
    assert "Python" in grown.left[0]

    run.sent, run.patience = run.sent + 1, 1.0
    lost = run.once(random).finding
    assert lost
    assert "counted" in lost.what

    run.ground.kill()
    wait_until(lambda: not run.ground.processes())
    assert run.once(random).finding
