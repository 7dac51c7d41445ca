"""Pictures are taken from a real terminal, and are of nobody's machine in particular."""

import importlib.machinery
import importlib.util
import os
import platform
import re
import shutil
import sys
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import PROJECT, processes_in, wait_until

from xdplab.bench import Stage
from xdplab.bench.record import PICTURES

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/picture as a module."""
    loader = importlib.machinery.SourceFileLoader("picture", str(PROJECT / "scripts/picture"))
    spec = importlib.util.spec_from_loader("picture", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "picture", module)
    loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that the terminal begins in."""
    if not shutil.which("tmux"):
        pytest.skip("tmux is not installed")
    place = tmp_path / "somebodys-place"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def words_of(svg: str) -> str:
    """What is to be read in a picture."""
    texts = re.findall(r"<text [^>]*>(.*?)</text>", svg)
    return unescape("\n".join(texts)).replace("\xa0", " ")


def nobody_is_left(place: Path) -> bool:
    return processes_in(place) == [os.getpid()]


def row(script: ModuleType, *commands: str, **fields: Any) -> Any:
    typed = tuple((script.PROMPT, command) for command in commands)
    return script.Picture("one", "A title", typed, **fields)


def test_a_picture_shows_what_a_terminal_shows(script: ModuleType, place: Path) -> None:
    colour = r"printf '\e[32mgreen\e[0m %s\n' \"$PWD\""
    file = script.take(row(script, f'bash -c "{colour}"', "tput cols"), place)
    svg = file.read_text()
    said = words_of(svg)
    assert "A title" in said
    assert "green\n" in said
    assert "~/xdplab" in said
    assert "108" in said  # the width of the terminal
    assert str(place) not in svg
    assert "font-face" not in svg  # nothing that would be fetched
    wait_until(lambda: nobody_is_left(place))


def test_a_picture_is_taken_while_a_second_terminal_is_at_work(
    script: ModuleType, place: Path
) -> None:
    beside = "for each in 1 2 3; do echo packet $each >> seen; sleep 0.1; done; sleep 60"
    picture = row(script, "touch seen; tail -f seen", until="packet 3", beside=beside)
    assert "packet 3" in words_of(script.take(picture, place).read_text())
    wait_until(lambda: nobody_is_left(place))


def test_what_never_comes_is_told_with_what_came(
    script: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PATIENCE", 2)
    with pytest.raises(SystemExit, match="'no such words' is not there") as ended:
        script.take(row(script, "echo other words", until="no such words"), place)
    assert "\nother words\n" in str(ended.value)
    assert list(place.iterdir()) == []
    wait_until(lambda: nobody_is_left(place))


def test_a_command_that_is_not_there_makes_no_picture(script: ModuleType, place: Path) -> None:
    with pytest.raises(SystemExit, match="No idea what 'brew' is"):
        script.take(row(script, "echo \"No idea what 'brew' is!\""), place)
    assert list(place.iterdir()) == []


def test_columns_stay_columns_where_paths_become_shorter(script: ModuleType, place: Path) -> None:
    before = f"{place}/tree  6.1\n{'x' * len(str(place))}/tree  6.1\n{place}s stays"
    before += f"\n{platform.release()}"
    after = script.anywhere(before).splitlines()
    assert after[0].index("6.1") == after[1].index("6.1")
    assert after[0].startswith("~/xdplab/tree  ")
    assert after[2] == f"{place}s stays"
    assert re.fullmatch(r"[\d.]+", after[3])


def test_pages_show_pictures_that_are_there_and_can_be_made_anew(script: ModuleType) -> None:
    shown = {
        (page.parent / name).resolve()
        for page in PAGES
        for name in re.findall(r"!\[[^]]*\]\(([^)]+\.svg)\)", page.read_text())
    }
    taken = {f"{picture.name}.svg" for picture in script.PICTURES}
    drawn = {PICTURES.format(stage=stage) for stage in Stage}
    rows = {PROJECT / "docs" / name for name in taken | drawn}
    there = set((PROJECT / "docs").glob("*.svg"))
    assert shown
    assert shown <= there <= rows


@pytest.mark.parametrize("picture", sorted((PROJECT / "docs").glob("*.svg")), ids=lambda f: f.stem)
def test_pictures_are_of_nobodys_machine(picture: Path) -> None:
    said = words_of(picture.read_text())
    assert not re.search(r"(?<![\w.~-])/(home|root|Users)\b", said)
    assert str(PROJECT) not in said
