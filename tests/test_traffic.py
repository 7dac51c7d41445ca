"""Traffic: frames as they were ordered, in the numbers and at the rates that were ordered."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Background, Invoke, assert_refused, open_lab, press_ctrl_c, wait_until
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet
from scapy.utils import RawPcapWriter, wrpcapng

from xdplab.errors import (
    MixedFamilies,
    NotACapture,
    NotAChoice,
    NotAnIpAddress,
    NotANumber,
    NoTarget,
)
from xdplab.outlet import Outlet
from xdplab.traffic import Order, Proto, Recipe, captured, paced, require_room
from xdplab.workspace import Workspace

root = pytest.mark.root

OUTLET = Outlet("eth0", 2, up=True, loopback=False, mtu=1500, mac="02:00:00:00:01:02",
                next_hop="02:00:00:00:01:01")  # fmt: skip
IPV4, IPV6 = ("192.168.1.78", "10.0.1.1"), ("2001:db8::78", "2001:db8:0:1::1")
HEADERS = {  # of each frame, without tags: Ethernet, IP, and what is above
    (4, Proto.ICMP): 14 + 20 + 8,
    (4, Proto.UDP): 14 + 20 + 8,
    (4, Proto.TCP): 14 + 20 + 20,
    (6, Proto.ICMP): 14 + 40 + 8,
    (6, Proto.UDP): 14 + 40 + 8,
    (6, Proto.TCP): 14 + 40 + 20,
}


# ---- frames


@pytest.mark.parametrize("vlans", [(), (7,), (100, 4094)])
@pytest.mark.parametrize(("version", "proto"), HEADERS)
def test_a_frame_is_what_was_asked_for(version: int, proto: Proto, vlans: tuple[int, ...]) -> None:
    source, target = IPV4 if version == 4 else IPV6
    least, most = HEADERS[version, proto] + 4 * len(vlans), 1514 + 4 * bool(vlans)
    for size in (None, least, most):
        made = Recipe(source, target, proto, size, vlans).frame(OUTLET)
        assert len(made) == (size or max(60, least))
        packet = Ether(made)
        assert (packet.src, packet.dst) == (OUTLET.mac, OUTLET.next_hop)
        tags = [layer.vlan for layer in packet.iterpayloads() if isinstance(layer, Dot1Q)]
        assert tuple(tags) == vlans
        assert (Dot1AD in packet) == (len(vlans) == 2)
        network = packet[IP if version == 4 else IPv6]
        assert (network.src, network.dst) == (source, target)
        above = {Proto.UDP: UDP, Proto.TCP: TCP}
        echo = ICMP if version == 4 else ICMPv6EchoRequest
        assert above.get(proto, echo) in packet
        # what is written in the headers is true: a stack would take it
        rebuilt = packet.copy()
        for layer in rebuilt.iterpayloads():
            for field in ("len", "plen", "chksum", "cksum"):
                if field in layer.fields:
                    delattr(layer, field)
        assert bytes(rebuilt) == made
    for size in (0, least - 1, most + 1):
        with pytest.raises(NotANumber, match=rf"--size can't be '{size}'"):
            Recipe(source, target, proto, size, vlans).frame(OUTLET)


@pytest.mark.parametrize("given", ["0", "4095", "1,2,3", "", ",", "-1", "7.5", "red"])
def test_a_vlan_that_is_none(given: str) -> None:
    with pytest.raises(NotANumber, match="--vlan"):
        Recipe.of(*IPV4, None, None, given)


def test_addresses_that_dont_fit() -> None:
    with pytest.raises(MixedFamilies):
        Recipe(IPV4[0], IPV6[1])
    with pytest.raises(NotAnIpAddress):
        Recipe("localhost", IPV4[1])


# ---- captures


FRAMES = [bytes(Ether(src="02:00:00:00:00:01") / IP(src=f"10.9.0.{n}") / UDP() / bytes(n))
          for n in range(1, 6)]  # fmt: skip


def capture(path: Path, frames: list[bytes], linktype: int = 1) -> Path:
    if path.suffix == ".pcapng":
        wrpcapng(str(path), [Ether(frame) for frame in frames])
        return path
    with RawPcapWriter(str(path), linktype=linktype) as writer:
        writer.write(frames)
    return path


@pytest.mark.parametrize("name", ["some.pcap", "some.pcapng"])
def test_a_capture_gives_its_frames(tmp_path: Path, name: str) -> None:
    assert captured(capture(tmp_path / name, FRAMES)) == FRAMES


def test_captures_that_cant_be_sent(tmp_path: Path) -> None:
    whole = capture(tmp_path / "whole.pcap", FRAMES)
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(whole.read_bytes()[:30])
    empty, text = tmp_path / "empty.pcap", tmp_path / "text"
    empty.write_bytes(whole.read_bytes()[:24])
    text.write_text("this is no capture, but it is long enough to be one")
    nothing = tmp_path / "nothing"
    nothing.touch()
    for path, why in (
        (cut, "no frame"),
        (empty, "no frame"),
        (text, "."),
        (nothing, "."),
        (tmp_path / "not there", "No such file"),
        (tmp_path, "directory"),
        (capture(tmp_path / "raw.pcap", FRAMES, linktype=101), "not Ethernet's: link type 101"),
        (capture(tmp_path / "short.pcap", [FRAMES[0], bytes(13)], linktype=1), "frame 2 ends"),
    ):
        with pytest.raises(NotACapture, match=why):
            captured(path)
    with pytest.raises(NotACapture, match="frame 1 has 1515 bytes, and the MTU of eth0 is 1500"):
        require_room([bytes(1515)], OUTLET, whole)
    require_room([bytes(1514), bytes(12) + b"\x81\x00" + bytes(1504)], OUTLET, whole)


# ---- the schedule


@given(
    rate=st.floats(100, 1e6) | st.none(),
    count=st.integers(1, 300),
    most=st.integers(1, 64),
    share=st.floats(0.1, 1),
)
def test_the_schedule_is_never_overtaken_and_the_number_is_exact(
    rate: float | None, count: int, most: int, share: float
) -> None:
    began = time.monotonic()
    sent = 0

    def send(number: int) -> int:
        nonlocal sent
        assert 0 < number <= most
        sent += max(1, int(number * share))
        if rate is not None:
            assert sent <= (time.monotonic() - began) * rate + 1
        return max(1, int(number * share))

    def stopped(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    rate = None if rate is None else max(rate, count * 20.0)  # so that it doesn't take long
    *_, last = paced(send, lambda: most, stopped, rate=rate, count=count, seconds=None)
    assert last[0] == sent == count


def test_it_ends_when_it_should() -> None:
    def forever(**limits: float | None) -> int:
        told = paced(lambda n: n, lambda: 1, lambda _: bool(limits.get("stop")), rate=None,
                     count=0, seconds=limits.get("seconds"))  # fmt: skip
        return [sent for sent, _ in told][-1]

    assert forever(seconds=0.05) > 1
    assert forever(stop=1) == 1
    assert forever(seconds=0) == 0


# ---- on the command line


def test_orders_that_cant_be() -> None:
    for rate, count, duration, word in (
        ("0", None, None, "--rate"),
        ("fast", None, None, "--rate"),
        (None, "1.5", None, "--count"),
        (None, None, "-1", "--duration"),
    ):
        with pytest.raises(NotANumber, match=word):
            Order.of(None, "some.pcap", rate, count, duration, fast=False)
    with pytest.raises(NotAChoice, match="--proto"):
        Recipe.of(*IPV4, "sctp", None, None)
    with pytest.raises(NotANumber, match="--size"):
        Recipe.of(*IPV4, None, "some", None)
    with pytest.raises(NoTarget):
        Recipe.of(IPV4[0], None, None, None, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--proto=udp", "--to=10.0.1.1"], ["--dev takes one of", "lo"]),
        (["--dev=lo", "--ip=2001:db8::1", "--to=127.0.0.1"], ["2001:db8::1", "127.0.0.1"]),
        (["--dev=nope0", "--to=10.0.1.1"], ["'nope0'", "lo"]),
        (["--dev=lo", "--pcap=no.pcap", "--size=100"], ["--pcap and --size"]),
        (["--dev=lo", "--size=20"], ["--size", "from 42"]),
        (["--on=netns", "--rate=10"], ["no filter runs on netns"]),
    ],
)
@root
def test_refused(invoke: Invoke, options: list[str], words: list[str]) -> None:
    script = 'ip link set dev lo up && exec "$@"'
    under = ("unshare", "--net", "sh", "-c", script, "sh")
    assert_refused(invoke("send", *options, under=under), 2, *words)


@root
def test_an_interface_that_is_down(invoke: Invoke) -> None:
    assert_refused(
        invoke("send", "--dev=lo", "--count=3", under=("unshare", "--net")), 2, "lo is down", "up"
    )


# what comes in at an interface, a frame in hexadecimal a line
LISTEN = """\
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as heard:
    heard.bind((sys.argv[1], 3))
    heard.setsockopt(263, 8, 1)  # PACKET_AUXDATA: the tag that the kernel takes off
    print("listening", flush=True)
    while True:
        frame, words, *_ = heard.recvmsg(2000, 100)
        for *_, word in words:
            status, *_, tag, kind = __import__("struct").unpack("IIIHHHH", word)
            if status & 0x50 == 0x50:  # TP_STATUS_VLAN_VALID and _TPID_VALID
                frame = frame[:12] + kind.to_bytes(2, "big") + tag.to_bytes(2, "big") + frame[12:]
        print(frame.hex(), flush=True)
"""
# a program that drops everything in native mode, until it is killed
DROP = """\
import socket, struct, time
from xdplab import bpf
drop = bpf.load_xdp(bytes.fromhex("b700000001000000 9500000000000000"))
link = bpf.call(bpf.LINK_CREATE, struct.pack("<IIII", drop, socket.if_nametoindex("eth1"), 37, 4))
print("dropping", flush=True)
time.sleep(1000)
"""


def at(invoke: Invoke, node: str) -> tuple[str, ...]:
    """What runs another command in a node of the lab."""
    fields = next(Workspace(invoke.workspace).runs()).read()
    return ("nsenter", f"--net=/proc/{fields['pid']}/fd/{fields['descriptors'][node]}")


@contextlib.contextmanager
def python(invoke: Invoke, node: str, code: str, *arguments: str) -> Iterator[Background]:
    """A piece of Python in a node of the lab."""
    command = [*at(invoke, node), sys.executable, "-c", code, *arguments]
    with subprocess.Popen(
        command, cwd=invoke.cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            background = Background(process)
            background.wait_for("ing\n")
            yield background
        finally:
            process.kill()


def send(invoke: Invoke, *options: str | Path) -> str:
    """`invoke send` at host 1."""
    outcome = invoke("send", "--dev=eth0", *options, under=at(invoke, "host1"))
    assert outcome.code == 0, outcome.err
    return outcome.out + outcome.err


_EMPTY = 8  # bytes of a UDP datagram with nothing in it


def ours(box: Background) -> list[Packet]:
    """What came of ours: not the questions for the next hop, nor what was sent to have them."""
    heard = [Ether(bytes.fromhex(one)) for one in box.out.split()[1:]]
    return [one for one in heard if TCP in one or (UDP in one and one[UDP].len > _EMPTY)]


@root
def test_frames_arrive_as_they_were_ordered(invoke: Invoke, tmp_path: Path) -> None:
    path = capture(tmp_path / "some.pcap", FRAMES)
    udp = ["--proto=udp", "--to=10.0.1.1"]
    with open_lab(invoke, "--hosts=1", "--ipv6"), python(invoke, "box", LISTEN, "eth1") as box:
        assert "3 frames of 300 bytes into eth0" in send(invoke, *udp, "--count=3", "--size=300")
        send(invoke, *udp, "--vlan=5,6", "--ip=10.9.9.9")
        send(invoke, "--ip=2001:db8::78", "--to=2001:db8:0:1::1", "--proto=tcp")
        assert "8 frames of 43 to 47 bytes" in send(invoke, f"--pcap={path}", "--count=8")
        wait_until(lambda: len(ours(box)) >= 13, patience=20)
        plain, tagged, tcp, replayed = (
            ours(box)[:3], ours(box)[3], ours(box)[4], ours(box)[5:]
        )  # fmt: skip
        for one in plain:  # the next hop was asked for
            assert (one.dst, one[IP].src, len(one)) == ("02:00:00:00:01:01", "192.168.1.78", 300)
        assert [tag.vlan for tag in tagged.iterpayloads() if isinstance(tag, Dot1Q)] == [5, 6]
        assert tagged[IP].src == "10.9.9.9"
        assert (tcp.dst, tcp[IPv6].src) == ("02:00:00:00:01:01", "2001:db8::78")
        assert list(map(bytes, replayed)) == [*FRAMES, *FRAMES[:3]]


@root
def test_the_fastest_way_is_taken_and_all_is_counted(invoke: Invoke) -> None:
    fast = ["--to=10.0.1.1", "--fast"]
    with open_lab(invoke, "--hosts=1"):
        said = send(invoke, *fast, "--count=5000")  # to who can't take live frames
        assert "5,000 frames of 60 bytes" in said
        assert "by a packet socket" in said
        assert "not as fast as it might be: live frames don't get into eth0" in said
        release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
        if release < (5, 18):
            pytest.skip("live frames are there since 5.18")
        with python(invoke, "box", DROP):
            before = received(invoke)
            assert "by live frames" in (said := send(invoke, *fast, "--count=200000"))
            assert "200,000 frames" in said
            assert received(invoke) >= before + 200_000
            assert "50 frames" in send(invoke, *fast, "--count=50")


@root
def test_live_frames_come_in_on_lo(invoke: Invoke) -> None:
    script = 'ip link set dev lo up && "$@" && cat /proc/net/snmp'
    under = ("unshare", "--net", "sh", "-c", script, "sh")
    outcome = invoke("send", "--dev=lo", "--fast", "--proto=udp", "--count=5000", under=under)
    assert outcome.code == 0, outcome.err
    if "by live frames" not in outcome.out:
        assert "the kernel gives no live frames" in outcome.out + outcome.err
    named, counted = (line.split() for line in re.findall(r"^Ip: .*", outcome.out, re.MULTILINE))
    assert int(counted[named.index("InReceives")]) == 5000


def received(invoke: Invoke) -> int:
    """How many packets came to the box from host 1."""
    command = [*at(invoke, "box"), "ip", "-json", "-stats", "link", "show", "dev", "eth1"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(json.loads(said)[0]["stats64"]["rx"]["packets"])


@root
def test_ctrl_c_ends_it_and_what_was_sent_is_told(invoke: Invoke) -> None:
    namespace = (
        "unshare",
        "--net",
        "setsid",
        "sh",
        "-c",
        'ip link set dev lo up && exec "$@"',
        "sh",
    )
    with invoke.start("send", "--dev=lo", "--count=0", "--rate=50", under=namespace) as sending:
        proc = Path("/proc", str(sending.process.pid))
        wait_until(lambda: (proc / "ns/net").readlink() != Path("/proc/self/ns/net").readlink())
        devices = proc / "net/dev"  # of its namespace, now that it has one
        wait_until(lambda: re.search(r"^ *lo: *[1-9]", devices.read_text(), re.MULTILINE))
        press_ctrl_c(sending)
        outcome = sending.wait()
    assert outcome.code == 0, outcome.err
    assert re.search(r"^[\d,]+ frames of 60 bytes into lo", outcome.out)
    assert "50 were asked for" in outcome.out
    assert "Traceback" not in outcome.err


@root
@pytest.mark.tree
def test_a_filter_in_a_namespace_counts_what_is_sent_there(lab: Invoke) -> None:
    with lab.start("run", "--on=netns", "--ip=10.9.9.9", "--interval=0.1", "--json") as run:
        run.wait_for("{")
        for options in (["--proto=udp"], ["--proto=tcp", "--size=900"]):
            sent = lab("send", "--on=netns", "--ip=10.9.9.9", "--count=20", "--rate=2000", *options)
            assert sent.code == 0, sent.err
        lab("send", "--on=netns", "--ip=10.9.9.8", "--count=20", "--rate=2000")
        wait_until(lambda: json.loads(run.out.splitlines()[-1])["total"] == 40)
