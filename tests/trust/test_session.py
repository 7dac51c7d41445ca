"""Ordeals in turn: what is counted, what is kept, and that a seed brings a finding about again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import cast

import pytest
from conftest import Invoke, assert_refused

from xdplab.bench.measure import Means
from xdplab.errors import Broken, NeedsRoot, NotAChoice, NotANumber
from xdplab.process import Shell
from xdplab.toolchain import Toolchain
from xdplab.torture import Name, session
from xdplab.torture.ordeal import Finding, Ordeal, Record, Try
from xdplab.tree import Tree
from xdplab.workspace import Workspace


def no_tree() -> Tree:
    raise AssertionError("nobody needs one")


@pytest.fixture
def means(workspace: Path) -> Means:
    return Means(Workspace(workspace), Shell(), Toolchain.find, no_tree, lambda _: None)


@pytest.fixture
def dice(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """An ordeal that finds something one time in four, and one that can't be had; gives throws."""
    thrown: list[float] = []

    def once(rng: Random) -> Try:
        thrown.append(rng.random())
        low = Finding("it is low", (str(thrown[-1]),), "said") if thrown[-1] < 0.25 else None
        return Try("high" if thrown[-1] > 0.5 else "low", "thrown", low)

    @contextlib.contextmanager
    def opened(_: Means) -> Iterator[Ordeal]:
        yield Ordeal("exit", 1, once, {"a kind": "why"})

    @contextlib.contextmanager
    def refused(_: Means) -> Iterator[Ordeal]:
        raise NeedsRoot("it", "why")
        yield

    monkeypatch.setattr(session, "ORDEALS", {"exit": opened, "refused": refused})
    return thrown


def run(means: Means, seed: int, tries: int, *names: str) -> Record:
    *_, last = session.run(
        cast("list[Name]", names or ["exit"]),
        seed,
        means,
        means.workspace.root,
        lambda *_, **__: None,
        tries=tries,
    )
    return last


def test_tries_are_counted_and_kept(means: Means, dice: list[float]) -> None:
    record = run(means, 1, 40, "exit", "refused")
    kept = json.loads((means.workspace.root / session.REPORT).read_text())
    assert kept == json.loads(json.dumps(session.to_json(record)))
    tally, refused = kept["ordeals"]
    assert tally["tries"] == len(dice) == sum(tally["kinds"].values()) == 40
    assert tally["moments"] == {"thrown": 40}
    assert len(tally["found"]) == sum(one < 0.25 for one in dice) > 0
    assert refused["tries"] == 0
    assert "why" in refused["skipped"]["all of it"]


def test_what_is_found_is_said_at_once(means: Means, dice: list[float]) -> None:
    said: list[str] = []
    record = run(replace(means, say=said.append), 1, 40)
    seeds = [found.seed for _, found in record.found]
    assert said == [f"found: exit, seed {seed}: low: it is low" for seed in seeds]


def test_the_seed_of_a_finding_is_that_of_the_first_try(means: Means, dice: list[float]) -> None:
    name, found = run(means, 7, 40).found[-1]
    assert found.seed > 7
    expected = dice[found.seed - 7]
    dice.clear()
    (_, again), *_ = run(means, found.seed, 1).found
    assert (name, dice) == ("exit", [expected])
    assert again == found


def test_what_was_found_is_on_disk_when_a_torture_is_ended(means: Means, dice: list[float]) -> None:
    records = session.run([Name.EXIT], 1, means, means.workspace.root, lambda *_, **__: None)
    report = means.workspace.root / session.REPORT
    while not next(records).found:
        assert not report.exists()
    assert json.loads(report.read_text())["ordeals"][0]["found"]  # whatever may come now
    next(records)
    records.close()
    kept = json.loads(report.read_text())
    assert kept["ordeals"][0]["tries"] == len(dice)
    assert kept["ordeals"][0]["found"][0]["tried"]["finding"]["left"] == [str(min(dice[:-1]))]


def test_a_broken_promise_is_an_error_that_tells_how_to_see_it_again(
    means: Means, dice: list[float]
) -> None:
    record = run(means, 1, 40)
    with pytest.raises(Broken, match="low: it is low") as broken:
        session.require_unbroken(record)
    assert broken.value.exit_code == 1
    assert f"invoke torture --only exit --seed {record.found[0][1].seed}" in broken.value.cure


def test_what_is_asked_for_is_checked_before_anything_is_done() -> None:
    with pytest.raises(NotAChoice, match="nope"):
        session.named(["exit", "nope"])
    assert session.named([]) == list(Name)
    for wrong in ("0", "-1", "nan", "long"):
        with pytest.raises(NotANumber):
            session.seconds(wrong)
    with pytest.raises(NotANumber):
        session.seed("x")
    assert session.seed("12") == 12


def test_a_dry_torture_tries_nothing(invoke: Invoke) -> None:
    outcome = invoke("--dry", "torture", "--only=exit", "--seed=5")
    assert outcome.code == 0
    assert "seed 5" in outcome.err
    assert "would try: exit" in outcome.err
    assert not invoke.workspace.exists()
    assert_refused(invoke("torture", "--only=nope"), 2, "nope", "exit")
