"""Who must not be cut, in networks made for it; and what a filter would do to them."""

from __future__ import annotations

import ast
import ipaddress
import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import PRIVATE, PROJECT

from xdplab.lifelines import Lifeline, cut
from xdplab.model import Address, Policy, Rule, Rules, Side, xdp_filter
from xdplab.rules import Ruleset

NETWORK = """
    ip link set lo up
    ip link add v0 type veth peer name v1
    ip link set v0 up; ip link set v1 up
    ip address add 192.0.2.2/24 dev v0
    ip -6 address add 2001:db8::2/64 dev v0 nodad
"""
US, THEM = ipaddress.ip_address("192.0.2.2"), ipaddress.ip_address("203.0.113.5")
SSH = "203.0.113.5 4000 192.0.2.2 22"


def found(commands: str, python: str = "", under: tuple[str | Path, ...] = ()) -> list[list[str]]:
    """The lifelines in such a network: what, from where, to where, through what."""
    script = f"""
import os, socket
from xdplab import lifelines
{python}
print([[one.what, str(one.remote), str(one.local), " ".join(sorted(one.devs)), one.neighbour]
       for one in lifelines.here()])
"""
    argv = [*PRIVATE, *under, "sh", "-ec", f'{commands}\n"$@"', "sh", sys.executable, "-c", script]
    env = {name: value for name, value in os.environ.items() if name != "SSH_CONNECTION"}
    said = subprocess.run(
        argv, cwd=PROJECT, env=env, capture_output=True, check=True, text=True
    ).stdout
    lines: list[list[str]] = ast.literal_eval(said)
    return lines


# ---- gateways


@pytest.mark.root
def test_nobody_is_there() -> None:
    assert found(NETWORK) == []


@pytest.mark.root
def test_gateways_of_both_versions_and_every_table() -> None:
    gateways = found(
        f"{NETWORK}\n"
        "ip route add default nexthop via 192.0.2.1 nexthop via 192.0.2.3\n"
        "ip route add default via 192.0.2.4 table 7\n"
        "ip route add unreachable default metric 9\n"
        "ip -6 route add default via fe80::1 dev v0\n"
        "ip -6 route add default via 2001:db8::1 dev v0 metric 9\n"
    )
    assert gateways == [
        [f"the default gateway, {remote}", remote, local, "v0", True]
        for remote, local in [
            ("192.0.2.1", "192.0.2.2"),
            ("192.0.2.3", "192.0.2.2"),
            ("192.0.2.4", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::2"),
            ("fe80::1", gateways[-1][2]),
        ]
    ]


@pytest.mark.root
def test_what_an_interface_stands_on_carries_its_packets_too() -> None:
    (gateway,) = found(
        f"{NETWORK}\n"
        "ip link add br0 type bridge || exit 0; ip link set v1 master br0; ip link set br0 up\n"
        "ip address add 198.51.100.2/24 dev br0; ip route add default via 198.51.100.1\n"
    ) or pytest.skip("this kernel makes no bridges")
    assert gateway[3] == "br0 v1"


# ---- sessions


@pytest.mark.root
def test_the_session_that_this_runs_in() -> None:
    this = [f"this ssh session, from {THEM}", str(THEM), str(US), "v0", False]
    network = f"{NETWORK}\nip route add {THEM} via 192.0.2.1\n"
    assert found(f'{network} export SSH_CONNECTION="{SSH}"') == [this]
    # sudo takes the variable away, but not from who called sudo
    assert found(network, under=("env", f"SSH_CONNECTION={SSH}"), python="") == [this]
    without = 'set -- env -u SSH_CONNECTION "$@"'
    assert found(f"{network} {without}", under=("env", f"SSH_CONNECTION={SSH}")) == [this]


@pytest.mark.root
def test_sessions_that_are_none_or_of_another_network() -> None:
    values = ["", "x", "203.0.113.5 1 2", "a 1 b 2", "203.0.113.5 4000 198.51.100.9 22", "% 1 % 1"]
    each = f"""
for value in {values}:
    os.environ["SSH_CONNECTION"] = value
    assert lifelines.here() == [], value
"""
    assert found(NETWORK, each, under=("env", "SSH_CONNECTION=\udcff 1 1 1")) == []


# type, process, line, id, user, host, and where from: utmp(5) on x86_64
_UTMP = struct.Struct("<hxxi32s4s32s256s4xi8x16s20x")
_USER_PROCESS = 7


@pytest.mark.root
def test_those_who_are_logged_in_from_afar(tmp_path: Path) -> None:
    """Who(1) knows them, and they are connected with this network."""
    hosts = [b"203.0.113.5", b"203.0.113.6", b"example.org", b"tmux(7).%0", b"2001:db8::9"]
    file = tmp_path / "utmp"
    file.write_bytes(
        b"".join(
            _UTMP.pack(_USER_PROCESS, os.getpid(), b"pts/%d" % at, b"%d" % at, b"ada", host, 0, b"")
            for at, host in enumerate(hosts)
        )
    )
    own = f"mount -t tmpfs none /run; cp {file} /run/utmp\n"  # for this command alone
    # the far end is here too, so that there is somebody to talk to
    network = f"{NETWORK}\n{own}\nip address add 203.0.113.5/32 dev lo\n"
    network += "ip -6 address add 2001:db8::9/128 dev lo nodad\n"
    connected = """
def connected(server, client):
    listening = socket.create_server((server, 0), family=socket.getaddrinfo(server, 0)[0][0])
    there = listening.getsockname()[:2]
    return listening, socket.create_connection(there, source_address=(client, 0))
kept = connected("192.0.2.2", "203.0.113.5"), connected("2001:db8::2", "2001:db8::9")
"""
    sessions = found(network, connected, under=("unshare", "--mount"))
    assert [(what, remote, local) for what, remote, local, *_ in sessions] == [
        ("the session of ada on pts/0, from 203.0.113.5", "203.0.113.5", "192.0.2.2"),
        ("the session of ada on pts/4, from 2001:db8::9", "2001:db8::9", "2001:db8::2"),
    ]


# ---- what a filter would do to them


def line(remote: str, local: str, *, neighbour: bool = True) -> Lifeline:
    ends: list[Address] = [ipaddress.ip_address(one) for one in (remote, local)]
    return Lifeline("somebody", ends[0], ends[1], frozenset({"eth0"}), neighbour)


LINES = [
    line("203.0.113.5", "192.0.2.2", neighbour=False),
    line("192.0.2.1", "192.0.2.2"),
    line("fe80::1", "2001:db8::2"),
    line("2001:db8::1", "2001:db8::2"),
]


def known(which: Lifeline, *lines: str) -> Ruleset:
    """What there is to know of rules, each a direction and a prefix, for a lifeline."""
    words = [line.split() for line in lines]
    given = [Rule(Side(side), ipaddress.ip_network(prefix)) for side, prefix in words]
    covering = (one for one in given if any(address in one.network for address in which.addresses))
    return Ruleset(Counter(one.network.version for one in given), frozenset(covering))


def is_cut(which: Lifeline, policy: Policy, *lines: str, devs: tuple[str, ...] = ("eth0",)) -> bool:
    return bool(cut([which], devs, policy, known(which, *lines)))


@pytest.mark.parametrize("which", LINES, ids=str)
def test_by_its_address_or_a_prefix_or_ours(which: Lifeline) -> None:
    wide = ipaddress.ip_network(
        (which.remote, 24 if which.remote.version == 4 else 64), strict=False
    )
    for rule in (f"src {which.remote}", f"src {wide}", f"dst {which.local}", f"both {wide}"):
        assert is_cut(which, Policy.ALLOW, rule)
        assert not is_cut(which, Policy.DENY, rule)
        assert not is_cut(which, Policy.ALLOW, rule, devs=("eth1", "eth2"))
        assert is_cut(which, Policy.ALLOW, rule, devs=("eth1", "eth0"))
    for rule in ("src 198.51.100.0/24", f"dst {which.remote}", f"src {which.local}"):
        assert not is_cut(which, Policy.ALLOW, rule)
        assert is_cut(which, Policy.DENY, rule)
    assert is_cut(which, Policy.DENY)
    assert not is_cut(which, Policy.ALLOW)


def test_a_neighbour_has_to_be_found() -> None:
    for rule in ("dst ff02::/16", "dst ff02::1:ff00:2"):
        assert is_cut(LINES[2], Policy.ALLOW, rule)
        assert is_cut(LINES[3], Policy.ALLOW, rule)
    assert is_cut(LINES[2], Policy.ALLOW, "dst ff02::1")  # where it says that it is a router
    assert not is_cut(LINES[3], Policy.ALLOW, "dst ff02::1")
    assert not is_cut(LINES[0], Policy.ALLOW, "dst ff02::/16")


def test_the_rule_at_fault_is_named() -> None:
    rules = known(LINES[0], "src 10.0.0.0/8", "src 203.0.113.0/24", "src 203.0.113.5")
    (rule,) = cut([LINES[0]], ["eth0"], Policy.ALLOW, rules).values()
    assert rule == Rule(Side.SRC, ipaddress.ip_network("203.0.113.5"))


def test_what_comes_from_nobody_knows_where_may_come_from_here() -> None:
    lost = Lifeline("somebody", THEM, US, frozenset(), neighbour=False)
    assert is_cut(lost, Policy.ALLOW, f"src {THEM}", devs=("eth7",))


@pytest.mark.parametrize("which", LINES, ids=str)
def test_its_frames_are_sound(which: Lifeline) -> None:
    """Each is of it, as the model reads frames: only a rule for it covers them all."""
    wide = {4: "0.0.0.0/0", 6: "::/0"}[which.remote.version]
    own = Rules([Rule(Side.SRC, ipaddress.ip_network(which.remote))])
    every = Rules([Rule(Side.DST, ipaddress.ip_network(wide))])
    assert len(which.frames) == 1 + which.neighbour + which.remote.is_link_local
    for frame in which.frames:
        assert xdp_filter(frame, Policy.ALLOW, own).rule
        assert xdp_filter(frame, Policy.ALLOW, every).rule
