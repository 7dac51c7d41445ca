"""The packet filter's commands, for real: in a network namespace with a cable in it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import NOBODY, Invoke, Outcome, assert_refused, holder, wait_until

from xdplab.errors import InputError
from xdplab.filtering import Count, Counted, Device, Stats, Wanted
from xdplab.model import Policy, Side
from xdplab.rules import Ruleset, faults
from xdplab.view.filter import Picture, rule_lines, sentence

pytestmark = [pytest.mark.tree, pytest.mark.root]

# A cable that carries nothing but what is sent into it, and a bpf file system of its own.
PLACE = """
    ip link set lo up
    ip link add v0 type veth peer name v1
    ip link set v0 addrgenmode none; ip link set v1 addrgenmode none
    ip link set v0 up; ip link set v1 up
    ip address add 192.0.2.2/24 dev v0
    ip route add default via 192.0.2.1
    mount -t bpf bpf /sys/fs/bpf
"""
YES = ("--yes",)  # v0 has the default route: what that means is tests/trust/test_lockout.py's
SSH = {"SSH_CONNECTION": "203.0.113.5 4000 192.0.2.2 22"}
SEND = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
    wire.bind(("v1", 0))
    for frame in sys.argv[1:]:
        wire.send(bytes.fromhex(frame))
"""


@dataclass(frozen=True)
class Room:
    """A network and mount namespace, in which commands are run."""

    invoke: Invoke
    process: int

    @property
    def under(self) -> tuple[str, ...]:
        place = f"--wd={self.invoke.cwd}"
        return ("nsenter", f"--target={self.process}", "--net", "--mount", place)

    def __call__(self, *arguments: str | Path, **how: Any) -> Outcome:
        agreed = YES if "filter.load" in arguments else ()
        return self.invoke(*arguments, *agreed, **{"under": self.under, **how})

    def done(self, *arguments: str | Path, **how: Any) -> str:
        outcome = self(*arguments, **how)
        assert outcome.code == 0, outcome.err
        return outcome.out

    def run(self, *argv: str) -> str:
        return subprocess.run(
            [*self.under, *argv], capture_output=True, check=True, text=True
        ).stdout

    def send(self, *sources: str) -> None:
        """A frame of IPv4 from each source."""
        packet = bytes([0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0])
        ends = (bytes(map(int, source.split("."))) + bytes([192, 0, 2, 2]) for source in sources)
        frames = [(b"\2" * 12 + b"\x08\x00" + packet + one + bytes(26)).hex() for one in ends]
        self.run(sys.executable, "-c", SEND, *frames)

    def stats(self) -> Stats:
        """What the program itself says: faster than by invoke."""
        (program,) = self.invoke.workspace.glob("builds/*/xdp_filter/xdp_filter")
        return Stats.of(self.run(str(program), "stats").splitlines(), 0.0)

    def nothing_left(self) -> bool:
        return "xdp" not in self.run("ip", "link") and not self.run("ls", "/sys/fs/bpf").count(
            "xdp"
        )


@pytest.fixture(scope="module")
def built(labs: Callable[[str], Invoke]) -> Invoke:
    invoke = labs("6.1")
    outcome = invoke("build", "--sample", "xdp_filter")
    assert outcome.code == 0, outcome.err
    return invoke


@contextlib.contextmanager
def opened(invoke: Invoke) -> Iterator[Room]:
    with holder(PLACE) as process:
        yield Room(invoke, process)


@pytest.fixture
def room(built: Invoke) -> Iterator[Room]:
    with opened(built) as room:
        yield room


# ---- what it says


def test_numbers_are_told_in_words_and_as_a_picture() -> None:
    said = ["policy deny", "rules 2 of 10", "dev eth0 mode skb prog 7", "pass 5 500", "drop 0 0",
            "aborted 0 0", "something else"]  # fmt: skip
    before = Stats.of(said, at=10.0)
    assert before.devices == (Device("eth0", "skb", 7),)
    assert (before.policy, before.rules, before.max_rules) == (Policy.DENY, 2, 10)
    after = Stats.of([*said[:4], "drop 4000 240000", "aborted 0 0"], at=12.0)
    assert after.actions["drop"] == Count(4000, 240000)
    assert sentence(after, before) == (
        "pass 5 packets, 500 bytes, 0.0 a second;"
        " drop 4,000 packets, 240,000 bytes, 2,000.0 a second"
    )
    picture = Picture()
    assert picture.lines(80) == []
    picture.take(before)
    picture.take(after)
    first, *_, drops, aborted, sparkline = picture.lines(80)
    assert first == "policy deny on eth0 (skb mode); 2 of 10 rules"
    assert drops.split() == ["drop", "4,000", "240,000", "2,000.0"]
    assert aborted.split() == ["aborted", "0", "0", "0.0"]
    assert sparkline == "\N{FULL BLOCK}"


def test_the_list_of_rules_is_a_file_of_rules() -> None:
    counted = [
        Counted("src", "10.0.0.0/8", 1000, 5), Counted("both", "::1/128", 0, 0),
        Counted("dst", "192.0.2.1/32", 0, 0),
    ]  # fmt: skip
    lines = list(rule_lines(counted))
    assert lines[0] == "src 10.0.0.0/8  # 1,000 packets, 5 bytes"
    assert [line.partition("  #")[0] for line in lines] == [
        "src 10.0.0.0/8", "src,dst ::1", "dst 192.0.2.1",
    ]  # fmt: skip
    assert faults(lines, Side.DST, "list") == []


# ---- loaded


def test_a_filter_that_stays_is_changed_watched_and_ended(room: Room, tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("10.0.0.0/8  # everything\n10.1.2.3\ndst 192.0.2.77\n")
    outcome = room("filter.load", "v0,v1", "--rules", rules, "--stay")
    assert outcome.code == 0, outcome.err
    needless = "line 2: src 10.1.2.3/32 is needless: src 10.0.0.0/8, in line 1, covers all of it"
    assert f"{rules}, {needless}" in outcome.err
    assert "invoke filter.unload" in outcome.err

    room.send("10.1.2.3", "10.9.9.9", "172.16.0.1", "192.168.0.1")
    found = json.loads(room.done("filter.stats", "--json"))
    assert found["schema"] == 1
    assert [(one["dev"], one["mode"]) for one in found["devices"]] == [
        ("v0", "native"), ("v1", "native"),
    ]  # fmt: skip
    assert (found["policy"], found["rules"], found["max_rules"]) == ("allow", 3, 16384)
    assert found["actions"]["drop"] == {"packets": 2, "bytes": 120}
    assert found["actions"]["pass"]["packets"] >= 2

    room.done("filter.add", "172.16.0.0/12,2001:db8::/32", "--mode=src,dst")
    room.done("filter.remove", "10.1.2.3")
    room.send("10.1.2.3", "172.16.0.1")
    listed = room.done("filter.list")
    assert listed.splitlines() == [
        "src 10.0.0.0/8  # 2 packets, 120 bytes",
        "src,dst 172.16.0.0/12  # 1 packets, 60 bytes",
        "dst 192.0.2.77  # 0 packets, 0 bytes",
        "src,dst 2001:db8::/32  # 0 packets, 0 bytes",
    ]
    as_json = json.loads(room.done("filter.list", "--json"))
    assert as_json["schema"] == 1
    assert as_json["rules"][1] == {
        "mode": "src,dst", "address": "172.16.0.0/12", "packets": 1, "bytes": 60,
    }  # fmt: skip

    (program,) = {one["program"] for one in found["devices"]}
    seen = json.loads(room.done("status", "--json"))["programs"]
    ours = [one for one in seen if one["id"] == program]
    runs = [(one["dev"], one["run"]["policy"]) for one in ours]
    assert sorted(runs) == [("v0", "allow"), ("v1", "allow")]
    assert "runs xdp_filter since" in room.done("status")

    rules.write_text(listed)
    room.done("filter.remove", rules)
    assert room.stats().rules == 0
    room.done("filter.unload")
    assert room.nothing_left()


def test_a_filter_in_the_foreground_ends_with_its_command(room: Room) -> None:
    load = ("filter.load", "v0", *YES, "--interval=0.1", "--rules=10.0.0.0/8", "--json")
    with room.invoke.start(*load, under=room.under) as run:
        run.wait_for('"rules": 1')
        room.send("10.1.2.3")
        wait_until(lambda: '"drop": {"packets": 1' in run.out)
        room.done("filter.add", "192.168.0.0/16")
        run.wait_for('"rules": 2')
        outcome = run.interrupt()
    assert outcome.code == 0, outcome.err
    assert "nothing of the filter is left" in outcome.err
    assert room.nothing_left()
    with room.invoke.start(*load, under=room.under) as run:
        run.wait_for('"rules": 1')
        run.process.kill()
        wait_until(room.nothing_left)
    with room.invoke.start(*load, under=room.under) as run:
        run.wait_for('"rules": 1')
        room.done("filter.unload")
        assert run.wait().code == 0
    assert room.nothing_left()


@pytest.mark.parametrize("how", [["--stay"], []])
def test_for_a_time(room: Room, how: list[str]) -> None:
    outcome = room("filter.load", "v0", "--for=1s", *how)
    assert outcome.code == 0, outcome.err
    wait_until(room.nothing_left)


def test_more_rules_than_usual_make_room_for_themselves(room: Room, tmp_path: Path) -> None:
    rules = tmp_path / "many"
    rules.write_text("".join(f"10.0.{a}.{b}\n" for a in range(100) for b in range(200)))
    room.done("filter.load", "v0", "--rules", rules, "--stay")
    assert (room.stats().rules, room.stats().max_rules) == (20_000, 20_000)
    assert_refused(room("filter.add", "10.9.9.9"), 2, "too many", "20,000", "--max-rules 20001")


@pytest.mark.parametrize("command", [["detach", "--dev=v1"], ["clean"]])
def test_it_is_ended_as_all_that_is_ours_is(
    built: Invoke, tmp_path: Path, command: list[str]
) -> None:
    mine = Invoke(tmp_path / "workspace")
    shutil.copytree(built.workspace / "builds", mine.workspace / "builds")
    shutil.copy(built.workspace / "current", mine.workspace)
    with opened(mine) as room:
        room.done("filter.load", "v0,v1", "--stay")
        room.done(*command)
        assert room.nothing_left()


def test_only_its_program_is_root(
    built: Invoke, nobody: Path, with_sudo: tuple[str | Path, ...]
) -> None:
    mine = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    env = {"HOME": str(nobody)}
    build = ("build", "--tree", nobody / "linux", "--sample=xdp_filter")
    assert mine(*build, env=env, under=NOBODY).code == 0
    (made,) = mine.workspace.glob("builds/*/xdp_filter")
    (real,) = built.workspace.glob("builds/*/xdp_filter")
    for file in ("xdp_filter", "xdp_filter_kern.o"):  # a small tree's are no real ones
        (made / file).write_bytes((real / file).read_bytes())
    with opened(mine) as room:
        borrowed: list[str] = []
        how = {"env": env, "under": (*room.under, *with_sudo)}
        for command in (
            ["filter.load", "v0", "--stay", "--rules=10.0.0.0/8", "--tree", str(nobody / "linux")],
            ["filter.add", "10.1.2.3"],
            ["filter.list"],
            ["filter.unload"],
        ):
            outcome = room(*command, **how)
            assert outcome.code == 0, outcome.err
            borrowed += [one for one in outcome.commands() if "sudo" in one]
        assert room.nothing_left()
    assert len(borrowed) == 5
    assert all("xdp_filter/xdp_filter " in one for one in borrowed)


# ---- who would be cut


@pytest.mark.parametrize(
    ("options", "who"),
    [
        (["--rules=203.0.113.0/24"], ["ssh session, from 203.0.113.5", "src 203.0.113.0/24"]),
        (["--rules=dst 192.0.2.2", "--for=60s"], ["ssh session", "default gateway, 192.0.2.1"]),
        (["--rules=192.0.2.1", "--stay"], ["default gateway, 192.0.2.1", "--force"]),
        (["--policy=deny"], ["ssh session", "default gateway", "203.0.113.5,192.0.2.1"]),
        (["--policy=deny", "--rules=203.0.113.5"], ["default gateway", "no rule lets it"]),
    ],
)
def test_nobody_is_locked_out(room: Room, options: list[str], who: list[str]) -> None:
    assert_refused(room("filter.load", "v0", *options, env=SSH), 2, *who, "--for 60s")
    assert room.nothing_left()


def test_nobody_is_locked_out_by_a_change(room: Room) -> None:
    def changed(*what: str) -> Outcome:
        return room(*what, env=SSH)

    load = ("filter.load", "v0", "--stay")
    room.done(*load, "--rules=192.0.2.7", env=SSH)
    assert_refused(changed("filter.add", "203.0.0.0/16"), 2, "ssh session", "src 203.0.0.0/16")
    assert room.stats().rules == 1
    outcome = changed("filter.add", "203.0.0.0/16", "--force")
    assert (outcome.code, room.stats().rules) == (0, 2)
    assert "cut, as --force says: this ssh session" in outcome.err
    room.done("filter.unload")

    room.done(*load, "--policy=deny", "--rules=192.0.2.1,203.0.113.5", env=SSH)
    assert_refused(changed("filter.remove", "203.0.113.5"), 2, "ssh session", "no rule lets it")
    room.done("filter.add", "203.0.113.0/24", env=SSH)
    room.done("filter.remove", "203.0.113.5", env=SSH)
    assert [one["address"] for one in json.loads(room.done("filter.list", "--json"))["rules"]] == [
        "192.0.2.1", "203.0.113.0/24",
    ]  # fmt: skip


# ---- input


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"policy": "drop"}, ["--policy", "allow, deny"]),
        ({"mode": "hw"}, ["--mode", "auto, native, skb"]),
        ({"max_rules": "0"}, ["--max-rules", "16777216"]),
        ({"max_rules": "1.5"}, ["--max-rules", "whole number"]),
        ({"max_rules": "1"}, ["2 rules are too many", "--max-rules 2"]),
        ({"until": "soon"}, ["--for", "'soon'"]),
        ({"until": "0s"}, ["--for", "60s or 5m"]),
        ({"until": "s"}, ["--for"]),
    ],
)
def test_what_can_not_be_wanted(given: dict[str, str], words: list[str]) -> None:
    usual = {"devs": "lo", "policy": "allow", "mode": "auto", "max_rules": None, "until": None}
    new = Ruleset({4: 2})
    with pytest.raises(InputError) as refused:
        Wanted.of(**{**usual, **given}, new=new, stay=False)  # type: ignore[arg-type]
    for word in words:
        assert word in f"{refused.value.message} {refused.value.cure}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["v0", "--rules=10.0.0.1/8"], ["'10.0.0.1/8'", "10.0.0.0/8"]),
        (["v0", "--interval=0"], ["--interval", "0.1"]),
        (["nope0,v0"], ["no network interface 'nope0'", "v0"]),
        (["--dev="], ["no network interface ''"]),
    ],
)
def test_what_can_not_be_loaded(room: Room, options: list[str], words: list[str]) -> None:
    assert_refused(room("filter.load", *options), 2, *words)
    assert room.nothing_left()


def test_changes_are_made_whole_or_not_at_all(room: Room, tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("# a list\n10.0.0.3\n\n10.0.0.2\n")
    room.done("filter.load", "v0", "--rules=10.0.0.1,10.0.0.2", "--stay")
    for command, words in [
        (["filter.add", str(rules)], [f"{rules}, line 4", "10.0.0.2", "there already"]),
        (["filter.add", "10.0.0.2", "--mode=src,dst"], ["there already"]),
        (["filter.remove", str(rules)], [f"{rules}, line 2", "10.0.0.3", "not there"]),
        (["filter.remove", "10.0.0.1", "--mode=dst"], ["not there"]),
        (["filter.add", "10.0.0.9", "--mode=to"], ["--mode", "src, dst, src,dst"]),
        (["filter.load", "v1"], ["a filter is loaded already, on v0", "invoke filter.unload"]),
        (["filter.load", "v0"], ["v0 has an XDP program already"]),
    ]:
        assert_refused(room(*command), 2, *words)
        assert room.stats().rules == 2
    rules.write_text("10.0.0.3\nx\n10.0.0.4/\n")
    outcome = room("filter.add", rules)
    assert_refused(outcome, 2, "nothing was changed: line 2: 'x'", "line 3: '10.0.0.4/'")


def test_by_whom_and_since_when_it_is_loaded_is_told(room: Room) -> None:
    with room.invoke.start("filter.load", "v0", "--json", "--yes", under=room.under) as run:
        run.wait_for('"rules": 0')
        outcome = room("filter.load", "v1")
        assert_refused(outcome, 2, "loaded already, on v0, held by process ", ", since 20")
        run.interrupt()
    assert room.nothing_left()


def test_where_there_is_none(room: Room, invoke: Invoke) -> None:
    for refused in (room("filter.add", "10.0.0.1"), room("filter.unload"), invoke("filter.list")):
        assert_refused(refused, 2, "no filter is loaded", "invoke filter.load")
    assert_refused(invoke("filter.load", "lo"), 2, "no kernel tree")
    subprocess.run([*room.under, "umount", "/sys/fs/bpf"], check=True)
    refused = room("filter.load", "v0")
    assert_refused(
        refused, 69, "no bpf file system", "doctor --fix", "mount -t bpf bpf /sys/fs/bpf"
    )


def test_dry_changes_nothing(room: Room) -> None:
    outcome = room("--dry", "filter.load", "v0", "--rules=10.0.0.1", "--stay")
    assert outcome.code == 0, outcome.err
    assert outcome.commands()[-1].endswith("xdp_filter load -d v0 -p allow -n 16384 -r -s)")
    assert room.nothing_left()
    room.done("filter.load", "v0", "--stay")
    for command in (["filter.add", "10.0.0.1"], ["filter.unload"]):
        assert room("--dry", *command).code == 0
        assert room.stats().rules == 0


def test_rules_come_by_standard_input(room: Room) -> None:
    room.done("filter.load", "v0", "--stay")
    argv = [*room.under, sys.executable, "-m", "invoke", "filter.add", "-"]
    env = {"INVOKE_WORKSPACE": str(room.invoke.workspace), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    said = subprocess.run(
        argv, cwd=room.invoke.cwd, env=env, input="dst 10.0.0.1\n::1\n", capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert room.stats().rules == 2


def test_the_options_of_its_program() -> None:
    wanted = Wanted.of("a,b,a", "deny", "skb", None, "2m", Ruleset(), stay=True)
    assert wanted.options == [
        *("-d", "a", "-d", "b", "-p", "deny", "-m", "skb", "-n", "16384", "-f", "120", "-r", "-s"),
    ]
