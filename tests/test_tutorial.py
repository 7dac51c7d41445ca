"""The guided tutorial, from its first step to its last: real trees, filters and packets."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from conftest import (
    AS_ROOT,
    NOBODY,
    PATIENCE,
    Invoke,
    Outcome,
    assert_refused,
    copy_checkout,
    path_without,
    processes_in,
    wait_until,
)

from xdplab.boot import Kernel
from xdplab.tutorial import STEPS

PASSED = re.compile(r"^ok {3}", re.MULTILINE)
HEADS = re.compile(r"^== (\d+)/13  (.*)$", re.MULTILINE)
ENTER = "\n"
PROMPT = "q: quit > "


class Learner:
    """Somebody at a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process = process
        self._terminal = terminal
        self._said = ""
        self._seen = 0  # how far in what was said
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
            while chunk := os.read(self._terminal, 65536):
                self._said += chunk.decode(errors="replace").replace("\r\n", "\n")

    def reads(self, word: str) -> str:
        """Wait for a word behind those that were read; gives what was said up to it."""
        with contextlib.suppress(AssertionError):  # what was said instead is told below
            wait_until(
                lambda: word in self._said[self._seen :] or self.process.poll() is not None, 60
            )
        if self.process.poll() is not None:
            self._reader.join(1)
        assert word in self._said[self._seen :], self._said[self._seen :]
        start = self._seen
        self._seen = self._said.index(word, start) + len(word)
        return self._said[start : self._seen]

    def types(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def leaves(self) -> int:
        """Wait for the end; gives the exit code."""
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def at_terminal(
    invoke: Invoke, *options: str | Path, env: Mapping[str, str] | None = None
) -> Iterator[Learner]:
    """`invoke tutorial` on a terminal of its own."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("INVOKE_", "LC_"))}
    command = [sys.executable, "-m", "invoke", "tutorial", *map(str, options)]
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],
        cwd=invoke.cwd,
        env=environment
        | AS_ROOT
        | {"INVOKE_WORKSPACE": str(invoke.workspace), "LANG": "C.UTF-8", "TERM": "xterm"}
        | dict(env or {"NO_COLOR": "1"}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield Learner(process, ours)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture
def small(workspace: Path, fake_tree: Path) -> tuple[Invoke, Path]:
    """The command line, and a tree in which all is done in no time; a pair of one's own."""
    return Invoke(workspace, cwd=copy_checkout(workspace.parent / "checkout")), fake_tree


def programs(invoke: Invoke) -> list[str]:
    """Programs of our runs that the kernel still has; others' are nobody's business here."""
    status = invoke("status").out
    runs = [json.loads(run.read_text()) for run in invoke.workspace.glob("runs/*/run.json")]
    ids = [run["program"] for run in runs if "program" in run]  # a lab's record has none
    return [f"id {number}" for number in ids if f"prog/xdp id {number}:" in status]


# ---- all of it


@pytest.mark.tree
@pytest.mark.root
def test_all_steps_in_both_languages(tmp_path: Path, copies: Callable[[str], Path]) -> None:
    rehearsals = {"en": ("6.1", "Run it"), "fr": ("5.10", "L\u2019ex\u00e9cuter")}
    with contextlib.ExitStack() as stack:
        under_way = [
            stack.enter_context(
                Invoke(tmp_path / language).start(
                    *("tutorial", "--yes", "--tree", copies(kernel)),
                    env={"LC_ALL": f"{language}_XX.UTF-8"},
                )
            )
            for language, (kernel, _) in rehearsals.items()
        ]
        outcomes = [background.wait() for background in under_way]
    for outcome, (language, (_, title)) in zip(outcomes, rehearsals.items(), strict=True):
        assert outcome.code == 0, outcome.out + outcome.err
        heads = HEADS.findall(outcome.out)
        assert [int(number) for number, _ in heads] == [step.number for step in STEPS]
        assert ("8", title) in heads
        assert len(PASSED.findall(outcome.out)) == len(STEPS) - 1  # not all of the tree's samples
        assert "invoke tutorial --step 4" in outcome.out
        assert "detached: nothing of it is left on lo" in outcome.out
        assert programs(Invoke(tmp_path / language)) == []
        (build,) = (tmp_path / language).glob("builds/*/xdp_ip_filter/build.json")
        assert json.loads(build.read_text())["trace"] is True


@pytest.mark.tree
def test_an_ordinary_user_sends_packets_to_a_virtual_machine(
    lab: Invoke, bootable: Callable[[str], Kernel], nobody: Path
) -> None:
    shutil.copytree(bootable("6.1-cloud").image.parent, nobody / "kernel")
    theirs = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    env = {"HOME": str(nobody), "PATH": path_without(nobody / "bin", "sudo")}
    options = ["--yes", f"--boot={nobody / 'kernel'}"]
    for step in ("1", "5", "7"):
        one = [f"--step={step}", f"--tree={nobody / 'linux'}"]
        outcome = theirs("tutorial", *options, *one, env=env, under=NOBODY)
        assert outcome.code == 0, outcome.out + outcome.err
    # the real pair, in the place of what a made-up tree can build
    built = next(nobody.glob("workspace/builds/*/xdp_ip_filter"))
    for file in next(lab.workspace.glob("builds/*/xdp_ip_filter")).glob("xdp_ip_filter*"):
        shutil.copy(file, built)
    outcome = theirs("tutorial", *options, "--step", "12", env=env, under=NOBODY)
    assert outcome.code == 0, outcome.out + outcome.err
    assert "0 before, 3 after" in outcome.out
    assert processes_in(nobody / "workspace/runs") == []


# ---- at a terminal


def test_a_learner_goes_on_where_they_left(small: tuple[Invoke, Path]) -> None:
    invoke, tree = small
    with at_terminal(invoke, "--tree", tree) as learner:
        assert "== 1/13  Get a kernel tree" in learner.reads(PROMPT)
        learner.types(ENTER)
        assert "ok   Linux 6.1 is there" in learner.reads("== 2/13")
        learner.reads(PROMPT)
        learner.types("s" + ENTER)
        learner.reads("== 3/13")
        learner.reads(PROMPT)
        learner.types("?" + ENTER)  # no key: asked again
        learner.reads(PROMPT)
        learner.types("b" + ENTER)
        learner.reads("== 2/13")
        learner.reads(PROMPT)
        learner.types("s" + ENTER)
        learner.reads("== 3/13")
        learner.reads(PROMPT)
        learner.types("q" + ENTER)
        learner.reads("`invoke tutorial` goes on at step 3.")
        assert learner.leaves() == 0
    with at_terminal(invoke, env={"NO_COLOR": "1", "LANG": "fr_FR.UTF-8"}) as learner:
        assert "Vous en étiez à l\u2019étape 3." in learner.reads("== 3/13")
        learner.reads("quitter > ")
        learner.types("\x04")
        learner.reads("reprendra à l\u2019étape 3.")
        assert learner.leaves() == 0


def test_what_holds_no_more_is_next(small: tuple[Invoke, Path]) -> None:
    invoke, tree = small
    assert invoke("setup", "--tree", tree).code == 0
    state = {"step": 7, "choices": {"ip": "1.2.3.4", "on": "netns", "tree": str(tree)}}
    (invoke.workspace / "tutorial.json").write_text(json.dumps(state))
    with at_terminal(invoke) as learner:  # nobody has patched the Makefile
        learner.reads("Step 5 was done and isn't any more")
        learner.reads("== 5/13")
        learner.reads(PROMPT)
        learner.types(ENTER)
        learner.reads("ok   The Makefile has its lines; this tree's word for programs is tprogs-y.")
        learner.reads("== 6/13")
    assert invoke("tutorial", "--restart", "--list").code == 0
    assert not (invoke.workspace / "tutorial.json").exists()


def test_a_shell_to_look_around(small: tuple[Invoke, Path], tmp_path: Path) -> None:
    invoke, tree = small
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\necho "in $INVOKE_WORKSPACE: $(command -v invoke)"\nsleep 1d\n')
    shell.chmod(0o755)
    env = {"NO_COLOR": "1", "SHELL": str(shell)}
    with at_terminal(invoke, "--tree", tree, env=env) as learner:
        learner.reads(PROMPT)
        learner.types("!" + ENTER)
        learner.reads(f"in {invoke.workspace}: {Path(sys.executable).parent}/invoke")
        learner.types("\x03")  # the shell's, and not the tutorial's
        learner.reads(PROMPT)
        learner.types("q" + ENTER)
        assert learner.leaves() == 0


def test_panels_where_there_is_colour(small: tuple[Invoke, Path]) -> None:
    invoke, tree = small
    env = {"COLUMNS": "60", "LINES": "20"}
    with at_terminal(invoke, "--tree", tree, env=env) as learner:
        shown = learner.reads(PROMPT)
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "\x1b[" in shown
    assert "1/13  Get a kernel tree" in plain
    assert {len(line) for line in plain.splitlines() if line.startswith("│")} == {60}


@pytest.mark.tree
@pytest.mark.root
@pytest.mark.parametrize("how", ["\x03", "\x04"])
def test_whoever_leaves_leaves_nothing_attached(lab: Invoke, how: str) -> None:
    with at_terminal(lab, "--from", "8", "--on", "netns") as learner:
        learner.reads(PROMPT)
        learner.types(ENTER)
        learner.reads("ok   It runs: program")
        learner.reads(PROMPT)
        assert programs(lab)
        learner.types(how)
        learner.reads("detached: nothing of it is left on lo")
        assert learner.leaves() == (130 if how == "\x03" else 0)
    assert programs(lab) == []
    assert json.loads((lab.workspace / "tutorial.json").read_text())["step"] == 9


@pytest.mark.tree
@pytest.mark.root
def test_a_tutorial_that_is_killed_leaves_nothing_attached(lab: Invoke) -> None:
    with at_terminal(lab, "--from", "8", "--on", "netns") as learner:
        learner.reads(PROMPT)
        learner.types(ENTER)
        learner.reads("ok   It runs: program")
        learner.process.kill()
        learner.leaves()
    wait_until(lambda: programs(lab) == [])


# ---- what goes wrong


def fails(outcome: Outcome, code: int, *words: str) -> None:
    """It ended with the code, and its last words were an error and its cure."""
    error, cure = outcome.err.splitlines()[-2:]
    assert outcome.code == code, outcome.err
    assert error.startswith("error: ")
    assert cure.startswith("  ")
    assert all(word in error + cure for word in words), outcome.err
    assert "Traceback" not in outcome.err


def edit(file: Path, right: str, wrong: str) -> None:
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong))


@pytest.mark.parametrize(
    ("step", "file", "right", "wrong", "sentence", "detail"),
    [
        ("5", "linux/samples/bpf/Makefile", "tprogs-y", "obj-y",
         "The Makefile hasn't got its lines:", "dialect"),
        ("6", "checkout/xdp_ip_filter_kern.c", "XDP_DROP", "XDP_PASS",
         "The kernel half lacks something", "XDP_DROP"),
        ("7", "linux/Makefile", "@cp /bin/true", "@false",
         "There is no build of the pair as it is now", "make M=samples/bpf failed"),
        ("8", "linux/Makefile", "/bin/true", "/bin/false", "No filter runs", "did not attach"),
    ],
)  # fmt: skip
def test_a_broken_step_is_caught(
    small: tuple[Invoke, Path], step: str, file: str, right: str, wrong: str, sentence: str,
    detail: str,
) -> None:  # fmt: skip
    invoke, tree = small
    if step == "8" and os.geteuid() != 0:
        pytest.skip("needs root")
    assert invoke("setup", "--tree", tree).code == 0
    edit(invoke.workspace.parent / file, right, wrong)
    outcome = invoke("tutorial", "--yes", "--from=5", "--on=netns", env={"LANG": "C"})
    fails(outcome, 1, f"step {step} of the tutorial failed", f"--step {step}")
    assert f"FAIL {sentence}" in outcome.out
    assert detail in outcome.out + outcome.err
    assert len(PASSED.findall(outcome.out)) == int(step) - 5


@pytest.mark.tree
@pytest.mark.root
@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("*counter += 1;", "*counter += 2;", "0 -> 2;"),
        ("return XDP_DROP;", "return XDP_PASS;", "1 from 192.168.1.78, 1"),
    ],
)
def test_a_filter_that_miscounts_is_caught(
    lab: Invoke, tmp_path: Path, right: str, wrong: str, found: str
) -> None:
    invoke = Invoke(tmp_path / "workspace", cwd=copy_checkout(tmp_path / "checkout"))
    edit(invoke.cwd / "xdp_ip_filter_kern.c", right, wrong)
    tree = (lab.workspace / "current").read_text().strip()
    for command in ("setup", "build"):
        assert invoke(command, "--tree", tree).code == 0
    outcome = invoke("tutorial", "--yes", "--step", "11", env={"LANG": "C"})
    fails(outcome, 1, "step 11 of the tutorial failed")
    assert "FAIL The packet did not die" in outcome.out
    assert found in outcome.out
    assert "detached: nothing of it is left" in outcome.out


def test_a_learner_tries_a_broken_step_again(small: tuple[Invoke, Path]) -> None:
    invoke, tree = small
    assert invoke("setup", "--tree", tree).code == 0
    edit(tree / "samples/bpf/Makefile", "tprogs-y", "obj-y")
    with at_terminal(invoke, "--from", "5") as learner:
        learner.reads(PROMPT)
        learner.types(ENTER)
        learner.reads("FAIL")
        learner.reads("The Makefile hasn't got its lines:")
        learner.reads(PROMPT)
        edit(tree / "samples/bpf/Makefile", "obj-y", "tprogs-y")
        learner.types(ENTER)
        learner.reads("ok   The Makefile has its lines")
        learner.reads("== 6/13")


def test_what_this_machine_can_not_do_is_no_failure(small: tuple[Invoke, Path]) -> None:
    invoke, tree = small
    path = path_without(tree.parent / "bin", "bison")
    outcome = invoke("tutorial", "--yes", "--tree", tree, env={"LANG": "C", "PATH": path})
    fails(outcome, 69, "step 1 of the tutorial can't be taken here", "--yes --from 1")
    assert "not found on PATH: bison" in outcome.err


# ---- what is asked for


def test_nobody_at_a_terminal(invoke: Invoke) -> None:
    outcome = invoke("tutorial")
    assert_refused(outcome, 2, "needs a terminal", "invoke tutorial --yes", "--list")
    assert not invoke.workspace.exists()


@pytest.mark.parametrize("option", ["--from", "--step"])
@pytest.mark.parametrize("given", ["", "0", "14", "1.5", "two"])
def test_a_step_that_there_is_none_of(invoke: Invoke, option: str, given: str) -> None:
    assert_refused(invoke("tutorial", "--yes", f"{option}={given}"), 2, option, repr(given))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lang=de"], "--lang takes one of: en, fr"),
        (["--on=moon"], "--on takes one of: host, netns, vm"),
        (["--on=netns", "--boot=6.1"], "--boot"),
        (["--ip=1.2.3"], "IPv4"),
        (["--kernel=six"], "not a kernel version"),
    ],
)
def test_a_choice_that_is_none(invoke: Invoke, options: list[str], words: str) -> None:
    assert_refused(invoke("tutorial", "--yes", *options), 2, words)
    assert not invoke.workspace.exists()


def test_the_list_tells_what_is_done(small: tuple[Invoke, Path]) -> None:
    invoke, tree = small
    for command in ("setup", "build"):
        assert invoke(command, "--tree", tree).code == 0
    outcome = invoke("tutorial", "--list", env={"LANG": "C"})
    assert outcome.code == 0, outcome.err
    marks = [line.partition("  ")[0].split()[:1] == ["ok"] for line in outcome.out.splitlines()]
    done = [number for number, is_done in enumerate(marks, 1) if is_done]
    assert done == [1, 2, 3, 5, 6, 7]


def test_a_dry_run_shows_all_and_does_nothing(invoke: Invoke) -> None:
    outcome = invoke("--dry", "tutorial", "--kernel=v5.10", "--on=netns", "--restart")
    assert outcome.code == 0, outcome.err
    assert len(HEADS.findall(outcome.out)) == len(STEPS)
    for command in ("setup --kernel v5.10", "patch --show", "send --ip 192.168.1.78 --on netns"):
        assert f"$ invoke {command}\n" in outcome.out
    assert not invoke.workspace.exists()


def test_clean_forgets_how_far_somebody_was(small: tuple[Invoke, Path]) -> None:
    invoke, tree = small
    with at_terminal(invoke, "--tree", tree, "--from", "6") as learner:
        learner.reads(PROMPT)
        learner.types("s" + ENTER)
        learner.reads("== 7/13")
    assert (invoke.workspace / "tutorial.json").exists()
    assert invoke("clean").code == 0
    assert not (invoke.workspace / "tutorial.json").exists()
