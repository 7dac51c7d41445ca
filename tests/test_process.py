"""Real commands, run by the one place that runs commands."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st

from xdplab.errors import CommandFailed, MissingTools
from xdplab.process import Line, Shell, lives, pasteable, scratch, since
from xdplab.workspace import PROJECT

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
argvs = st.lists(words, min_size=1, max_size=5)


def script(text: str) -> list[str]:
    return ["sh", "-c", text]


def group(leader: int) -> list[int]:
    """The processes of a process group that still live, out of /proc (see proc(5))."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, pgrp = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        if int(pgrp) == leader and state not in "ZX":
            members.append(int(stat.parent.name))
    return members


def is_gone(leader: int) -> bool:
    """Whether no process of the group lives; the kernel may take a moment to kill."""
    for _ in range(1000):
        if not group(leader):
            return True
        time.sleep(0.01)
    return False


# ---- what a command prints


def test_lines_come_while_the_command_runs() -> None:
    with Shell().start(script('read -r word; echo "$word"; read -r word; echo "$word"')) as running:
        lines = running.lines(timeout=60)
        running.write("first")
        assert next(lines) == Line("out", "first")
        running.write("second")
        assert next(lines) == Line("out", "second")
        assert list(lines) == []


def test_standard_error_is_told_apart() -> None:
    finished = Shell().run(script("echo a; echo b >&2; echo c"))
    assert finished.text() == "a\nc"
    assert finished.text("err") == "b"
    assert sorted(finished.text("out", "err").split()) == ["a", "b", "c"]


def test_each_line_is_told_once() -> None:
    told: list[Line] = []
    finished = Shell().run(script("seq 1000; seq 1000 >&2"), on_line=told.append)
    assert tuple(told) == finished.lines
    for stream in ("out", "err"):
        numbers = [int(line.text) for line in told if line.stream == stream]
        assert numbers == [*range(1, 1001)]


def test_whoever_asks_after_the_end_learns_that_it_is_the_end() -> None:
    with Shell().start(["echo", "once"]) as running:
        assert [line.text for line in running.lines()] == ["once"]
        assert list(running.lines()) == []


def test_bytes_that_are_no_text_are_kept_visible(tmp_path: Path) -> None:
    log = tmp_path / "log"
    finished = Shell().run(["printf", r"a\377b\nc\r\n"], log=log)
    assert [line.text for line in finished.lines] == ["a\\xffb", "c\r"]
    assert log.read_bytes().splitlines()[1:] == [b"a\\xffb", b"c"]


def test_a_last_line_without_newline_is_a_line() -> None:
    assert Shell().run(["printf", "cpu 4, val"]).text() == "cpu 4, val"


def test_the_log_has_the_command_and_all_that_it_printed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text in ("seq 500", "seq 500 >&2"):
        Shell().run(script(text), log=log)
    numbers = [str(number) for number in range(1, 501)]
    assert log.read_text().splitlines() == [
        "$ sh -c 'seq 500'", *numbers, "$ sh -c 'seq 500 >&2'", *numbers,
    ]  # fmt: skip


# ---- how it ends


def test_an_error_tells_the_command_its_code_and_its_last_words() -> None:
    with pytest.raises(CommandFailed) as failed:
        Shell().run(script("echo said; echo complained >&2; exit 3"))
    assert "exit code 3: sh -c 'echo said" in failed.value.message
    assert failed.value.cure == "complained"


def test_an_error_that_may_be_is_no_exception() -> None:
    assert Shell().run(["false"], check=False).code == 1
    assert Shell().ask(["false"]).code == 1


def test_a_killed_command_has_no_good_exit_code() -> None:
    assert Shell().ask(script("kill -KILL $$")).code == -signal.SIGKILL


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingTools, match="no-such-program-here"):
        Shell().run(["no-such-program-here", "-v"])


def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("true\n")
    with pytest.raises(MissingTools, match=f"{tmp_path}/data"):
        Shell().run([tmp_path / "data"])


def test_a_directory_that_is_not_there_is_no_missing_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Shell().run(["true"], cwd=tmp_path / "nowhere")


def test_a_command_runs_where_and_with_what_it_is_told(tmp_path: Path) -> None:
    finished = Shell().run(script('pwd; echo "$WORD"'), cwd=tmp_path, env={"WORD": "given"})
    assert finished.text().split("\n") == [str(tmp_path), "given"]


def test_a_command_has_an_empty_standard_input() -> None:
    assert Shell().run(["cat"]).lines == ()


def test_writing_to_a_process_that_is_gone_does_no_harm() -> None:
    with Shell().start(["true"]) as running:
        running.wait(60)
        running.write("anybody?")
        running.end_input()
        running.end_input()


# ---- what it started goes with it


@pytest.mark.parametrize(
    "text",
    [
        "sleep 1000 & echo ready; sleep 1000",
        "trap '' TERM; sleep 1000 & echo ready; while :; do sleep 1; done",
        "(trap '' TERM; echo ready; sleep 1000; sleep 1000) & sleep 1000",
        "sleep 1000 & echo ready; exit 0",
    ],
    ids=["a-child", "deaf", "a-deaf-child", "an-orphan"],
)
def test_after_a_timeout_the_whole_group_is_dead(text: str) -> None:
    # ready: what has to outlive the command, or be deaf, is there by then
    with Shell().start(script(text)) as running:
        assert next(running.lines(timeout=60)).text == "ready"
        assert group(running.pid)
        with pytest.raises(TimeoutError):
            list(running.lines(timeout=0.2))
    assert is_gone(running.pid)


def test_an_exception_ends_the_command_too() -> None:
    running = Shell().start(["sleep", "1000"])
    with pytest.raises(KeyboardInterrupt), running:
        raise KeyboardInterrupt
    assert is_gone(running.pid)


def test_a_command_is_asked_politely_first() -> None:
    text = "trap 'echo bye; exit 7' TERM; echo ready; while :; do :; done"
    with Shell().start(script(text)) as running:
        lines = running.lines(60)
        assert next(lines).text == "ready"
        running.end()
        assert [line.text for line in lines] == ["bye"]
    assert running.wait() == 7


def test_a_child_may_clear_up_behind_it_though_the_command_is_gone(tmp_path: Path) -> None:
    child = "trap 'sleep 0.3; touch cleared; exit' TERM; echo ready; while :; do sleep 0.02; done"
    with Shell().start(["sh", "-c", 'sh -c "$1" & sleep 1000', "sh", child], cwd=tmp_path) as run:
        assert next(run.lines(60)).text == "ready"
    assert (tmp_path / "cleared").exists()
    assert is_gone(run.pid)


def test_a_zombie_that_nobody_reaps_does_not_live() -> None:
    with subprocess.Popen(["sleep", "1000"], process_group=0) as process:
        assert lives(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.killpg(process.pid, 0)  # to kill(2) it is there
        assert not lives(process.pid)
    assert not lives(process.pid)


def test_ctrl_c_does_not_reach_the_command_by_itself() -> None:
    with Shell().start(["sleep", "1000"]) as running:
        assert os.getpgid(running.pid) != os.getpgid(0)


def test_waiting_too_long_is_a_timeout() -> None:
    with Shell().start(["sleep", "1000"]) as running, pytest.raises(TimeoutError):
        running.wait(0.01)


# ---- what is echoed


@given(argvs)
def test_an_echoed_command_is_split_into_the_same_words(argv: list[str]) -> None:
    assert shlex.split(pasteable(argv)) == argv


@given(argvs)
def test_an_echoed_command_does_the_same_when_pasted(argv: list[str]) -> None:
    pasted = pasteable(["printf", r"%s\0", *argv])
    printed = subprocess.run(["sh", "-c", pasted], capture_output=True, check=True).stdout
    assert printed.decode().split("\0")[:-1] == argv


@pytest.mark.parametrize("name", ["plain", "with space", "it's", "$HOME"])
def test_directory_and_environment_are_pasted_too(name: str, tmp_path: Path) -> None:
    directory = tmp_path / name
    directory.mkdir()
    pasted = pasteable(script('pwd; echo "$WORD"'), directory, {"WORD": "a 'b' $c"})
    printed = subprocess.run(["sh", "-c", pasted], capture_output=True, check=True).stdout
    assert printed.decode().split("\n") == [str(directory), "a 'b' $c", ""]


def test_every_command_is_echoed_once_as_it_is_run() -> None:
    echoed: list[str] = []
    shell = Shell(echoed.append)
    shell.run(["true"])
    shell.ask(["echo", "a b"])
    with shell.start(["true"], env={"LC_ALL": "C"}):
        pass
    assert echoed == ["true", "echo 'a b'", "LC_ALL=C true"]


# ---- dry


def test_a_dry_run_only_echoes(tmp_path: Path) -> None:
    echoed: list[str] = []
    finished = Shell(echoed.append, dry=True).run(["touch", tmp_path / "made"])
    assert echoed == [f"touch {tmp_path / 'made'}"]
    assert (finished.code, finished.lines) == (0, ())
    assert not (tmp_path / "made").exists()


def test_a_dry_run_of_a_missing_program_is_no_error() -> None:
    assert Shell(dry=True).run(["no-such-program-here"]).code == 0


def test_what_only_reads_is_run_in_a_dry_run_too() -> None:
    assert Shell(dry=True).ask(["echo", "read"]).text() == "read"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs nothing to be root")
def test_root_needs_no_sudo() -> None:
    program, *words = Shell().as_root(["ip", "link"], "for a test")
    assert Path(program).is_absolute()
    assert (Path(program).name, words) == ("ip", ["link"])


def test_when_a_process_began() -> None:
    before = time.time()
    with subprocess.Popen(["sleep", "300"]) as process:
        after = time.time()
        assert before - 1 < since(process.pid) < after + 1  # the kernel counts in ticks
        process.kill()
    with pytest.raises(OSError, match="No such file"):
        since(process.pid)


# ---- a place to work in

KEPT_BUSY = """
import time
from xdplab.process import scratch
with scratch() as place:
    (place / "work").touch()
    print(place, flush=True)
    time.sleep(300)
"""


def test_a_scratch_directory_goes_with_the_block_and_with_whoever_is_killed() -> None:
    with scratch() as place:
        (place / "work").touch()
    assert not place.exists()
    with subprocess.Popen(
        [sys.executable, "-c", KEPT_BUSY], cwd=PROJECT, text=True, stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        place = Path(process.stdout.readline().strip())
        assert (place / "work").exists()
        os.killpg(process.pid, signal.SIGKILL)
        wait_until(lambda: not place.exists())


def test_what_leaves_temporary_files_has_a_directory_for_them_that_goes() -> None:
    echoed: list[str] = []
    shell = Shell(echoed.append)
    argv = script('touch "$TMPDIR/left"; echo "$TMPDIR"')
    place = Path(shell.run(argv, leaves=True).text())
    assert place.is_absolute()
    assert not place.exists()
    assert echoed == [pasteable(argv)]
    assert Shell(dry=True).run(argv, leaves=True).lines == ()


# ---- asked to end

ORDERLY = """
import pathlib, sys, time
from xdplab.process import take_ends_like_ctrl_c
take_ends_like_ctrl_c()
try:
    print("begun", flush=True)
    time.sleep(300)
except KeyboardInterrupt:
    print("ending", flush=True)
    sys.stdin.readline()
    pathlib.Path(sys.argv[1]).touch()
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_whoever_is_asked_to_end_does_so_in_good_order(
    first: signal.Signals, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORDERLY, tmp_path / "orderly"], cwd=PROJECT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(first)
        assert process.stdout.readline() == "ending\n"
        for again in (signal.SIGTERM, signal.SIGHUP):  # of a shell, and of its terminal
            process.send_signal(again)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.wait(60) == 0
    assert (tmp_path / "orderly").exists()


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    with subprocess.Popen(
        ["nohup", sys.executable, "-c", ORDERLY, tmp_path / "orderly"], cwd=PROJECT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGHUP)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "ending\n"
        process.communicate("go on\n", timeout=60)
