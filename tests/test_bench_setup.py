"""The bench's stage of getting a tree: its ways do what they say, on a small tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xdplab.bench import setup as stage
from xdplab.bench.measure import Comparison, Means, measure
from xdplab.process import Shell
from xdplab.toolchain import Toolchain
from xdplab.tree import Origin, Tree
from xdplab.workspace import Workspace


def means(tree: Path, workspace: Path) -> Means:
    return Means(
        Workspace(workspace), Shell(), Toolchain.find, lambda: Tree.at(tree), lambda _: None
    )


def no_report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Nobody listens."""


def test_each_way_gets_a_tree_and_leaves_nothing(fake_tree: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    before = sorted(fake_tree.rglob("*"))
    found = []
    for comparison in stage.comparisons(means(fake_tree, workspace)):
        found.append(measure("setup", comparison, 1, no_report))
    (measured,) = found
    assert [way.failed for way in measured.ways] == [""] * 5
    clone, blobless, ours, second, whole = (way.figures for way in measured.ways)
    assert clone["files"] == blobless["files"] == [len([p for p in before if p.is_file()])]
    assert ours["files"] == second["files"] == [clone["files"][0] - 1]  # all but one are read
    assert whole["files"] > ours["files"]
    assert clone["requests"] == [1]
    assert ours["requests"] == [2]  # the commit with its trees, and all blobs at once
    assert second["MB on the wire"] < ours["MB on the wire"]
    assert sorted(fake_tree.rglob("*")) == before
    assert not list(workspace.iterdir())


def test_a_tree_that_has_not_all_files_is_no_floor(fake_tree: Path, tmp_path: Path) -> None:
    Tree.at(fake_tree).remember(origin=Origin.GIT)
    (comparison,) = stage.comparisons(means(fake_tree, tmp_path))
    assert isinstance(comparison, Comparison)
    assert "--source distro" in comparison.ways[0].skipped


@pytest.mark.tree
def test_a_real_tree_comes_by_a_twenty_fifth(copies: Callable[[str], Path], tmp_path: Path) -> None:
    comparisons = stage.comparisons(means(copies("6.1"), tmp_path))
    ways = {way.name: way for way in next(comparisons).ways}
    sent = {}
    for name in ("a shallow clone", "setup's fetch"):
        ways[name].ready()
        sent[name] = ways[name].read()
    comparisons.close()
    whole, ours = sent.values()
    assert ours["MB on the wire"] < 0.04 * whole["MB on the wire"]
    assert ours["requests"] == 2
