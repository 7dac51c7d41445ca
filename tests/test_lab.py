"""The lab: who can reach whom, whose the shell is, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import pty
import shlex
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused, give_away, open_lab, press_ctrl_c, wait_until

from xdplab.errors import NoCommand, NotANumber
from xdplab.network import MOST, Network
from xdplab.view import drawing
from xdplab.visit import Errand
from xdplab.workspace import RunRecord, Workspace

root = pytest.mark.root


# ---- the plan


def test_every_address_is_one_interfaces_and_both_ends_of_a_cable_share_a_net() -> None:
    seen: set[str] = set()
    for cable in Network(MOST, vlan=True, ipv6=True).cables:
        for here, there in zip(cable.host, cable.box, strict=True):
            assert here.vlan == there.vlan
            for one, other in zip(here.addresses, there.addresses, strict=True):
                assert ipaddress.ip_interface(one).network == ipaddress.ip_interface(other).network
                assert ipaddress.ip_interface(one).is_private
                if not one.startswith("fe80"):
                    assert not {one, other} & seen
                    seen |= {one, other}


def test_the_drawing_has_every_interface_with_its_addresses() -> None:
    network = Network(3, vlan=True, ipv6=True)
    drawn = list(drawing.lines(network, "host2"))
    for cable in network.cables:
        for one, other in zip(cable.host, cable.box, strict=True):
            (line,) = [line for line in drawn if line.split()[:2] == [one.dev, one.addresses[0]]
                       or (other.mac in line and not one.vlan)]  # fmt: skip
            assert line.index(one.dev) < line.index(other.dev)
    assert sum("you are here" in line for line in drawn) == 1
    assert {line.index(f"eth{n}") for n in (1, 2, 3) for line in drawn if f"eth{n}" in line}


# ---- what is refused


@pytest.mark.parametrize("hosts", [-1, 0, MOST + 1])
def test_as_many_hosts_as_there_can_be(hosts: int) -> None:
    with pytest.raises(NotANumber, match="--hosts"):
        Network(hosts)


def test_a_command_must_be_one() -> None:
    for command, why in (
        ("no-such-command -x", "nothing of that name"),
        ("", "it is empty"),
        ("sh -c 'true", "quotation"),
    ):
        with pytest.raises(NoCommand, match=why):
            Errand.of(command)
    assert Errand.of("ping -c 1 '10.0.1.1'").argv == ("ping", "-c", "1", "10.0.1.1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hosts=65", "--command=true"], ["--hosts", "from 1 to 64"]),
        (["--in=host3", "--command=true"], ["'host3'", "box, host1, host2"]),
        ([], ["terminal", "--command"]),
        (["--join=host1", "--command=true"], ["no lab", "invoke lab"]),
        (["--join=host1", "--in=box", "--command=true"], ["--join and --in"]),
    ],
)
def test_refused(invoke: Invoke, options: list[str], words: list[str]) -> None:
    env = {"SHELL": "/bin/sh"}
    assert_refused(invoke("lab", *options, env=env), 2, *words)
    assert not invoke.workspace.exists()


def test_a_shell_that_is_none(invoke: Invoke) -> None:
    assert_refused(invoke("lab", env={"SHELL": "/no/such/shell"}), 2, "/no/such/shell")


def test_a_dry_run_shows_who_would_be_where(invoke: Invoke) -> None:
    outcome = invoke("--dry", "lab", "--in=host1", "--command=true")
    assert outcome.code == 0, outcome.err
    assert "10.0.2.2/24" in outcome.err
    assert any("nsenter" in command for command in outcome.commands())
    assert not invoke.workspace.exists()


# ---- in it


def record_of(invoke: Invoke) -> RunRecord:
    return next(Workspace(invoke.workspace).runs())


def namespaces(record: RunRecord) -> set[int]:
    fields = record.read()
    held = Path(f"/proc/{fields['pid']}/fd")
    return {(held / str(number)).stat().st_ino for number in fields["descriptors"].values()}


def inhabitants(nodes: set[int]) -> list[int]:
    """The processes that are in namespaces, or have one of them open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            opened = [process / "ns/net", *(process / "fd").iterdir()]
            if any(path.exists() and path.stat().st_ino in nodes and
                   str(path.readlink()).startswith("net:") for path in opened):  # fmt: skip
                found.append(int(process.name))
    return found


@root
def test_everybody_reaches_everybody_at_once(invoke: Invoke) -> None:
    peers = ["10.0.1.1", "10.0.3.1", "10.0.3.2", "2001:db8:0:1::1", "2001:db8:0:3::2"]
    pings = " && ".join(f"ping -q -c 1 -W 2 {peer}" for peer in peers)
    outcome = invoke("lab", "--hosts=3", "--ipv6", "--in=host1", "--command", f"sh -c '{pings}'")
    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.out.count("1 received") == len(peers)


@root
def test_interfaces_are_as_drawn(invoke: Invoke) -> None:
    outcome = invoke("lab", "--hosts=2", "--ipv6", "--command=ip -json address")
    assert outcome.code == 0, outcome.err
    found = {link["ifname"]: link for link in json.loads(outcome.out)}
    for cable in Network(2, ipv6=True).cables:
        (port,) = cable.box
        assert found[port.dev]["address"] == port.mac
        have = [f"{one['local']}/{one['prefixlen']}" for one in found[port.dev]["addr_info"]]
        assert have == list(port.addresses)  # and so no other: nothing talks of itself


@root
def test_a_vlan_on_each_cable(invoke: Invoke) -> None:
    ping = "ping -q -c 1 -W 2 10.1.2.2"
    outcome = invoke("lab", "--vlan", "--in=host1", "--command", ping)
    if "CONFIG_VLAN_8021Q" in outcome.err:
        assert_refused(outcome, 69, "802.1Q")
        pytest.skip("this kernel has no 802.1Q interfaces")
    assert outcome.code == 0, outcome.err


@root
def test_the_commands_output_and_exit_code_are_its_own(invoke: Invoke) -> None:
    outcome = invoke("lab", "--command", "sh -c 'echo $XDPLAB_NODE; exit 7'")
    assert (outcome.code, outcome.out) == (7, "box\n")
    assert "error" not in outcome.err
    assert invoke("lab", "--command", "sh -c 'kill -TERM $$'").code == 128 + signal.SIGTERM


@root
def test_other_terminals_join_it(invoke: Invoke) -> None:
    with open_lab(invoke):
        assert_refused(invoke("lab", "--join=host3", "--command=true"), 2, "box, host1, host2")
        ping = "ping -q -c 1 -W 2 10.0.1.1"
        assert invoke("lab", "--join=host1", "--command", ping).code == 0


@root
def test_two_at_once_know_nothing_of_each_other(invoke: Invoke, tmp_path: Path) -> None:
    other = Invoke(tmp_path / "other")
    where = ["lab", "--join=box", "--command", "readlink /proc/self/ns/net"]
    with open_lab(invoke), open_lab(other, "--hosts=1"):
        assert invoke(*where).out != other(*where).out
        assert not namespaces(record_of(invoke)) & namespaces(record_of(other))
        assert invoke("lab", "--join=host2", "--command", "ping -q -c 1 10.0.1.2").code == 0


@root
@pytest.mark.parametrize("end", ["Ctrl-C", "TERM", "KILL", "clean"])
def test_nothing_is_left_however_it_ends(invoke: Invoke, end: str) -> None:
    # one that minds no signal, in another node
    stubborn = "sh -c 'trap \"\" HUP INT TERM; echo stays; while :; do sleep 1; done'"
    with (
        open_lab(invoke) as maker,
        invoke.start("lab", "--join=host2", "--command", stubborn) as visitor,
    ):
        visitor.wait_for("stays\n")
        nodes = namespaces(record_of(invoke))
        assert len(nodes) == 3
        assert inhabitants(nodes)
        if end == "clean":
            assert "the lab with 2 hosts is gone" in invoke("clean").err
        elif end == "Ctrl-C":
            press_ctrl_c(maker)
        else:
            maker.process.send_signal(getattr(signal, f"SIG{end}"))
        wait_until(lambda: not inhabitants(nodes), patience=20)
        visitor.wait()


@root
def test_nothing_is_left_when_the_holder_is_killed(invoke: Invoke) -> None:
    with open_lab(invoke) as maker:
        nodes = namespaces(record_of(invoke))
        os.kill(record_of(invoke).read()["pid"], signal.SIGKILL)
        press_ctrl_c(maker)
        wait_until(lambda: not inhabitants(nodes), patience=20)


@root
def test_the_shell_is_the_users(nobody: Path, with_sudo: tuple[str | Path, ...]) -> None:
    invoke = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    script = nobody / "script"
    script.write_text('id -u; echo "$MINE"; pwd; grep CapEff /proc/self/status; sudo -n id -u\n')
    give_away(nobody)
    env = {"HOME": str(nobody), "MINE": "two words"}
    outcome = invoke("lab", "--in=host1", "--command", f"sh {script}", env=env, under=with_sudo)
    assert outcome.code == 0, outcome.err
    user, mine, place, capabilities, sudo = outcome.out.splitlines()
    assert (user, mine, place, sudo) == ("65534", "two words", str(invoke.cwd), "0")
    assert int(capabilities.split()[1], 16) == 0


PROMPTS = ["bash", "zsh", "fish", "dash"]


@root
@pytest.mark.parametrize("name", PROMPTS)
def test_the_prompt_says_where_one_is(invoke: Invoke, tmp_path: Path, name: str) -> None:
    if not (shell := shutil.which(name)):
        pytest.skip(f"{name} is not installed")
    (tmp_path / ".bashrc").write_text("PS1='mine> '\n")
    (tmp_path / ".zshrc").write_text("PS1='mine> '\n")
    env = {**os.environ, "SHELL": shell, "HOME": str(tmp_path), "TERM": "dumb",
           "INVOKE_WORKSPACE": str(invoke.workspace)}  # fmt: skip
    process, terminal = pty.fork()
    if not process:
        os.chdir(invoke.cwd)
        os.execvpe(sys.executable, [sys.executable, "-m", "invoke", "lab", "--in=host2"], env)  # noqa: S606
    screen = bytearray()
    reader = threading.Thread(target=_read_all, args=(terminal, screen), daemon=True)
    reader.start()
    mine = b"mine> " if name in ("bash", "zsh") else b""
    wait_until(lambda: b"(host2) " + mine in screen)
    os.write(terminal, b"exit 5\r")
    _, status = os.waitpid(process, 0)
    reader.join()
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 5, screen.decode(errors="replace")
    assert b"host2, you are here" in screen


def _read_all(terminal: int, screen: bytearray) -> None:
    with contextlib.suppress(OSError):  # the other end is closed
        while True:
            screen += os.read(terminal, 4096)


@root
@pytest.mark.tree
def test_a_filter_in_the_box_drops_what_a_host_sends(lab: Invoke) -> None:
    run = [sys.executable, "-m", "invoke", "run", "--dev=eth1", "--ip=10.0.1.2", "--mode=native",
           "--json", "--interval=0.1"]  # fmt: skip
    box = ["lab", "--join=box", "--command", shlex.join(run)]
    with open_lab(lab), lab.start(*box) as filtering:
        filtering.wait_for("{")
        ping = "ping -q -c 3 -i 0.2 -W 1 10.0.1.1"
        assert lab("lab", "--join=host1", "--command", ping).code == 1
        assert lab("lab", "--join=host2", "--command", ping).code == 0
        wait_until(lambda: json.loads(filtering.out.splitlines()[-1])["total"] == 3)
