"""invoke bench: how readings are taken and compared, what is kept of them, and the command."""

import json
import math
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused

from xdplab.bench import Stage
from xdplab.bench import record as recording
from xdplab.bench.measure import (
    By,
    Comparison,
    Figures,
    Goal,
    Measured,
    Spread,
    Verdict,
    Way,
    measure,
)
from xdplab.bench.picture import svg
from xdplab.bench.record import Record, curves, figure, of_json, said, to_json
from xdplab.bench.stages import named, require_measured, rounds
from xdplab.errors import InputError, LabError, NotMeasured


class Readings:
    """A way whose figures are known beforehand."""

    def __init__(self, *figures: float) -> None:
        self.left = list(figures)

    def __call__(self) -> Figures:
        return {"s": self.left.pop(0)}


def taken(*ways: Way, goals: tuple[Goal, ...] = (), number: int = 4) -> Measured:
    comparison = Comparison("a thing", ways, goals, point=("entries", 10.0))
    return measure("start", comparison, number, lambda *_, **__: None)


def known(name: str, *figures: float) -> Way:
    return Way(name, Readings(*figures))


# ---- taking readings


def test_each_round_has_all_ways_in_an_order_of_its_own_each_made_ready() -> None:
    events: list[str] = []

    def way(name: str) -> Way:
        def read() -> Figures:
            events.append(name)
            return {"s": 1.0}

        return Way(name, read, ready=lambda: events.append(f"ready {name}"))

    taken(way("a"), way("b"), way("c"), number=20)
    order = [event for event in events if " " not in event]
    rounds = ["".join(order[at : at + 3]) for at in range(0, 60, 3)]
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) > 3  # of six
    assert all(
        ready == f"ready {read}" for ready, read in zip(events[::2], events[1::2], strict=True)
    )


def test_a_way_that_is_skipped_is_never_tried_and_one_that_fails_not_again() -> None:
    def refuse() -> Figures:
        tries.append(1)
        raise LabError("the kernel says no", "ask it nicely")

    tries: list[int] = []
    away = Way("peer", lambda: pytest.fail("it was tried"), skipped="peer is not installed")
    found = taken(known("floor", 1, 1, 1, 1), away, Way("broken", refuse))
    assert [len(way.figures.get("s", [])) for way in found.ways] == [4, 0, 0]
    assert found.ways[1].skipped == "peer is not installed"
    assert found.ways[2].failed == "the kernel says no"
    assert tries == [1]
    with pytest.raises(NotMeasured, match="a thing: broken: the kernel says no"):
        require_measured(Record({}, "", (found,)))


# ---- comparing them


def test_only_readings_of_one_round_are_compared() -> None:
    """A machine that gets ten times slower half-way changes no ratio."""
    found = taken(known("floor", 1, 1, 10, 10), known("ours", 2, 2, 20, 20))
    assert found.ratio(found.ways[1], "s") == Spread(2, 2, 2)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((12, 12, 12, 13), Verdict.MET),
        ((12, 12, 14, 14), Verdict.UNCLEAR),
        ((14, 15, 14, 15), Verdict.MISSED),
    ],
)
def test_a_goal_is_reached_in_three_quarters_of_the_rounds(
    ours: tuple[float, ...], verdict: Verdict
) -> None:
    goal = Goal("ours", "s", 1.3)
    found = taken(known("floor", 10, 10, 10, 10), known("ours", *ours), goals=(goal,))
    assert found.verdict(goal) is verdict
    assert said(found, goal).endswith(f", {verdict}")


def test_goals_by_difference_and_by_the_figure_itself() -> None:
    above = Goal("ours", "s", 6, By.DIFFERENCE)
    whole = Goal("ours", "s", 3, By.FIGURE)
    peer = Goal("ours", "s", 1, than="peer")
    found = taken(
        known("floor", 2, 2), known("ours", 5, 7), known("peer", 10, 10),
        goals=(above, whole, peer), number=2,
    )  # fmt: skip
    assert found.reached(above) == Spread(3.5, 4, 4.5)
    assert [found.verdict(one) for one in found.goals] == [
        Verdict.MET,
        Verdict.MISSED,
        Verdict.MET,
    ]
    assert said(found, above) == "ours at most 6.00 s above floor: 4.00 (3.50 to 4.50), met"


def test_what_was_not_measured_reaches_no_goal() -> None:
    goal = Goal("ours", "s", 100.0)
    away = Way("floor", lambda: {}, skipped="it isn't here")
    found = taken(away, known("ours", 1, 1, 1, 1), goals=(goal,))
    assert found.verdict(goal) is Verdict.SKIPPED


def test_a_ratio_that_tells_little_is_wide() -> None:
    assert Spread.of([1, 2, 3, 4]).wide
    assert not Spread.of([1.0, 1.01, 1.02, 1.03, 3.0]).wide
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_growth_goes_on_along_the_last_two_points() -> None:
    def at(entries: float, cost: float) -> Measured:
        comparison = Comparison("n", (known("hash", cost),), point=("entries", entries))
        return measure("packet", comparison, 1, lambda *_, **__: None)

    (curve,) = curves([at(1000, 8), at(1, 7), at(10, 4)])
    assert [x for x, _ in curve.points] == [1, 10, 1000]
    further, reckoned = curve.further
    assert further == 100_000
    assert math.isclose(reckoned, 8 * 2)  # twice as much for a hundred times as many
    assert curves([at(1, 7)]) == []


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (0.04567, "0.0457"), (5.5, "5.50"), (123456.0, "123,000")]
)
def test_figures_have_three_digits_that_count(value: float, words: str) -> None:
    assert figure(value) == words


# ---- what is kept


@pytest.fixture
def found() -> Record:
    goal = Goal("ours", "s", 6, By.DIFFERENCE)
    away = Way("peer", lambda: {}, skipped="it isn't here")
    ways = (known("floor", 1, 2), known("ours", 2, 5), away)
    return Record({"Linux": "6.1"}, "2026-01-01", (taken(*ways, goals=(goal,), number=2),))


def test_json_holds_all_of_it(found: Record) -> None:
    written = json.loads(json.dumps(to_json(found)))
    assert of_json(written) == found
    (one,) = written["comparisons"]
    assert one["ways"][1]["ratios"]["s"]["median"] == 2.25
    assert one["goals"][0]["verdict"] == "met"


def test_the_same_figures_make_the_same_picture(found: Record) -> None:
    picture = svg("start", found.measured)
    assert picture == svg("start", found.measured)
    assert picture.startswith(b"<?xml")


def test_a_stage_that_is_measured_again_replaces_itself_only(
    found: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "KEPT", tmp_path / "performance.json")
    monkeypatch.setattr(recording, "PAGE", tmp_path / "performance.md")
    other = Measured("zebra", "other", 1, None, "", found.measured[0].ways, ())
    order = ["start", "zebra"]
    recording.keep(Record({}, "then", (other,)), order)
    recording.keep(found, order)
    kept = of_json(json.loads((tmp_path / "performance.json").read_text()))
    assert [one.name for one in kept.measured] == ["a thing", "other"]
    page = (tmp_path / "performance.md").read_text()
    assert "ours at most 6.00 s above floor: 2.00 (1.50 to 2.50), met" in page
    assert "skipped: it isn't here" in page
    assert recording.write_page() == []
    assert all((tmp_path / f"bench-{stage}.svg").exists() for stage in order)


# ---- the command


def test_one_stage_as_json(invoke: Invoke) -> None:
    outcome = invoke("bench", "--only=start", "--rounds=2", "--json")
    assert outcome.code == 0, outcome.err
    said = json.loads(outcome.out)
    assert said["schema"] == 1
    assert said["machine"].keys() >= {"Linux", "CPUs", "gcc", "clang", "Python", "git"}
    kept = list(invoke.workspace.glob("bench/*/bench.json"))
    assert [json.loads(path.read_text()) for path in kept] == [said]
    assert (kept[0].parent / "bench-start.svg").exists()
    for one in said["comparisons"]:
        assert one["stage"] == "start"
        for way in one["ways"]:
            assert bool(way["skipped"]) != bool(way["figures"])
            assert all(len(readings) == 2 for readings in way["figures"].values())


def test_a_table_for_people_has_the_ratio_first(invoke: Invoke) -> None:
    outcome = invoke("bench", "--only=start", "--rounds=1")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("start: ")
    assert lines[1].startswith("times the floor")
    assert "goal: " in outcome.out
    assert len(outcome.commands()) == len(set(outcome.commands()))


def test_a_dry_run_measures_nothing(invoke: Invoke) -> None:
    outcome = invoke("--dry", "bench", "--only=start")
    assert (outcome.code, outcome.err) == (0, "would measure: start\n")
    assert not list(invoke.workspace.glob("bench"))


@pytest.mark.parametrize("option", ["--only=stat", "--only=start,all", "--rounds=0", "--rounds=x"])
def test_bad_options_are_refused(invoke: Invoke, option: str) -> None:
    assert_refused(invoke("bench", option), 2, option.partition("=")[0])


def test_stages_come_in_their_own_order() -> None:
    assert named([]) == list(Stage)
    assert named(["start", "start"]) == [Stage.START]
    assert rounds(None) is None
    with pytest.raises(InputError):
        rounds("0")
