"""The model of the filters' verdicts, by frames made by hand."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from xdplab.cases import Cases
from xdplab.model import (
    Action,
    Address,
    Policy,
    Rule,
    Rules,
    Side,
    xdp_filter,
    xdp_ip_filter,
)
from xdplab.workspace import PROJECT

MACS = bytes(12)
A, B = IPv4Address("10.1.2.3"), IPv4Address("192.0.2.9")
A6, B6 = IPv6Address("2001:db8::a"), IPv6Address("fe80::b")
Q, AD = b"\x81\x00\x00\x05", b"\x88\xa8\xe0\x07"  # tags of a VLAN 5 and 7
SOLICITATION, ECHO = bytes([135]) + bytes(7), bytes([128]) + bytes(7)

DROP, PASS, ALLOW, DENY = Action.DROP, Action.PASS, Policy.ALLOW, Policy.DENY


def ipv4(
    source: Address = A, destination: Address = B, first: int = 0x45, rest: bytes = b"payload"
) -> bytes:
    return b"\x08\x00" + bytes([first]) + bytes(11) + source.packed + destination.packed + rest


def ipv6(following: int = 58, rest: bytes = ECHO, first: int = 0x60) -> bytes:
    header = bytes([first, 0, 0, 0, 0, 0, following, 255]) + A6.packed + B6.packed
    return b"\x86\xdd" + header + rest


def rules(*lines: str) -> list[Rule]:
    words = (line.split() for line in lines)
    return [Rule(Side(side), ip_network(network)) for side, network in words]


def counted(frame: bytes, *lines: str) -> str | None:
    """The rule that counts; what it does under either policy is asserted here."""
    of = Rules(rules(*lines))
    allowing, denying = xdp_filter(frame, ALLOW, of), xdp_filter(frame, DENY, of)
    assert allowing.rule == denying.rule
    if allowing.rule:
        assert (allowing.action, denying.action) == (DROP, PASS)
        return str(allowing.rule)
    assert allowing.action is PASS
    return None


@pytest.mark.parametrize(
    ("line", "covered"),
    [
        ("src 10.1.2.3/32", True),
        ("src 10.1.2.2/32", False),
        ("src 192.0.2.9/32", False),
        ("dst 192.0.2.9/32", True),
        ("dst 10.1.2.3/32", False),
        ("both 10.1.2.3/32", True),
        ("both 192.0.2.9/32", True),
        ("src 10.0.0.0/8", True),
        ("src 10.1.2.2/31", True),
        ("src 10.1.2.0/31", False),
        ("dst 0.0.0.0/0", True),
        ("src ::/0", False),
        ("src ::ffff:10.1.2.3/128", False),
    ],
)
def test_a_rule_for_ipv4_looks_at_its_side(line: str, covered: bool) -> None:
    assert counted(MACS + ipv4(), line) == (line if covered else None)


@pytest.mark.parametrize(
    ("line", "covered"),
    [
        ("src 2001:db8::a/128", True),
        ("src 2001:db8::b/128", False),
        ("dst fe80::/10", True),
        ("both fe80::b/128", True),
        ("dst 2001:db8::/32", False),
        ("src ::/0", True),
        ("src 0.0.0.0/0", False),
    ],
)
def test_a_rule_for_ipv6_looks_at_its_side(line: str, covered: bool) -> None:
    assert counted(MACS + ipv6(), line) == (line if covered else None)


def test_the_longest_prefix_counts_and_the_source_before_the_destination() -> None:
    frame = MACS + ipv4()
    assert counted(frame, "src 10.0.0.0/8", "src 10.1.2.3/32", "src 10.1.0.0/16") == (
        "src 10.1.2.3/32"
    )
    assert counted(frame, "dst 192.0.2.9/32", "src 10.0.0.0/8") == "src 10.0.0.0/8"
    assert counted(frame, "dst 192.0.2.0/24", "both 192.0.2.9/32") == "both 192.0.2.9/32"


@pytest.mark.parametrize("tags", [b"", Q, AD, AD + Q, Q + Q])
def test_up_to_two_tags_are_looked_behind(tags: bytes) -> None:
    assert counted(MACS + tags + ipv4(), "src 10.1.2.3/32")
    assert counted(MACS + tags + ipv6(), "dst fe80::b/128")


@pytest.mark.parametrize(
    "frame",
    [
        MACS + Q + Q + Q + ipv4(),
        MACS + b"\x88\xb5" + ipv4()[2:],
        MACS + b"\x86\xdd" + ipv4()[2:],
        MACS + b"\x08\x00" + ipv6()[2:],
        MACS + ipv4(first=0x44),
        MACS + ipv4(first=0x65),
        MACS + ipv6(first=0x40),
        *(frame[:length] for frame in [MACS + AD + Q + ipv4(rest=b"")] for length in range(42)),
        *(frame[:length] for frame in [MACS + ipv6(rest=b"")] for length in range(54)),
    ],
)
def test_what_is_no_ip_is_never_covered_and_passes_only_where_all_does(frame: bytes) -> None:
    everything = Rules(rules("both 0.0.0.0/0", "both ::/0"))
    assert xdp_filter(frame, ALLOW, everything).action is PASS
    denied = xdp_filter(frame, DENY, everything)
    assert (denied.action, denied.rule) == (DROP, None)


def test_options_and_fragments_of_ipv4_do_not_matter() -> None:
    assert counted(MACS + ipv4(first=0x4F, rest=b""), "src 10.1.2.3/32")  # said to be longer
    fragment = bytearray(MACS + ipv4())
    fragment[20:22] = b"\x20\xb9"
    assert counted(bytes(fragment), "src 10.1.2.3/32")


def arp(sender: Address = A, target: Address = B, first: str = "0001080006040001") -> bytes:
    return b"\x08\x06" + bytes.fromhex(first) + bytes(6) + sender.packed + bytes(6) + target.packed


def denied(frame: bytes, *lines: str) -> Action:
    """What becomes of it under DENY with one rule of each version, elsewhere."""
    elsewhere = lines or ("src 203.0.113.1/32", "src 2001:db8:f::/128")
    return xdp_filter(frame, DENY, Rules(rules(*elsewhere))).action


@pytest.mark.parametrize("tags", [b"", Q, AD + Q])
def test_deny_keeps_arp_and_neighbour_discovery_alive(tags: bytes) -> None:
    assert denied(MACS + tags + arp()) is PASS
    assert denied(MACS + tags + arp()[:9]) is PASS
    assert denied(MACS + tags + ipv6(rest=SOLICITATION)) is PASS
    assert denied(MACS + tags + ipv6(rest=ECHO)) is DROP
    assert denied(MACS + tags + ipv6(following=17, rest=SOLICITATION)) is DROP


def test_neighbours_are_found_only_where_a_rule_needs_it() -> None:
    assert denied(MACS + arp(), "src ::/128") is DROP
    assert denied(MACS + ipv6(rest=SOLICITATION), "src 0.0.0.0/32") is DROP


def test_arp_is_covered_by_the_addresses_that_it_speaks_of() -> None:
    assert counted(MACS + Q + arp(), "src 10.1.2.3/32")
    assert counted(MACS + arp(), "dst 192.0.2.9/32")
    assert not counted(MACS + arp(), "src 192.0.2.9/32", "dst 10.1.2.3/32")
    assert not counted(MACS + arp()[:-1], "src 10.1.2.3/32")
    for other in ("0001080006060001", "0001080008040001", "000186dd06040001"):
        assert not counted(MACS + arp(first=other), "src 10.1.2.3/32")


def test_neighbour_discovery_is_covered_by_its_target_too() -> None:
    target = bytes.fromhex("fc000000000000000000000000000007")
    solicitation, advertisement = (bytes([kind]) + bytes(7) + target for kind in (135, 136))
    assert counted(MACS + ipv6(rest=solicitation), "dst fc00::7/128")
    assert counted(MACS + ipv6(rest=advertisement), "src fc00::7/128")
    assert counted(MACS + ipv6(rest=advertisement), "src fc00::/16", "dst fe80::/10") == (
        "dst fe80::/10"
    )
    assert not counted(MACS + ipv6(rest=solicitation), "src fc00::7/128")
    assert not counted(MACS + ipv6(rest=advertisement), "dst fc00::7/128")
    assert not counted(MACS + ipv6(rest=solicitation[:-1]), "dst fc00::7/128")


@pytest.mark.parametrize(("kind", "action"), [(132, DROP), (133, PASS), (137, PASS), (138, DROP)])
def test_discovery_is_of_five_types(kind: int, action: Action) -> None:
    assert denied(MACS + ipv6(rest=bytes([kind]) + bytes(7))) is action


def chained(*kinds: int, last: bytes = SOLICITATION) -> bytes:
    """Extension headers of these kinds, of 16 bytes or what each kind says is that."""
    after = [*kinds[1:], 58]
    lengths = {44: 0, 51: 2}
    headers = (
        bytes([following, lengths.get(kind, 1)]) + bytes(6 if kind == 44 else 14)
        for kind, following in zip(kinds, after, strict=True)
    )
    return MACS + ipv6(following=kinds[0], rest=b"".join(headers) + last)


def test_discovery_is_found_behind_six_headers() -> None:
    for kind in (0, 43, 44, 51, 60):
        assert denied(chained(kind)) is PASS
        assert denied(chained(kind, last=ECHO)) is DROP
    assert denied(chained(0, 60, 43, 44, 51, 60)) is PASS
    assert denied(chained(0, 60, 43, 44, 51, 60, 60)) is DROP
    assert denied(chained(50)) is DROP  # encrypted: nobody can tell


def test_discovery_is_not_found_where_the_frame_ends_or_in_a_later_fragment() -> None:
    whole = chained(0, 51, 44)
    begins = whole.index(SOLICITATION)
    assert {denied(whole[:length]) for length in range(54, begins + 1)} == {DROP}
    later = bytearray(chained(44))
    later[14 + 40 + 3] = 8
    assert denied(bytes(later)) is DROP
    later[14 + 40 + 3] = 7  # no offset: reserved bits and "more follow"
    assert denied(bytes(later)) is PASS


@pytest.mark.parametrize(
    ("frame", "action"),
    [
        (MACS + ipv4(), DROP),
        (MACS + ipv4(first=0x00), DROP),  # it doesn't look at the version, as the post doesn't
        (MACS + ipv4(rest=b"")[:21], PASS),
        (MACS + ipv4(B, A), PASS),
        (MACS + Q + ipv4(), PASS),
        (MACS + ipv6(), PASS),
        (MACS[:5], PASS),
    ],
)
def test_the_tutorials_filter_looks_at_untagged_sources_only(frame: bytes, action: Action) -> None:
    assert xdp_ip_filter(frame, A) is action


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("xdp_ip_filter_cases.toml", lambda frame: xdp_ip_filter(frame, A)),
        (
            "samples/xdp_filter_cases.toml",
            lambda frame: xdp_filter(frame, ALLOW, Rules(rules(f"src {A}"))).action,
        ),
    ],
)
def test_the_packet_cases_say_the_same(file: str, model: Callable[[bytes], Action]) -> None:
    tries = Cases.parse((PROJECT / file).read_text(), file, str(A)).tries
    wrong = {one.case.name for one in tries if model(one.frame).name.lower() != one.case.verdict}
    assert wrong == set()
