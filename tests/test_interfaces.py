"""What is known of an interface before anything is attached, held against the kernel itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from conftest import PRIVATE, PROJECT, Invoke, assert_refused

from xdplab import interfaces
from xdplab.interfaces import DRIVERS, REFUSALS, Interface, against_native, native
from xdplab.version import KernelVersion

PAIR = "ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up"


def card(driver: str = "igb", **facts: Any) -> Interface:
    usual: dict[str, Any] = {"up": True, "mtu": 1500, "rx_queues": 1, "tx_queues": 1}
    return Interface("eth7", driver, **{**usual, **facts})


def apart(commands: str, *argv: str | Path) -> tuple[str | Path, ...]:
    """A command prefix: a network namespace in which the commands of a shell were run."""
    return (*PRIVATE, "sh", "-ec", f'{commands}; exec "$@"', "sh", *argv)


def in_namespace(commands: str, python: str) -> str:
    """What a few lines of Python print in such a namespace."""
    lines = "from xdplab import interfaces, trial\n" + python
    argv = apart(commands, sys.executable, "-c", lines)
    return subprocess.run(argv, cwd=PROJECT, capture_output=True, check=True, text=True).stdout


# ---- the tables


@pytest.mark.parametrize("row", DRIVERS, ids=lambda row: row.name)
def test_a_driver_since_a_version(row: interfaces.Driver) -> None:
    old, new = KernelVersion(3, 0), KernelVersion(9, 0)
    assert native(card(row.name), old)[0] is False
    has, who = native(card(row.name), new)
    assert has is bool(row.since)
    assert row.commit in who
    assert len(row.commit) == (12 if row.since else 0)


def test_a_user_of_igb_on_v5_4() -> None:
    """https://github.com/gamemann/XDP-Firewall/issues/46"""
    assert native(card("igb"), KernelVersion(5, 4)) == (
        False,
        "igb has it since v5.10 (9cbc948b5a20)",
    )
    assert native(card("igb"), KernelVersion(5, 10))[0] is True
    assert native(card("of_mine"), KernelVersion(5, 4))[0] is None


def test_the_kernels_own_word_counts_more() -> None:
    assert native(card("e1000", native=True), KernelVersion(9, 0))[0] is True
    assert native(card("veth", native=False), KernelVersion(9, 0))[0] is False


# for each row an interface that it is about
REFUSED = [
    card("veth", peer=card("veth", mtu=9000)),
    card("veth", peer=card("veth", tx_queues=4)),
    card("virtio_net", virtio=frozenset({1, 7})),
    card("virtio_net", mtu=9000),
    card("mlx5_core", merging=("rx-lro",)),
    card("nicvf", mtu=1600),
    card("i40e", mtu=9000),
    card("ixgbe", merging=("rx-lro",)),
]


@pytest.mark.parametrize(("row", "it"), list(zip(REFUSALS, REFUSED, strict=True)))
def test_a_refusal_is_told_with_its_cure(row: interfaces.Refusal, it: Interface) -> None:
    (found,) = against_native(it)
    assert found.words == row.words.format(it=it)
    assert found.cure == row.cure.format(it=it)
    assert found.certain == row.certain
    fields = {name for _, name, _, _ in Formatter().parse(row.words + row.cure) if name}
    assert all(name.startswith("it.") for name in fields)
    assert against_native(card(it.driver, peer=card("veth"))) == []


def test_a_driver_without_native_mode_is_not_cured() -> None:
    assert against_native(card("e1000", native=False, mtu=9000, merging=("rx-lro",))) == []


def test_a_virtio_card_that_can_be_told_to_stop_merging() -> None:
    assert against_native(card("virtio_net", virtio=frozenset({1, 2, 7, 8}))) == []


@pytest.mark.tree
def test_the_kernels_own_words(tree: Path) -> None:
    for row in REFUSALS:
        assert row.says in (tree / row.file).read_text(), row.file


# ---- the kernel


@pytest.mark.root
@pytest.mark.parametrize(("mtu", "refused"), [(1500, False), (3506, False), (3507, True)])
def test_a_peers_mtu_is_refused_where_the_kernel_refuses_it(mtu: int, refused: bool) -> None:
    said = in_namespace(
        f"{PAIR}; ip link set v1 mtu {mtu}",
        "print([one.certain for one in interfaces.against_native(interfaces.of('v0'))])\n"
        "print(trial.why_not('v0', 'native'))",
    )
    why = "veth: Peer MTU is too large to set XDP" if refused else ""
    assert said == f"{[True] if refused else []}\n{why}\n"


@pytest.mark.root
def test_a_peers_queues_are_refused_where_the_kernel_refuses_them() -> None:
    said = in_namespace(
        "ip link add v1 numrxqueues 4 numtxqueues 4 type veth"
        " peer name v0 numrxqueues 1 numtxqueues 4",
        "print(len(interfaces.against_native(interfaces.of('v0'))))\n"
        "print(trial.why_not('v0', 'native'))",
    )
    assert said.startswith("1\nveth: XDP expects number of rx queues not less than peer tx queues")


@pytest.mark.root
def test_an_interface_is_seen_in_its_own_namespace() -> None:
    """sysfs shows another's there: the host's `lo` is up, and this one isn't."""
    said = in_namespace(
        f"{PAIR}; ip link set v1 mtu 4000",
        "import json, dataclasses\n"
        "facts = [dataclasses.asdict(interfaces.of(one)) for one in ('lo', 'v0')]\n"
        "print(json.dumps(facts, default=list))",
    )
    lo, v0 = json.loads(said)
    assert (lo["driver"], lo["up"]) == ("loopback", False)
    assert (v0["driver"], v0["mtu"], v0["rx_queues"]) == ("veth", 1500, 1)
    assert (v0["peer"]["name"], v0["peer"]["mtu"]) == ("v1", 4000)


@pytest.mark.root
def test_interfaces_of_all_kinds() -> None:
    """Whatever this kernel can make is read without a word of complaint."""
    kinds = ("bridge", "ifb", "dummy", "bond", "vrf table 5", "netkit", "wireguard")
    made = [f"ip link add k{at} type {kind} 2>&-" for at, kind in enumerate(kinds)]
    made += [f"ip tuntap add {mode}0 mode {mode} 2>&-" for mode in ("tun", "tap")]
    said = in_namespace(
        "; ".join(f"{one} || true" for one in made),
        "import socket\n"
        "for _, name in socket.if_nameindex():\n"
        "    it = interfaces.of(name)\n"
        "    print(name, it.driver, it.peer, interfaces.against_native(it))",
    )
    found = dict(line.split(" ", 1) for line in said.splitlines())
    assert found.pop("lo") == "loopback None []"
    assert found
    for name, facts in found.items():
        assert facts.endswith(" None []"), name


@pytest.mark.root
def test_a_default_route() -> None:
    said = in_namespace(
        f"{PAIR}; ip address add 192.0.2.1/24 dev v0; ip route add default via 192.0.2.2",
        "print([interfaces.of(one).default_route for one in ('v0', 'v1')])\n"
        "import os; os.environ['SSH_CONNECTION'] = '192.0.2.9 5 192.0.2.1 22'\n"
        "from xdplab import lifelines\n"
        "print([lifelines.come_through(one) for one in ('v0', 'v1')])",
    )
    assert said == "[True, False]\n[True, False]\n"


# a program on v0 in native mode, for as long as its link is open
HELD = (
    "import os, socket, struct\n"
    "from xdplab import bpf, netlink, trial\n"
    "def held():\n"
    "    words = bpf.load_xdp(bpf.PASS), socket.if_nametoindex('v0'), trial._ATTACH_XDP, 4\n"
    "    return bpf.call(bpf.LINK_CREATE, struct.pack('<IIII', *words))\n"
)


@pytest.mark.root
def test_a_trial_leaves_nothing_behind_even_if_it_is_killed() -> None:
    lines = HELD + (
        "assert trial.why_not('v0', 'native') == '' and not netlink.attached()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    held(); os.kill(os.getpid(), 9)\n"
        "assert os.waitpid(child, 0)[1] == 9\n"
        "link = held()\n"
        "print(len(netlink.attached()))\n"
        "os.close(link)\n"
        "print(len(netlink.attached()))\n"
    )
    said = subprocess.run(
        apart(PAIR, sys.executable, "-c", lines), cwd=PROJECT, capture_output=True, check=True,
        text=True,
    )  # fmt: skip
    assert said.stdout == "1\n0\n"


# ---- invoke doctor


def checked(invoke: Invoke, commands: str) -> dict[str, dict[str, str]]:
    outcome = invoke("doctor", "--dev", "v0", "--json", under=apart(commands))
    assert outcome.out, outcome.err
    return {one["what"]: one for one in json.loads(outcome.out)["checks"]}


@pytest.mark.root
def test_doctor_tries_the_modes(invoke: Invoke) -> None:
    found = checked(invoke, f"{PAIR}; ip link set v1 mtu 9000; ip link set v0 down")
    assert found["driver"]["found"] == "veth, MTU 1500"
    assert found["state"]["outcome"] == "warning"
    assert found["native mode"]["outcome"] == "warning"
    assert found["native mode"]["found"] == "tried: veth: Peer MTU is too large to set XDP"
    assert found["native mode"]["cure"] == "sudo ip link set dev v1 mtu 1500"
    assert found["generic mode"]["found"] == "tried: it attached"
    queues = "ip link add v1 numrxqueues 4 numtxqueues 4 type veth peer name v0 numrxqueues 1"
    refused = checked(invoke, f"{queues} numtxqueues 4")["native mode"]
    assert refused["cure"] == "sudo ethtool --set-channels v1 tx 1"
    cured = checked(invoke, f"{PAIR}; ip link set v1 mtu 9000; ip link set dev v1 mtu 1500")
    assert cured["native mode"]["outcome"] == "ok"


@pytest.mark.root
def test_doctor_does_not_try_where_it_could_cut_somebody_off(invoke: Invoke) -> None:
    route = f"{PAIR}; ip address add 192.0.2.1/24 dev v0; ip route add default via 192.0.2.2"
    found = checked(invoke, route)
    assert found["carries"]["outcome"] == "warning"
    assert found["carries"]["found"] == "the default route"
    for mode in ("native mode", "generic mode"):
        assert "(not tried)" in found[mode]["found"]


@pytest.mark.root
def test_doctor_does_not_try_where_a_program_is(invoke: Invoke) -> None:
    lines = HELD + (
        "import subprocess, sys\n"
        "link = held()\n"
        "subprocess.run([sys.executable, '-m', 'invoke', 'doctor', '--dev', 'v0', '--json'])\n"
    )
    said = subprocess.run(
        apart(PAIR, sys.executable, "-c", lines), cwd=PROJECT, capture_output=True, text=True,
        env={**os.environ, "INVOKE_WORKSPACE": str(invoke.workspace)}, check=True,
    )  # fmt: skip
    found = {one["what"]: one for one in json.loads(said.stdout)["checks"]}
    assert found["XDP program"]["outcome"] == "missing"
    assert found["XDP program"]["cure"] == "invoke status; invoke detach --dev v0"
    assert "(not tried)" in found["native mode"]["found"]
    assert "this machine lacks what is needed: XDP program" in said.stderr.replace("\n", " ")


# ---- invoke run


def arguments(mode: str, dev: str = "v0") -> tuple[str, ...]:
    return ("run", "--dev", dev, "--mode", mode, "--plain", "--interval", "0.01", "--rounds", "1")


@pytest.mark.tree
@pytest.mark.root
def test_native_is_refused_before_with_the_cure(labs: Callable[[str], Invoke]) -> None:
    jumbo = f"{PAIR}; ip link set v1 mtu 9000"
    invoke = labs("6.1")
    outcome = invoke(*arguments("native"), under=apart(jumbo))
    assert_refused(outcome, 2, "its peer v1 is 9000", "sudo ip link set dev v1 mtu 1500")
    assert "attached" not in outcome.err
    outcome = invoke(*arguments("native"), under=apart(f"{jumbo}; ip link set dev v1 mtu 1500"))
    assert outcome.code == 0
    assert " mode native " in outcome.err


@pytest.mark.tree
@pytest.mark.root
@pytest.mark.parametrize(("dev", "mode"), [("v0", "hw"), ("lo", "hw"), ("lo", "native")])
def test_a_mode_that_is_not_there(labs: Callable[[str], Invoke], dev: str, mode: str) -> None:
    """It is no fault of the sample's: exit code 2."""
    outcome = labs("6.1")(*arguments(mode, dev), under=apart(PAIR))
    assert_refused(outcome, 2, f"{dev} has no {mode} XDP", "--mode auto")


@pytest.mark.tree
@pytest.mark.root
def test_auto_takes_generic_and_says_what_would_help(labs: Callable[[str], Invoke]) -> None:
    jumbo = f"{PAIR}; ip link set v1 mtu 9000"
    outcome = labs("6.1")(*arguments("auto"), under=apart(jumbo))
    assert outcome.code == 0
    assert "no native XDP on v0" in outcome.err
    assert " mode skb " in outcome.err
    assert "must be 3506 or less: sudo ip link set dev v1 mtu 1500" in outcome.err
    for usual in (("auto", PAIR), ("skb", jumbo)):
        outcome = labs("6.1")(*arguments(usual[0]), under=apart(usual[1]))
        assert outcome.code == 0
        assert "sudo" not in outcome.err
