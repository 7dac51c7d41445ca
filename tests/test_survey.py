"""Surveys: trees built, verified and left as they were found; what came of it on record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused, copied, path_without, snapshot

from xdplab.survey import Proof, recorded, recording, trials
from xdplab.verify import Outcome


def proofs(path: Path) -> list[tuple[str, str, str]]:
    return [(one.version, one.outcome, one.reason) for one in recorded(path)]


@pytest.mark.tree
@pytest.mark.root
def test_a_real_tree_passes_and_is_left_as_it_was_found(
    invoke: Invoke, fetched: Callable[[str], Path]
) -> None:
    with copied(fetched("5.10")) as tree:
        assert invoke("setup", "--tree", tree).code == 0
        assert invoke("clean").code == 0
        before = snapshot(tree)
        outcome = invoke("survey", "--trees", tree)
        assert outcome.code == 0, outcome.out + outcome.err
        assert outcome.out.startswith("ok   5.10.")
        after = snapshot(tree)
    assert sorted(set(after) ^ set(before)) == []


def test_what_fails_is_said_with_its_reason(invoke: Invoke, fake_tree: Path) -> None:
    before = snapshot(fake_tree)
    outcome = invoke("survey", "--trees", fake_tree)
    assert_refused(outcome, 1, "1 failed: 6.1 with gcc")
    # its "program" ends at once
    assert outcome.out.startswith("FAIL 6.1 from linux: gcc")
    assert "did not attach" in outcome.out or "needs root" in outcome.out
    assert snapshot(fake_tree).keys() == before.keys()


def test_a_damaged_tree_fails_by_name(invoke: Invoke, fake_tree: Path) -> None:
    (fake_tree / "scripts/Makefile.lib").unlink()
    outcome = invoke("survey", "--trees", fake_tree)
    assert_refused(outcome, 1, "1 failed")
    assert "it has no scripts/Makefile.lib" in outcome.out


def test_what_a_compiler_says_is_the_reason(invoke: Invoke, fake_tree: Path) -> None:
    makefile = fake_tree / "Makefile"
    fails = "> @echo LLVM ERROR: it gives up >&2; exit 134\n"
    lines = [
        fails if "clang --target=bpf" in line else line
        for line in makefile.read_text().splitlines(keepends=True)
    ]
    makefile.write_text("".join(lines))
    outcome = invoke("survey", "--trees", fake_tree)
    assert_refused(outcome, 1, "1 failed")
    assert outcome.out.endswith("LLVM ERROR: it gives up\n")


def test_what_this_machine_can_not_do_is_skipped(
    invoke: Invoke, fake_tree: Path, tmp_path: Path
) -> None:
    env = {"PATH": path_without(tmp_path / "bin", "unshare")}
    outcome = invoke("survey", "--trees", fake_tree, env=env)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("skip 6.1 from linux")
    assert "unshare" in outcome.out


def test_each_compiler_is_tried_beside_the_others_usual_one() -> None:
    assert trials([]) == [{}]
    assert trials(["gcc-13", "clang-16"]) == [{"gcc": "gcc-13"}, {"clang": "clang-16"}]


def test_a_dry_run_tells_what_it_comes_to(invoke: Invoke, fake_tree: Path) -> None:
    before = snapshot(fake_tree)
    outcome = invoke("--dry", "survey", "--trees", fake_tree)
    assert outcome.code == 0, outcome.err
    assert outcome.commands() == [
        f"invoke build --tree={fake_tree} --gcc=gcc --clang=clang",
        f"invoke verify --tree={fake_tree}",
    ]
    assert snapshot(fake_tree) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "no kernel tree is set up"),
        (["--kernels=4.19"], "no tree of v4.19 is set up"),
        (["--kernels=six"], "'six' is not a kernel version"),
        (["--trees=/nowhere"], "/nowhere is not a kernel tree"),
        (["--compilers=gcc-999"], "'gcc-999' is no gcc"),
    ],
)
def test_what_can_not_be_surveyed(
    invoke: Invoke, fake_tree: Path, options: list[str], words: str
) -> None:
    chosen = [f"--trees={fake_tree}"] if "compilers" in str(options) else []
    assert_refused(invoke("survey", *options, *chosen), 2, words)


def test_a_later_proof_replaces_an_earlier_one_of_the_same(tmp_path: Path) -> None:
    path = tmp_path / "proofs.json"
    old = Proof("6.1.176", "distro", "gcc 12", "clang 14", Outcome.FAILED, "a reason")
    new = Proof("6.1.176", "distro", "gcc 12", "clang 14", Outcome.PASSED)
    other = Proof("5.10", "distro", "gcc 12", "clang 14", Outcome.PASSED, patches=("a patch",))
    assert list(recording([old, other, new], path)) == [old, other, new]
    assert recorded(path) == [other, new]
    assert all(one.outcome is Outcome.PASSED for one in recorded(path))  # no mere word
    assert json.loads(path.read_text())["schema"] == 1


def test_each_proof_is_on_record_as_soon_as_it_is_made(tmp_path: Path) -> None:
    path = tmp_path / "proofs.json"
    made = (Proof(v, "git", "gcc", "clang", Outcome.PASSED) for v in ("6.1", "6.12"))
    for count, _ in enumerate(recording(made, path), 1):
        assert len(recorded(path)) == count
