"""compile_commands.json, as clangd takes it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Invoke, assert_refused, contents, copy_checkout, copy_pair

pytestmark = pytest.mark.tree

NAME = "compile_commands.json"
HALVES = ("xdp_ip_filter_kern.c", "xdp_ip_filter_user.c")


def complaints(file: Path) -> list[str]:
    """What clangd has against a file."""
    if not shutil.which("clangd"):
        pytest.skip("clangd is not installed")
    command = ["clangd", f"--check={file}", "--log=error"]
    checked = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)
    said = [line for line in checked.stderr.splitlines() if line.startswith("E[")]
    assert bool(checked.returncode) == bool(said), checked.stderr
    return said


def entries(directory: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((directory / NAME).read_text())
    return {Path(entry["file"]).name: entry for entry in found}


def pair_in(directory: Path, name: str = "xdp_ip_filter") -> Path:
    """A copy of the tutorial's pair under a name of its own; gives its kernel half."""
    kern, user = copy_pair(directory)
    user = user.rename(directory / f"{name}_user.c")
    user.write_text(user.read_text().replace("xdp_ip_filter_kern.o", f"{name}_kern.o"))
    return kern.rename(directory / f"{name}_kern.c")


def test_clangd_finds_every_header(invoke: Invoke, tree: Path, tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    assert complaints(checkout / HALVES[0])  # it has no idea where they are
    outcome = Invoke(invoke.workspace, checkout)("editor", "--tree", tree)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{checkout / NAME}: ")
    for name in (*HALVES, "xdp_compat.h"):
        assert complaints(checkout / name) == []
    for name in HALVES:
        entry = entries(checkout)[name]
        assert entry["file"] == str(checkout / name)
        assert entry["file"] in entry["arguments"]
        assert Path(entry["directory"]).is_relative_to(tree)
        assert not any(word.startswith("-Wp,") for word in entry["arguments"])
    assert Invoke(invoke.workspace, checkout)("clean").code == 0
    assert not (checkout / NAME).exists()


def test_a_pair_that_does_not_compile_is_shown_where_it_does_not(
    lab: Invoke, tmp_path: Path
) -> None:
    kern = pair_in(tmp_path / "pairs")
    kern.write_text(kern.read_text().replace("return XDP_DROP;", "return it isn't -c there;"))
    before = contents(lab.workspace / "builds")
    outcome = lab("editor", "--sample", kern)
    assert outcome.code == 0, outcome.err
    assert "does not compile yet" in outcome.err
    assert "pairs/xdp_ip_filter_kern.c:" in outcome.err  # in the compiler's words
    (line,) = [
        number for number, text in enumerate(kern.read_text().splitlines(), 1) if "isn't -c" in text
    ]
    said = complaints(kern)
    assert said
    assert all(f"Line {line}:" in one for one in said)
    assert complaints(kern.with_name(HALVES[1])) == []
    assert contents(lab.workspace / "builds") == before  # what was built is as it was


def test_pairs_in_one_directory_share_the_file(lab: Invoke, tmp_path: Path) -> None:
    place = tmp_path / "pairs"
    one, another = pair_in(place, "one"), pair_in(place, "another")
    for kern in (one, another, one):
        assert lab("editor", "--sample", kern).code == 0
    names = [f"{name}_{half}.c" for name in ("another", "one") for half in ("kern", "user")]
    assert sorted(entries(place)) == names
    assert complaints(one) == complaints(another) == []


def test_somebody_elses_file_is_not_touched(lab: Invoke, tmp_path: Path) -> None:
    kern = pair_in(tmp_path / "pairs")
    theirs = kern.with_name(NAME)
    theirs.write_text("[]\n")
    assert_refused(lab("editor", "--sample", kern), 2, str(theirs), "move it away")
    assert theirs.read_text() == "[]\n"
    theirs.unlink()
    assert lab("editor", "--sample", kern).code == 0
    theirs.write_text(theirs.read_text() + "\n")  # ours no more
    assert_refused(lab("editor", "--sample", kern), 2, str(theirs))
    edited = theirs.read_text()
    cleaned = lab("--dry", "clean")
    assert f"left {theirs}: somebody wrote to it since" in cleaned.err
    assert theirs.read_text() == edited


def test_a_dry_run_writes_nothing(lab: Invoke, tmp_path: Path) -> None:
    kern = pair_in(tmp_path / "pairs")
    before = contents(kern.parent)
    outcome = lab("--dry", "editor", "--sample", kern)
    assert outcome.code == 0, outcome.err
    assert any("V=1" in command for command in outcome.commands())
    assert contents(kern.parent) == before
