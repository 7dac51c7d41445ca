"""Frames in scapy's notation: what is made of them, and that nothing else is done."""

from __future__ import annotations

import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from xdplab import notation
from xdplab.errors import NotAFrame

MACS = {"dst": "02:00:00:00:00:01", "src": "02:00:00:00:00:02"}


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may be asked for an address."""

    def refuse(*asked: object, **_: object) -> None:
        raise AssertionError(f"somebody was asked for {asked}")

    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        (
            "Ether() / IP(src='192.0.2.7', dst='127.0.0.1') / ICMP()",
            Ether(**MACS) / IP(src="192.0.2.7", dst="127.0.0.1") / ICMP(),
        ),
        (
            "Ether(dst='ff:ff:ff:ff:ff:ff')/Dot1Q(vlan=5, prio=7)/IPv6(src='::1', dst='::2')/b'x'",
            Ether(dst="ff:ff:ff:ff:ff:ff", src=MACS["src"])
            / Dot1Q(vlan=5, prio=7) / IPv6(src="::1", dst="::2") / b"x",
        ),
        (
            "Ether() / IP(src='1.2.3.4', options=[IPOption_Router_Alert()], flags='MF', frag=-0)"
            " / TCP(options=[('MSS', 1460), ('NOP', None)]) / Raw('abc' * 3)",
            Ether(**MACS) / IP(src="1.2.3.4", options=[IPOption_Router_Alert()], flags="MF")
            / TCP(options=[("MSS", 1460), ("NOP", None)]) / Raw(b"abcabcabc"),
        ),
        (
            # what scapy would ask the machine for is the same everywhere
            "Ether() / ARP(pdst='192.0.2.9')",
            Ether(**MACS) / ARP(pdst="192.0.2.9", psrc="192.0.2.2", hwsrc=MACS["src"]),
        ),
        ("\n Ether() / IP() / UDP()\n", Ether(**MACS) / IP(src="192.0.2.2") / UDP()),
    ],
)  # fmt: skip
def test_it_means_what_it_means_to_scapy(text: str, packet: Packet) -> None:
    assert notation.frame(text) == bytes(packet)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "invalid syntax"),
        ("Ether() / (", "was never closed"),
        ("Ether() / IPv5()", "scapy has no layer IPv5; did you mean IPv"),
        ("Packet()", "scapy has no layer Packet"),
        ("Ether() / IP(scr='1.2.3.4')", "IP has no field scr; did you mean src?"),
        ("Ether() / IP(post_transform=1)", "IP has no field post_transform"),
        ("Ether() / IP(**1)", r"IP has no field \*\*"),
        ("Ether(b'123456') / IP()", "must be given by name"),
        ("IP() / ICMP()", "must begin with Ether"),
        ("b'raw'", "must begin with Ether"),
        ("Ether() / 5", "'5' is no layer"),
        ("Ether() / IP(src='example.org')", "takes one address in numbers: not 'example.org'"),
        ("Ether() / IP(dst='10.0.0.0/8')", "takes one address"),
        ("Ether() / IP(dst=['10.0.0.1', '10.0.0.2'])", "takes one address"),
        ("Ether() / IPv6(dst='fe80::1%eth0')", "takes one address"),
        ("Ether() / IP(len=70000)", "scapy can't make it"),
        ("Ether(dst='nonsense') / IP()", "takes one address"),
        ("Ether() / ARP(hwsrc='00:11:22:33:44:5') / IP()", "takes one address"),
        ("Ether() / (b'x' * 100000)", "at most 65535 bytes"),
        ("Ether() / (IP() * 3)", "only text can be repeated"),
        ("Ether() / IP(ttl=2 ** 3)", r"'2 \*\* 3' can't be in a frame"),
        ("__import__('os').system('true')", "can't be in a frame"),
        ("Ether() / __import__('os')", "scapy has no layer __import__"),
        ("Ether() / IP(id=open)", "'open' can't be in a frame"),
        ("Ether() / [x for x in ()]", "can't be in a frame"),
        ("Ether() / IP(src=f'{1}')", "can't be in a frame"),
        ("Ether() / IP(ttl=1.5)", "'1.5' can't be in a frame"),
        ("(" * 1000 + ")" * 1000, "."),
        ("Ether()" + " / IP()" * 5000, "."),
        ("Ether() / IP(id=" + "9" * 5000 + ")", "."),
        ("Ether()\0", "null"),
    ],
)
def test_what_is_no_frame(text: str, why: str) -> None:
    with pytest.raises(NotAFrame, match=why):
        notation.frame(text)


NAMES = st.sampled_from(["Ether", "IP", "Dot1Q", "ARP", "Raw", "IPv6", "Packet", "open", "exec"])
FIELDS = st.sampled_from(["src", "dst", "type", "len", "load", "psrc", "_pkt", "self", "__class__"])
VALUES = st.one_of(
    st.integers(), st.text(max_size=8), st.binary(max_size=8), st.none(), st.booleans(),
    st.lists(st.integers(), max_size=2), st.tuples(st.integers(), st.text(max_size=2)),
    st.ip_addresses().map(str),
).map(repr)  # fmt: skip
LAYERS = st.builds(
    lambda name, fields: f"{name}({', '.join(f'{one}={value}' for one, value in fields.items())})",
    NAMES, st.dictionaries(FIELDS, VALUES, max_size=2),
)  # fmt: skip


@given(st.one_of(st.text(max_size=40), st.lists(LAYERS, min_size=1, max_size=4).map(" / ".join)))
@example("Ether() / Raw(load='\\ud800')")
@example("Ether() / '\\d'")
def test_any_text_is_a_frame_or_is_refused(text: str) -> None:
    try:
        made = notation.frame(text)
    except NotAFrame:
        return
    assert len(made) >= 14
    assert made == notation.frame(text)
