"""The packet stage of invoke bench: every program made of each frame what it was timed for."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Invoke, means_of

from xdplab.bench import packet
from xdplab.bench.measure import Means, measure
from xdplab.bench.place import built
from xdplab.build import Build
from xdplab.errors import CommandFailed, OtherVerdict
from xdplab.filtering import SAMPLE
from xdplab.model import Action
from xdplab.sample import Sample
from xdplab.workspace import Workspace

pytestmark = [pytest.mark.root, pytest.mark.tree]


@pytest.fixture
def means(lab: Invoke) -> Means:
    return means_of(Workspace(lab.workspace))


@pytest.fixture
def place(means: Means, tmp_path: Path) -> Iterator[packet._Stand]:
    with packet._stand(means, tmp_path) as stand:
        yield stand


def test_each_program_is_timed_for_what_it_is_said_to_do(
    means: Means, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packet, "_ENTRIES", (1, 20_000))
    monkeypatch.setattr(packet, "_MANY", 3000)
    with closing(packet.comparisons(means)) as comparisons:
        found = [measure("packet", one, 1, lambda *_, **__: None) for one in comparisons]
    assert [one.point and one.point[1] for one in found] == [
        None,
        *[1] * 4,
        *[20_000] * 4,
        *[None] * 2,
    ]
    for one in found:
        for way in one.ways:
            assert not way.failed, f"{one.name}: {way.name}: {way.failed}"
            assert bool(way.figures) != bool(way.skipped)
            timed = {name: way.figures[name] for name in way.figures if name != "cpu s"}  # coarse
            assert all(figure > 0 for figures in timed.values() for figure in figures)
    # what is the harness's own is measured wherever this runs
    skipped = [way.name for one in found for way in one.ways if way.skipped]
    assert all(name.startswith(packet._PEER) for name in skipped)


@pytest.fixture
def build(means: Means) -> Build:
    """samples/xdp_filter, where invoke filter.load finds it."""
    return built(means, Sample.find(SAMPLE), None)


def test_what_is_loaded_is_all_in_force(build: Build, place: packet._Stand, tmp_path: Path) -> None:
    for rules, first in ((packet._row(50), packet._first()), (packet._prefixes(50), b"\1\0\0\1")):
        file = tmp_path / "rules"
        file.write_text(rules)
        assert len(packet._parse(file)) == 50
        packet._load(place, file)
        said = place.run(build.program, "stats")
        assert "rules 50 of" in said
        program = int(said.partition(" prog ")[2].split()[0])
        assert place.timed(packet._Timed(program, Action.DROP, packet._frame(first)))["ns"] > 0
        packet._unload(place)
        with pytest.raises(CommandFailed):
            place.run(build.program, "stats")


def test_the_row_is_the_same_on_both_sides(build: Build, place: packet._Stand) -> None:
    """All addresses of the row that Python writes are those that the caller goes through."""
    rules = packet._row(50)
    assert len({ipaddress.ip_address(one) for one in rules.split()}) == 50
    with packet._filter(place, build, rules) as program:
        all_of_it = packet._Timed(program, Action.DROP, packet._frame(), 0, 50, repeat=20_000)
        assert place.timed(all_of_it)["ns"] > 0
        assert place.timed(replace(all_of_it, frame=packet._frame(tags=2)))["ns"] > 0
        others = replace(all_of_it, first=50, count=1000, verdict=Action.PASS)
        assert place.timed(others)["ns"] > 0
        listed = place.run(build.program, "list").splitlines()
        assert sorted(line.split()[1].partition("/")[0] for line in listed) == sorted(rules.split())
        assert all(int(line.split()[2]) > 0 for line in listed)  # each was met
        with pytest.raises(OtherVerdict, match="verdict was 1, where PASS"):
            place.timed(replace(all_of_it, verdict=Action.PASS))
        with pytest.raises(OtherVerdict, match="verdict was not always the same, where DROP"):
            place.timed(replace(all_of_it, count=100))


def test_what_can_not_be_timed(place: packet._Stand) -> None:
    with pytest.raises(CommandFailed) as gone:
        place.timed(packet._Timed(2**31 - 1, Action.DROP, packet._frame()))
    assert "the program can't be opened: No such file" in gone.value.cure
    with pytest.raises(CommandFailed) as unknown:
        place.ask("hello")
    assert "not understood: hello" in unknown.value.cure
