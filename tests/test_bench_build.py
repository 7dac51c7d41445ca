"""The build stage of invoke bench: every way ends with the pair built, and nothing stays behind."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conftest import AS_ROOT

from xdplab.bench import build
from xdplab.bench.measure import Means, measure
from xdplab.process import Shell
from xdplab.toolchain import Toolchain
from xdplab.tree import Tree
from xdplab.workspace import Workspace


@pytest.mark.tree
def test_each_way_builds_the_pair_in_a_copy(
    fetched: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in AS_ROOT.items():  # one of the ways is a command
        monkeypatch.setenv(name, value)
    original = Tree.at(fetched("6.1"))
    said: list[str] = []
    means = Means(
        Workspace(tmp_path / "workspace"), Shell(said.append), Toolchain.find,
        lambda: original, lambda _: None,
    )  # fmt: skip
    with closing(build.comparisons(means)) as comparisons:
        for comparison in comparisons:
            said.clear()
            found = measure("build", comparison, 1, lambda *_, **__: None)
            for way in found.ways:
                assert not way.failed, f"{found.name}: {way.name}: {way.failed}"
                assert way.figures["s"][0] > 0
            ran = [line for line in said if f"{original.path}" in line]
            assert not ran, "the user's own tree is left alone"
            own = [line for line in said if "-m invoke build" not in line]
            if found.name.endswith("edited"):
                assert sum(" make " in line for line in own) == 1  # of the way called so
                half = "clang " if "kernel" in found.name else "gcc "
                assert sum(f"'{half}" in line for line in own) >= 2
            if found.name.endswith("nothing changed"):
                assert not any("'clang " in line or "'gcc " in line for line in own)
    assert list(means.workspace.root.iterdir()) == []
