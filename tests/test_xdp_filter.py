"""samples/xdp_filter by hand: its commands, its ends, and what it says no to.

Each test has a network and a BPF file system of its own.  What the filter makes of a
frame is trust/test_frames.py's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from conftest import KERNELS, PATIENCE, Invoke, holder, wait_until
from hypothesis import given, settings
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from test_rules import rulesets

from xdplab.build import Build
from xdplab.model import Rule, Side
from xdplab.process import Shell
from xdplab.testbed.local import LocalBench
from xdplab.workspace import Workspace

pytestmark = [pytest.mark.tree, pytest.mark.root]

Address = IPv4Address | IPv6Address

DROP, PASS = 1, 2  # enum xdp_action
HOME = "/sys/fs/bpf/xdplab"
THERE = ("src 10.0.0.0/8", "dst 10.0.0.0/8", "both 10.0.0.1/32", "src 2001:db8::1/128")
ENDS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP,
        "SIGKILL": signal.SIGKILL}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Machine:
    """A network and a BPF file system that end with the test, and the filter's program."""

    holder: int
    program: Path
    workspace: Workspace

    @property
    def enter(self) -> tuple[str, ...]:
        own = f"/proc/{self.holder}/ns"
        return ("nsenter", f"--net={own}/net", f"--mount={own}/mnt")

    def run(self, *argv: str | Path, text: str = "") -> Ended:
        done = subprocess.run([*self.enter, *argv], input=text, capture_output=True, text=True,
                              check=False, timeout=PATIENCE)  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    def filter(self, *arguments: str, text: str = "") -> str:
        """A command of the filter's that must work: what it prints."""
        ended = self.run(self.program, *arguments, text=text)
        assert ended.code == 0, ended.err
        return ended.out

    def refused(self, *arguments: str, text: str = "", code: int = 2) -> str:
        """A command that must not: what it says, a line."""
        ended = self.run(self.program, *arguments, text=text)
        assert (ended.code, ended.out) == (code, ""), ended
        return ended.err

    @contextlib.contextmanager
    def held(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The filter in the foreground, until the block is left; gives its process."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        argv = [*self.enter, self.program, "load", *arguments]
        with subprocess.Popen(argv, text=True, **pipes) as process:  # type: ignore[call-overload]
            try:
                wait_until(lambda: self.rules_room() or process.poll() is not None)
                assert process.poll() is None, process.stderr.read()
                yield process
            finally:
                process.kill()
                process.wait(PATIENCE)

    def rules_room(self) -> str:
        """How many rules of how many there are, while something is loaded."""
        found = re.search(
            r"rules (\d+ of \d+)\n(?:ip.*\n)*dev ", self.run(self.program, "stats").out
        )
        return found[1] if found else ""

    def rules(self) -> dict[str, tuple[int, int]]:
        """The rules with their packets and bytes, in the order of `list`."""
        lines = (line.rsplit(" ", 2) for line in self.filter("list").splitlines())
        return {rule: (int(packets), int(size)) for rule, packets, size in lines}

    def dropped(self, frames: Sequence[bytes]) -> list[bool]:
        """Which of some frames the program that is loaded drops."""
        (number,) = set(re.findall(r" prog (\d+)$", self.filter("stats"), re.MULTILINE))
        bench = LocalBench(Shell(), self.workspace, self.enter)
        returned = bench.test_run(int(number), frames)
        assert set(returned) <= {DROP, PASS}
        return [verdict == DROP for verdict in returned]

    def attached(self, dev: str) -> bool:
        (link,) = json.loads(self.run("ip", "-json", "link", "show", "dev", dev).out)
        return "xdp" in link

    def is_clean(self, *devs: str) -> bool:
        """Whether nothing of a filter is left."""
        return self.run("ls", HOME).code != 0 and not any(map(self.attached, devs or ("lo",)))


def lines(*rules: str) -> str:
    return "".join(f"{rule}\n" for rule in rules)


def frame(source: Address, destination: Address | None = None) -> bytes:
    kind = IP if source.version == 4 else IPv6
    ends = {"src": str(source)} | ({"dst": str(destination)} if destination else {})
    return bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / kind(**ends))


@pytest.fixture(scope="module")
def builds(labs: Callable[[str], Invoke]) -> Callable[[str], Build]:
    """Gives the filter, made in the tree of a kernel."""
    known: dict[str, Build] = {}

    def build(kernel: str) -> Build:
        if kernel not in known:
            invoke = labs(kernel)
            outcome = invoke("build", "--sample", "xdp_filter")
            assert outcome.code == 0, outcome.err
            assert "warning" not in outcome.err
            (path,) = invoke.workspace.glob("builds/*/xdp_filter")
            made = Build.load(path)
            assert made
            known[kernel] = made
        return known[kernel]

    return build


@contextlib.contextmanager
def machine_with(build: Build, workspace: Workspace) -> Iterator[Machine]:
    with holder("mount -t bpf bpf /sys/fs/bpf; ip link set lo up") as process:
        yield Machine(process, build.program, workspace)


@pytest.fixture
def machine(builds: Callable[[str], Build], labs: Callable[[str], Invoke]) -> Iterator[Machine]:
    with machine_with(builds(KERNELS[0]), Workspace(labs(KERNELS[0]).workspace)) as made:
        yield made


@pytest.fixture(scope="module")
def refusing(builds: Callable[[str], Build], labs: Callable[[str], Invoke]) -> Iterator[Machine]:
    with machine_with(builds(KERNELS[0]), Workspace(labs(KERNELS[0]).workspace)) as made:
        made.filter("load", "-d", "lo", "-s", "-n", "8")
        made.filter("add", text=lines(*THERE))
        yield made
        made.filter("unload")


@pytest.mark.parametrize("kernel", KERNELS)
def test_rules_come_and_go_while_packets_are_counted(
    kernel: str, builds: Callable[[str], Build], labs: Callable[[str], Invoke]
) -> None:
    with machine_with(builds(kernel), Workspace(labs(kernel).workspace)) as machine:
        ping = ("ping", "-c", "3", "-i", "0.01", "-W", "0.05", "-I")
        with machine.held("-d", "lo", "-n", "7") as process:
            added = ("both 127.1.0.0/16", "dst 2001:db8::/32", "src 127.0.0.2/32", "src ::9/128")
            machine.filter("add", text=lines(*added))
            assert machine.run(*ping, "127.0.0.2", "127.0.0.1").code == 1
            assert machine.run(*ping, "127.1.2.3", "127.0.0.1").code == 1
            assert machine.run(*ping, "127.0.0.3", "127.0.0.1").code == 0
            three = (3, 3 * 98)  # of ping's usual size
            assert machine.rules() == dict.fromkeys(added, (0, 0)) | {
                "src 127.0.0.2/32": three, "both 127.1.0.0/16": three,
            }  # fmt: skip
            assert [*machine.rules()] == [added[2], added[0], added[3], added[1]]
            stats = machine.filter("stats")
            assert re.fullmatch(
                r"policy allow\nrules 4 of 7\nipv4 2\nipv6 2\ndev lo mode skb prog \d+\n"
                r"pass 6 588\ndrop 6 588\naborted 0 0\n", stats,
            ), stats  # fmt: skip

            machine.filter("remove", text=lines("src 127.0.0.2/32"))
            assert machine.run(*ping, "127.0.0.2", "127.0.0.1").code == 0
            machine.filter("add", text=lines("src 127.0.0.2"))
            assert machine.rules()["src 127.0.0.2/32"] == (0, 0)
            assert "drop 6 588\n" in machine.filter("stats")  # what was counted, was
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0
        assert re.search(r"^attached: dev lo ifindex 1 mode skb link \w+ prog \d+ tag \w{16}$",
                         said, re.MULTILINE)  # fmt: skip
        assert machine.is_clean()


@pytest.mark.parametrize("how", [*ENDS, "the end of its input", "its time", "unload"])
def test_nothing_is_left_however_it_ends(how: str, machine: Machine) -> None:
    with machine.held("-d", "lo", "-e", *(("-f", "0.2") if how == "its time" else ())) as process:
        if how in ENDS:
            process.send_signal(ENDS[how])
        elif how == "unload":
            machine.filter("unload")
        elif how != "its time":
            assert process.stdin
            process.stdin.close()
        process.wait(PATIENCE)
    if how == "SIGKILL":
        wait_until(machine.is_clean)  # its watchdog has to notice
    assert machine.is_clean()
    assert "nothing is loaded" in machine.refused("unload", code=1)


def test_it_stays_until_it_is_unloaded(machine: Machine) -> None:
    machine.filter("load", "-d", "lo", "-s", "-i", "127.0.0.2", "-i", "127.0.1.0/24")
    assert list(machine.rules()) == ["src 127.0.0.2/32", "src 127.0.1.0/24"]
    assert "loaded already, on lo:" in machine.refused("load", "-d", "lo", code=1)
    machine.filter("unload")
    assert machine.is_clean()


@pytest.mark.parametrize("early", [False, True])
def test_it_stays_for_a_time(early: bool, machine: Machine) -> None:
    ended = machine.run(machine.program, "load", "-d", "lo", "-s", "-f", "60" if early else "0.3")
    found = re.search(r"^process (\d+) undoes it in", ended.err, re.MULTILINE)
    assert found
    if early:
        assert machine.attached("lo")
        machine.filter("unload")
        assert machine.is_clean()
    wait_until(machine.is_clean)
    wait_until(lambda: not Path("/proc", found[1]).exists())


def test_the_holder_is_named(machine: Machine) -> None:
    with machine.held("-d", "lo") as process:
        said = machine.refused("load", "-d", "lo", code=1)
        assert f"on lo, held by process {process.pid}:" in said


def test_what_a_killed_one_left_is_taken_over(machine: Machine) -> None:
    said = machine.run(machine.program, "load", "-d", "lo", "-s", "-f", "60").err
    os.kill(int(said.split("process ")[1].split()[0]), signal.SIGKILL)  # who would undo it
    assert machine.attached("lo")
    machine.filter("unload")
    assert machine.is_clean()


@pytest.mark.parametrize(
    ("command", "given", "said"),
    [
        ("add", ["src 10.0.0.9", "src 10.0.0.0/8"], "rule 2: src 10.0.0.0/8 is there already: src"),
        ("add", ["src 1.2.3.4", "src 10.0.0.1"], "rule 2: src 10.0.0.1/32 is there already: both"),
        ("add", ["both 10.0.0.0/8"], "rule 1: both 10.0.0.0/8 is there already: src 10.0.0.0/8"),
        ("add", ["src ::1", "src 1.1.1.1", "both ::1"], "rule 3: both ::1/128 is given twice"),
        ("add", ["src 1.1.1.1", "", "src 10.0.0.1/24"], "rule 3: the address has bits set beyond"),
        ("add", ["src 2001:db8::1/32"], "rule 1: the address has bits set beyond the prefix"),
        ("add", ["src 1.1.1.1/33"], "rule 1: no prefix length"),
        ("add", ["src 1.1.1.1/"], "rule 1: no prefix length"),
        ("add", ["src 1.1.1.1/-1"], "rule 1: no prefix length"),
        ("add", ["src 1.1.1"], "rule 1: no IPv4 or IPv6 address"),
        ("add", ["from 1.1.1.1"], "rule 1: the side must be src, dst or both"),
        ("add", ["# 1", "", "10.0.0.1 # 2"], "rule 3: src 10.0.0.1/32 is there already: both"),
        ("add", ["src 1.1.1.1 0 0"], "rule 1: there is more than SIDE ADDRESS/LENGTH"),
        ("add", [f"src 1.1.1.{i}" for i in range(6)], "no room for 6 more: 4 of 8 rules are there"),
        ("remove", ["src 10.0.0.0/8", "src 10.0.0.1"], "rule 2: src 10.0.0.1/32 is not there"),
        ("remove", ["dst 10.0.0.0/8", "dst 10.0.0.0/8"], "rule 2: dst 10.0.0.0/8 is given twice"),
        ("remove", ["src 10.0.0.0/9"], "rule 1: src 10.0.0.0/9 is not there"),
    ],
)  # fmt: skip
def test_all_rules_or_none(
    command: str, given: Sequence[str], said: str, refusing: Machine
) -> None:
    assert refusing.refused(command, text=lines(*given)).startswith(said)
    assert set(refusing.rules()) == set(THERE)


def test_rules_as_people_write_them(machine: Machine) -> None:
    text = (
        "# a list\n\n 10.0.0.1\t# one\r\nsrc,dst 10.0.0.2\ndst,src ::2/128\n\fsrc ::/0\n#\nboth ::1"
    )
    machine.filter("load", "-d", "lo", "-s", "-r", text=f"{text}\nend\n")
    first = ["both 10.0.0.2/32", "src ::/0", "both ::1/128", "both ::2/128"]
    assert [*machine.rules()] == ["src 10.0.0.1/32", *first]
    machine.filter("remove", text=text)
    machine.filter("add", "dst", text=text)
    assert [*machine.rules()] == ["dst 10.0.0.1/32", *first]
    machine.filter("unload")


def test_rules_are_told_of_by_the_addresses_that_they_cover(machine: Machine) -> None:
    given = ("10.0.0.0/8", "dst 10.1.2.3", "both 10.1.0.0/16", "::/0", "10.1.2.2", "10.1.2.2/31")
    asked = ("10.1.2.3", "10.200.0.1", "2001:db8::1")
    of_them = lines(
        *(f"covers {rule}" for rule in (
            "dst 10.1.2.3/32", "src 10.1.2.2/31", "both 10.1.0.0/16", "src 10.0.0.0/8",
            "src 10.0.0.0/8", "src ::/0",
        )),
        "ipv4 5", "ipv6 1",
    )  # fmt: skip
    machine.filter("load", "-d", "lo", "-s", "-r", text=lines(*given, "end"))
    assert machine.filter("check", "src", *asked, text=lines(*given)) == of_them
    assert of_them in machine.filter("stats", *asked)
    assert "covers" not in machine.filter("stats", "192.0.2.1")
    for command in (("check", "src"), ("check", "to"), ("check", "src", "10")):
        assert machine.refused(*command)
    assert machine.run(machine.program, "stats", "x").code == 2
    machine.filter("unload")


def test_rules_that_a_wider_one_makes_needless_are_told(machine: Machine) -> None:
    given = (
        "10.1.0.0/16", "10.1.2.3", "dst 10.1.2.3", "both 10.1.2.4", "10.0.0.0/8",
        "both fe80::/10", "fe80::1", "dst fe80::2", "fec0::", "dst 10.1.2.4/31",
    )  # fmt: skip
    machine.filter("load", "-d", "lo", "-s")
    ended = machine.run(machine.program, "add", text=lines(*given))
    assert ended.code == 0
    assert ended.err.splitlines() == [
        "rule 1: src 10.1.0.0/16 is needless: src 10.0.0.0/8, in rule 5, covers all of it",
        "rule 2: src 10.1.2.3/32 is needless: src 10.0.0.0/8, in rule 5, covers all of it",
        "rule 7: src fe80::1/128 is needless: both fe80::/10, in rule 6, covers all of it",
        "rule 8: dst fe80::2/128 is needless: both fe80::/10, in rule 6, covers all of it",
    ]
    text = lines("0.0.0.0/0", *(f"192.0.2.{i}" for i in range(9)))
    said = machine.run(machine.program, "add", text=text).err.splitlines()
    assert len(said) == 8
    assert said[-1] == "and 2 more are needless"
    machine.filter("unload")


def test_needless_is_what_lies_in_a_wider_prefix(machine: Machine) -> None:
    """Of few rules by chance the program tells just those that a wider one covers."""

    def lies_in(rule: Rule, wide: Rule) -> bool:
        inner: Any = rule.network
        outer: Any = wide.network
        return bool(
            inner.version == outer.version
            and inner.prefixlen > outer.prefixlen
            and inner.subnet_of(outer)
            and wide.side in (rule.side, Side.BOTH)
        )

    def holds(many: list[Rule]) -> None:
        few = many[:7]
        text = lines(*map(str, few))
        said = machine.run(machine.program, "add", text=text).err.splitlines()
        machine.filter("remove", text=text)
        told = [line.partition(" is needless")[0].partition(": ")[2] for line in said]
        needless = [str(one) for one in few if any(lies_in(one, wide) for wide in few)]
        assert sorted(told) == sorted(needless)

    machine.filter("load", "-d", "lo", "-s")
    settings(deadline=None, max_examples=100)(given(rulesets)(holds))()
    machine.filter("unload")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no interface is named"),
        (["-d", "none0"], "no such interface: 'none0'"),
        (["-d", "lo", "-d", "lo"], "an interface is given twice: 'lo'"),
        (["-d", "lo", "-p", "maybe"], "no such policy: 'maybe'"),
        (["-d", "lo", "-m", "fast"], "no such XDP mode: 'fast'"),
        (["-d", "lo", "-n", "-1"], "no number of rules: '-1'"),
        (["-d", "lo", "-n", "1e9"], "no number of rules: '1e9'"),
        (["-d", "lo", "-f", "0"], "no number of seconds: '0'"),
        (["-d", "lo", "-i", "1.2.3"], "no IPv4 or IPv6 address: '1.2.3'"),
        (["-d", "lo", "-r"], 'no line "end" ends the rules'),
        (["-d", "lo", "more"], "one argument too many: 'more'"),
    ],
)
def test_nothing_is_loaded_of_bad_options(
    arguments: Sequence[str], said: str, machine: Machine
) -> None:
    assert machine.refused("load", *arguments).startswith(said)
    assert machine.is_clean()


def test_without_a_bpf_file_system_it_says_what_to_mount(machine: Machine) -> None:
    machine.run("umount", "/sys/fs/bpf")
    said = machine.refused("load", "-d", "lo", code=1)
    assert "mount -t bpf bpf /sys/fs/bpf" in said


def test_several_interfaces_all_or_none(machine: Machine) -> None:
    machine.run("ip", "link", "add", "one", "type", "veth", "peer", "name", "two")
    machine.filter("load", "-d", "one", "-d", "two", "-s", "-m", "native")
    found = re.findall(r"^dev (\w+) mode native prog (\d+)$", machine.filter("stats"), re.MULTILINE)
    assert [dev for dev, _ in found] == ["one", "two"]
    assert machine.attached("one")
    assert machine.attached("two")
    machine.run("ip", "link", "delete", "one")  # they may go before it does
    machine.filter("unload")
    assert machine.is_clean()

    machine.run("ip", "link", "add", "one", "type", "veth", "peer", "name", "two")
    other = ("xdp", "pinned", "/sys/fs/bpf/other")
    code = '\'int f(void *c) { return 2; } char l[] __attribute__((section("license"))) = "GPL";\''
    machine.run("sh", "-c", f"echo {code} | sed 's/int f/__attribute__((section(\"xdp\"))) int f/'"
                " | clang -O2 -g --target=bpf -x c -c -o /tmp/other.$$.o - && bpftool prog load"
                " /tmp/other.$$.o /sys/fs/bpf/other type xdp; rm /tmp/other.$$.o")  # fmt: skip
    machine.run("ip", "link", "set", "dev", "two", *other)
    assert machine.attached("two")
    said = machine.refused("load", "-d", "one", "-d", "two", code=1)
    assert "link set xdp fd failed on two: an XDP program is there already" in said
    assert machine.is_clean("one", "lo")
    assert machine.attached("two")


@pytest.mark.parametrize("first", [IPv4Address("10.0.0.1"), IPv6Address("2001:db8::1")])
def test_there_is_room_for_as_many_rules_as_was_said(first: Address, machine: Machine) -> None:
    """To the last one, whichever buckets they fall into; and each is found, until it goes."""
    most = 3000
    addresses: list[Address] = [first + i for i in range(most + 1)]
    frames = [frame(one) for one in addresses]
    rules = [f"src {one}/{one.max_prefixlen}" for one in addresses]
    machine.filter("load", "-d", "lo", "-s", "-n", str(most))
    machine.filter("add", text=lines(*rules[: most // 2]))
    machine.filter("add", text=lines(*rules[most // 2 : most]))
    assert machine.dropped(frames) == [True] * most + [False]
    assert f": {most} of {most} rules" in machine.refused("add", text=lines(rules[most]))
    assert {packets for packets, _ in machine.rules().values()} == {1}
    machine.filter("remove", text=lines(*rules[:most:2]))
    assert machine.dropped(frames) == [False, True] * (most // 2) + [False]
    machine.filter("add", text=lines(*rules[:most:2]))
    assert all(machine.dropped(frames[:most]))


def test_rules_that_change_disturb_no_other(machine: Machine) -> None:
    """What is always there always counts, though it moves; what nobody gave never does."""
    sets: list[list[Address]] = [
        [*(IPv4Address(four) + i for i in range(40)), *(IPv6Address(six) + i for i in range(40))]
        for four, six in (
            ("10.0.0.0", "2001:db8::"),
            ("10.1.0.0", "2001:db8:1::"),
            ("10.2.0.0", "2001:db8:2::"),
        )
    ]
    always, changing, others = sets
    machine.filter("load", "-d", "lo", "-s", "-n", str(len(always + changing)))
    machine.filter("add", text=lines(*(f"src {one}" for one in always)))
    # a packet to what changes is none from it
    passing = [frame(*ends) for ends in zip(others, changing, strict=True)]
    frames = (passing + [frame(one) for one in always]) * 50
    done = threading.Event()

    def change() -> None:
        for turn in range(50):
            text = lines(*(f"src {one}" for one in changing[:: 1 if turn % 2 else -1]))
            machine.filter("add", text=text)
            machine.filter("remove", text=text)
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    while not done.is_set():
        assert machine.dropped(frames) == ([False] * 80 + [True] * 80) * 50
    thread.join()


def test_a_command_that_is_killed_has_changed_all_or_nothing(machine: Machine) -> None:
    machine.filter("load", "-d", "lo", "-s", "-n", "100000")
    given = [IPv4Address("10.0.0.0") + i for i in range(40000)]
    text = lines(*(f"src {one}" for one in given))
    there = 0
    for step in range(16):
        command: list[str | Path] = [machine.program, "remove" if there else "add"]
        with subprocess.Popen([*machine.enter, *command], stdin=subprocess.PIPE, text=True) as it:
            assert it.stdin
            it.stdin.write(text)
            it.stdin.close()
            time.sleep(0.004 * (step % 10))
            it.kill()
        there = machine.filter("list").count("\n")
        assert there in (0, len(given))
        assert set(machine.dropped([frame(one) for one in given[::1000]])) == {bool(there)}
