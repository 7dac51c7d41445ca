"""Exercises: the right answers pass, the usual mistakes are told, each by its own sentence."""

from __future__ import annotations

import re
import shutil
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Invoke, Outcome, assert_refused, copy_checkout, give_away, snapshot
from solutions import ENDS_AT_ONCE, MISTAKES, READS_BEYOND, SOLUTIONS, Mistake

from xdplab import exercises, language
from xdplab.build import Build, build
from xdplab.drills import LAST, TRIALS
from xdplab.errors import DidNotAttach
from xdplab.exercises import Exercise, check, every, named
from xdplab.process import Shell
from xdplab.testbed.local import LocalBench
from xdplab.testbed.netns import wired
from xdplab.toolchain import Toolchain
from xdplab.tree import Tree
from xdplab.verify import Check
from xdplab.workspace import Workspace

NAMES = [*TRIALS]


# ---- texts


def leaves(texts: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a language, by where it is."""
    if isinstance(texts, dict):
        for key, value in texts.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(texts, list):
        for number, value in enumerate(texts):
            yield from leaves(value, f"{path}.{number}")
    else:
        yield path, texts


def fields(text: str) -> set[str]:
    """What is filled in; names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_say_the_same_things() -> None:
    english, french = (dict(leaves(language.texts("exercises", one))) for one in ("en", "fr"))
    assert english.keys() == french.keys()
    for path, text in english.items():
        assert fields(text) == fields(french[path]), path
        assert text != french[path] or path.endswith(".right"), path


@pytest.mark.parametrize("tongue", language.LANGUAGES)
def test_every_frame_has_its_words(tongue: str) -> None:
    assert [exercise.name for exercise in every(tongue)] == NAMES
    frames = language.texts("exercises", tongue)["frames"]
    cases = [LAST, *(case for trials in TRIALS.values() for one in trials for case in one.cases)]
    assert {case.text for case in cases} == frames.keys()


# ---- the learner's files


@pytest.fixture
def school(tmp_path: Path) -> Invoke:
    """A checkout of the test's own, in which exercises can be begun."""
    return Invoke(tmp_path / "workspace", cwd=copy_checkout(tmp_path / "checkout"))


def test_an_exercise_begins_with_a_pair_of_its_own(school: Invoke) -> None:
    assert "vlan         not begun" in school("exercises", "--lang=en").out
    outcome = school("exercise", "vlan", "--lang=fr")
    assert outcome.code == 0, outcome.err
    kern, user = sorted((school.cwd / "exercises/vlan").iterdir())
    assert '"xdp_vlan_kern.o"' in user.read_text()
    assert "xdp_ip_filter_kern.o" not in kern.read_text() + user.read_text()
    kern.write_text("mine")
    user.unlink()
    assert school("exercise", "vlan").code == 0
    assert kern.read_text() == "mine"
    assert user.exists()
    assert "vlan         begun" in school("exercises", "--lang=en").out


def test_a_dry_run_makes_no_files(school: Invoke) -> None:
    before = snapshot(school.cwd)
    outcome = school("--dry", "exercise", "vlan")
    assert [command.split()[0] for command in outcome.commands()] == ["sed", "sed"]
    assert snapshot(school.cwd).keys() - before.keys() <= {
        str(path) for path in school.cwd.rglob("__pycache__*")
    } | {str(path) for path in school.cwd.rglob("*.pyc")}


def test_an_exercise_that_is_not_there(school: Invoke) -> None:
    assert_refused(school("exercise", "nat"), 2, "'nat'", *NAMES)


def test_what_is_not_begun_is_not_checked(school: Invoke) -> None:
    assert_refused(school("exercise", "vlan", "--check"), 2, "no pair", "invoke exercise vlan")


# ---- the check


@dataclass(frozen=True)
class Desk:
    """Where answers are built and checked."""

    tree: Tree
    workspace: Workspace
    bench: LocalBench

    def build(self, exercise: Exercise) -> Build:
        pair, tools = exercise.pair(), Toolchain.find()
        return build(self.tree, pair, tools, self.workspace, Shell(), lambda _: None, print)

    def check(self, exercise: Exercise) -> list[Check]:
        record = self.workspace.new_run()
        return [*check(exercise, self.build(exercise), self.bench, record)]


@pytest.fixture(scope="module")
def desk(copies: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    workspace = Workspace(tmp_path_factory.mktemp("desk"))
    with wired(Shell(), workspace) as bench:
        yield Desk(Tree.at(copies("6.1")), workspace, bench)


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Exercise]:
    """Gives an exercise, begun in a directory of the test's own."""
    monkeypatch.setattr(exercises, "_PLACE", tmp_path)

    def begin(name: str) -> Exercise:
        one = named(name, "en")
        exercises.begin(one, Shell())
        return one

    return begin


def assert_told(checks: list[Check], *words: str) -> None:
    """What is said to be wrong, all of it, has these words, in this order."""
    told = [f"{one.claim}: {one.found}" for one in checks if not one.held]
    assert len(told) == len(words), told
    for sentence, word in zip(told, words, strict=True):
        assert word in sentence


@pytest.mark.root
@pytest.mark.tree
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("passed", ("`passed N` says 0 more, and it should be 1",) * 9),
        (
            "destination",
            (*["daddr", "UDP", "option"], *["the address is its source", "the neighbour"]),
        ),
        ("vlan", ("0x8100", "0x8100", "priority, DEI and VLAN id", "VLAN 0")),
        ("prefix", ("the program did not take it: no IPv4 address: '192.168.1.0/24'", *["/"] * 4)),
    ],
)
def test_the_pair_it_begins_with_is_wrong_and_the_right_answer_is_right(
    desk: Desk, begun: Callable[[str], Exercise], name: str, words: tuple[str, ...]
) -> None:
    exercise = begun(name)
    assert_told(desk.check(exercise), *words)
    SOLUTIONS[name].write(exercise.files)
    checks = desk.check(exercise)
    assert_told(checks)
    frames = sum(len(trial.cases) for trial in TRIALS[name])
    assert len(checks) > frames


@pytest.mark.root
@pytest.mark.tree
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: f"{one.exercise}: {one.name}")
def test_a_mistake_is_told_by_its_own_sentence(
    desk: Desk, begun: Callable[[str], Exercise], mistake: Mistake
) -> None:
    exercise = begun(mistake.exercise)
    SOLUTIONS[exercise.name].write(exercise.files)
    mistake.edits.write(exercise.files)
    assert_told(desk.check(exercise), *mistake.told)


@pytest.mark.root
@pytest.mark.tree
def test_what_the_verifier_refuses_is_told_in_its_words(
    desk: Desk, begun: Callable[[str], Exercise]
) -> None:
    exercise = begun("vlan")
    SOLUTIONS["vlan"].write(exercise.files)
    READS_BEYOND.write(exercise.files)
    with pytest.raises(DidNotAttach) as refused:
        desk.check(exercise)
    assert "invalid access to packet" in refused.value.cure


@pytest.mark.root
@pytest.mark.tree
def test_a_program_that_ends_is_no_reading(desk: Desk, begun: Callable[[str], Exercise]) -> None:
    exercise = begun("destination")
    ENDS_AT_ONCE.write(exercise.files)
    assert_told(desk.check(exercise), "no whole reading came any more")


@pytest.mark.root
@pytest.mark.tree
def test_what_is_solved_is_remembered_until_it_is_edited(
    desk: Desk, begun: Callable[[str], Exercise], nobody: Path, with_sudo: tuple[str | Path, ...]
) -> None:
    """As an ordinary user, whose small tree hands out what was built in a real one."""
    made = nobody / "made"
    makefile = nobody / "linux/Makefile"
    makefile.write_text(
        re.sub(r"(%_(kern|user)\.c\n).*", rf"\1> @cp {made}/$(@F) $@", makefile.read_text())
    )
    invoke = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    give_away(invoke.cwd)

    def call(*arguments: str | Path) -> Outcome:
        return invoke(*arguments, env={"HOME": str(nobody), "LANG": "C"}, under=with_sudo)

    exercise = begun("destination")
    assert call("setup", "--tree", nobody / "linux").code == 0
    assert call("exercise", "destination").code == 0
    theirs = invoke.cwd / "exercises/destination/xdp_destination_kern.c"
    shutil.copytree(desk.build(exercise).directory, made)
    assert_refused(call("exercise", "destination", "--check"), 1, "5 wrong", str(theirs))
    assert "destination  begun" in call("exercises").out

    SOLUTIONS["destination"].write(exercise.files)
    shutil.copytree(desk.build(exercise).directory, made, dirs_exist_ok=True)
    shutil.copy(exercise.files[0], theirs)
    outcome = call("exercise", "destination", "--check")
    assert outcome.code == 0, outcome.out + outcome.err
    for command in outcome.commands():
        assert "python" not in command or "setpriv --reuid=65534 " in command
    assert "destination  solved" in call("exercises").out

    with theirs.open("a") as file:
        file.write("/* one more thought */\n")
    assert "destination  begun" in call("exercises").out
