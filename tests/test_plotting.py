"""Saved readings: read back from JSON and CSV, whole and wrecked, and drawn."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused
from hypothesis import given
from hypothesis import strategies as st

from xdplab.counters import Reading
from xdplab.errors import NotReadings
from xdplab.formats import load, to_csv, to_json
from xdplab.plotting import in_terminal, lines_of, read, summary, to_png

tables = st.dictionaries(st.integers(0, 4095), st.integers(0, 2**64 - 1), min_size=1, max_size=9)
times = st.integers(0, 10**16).map(lambda micro: micro / 10**6)


def ramp(count: int = 6, cpus: int = 2) -> list[Reading]:
    """Readings two seconds apart, of more and more packets."""
    found: list[Reading] = []
    for number in range(count):
        table = {cpu: number**2 * (cpu + 1) for cpu in range(cpus)}
        found.append(Reading.after(found[-1] if found else None, 1e9 + 2 * number, number, table))
    return found


def json_of(readings: list[Reading]) -> str:
    return "".join(f"{to_json(reading)}\n" for reading in readings)


def csv_of(readings: list[Reading]) -> str:
    return "".join(f"{line}\n" for line in to_csv(readings))


def written(to: Path, text: str) -> Path:
    to.write_text(text)
    return to


# ---- written and read


@pytest.mark.parametrize("form", [json_of, csv_of])
@given(cpus=tables, data=st.data())
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    form: object,
    cpus: dict[int, int],
    data: st.DataObject,
) -> None:
    counts = st.fixed_dictionaries(dict.fromkeys(cpus, st.integers(0, 2**64 - 1)))
    rows = data.draw(st.lists(st.tuples(times, st.integers(0, 10**9), counts), min_size=1))
    readings: list[Reading] = []
    for row in rows:
        readings.append(Reading.after(readings[-1] if readings else None, *row))
    assert callable(form)
    file = written(tmp_path_factory.getbasetemp() / "readings", form(readings))
    assert load(file) == readings


def test_json_has_what_the_documentation_says() -> None:
    first, second = (json.loads(to_json(reading)) for reading in ramp(2))
    assert first == {
        "schema": 1, "at": 1e9, "round": 0, "per_cpu": {"0": 0, "1": 0}, "total": 0,
        "rates": {}, "rate": None,
    }  # fmt: skip
    assert (second["rates"], second["rate"]) == ({"0": 0.5, "1": 1.0}, 1.5)


def test_csv_has_what_the_documentation_says() -> None:
    header, first, second = csv.reader(to_csv(ramp(2)))
    assert header == ["at", "round", "total", "rate", "cpu_0", "cpu_1"]
    assert first == ["1000000000.0", "0", "0", "", "0", "0"]
    assert second == ["1000000002.0", "1", "3", "1.5", "1", "2"]


@pytest.mark.parametrize("form", [json_of, csv_of])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path, form: object) -> None:
    assert callable(form)
    whole = form(ramp(30))
    for cut in range(2, 30):
        read = load(written(tmp_path / "cut", whole[:-cut]))
        assert read in (ramp(29), ramp(30))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "it is empty"),
        ("a,b\n1,2\n", "line 2"),
        ("{}\n", "line 1"),
        ("{\n", "line 1"),
        ("hello\n", "has 0"),
        ("[1]\n", "has 0"),
        (json_of(ramp(2)) + "{}\n", "line 3"),
        (csv_of(ramp(2)) + "1,2\n", "line 4"),
        (csv_of(ramp(2)).replace("1.5,1,2", "1.5,7,2"), "line 3"),
        (json_of(ramp(2)).replace('"at": 1000000000.0', '"at": NaN'), "line 1"),
        (json_of(ramp(2)).replace('"at": 1000000000.0', '"at": 1e300'), "line 1"),
        (json_of(ramp(2)).replace('"at": 1000000000.0', '"at": null'), "line 1"),
        (json_of(ramp(1)), "two readings, and it has 1"),
        (csv_of(ramp(1)), "two readings, and it has 1"),
    ],
)
def test_a_file_that_holds_no_readings_says_why(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(NotReadings, match=word):
        read(written(tmp_path / "bad", text))


def test_nothing_to_plot_is_told(invoke: Invoke, tmp_path: Path) -> None:
    assert_refused(invoke("plot"), 2, "no run has left readings", "invoke run")
    assert_refused(invoke("plot", "--run=nope"), 2, "'nope'", "invoke run")
    one = written(tmp_path / "one", json_of(ramp(1)))
    assert_refused(invoke("plot", "--run", one), 2, str(one), "two readings")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    assert_refused(invoke("plot", "--run", binary), 2, "it is no text", "--json")
    (tmp_path / "empty").mkdir()
    assert_refused(invoke("plot", "--run", tmp_path / "empty"), 2, "No such file")


# ---- drawn


def test_each_cpu_that_counted_has_a_line_and_of_many_the_busiest() -> None:
    lines = {name: rates for name, _, rates in lines_of(ramp())}
    assert list(lines) == ["all", "cpu 0", "cpu 1"]
    assert lines["all"] == [1.5, 4.5, 7.5, 10.5, 13.5]
    assert [name for name, *_ in lines_of(ramp(cpus=40))][1:] == [f"cpu {n}" for n in range(32, 40)]


@pytest.mark.parametrize("size", [(20, 6), (40, 12), (80, 22), (200, 24)])
def test_a_drawing_in_a_terminal_keeps_to_its_size(size: tuple[int, int]) -> None:
    lines = in_terminal(ramp(), "a run", size, colour=False).splitlines()
    assert 0 < len(lines) <= size[1] + 1
    assert max(map(len, lines)) <= size[0]
    assert "\x1b" not in "".join(lines)
    assert "1" in "".join(lines)  # CPU 1 is drawn with its digit


def test_a_file_of_a_run_is_drawn_and_told_in_words(invoke: Invoke, tmp_path: Path) -> None:
    for text in (json_of(ramp()), csv_of(ramp())):
        outcome = invoke("plot", "--run", written(tmp_path / "saved", text))
        assert outcome.code == 0, outcome.err
        assert "cpu 1" in outcome.out
        assert outcome.out.splitlines()[-1] == summary(ramp())
    assert summary(ramp()).startswith("6 readings in 10.0 s, 75 packets counted, at most 13.5 a")


def test_a_png_is_a_picture_with_lines_in_it(tmp_path: Path) -> None:
    from matplotlib.image import imread

    file, flat = tmp_path / "run.png", tmp_path / "flat.png"
    to_png(ramp(), "a run", file)
    to_png([Reading(one.at, one.round, {0: 0}, {0: 0.0}) for one in ramp()], "a run", flat)
    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = imread(file)
    assert image.shape[:2] == (675, 1200)
    coloured = (image[..., :3].max(axis=2) - image[..., :3].min(axis=2) > 0.3).sum()
    assert coloured > 2000
    assert (imread(flat) != image).any()


def test_a_picture_that_can_not_be_written(invoke: Invoke, tmp_path: Path) -> None:
    saved = written(tmp_path / "saved", json_of(ramp()))
    place = tmp_path / "not/there.png"
    outcome = invoke("plot", "--run", saved, "--png", place)
    assert_refused(outcome, 2, str(place), "--png")
    assert invoke("plot", "--run", saved, "--png", tmp_path / "it.png").out.startswith(
        f"{tmp_path}/it.png: 6 readings"
    )
