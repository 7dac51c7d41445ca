"""What kernel halves log: whose lines they are, and how they are followed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import (
    PROJECT,
    Background,
    Invoke,
    assert_refused,
    copy_pair,
    processes_in,
    wait_until,
)
from hypothesis import given
from hypothesis import strategies as st

from xdplab.boot import Kernel
from xdplab.files import write_json
from xdplab.tracing import Log, Logged, formats, logged

TUTORIAL = [
    "starting xdp ip filter\n",
    "the ip address to filter is %u\n",
    "source ip address is %u\n",
]

# ---- formats


def test_the_tutorials_formats_are_read_from_its_source() -> None:
    assert formats((PROJECT / "xdp_ip_filter_kern.c").read_text()) == [*TUTORIAL, "GPL"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (r'bpf_printk("one\n"); /* "no" */ bpf_printk("two"); // "no"', ["one\n", "two"]),
        ('"a"\n\t"b" "c", "d"', ["abc", "d"]),
        (r'"say \"hi\"" "\\\x41\101\t"', ['say "hi"\\AA\t']),
        ("'\"' \"one\" '\\''", ["one"]),
        ('#include "none.h"\n # include <a"b>\n"one"', ["one"]),
        ('SEC("xdp") char fmt[] = "one\\\ntwo";', ["onetwo"]),
        ('"é ☃"', ["é ☃"]),
        ('"open\n', []),
    ],
)
def test_string_literals(source: str, found: list[str]) -> None:
    assert formats(source) == found


@given(st.text())
def test_no_source_is_fatal(source: str) -> None:
    Log(formats(source)).take(source)


# ---- lines, as kernels have printed them

HEAD = "            ping-4711    [001] ..s2.  1234.500000: bpf_trace_printk: "


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (  # before v5.9 a line is not an event's
            "            bash-5412  [001] .... 90432.904952: 0: Hello World",
            Logged("Hello World", 1, 90432.904952, "bash-5412"),
        ),
        (
            " systemd-journal-404   [000] ....  1204.523418: 0x00000001: Hello, World!",
            Logged("Hello, World!", 0, 1204.523418, "systemd-journal-404"),
        ),
        (
            "          <idle>-0     [004] .Ns2. 24174.812729: bpf_trace_printk: Source: 0xa000001",
            Logged("Source: 0xa000001", 4, 24174.812729, "<idle>-0 in softirq"),
        ),
        (
            "           <...>-2866    [000] d...2.1   590.130406: bpf_trace_printk: hi",
            Logged("hi", 0, 590.130406, "<...>-2866"),
        ),
        (
            "kworker/u9:2-581     [000] d.s.1  3752.112209: bpf_trace_printk: Hello World 1577",
            Logged("Hello World 1577", 0, 3752.112209, "kworker/u9:2-581 in softirq"),
        ),
        (  # with the option record-tgid
            "     Web Content-2200  (   2198) [003] d.h1.    95.000001: bpf_trace_printk: a: b",
            Logged("a: b", 3, 95.000001, "Web Content-2200 in hardirq"),
        ),
        (
            "CPU:3 [LOST 497 EVENTS]",
            Logged("497 lines are lost: they came faster than they are read", 3),
        ),
        (
            "CPU:3 [LOST EVENTS]",
            Logged("some lines are lost: they came faster than they are read", 3),
        ),
        ("", None),
        ("no line of the log", None),
    ],
)
def test_lines_of_all_eras(line: str, found: Logged | None) -> None:
    assert Log([], everything=True).take(line) == found


def texts(log: Log, *lines: str) -> list[str]:
    return [line.text for line in logged(lines, log)]


def test_only_what_our_formats_can_have_made_is_ours() -> None:
    log = Log(["value %d of %s (100%%)\n", "%-8s|%5u|%#x|%llu", "at %pI4:%hu"])
    ours = ["value -3 of a b (100%)", "ab      |    7|0x1f|18446744073709551615", "at 10.0.0.1:80"]
    others = ["value 3 of x (100", "value x of y (100%)", "at 10.0.0.1:", "a value 3 of x (100%)"]
    assert texts(log, *(HEAD + text for text in ours + others)) == ours


def test_addresses_are_told_as_people_write_them() -> None:
    log = Log([*TUTORIAL, "saddr=%u len %u", "ship %u"])
    said = [
        "the ip address to filter is 1308731584",
        "saddr=16777343 len 84",
        "ship 16777343",
        "source ip address is 99999999999",  # no u32
    ]
    assert texts(log, *(HEAD + text for text in said)) == [
        "the ip address to filter is 1308731584 (192.168.1.78)",
        "saddr=16777343 len 84 (127.0.0.1)",
        "ship 16777343",
        "source ip address is 99999999999",
    ]


def test_the_rest_of_a_text_goes_with_its_first_line() -> None:
    lines = [f"{HEAD}first", "second", "", f"{HEAD}another's", "rest of another's"]
    assert texts(Log(["first\nsecond\n"]), *lines) == ["first", "second"]
    every = ["first", "second", "another's", "rest of another's"]
    assert texts(Log([], everything=True), *lines) == every


@given(st.lists(st.text()), st.lists(st.text() | st.text().map(HEAD.__add__)))
def test_no_line_is_fatal(forms: list[str], lines: list[str]) -> None:
    shown = list(logged(lines, Log(forms)))
    assert len(shown) <= len(list(logged(lines, Log(forms, everything=True)))) <= len(lines)


words = st.text(st.characters(exclude_characters="%\n", exclude_categories=["Cs"]))


@given(st.lists(st.tuples(words, st.integers(0, 2**32 - 1))), words)
def test_what_a_format_made_is_recognised(parts: list[tuple[str, int]], last: str) -> None:
    form = "".join(f"{text}%u " for text, _ in parts) + last
    made = "".join(f"{text}{number} " for text, number in parts) + last
    found = Log([form]).take(HEAD + made)
    assert found
    assert found.text.startswith(made)


# ---- really

MOUNTED = (
    "set -e; cd /sys/kernel/tracing; [ -e trace_pipe ] || mount -t tracefs tracefs $PWD; cd {};"
    ' exec "$@"'
)
IN_TRACEFS = ("unshare", "--mount", "sh", "-c", MOUNTED.format("$PWD/instances"), "sh")
LINE = re.compile(r"^\d+\.\d{6} cpu \d+ \S+ in softirq: (.*)$", re.MULTILINE)


def really(test: Callable[..., None]) -> Callable[..., None]:
    """A test of the real log of this machine's kernel, or of a virtual machine's."""
    marked: Callable[..., None] = pytest.mark.tree(pytest.mark.root(test))
    return marked


def instances() -> set[str]:
    """The readers' tracefs instances."""
    found = subprocess.run([*IN_TRACEFS, "ls"], capture_output=True, text=True, check=True)
    return {name for name in found.stdout.split() if name.startswith("xdplab-")}


def instance_of(background: Background) -> str:
    """The instance of a command's own reader: others on this machine may have theirs."""
    (mine,) = (name for name in instances() if parent(name) == background.process.pid)
    return mine


def parent(instance: str) -> int | None:
    """Who started the reader that an instance is named for; None if it is gone."""
    try:
        status = Path(f"/proc/{instance.rpartition('-')[2]}/status").read_text()
    except OSError:
        return None
    return int(re.findall(r"^PPid:\s+(\d+)", status, re.MULTILINE)[0])


def lines_from(address: str, number: int) -> list[str]:
    return [
        "starting xdp ip filter",
        "the ip address to filter is 1308731584 (192.168.1.78)",
        f"source ip address is {number} ({address})",
    ]


BLOCKED, OTHER = lines_from("192.168.1.78", 1308731584), lines_from("127.0.0.5", 83886207)


@pytest.fixture(scope="module")
def tracing(labs: Callable[[str], Invoke], tmp_path_factory: pytest.TempPathFactory) -> Invoke:
    """The pair, built to log."""
    tree = (labs("6.1").workspace / "current").read_text().strip()
    invoke = Invoke(tmp_path_factory.mktemp("tracing") / "workspace")
    for command in (["setup", "--tree", tree], ["build", "--trace"]):
        outcome = invoke(*command)
        assert outcome.code == 0, outcome.err
    return invoke


@pytest.fixture(scope="module")
def somebody_else(tracing: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Invoke:
    """A program that logs other texts, and where it was built."""
    directory = tmp_path_factory.mktemp("other")
    kern, _ = copy_pair(directory / "pair")
    kern.write_text(kern.read_text().replace("starting", "somebody else's"))
    kern.rename(kern.with_name("other_kern.c"))
    user = directory / "pair/xdp_ip_filter_user.c"
    user.with_name("other_user.c").write_text(
        user.read_text().replace("xdp_ip_filter_kern.o", "other_kern.o")
    )
    invoke = Invoke(directory / "workspace")
    tree = (tracing.workspace / "current").read_text().strip()
    for command in (
        ["setup", "--tree", tree],
        ["build", "--trace", "--sample", directory / "pair/other_kern.c"],
    ):
        outcome = invoke(*command)
        assert outcome.code == 0, outcome.err
    return invoke


@contextlib.contextmanager
def running(lab: Invoke, *options: str | Path) -> Iterator[Background]:
    with lab.start("run", "--on=netns", "--interval=0.1", *options) as background:
        background.wait_for("round 0")
        yield background


@contextlib.contextmanager
def following(lab: Invoke, *options: str) -> Iterator[Background]:
    with lab.start("log", *options) as background:
        background.wait_for("following it until")
        yield background


def send(lab: Invoke, address: str, on: str = "netns") -> None:
    outcome = lab("send", f"--on={on}", f"--ip={address}")
    assert outcome.code == 0, outcome.err


@really
def test_a_run_shows_its_log_beside_the_counters(tracing: Invoke) -> None:
    with running(tracing, "--trace") as background:
        mine = instance_of(background)
        assert "forty times" in background.err
        send(tracing, "192.168.1.78")
        background.wait_for("total 1", BLOCKED[-1])
        send(tracing, "127.0.0.5")
        background.wait_for(OTHER[-1])
        outcome = background.interrupt()
    assert outcome.code == 0, outcome.err
    said = LINE.findall(outcome.err)
    assert [said[:3], said[3:6]] == [BLOCKED, OTHER]
    assert not LINE.findall(outcome.out)
    assert mine not in instances()


@really
def test_a_second_terminal_follows_until_the_run_ends(tracing: Invoke) -> None:
    with running(tracing) as background:
        with following(tracing, "--on=netns") as log:
            mine = instance_of(log)
            send(tracing, "192.168.1.78")
            log.wait_for(BLOCKED[-1])
            background.interrupt()
            outcome = log.wait()
        assert not LINE.findall(background.err)  # it wasn't asked to
    assert outcome.code == 0, outcome.err
    assert LINE.findall(outcome.out) == BLOCKED
    assert mine not in instances()


@really
def test_what_another_program_logs_is_not_shown(tracing: Invoke, somebody_else: Invoke) -> None:
    sample = next((somebody_else.workspace.parent / "pair").glob("other_kern.c"))
    with (
        running(tracing),
        running(somebody_else, "--sample", sample),
        following(tracing, "--on=netns") as log,
        following(tracing, "--on=netns", "--all") as every,
        following(somebody_else, "--on=netns") as theirs,
    ):
        send(somebody_else, "192.168.1.78")
        every.wait_for("somebody else's xdp ip filter")
        theirs.wait_for("somebody else's xdp ip filter")
        send(tracing, "127.0.0.5")
        for one in (log, every):
            one.wait_for(OTHER[-1])
        assert "somebody else's" not in log.interrupt().out
        assert "starting xdp" not in theirs.interrupt().out


@really
@pytest.mark.parametrize("victims", ["invoke", "shell", "reader", "both"])
def test_what_is_killed_leaves_no_instance_for_long(tracing: Invoke, victims: str) -> None:
    with following(tracing, "--all") as log:
        mine = instance_of(log)
        shell = int(mine.rpartition("-")[2])
        if victims == "shell":
            os.kill(shell, signal.SIGKILL)
        if victims in ("reader", "both"):
            os.killpg(os.getpgid(shell), signal.SIGKILL)
        if victims in ("invoke", "both"):
            log.process.kill()
        if victims == "reader":
            assert_refused(log.wait(), 69, "reader of the kernel's log")
        else:
            log.interrupt()
        wait_until(lambda: mine not in instances())


@really
def test_clean_removes_what_a_killed_reader_left(invoke: Invoke) -> None:
    left = "xdplab-99999999"  # larger than any process's number
    subprocess.run([*IN_TRACEFS, "mkdir", left], check=True)
    assert invoke("clean").code == 0
    assert left in instances()  # a workspace that never logged has nothing to do with it
    record = {"on": "netns", "build": {"logs": TUTORIAL}}
    write_json(invoke.workspace / "runs/one/run.json", record)
    assert invoke("clean").code == 0
    assert left not in instances()


@really
def test_without_a_log_nobody_waits_for_one(lab: Invoke) -> None:
    cure = "invoke build --trace"
    assert_refused(lab("run", "--on=netns", "--trace"), 2, "logs nothing", cure, "forty times")
    with running(lab):
        assert_refused(lab("log", "--on=netns"), 2, "xdp_ip_filter as it is built", cure)


@really
def test_a_sample_that_has_nothing_to_log_is_told_so(lab: Invoke, tmp_path: Path) -> None:
    kern, _ = copy_pair(tmp_path / "pair")
    kern.write_text(kern.read_text().replace("#ifdef TRACE", "#if 0"))
    mine = Invoke(tmp_path / "workspace")
    tree = ("--tree", (lab.workspace / "current").read_text().strip())
    assert mine("build", "--trace", *tree, "--sample", kern).code == 0
    outcome = mine("run", "--on=netns", "--trace", *tree, "--sample", kern)
    assert_refused(outcome, 2, "logs nothing", f"call bpf_printk() in {kern}")


@pytest.mark.parametrize("on", ["host", "netns", "vm"])
def test_without_a_run_there_is_no_log(invoke: Invoke, on: str) -> None:
    assert_refused(invoke("log", f"--on={on}"), 2, f"no filter runs on {on}", "invoke run")


def test_where_and_how_long_are_looked_at(invoke: Invoke) -> None:
    assert_refused(invoke("log", "--on=cloud"), 2, "--on takes one of: host, netns, vm")
    assert_refused(invoke("log", "--duration=long"), 2, "--duration")


@really
def test_a_kernel_without_tracefs(invoke: Invoke) -> None:
    hidden = 'mount -t tmpfs none /sys/kernel && exec "$@"'  # for this command alone
    under = ("unshare", "--mount", "sh", "-c", hidden, "sh")
    outcome = invoke("log", "--all", under=under)
    assert_refused(outcome, 69, "mount -t tracefs tracefs /sys/kernel/tracing", "mount point")


@really
def test_where_tracefs_is_mounted_it_is_used(invoke: Invoke) -> None:
    under = ("unshare", "--mount", "sh", "-c", MOUNTED.format("$OLDPWD"), "sh")
    outcome = invoke("log", "--all", "--duration=0.1", under=under)
    assert outcome.code == 0, outcome.err


@really
def test_only_the_reader_is_root(nobody: Path, with_sudo: tuple[str | Path, ...]) -> None:
    theirs = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    before = instances()
    env = {"HOME": str(nobody)}
    outcome = theirs("log", "--all", "--duration=0.5", env=env, under=with_sudo)
    assert outcome.code == 0, outcome.err
    (command,) = outcome.commands()
    assert re.match(r"/\S+/sudo -n /\S+/unshare --mount sh /", command)
    wait_until(lambda: all(map(parent, instances() - before)))  # others may read meanwhile


@pytest.mark.tree
def test_a_virtual_machines_log(tracing: Invoke, bootable: Callable[[str], Kernel]) -> None:
    options = ["--on=vm", f"--boot={bootable('6.1-cloud').image.parent}", "--dev=eth0"]
    with tracing.start("run", *options, "--trace", "--interval=0.1") as background:
        background.wait_for("round 0")
        with following(tracing, "--on=vm") as log:
            send(tracing, "192.168.1.78", on="vm")
            for one in (background, log):
                one.wait_for(BLOCKED[-1])
            assert background.interrupt().code == 0
            assert log.wait().code == 0
    assert LINE.findall(background.err) == LINE.findall(log.out) == BLOCKED
    assert processes_in(tracing.workspace / "runs") == []
