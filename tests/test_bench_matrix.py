"""The bench's stage of matrices: on one kernel, for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Invoke, means_of, processes_in

from xdplab import trees
from xdplab.bench.matrix import BARE, BOOT, BOOTS, CELL, FIRST, MATRIX, comparisons
from xdplab.bench.measure import Comparison, Measured, measure
from xdplab.boot import Kernel
from xdplab.errors import NoTree
from xdplab.workspace import Workspace


def once(comparison: Comparison) -> Measured:
    return measure("matrix", comparison, 1, lambda *_, **__: None)


def test_where_no_kernel_is_none_is_fetched(tmp_path: Path) -> None:
    (only,) = comparisons(means_of(Workspace(tmp_path)))
    found = once(only)
    assert [way.skipped.partition(":")[0] for way in found.ways] == ["no kernel is here"]
    assert not any(tmp_path.iterdir())


def test_without_a_tree_it_does_not_begin(tmp_path: Path, kernel: Kernel) -> None:
    workspace = Workspace(tmp_path)
    workspace.kernels.mkdir()
    (workspace.kernels / kernel.release).symlink_to(kernel.image.parent)
    with pytest.raises(NoTree):
        next(comparisons(means_of(workspace)))


@pytest.fixture
def kernel(bootable: Callable[[str], Kernel]) -> Kernel:
    return bootable("6.1-cloud")


@pytest.mark.tree
def test_a_cell_and_a_row_of_them_on_one_kernel(
    labs: Callable[[str], Invoke], kernel: Kernel, tmp_path: Path
) -> None:
    lab = Workspace(labs("6.1").workspace)
    workspace = Workspace(tmp_path / "workspace")
    workspace.kernels.mkdir(parents=True)
    (workspace.kernels / kernel.release).symlink_to(kernel.image.parent)
    tree = trees.find(lab, None)
    workspace.set_current_tree(tree.path)
    one, *row = map(once, comparisons(means_of(workspace)))
    assert [way.name for way in one.ways] == [BARE, FIRST, BOOT, CELL]
    assert one.name.endswith(kernel.release)
    assert [found.point for found in row] == [("cells", float(n)) for n in (1, 2, 4, 8)]
    for found in row:
        assert [way.name for way in found.ways] == [BOOTS, MATRIX]
    for found in (one, *row[:2]):
        for way in found.ways:
            assert not way.failed
            assert way.figures["s"][0] > 0
            assert way.figures["cpu s"][0] > 0
    for found, kernels in zip(row[2:], (2, 4), strict=True):
        for way in found.ways:
            assert way.skipped == f"that takes {kernels} kernels, and 1 are here"
    assert processes_in(tmp_path) == []
    assert not any(workspace.root.glob("matrix/*"))
