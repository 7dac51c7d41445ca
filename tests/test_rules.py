"""Rules as people write them, right, wrong and by the thousand."""

import ipaddress
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdplab import rules
from xdplab.errors import BadRules, NotAChoice
from xdplab.model import Network, Rule, Side
from xdplab.rules import MODES, Ruleset, parse, read, told


def numbered(found: Ruleset) -> list[tuple[Rule, int]]:
    """Each rule with its line, by kind and line."""
    return [
        (kind.rule(packed), number)
        for kind, table in found.tables.items()
        for packed, number in table.items()
    ]


def in_rules(found: Ruleset) -> list[str]:
    return [told(rule) for rule, _ in numbered(found)]


def faults(lines: Iterable[str], source: str = "list") -> str:
    with pytest.raises(BadRules) as refused:
        parse(list(lines), Side.SRC, source)
    return f"{refused.value.message}\n{refused.value.cure}"


# ---- one rule


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("192.0.2.7", "src 192.0.2.7"),
        (" 192.0.2.7 \r", "src 192.0.2.7"),
        ("192.0.2.7/32", "src 192.0.2.7"),
        ("10.0.0.0/8", "src 10.0.0.0/8"),
        ("0.0.0.0/0", "src 0.0.0.0/0"),
        ("dst\t10.0.0.0/8", "dst 10.0.0.0/8"),
        ("src,dst 192.0.2.7", "src,dst 192.0.2.7"),
        ("dst,src 192.0.2.7", "src,dst 192.0.2.7"),
        ("both 192.0.2.7", "src,dst 192.0.2.7"),
        ("src 192.0.2.7# why", "src 192.0.2.7"),
        ("2001:DB8:0::7", "src 2001:db8::7"),
        ("2001:db8::/32", "src 2001:db8::/32"),
        ("::/0", "src ::/0"),
        ("::ffff:0:0/96", "src ::ffff:0:0/96"),
        ("::192.0.2.7", "src ::192.0.2.7"),
    ],
)
def test_a_rule(line: str, rule: str) -> None:
    side, _, network = rule.partition(" ")
    ((found, number),) = numbered(parse([line], Side.SRC))
    assert (found, number) == (Rule(MODES[side], ipaddress.ip_network(network)), 1)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("localhost", "is no IPv4 or IPv6 address"),
        ("10.0.0", "is no IPv4 or IPv6 address"),
        ("10.0.0.256", "is no IPv4 or IPv6 address"),
        ("10.0.0.\0", "is no IPv4 or IPv6 address"),
        ("\u0661\u0660.0.0.1", "is no IPv4 or IPv6 address"),
        ("10.0.0.1/8", "write 10.0.0.0/8, or 10.0.0.1 for the one address"),
        ("2001:db8::1/32", "write 2001:db8::/32, or 2001:db8::1 for the one address"),
        ("10.0.0.0/33", "has no length from 0 to 32"),
        ("10.0.0.0/", "has no length from 0 to 32"),
        ("10.0.0.0/08", "has no length from 0 to 32"),
        ("10.0.0.0/-1", "has no length from 0 to 32"),
        ("10.0.0.0/255.0.0.0", "has no length from 0 to 32"),
        ("::/129", "has no length from 0 to 128"),
        ("010.0.0.1", "leading zeros, which some programs read as octal: write 10.0.0.1"),
        ("fe80::1%eth0", "a zone, which no packet carries: write fe80::1"),
        ("fe80::x%eth0", "is no IPv4 or IPv6 address"),
        ("::ffff:192.0.2.7", "write 192.0.2.7"),
        ("::ffff:10.0.0.0/104", "write 10.0.0.0/8"),
        ("to 10.0.0.1", "[src|dst|src,dst] ADDRESS[/LENGTH]"),
        ("src dst 10.0.0.1", "[src|dst|src,dst] ADDRESS[/LENGTH]"),
        ("src", "is no IPv4 or IPv6 address"),
        ("10.0.0.1 10.0.0.2", "[src|dst|src,dst] ADDRESS[/LENGTH]"),
    ],
)
def test_no_rule(line: str, why: str) -> None:
    said = faults(["10.9.9.9", line])
    assert "line 2: " in said
    assert why in said


def test_an_octet_like_a_kilometre_is_shown_in_part() -> None:
    assert len(faults(["1" * 100_000], source="")) < 400


@pytest.mark.parametrize("mode", ["", "both,", "SRC", "source"])
def test_no_direction(mode: str) -> None:
    with pytest.raises(NotAChoice):
        read("10.0.0.1", mode)


# ---- many


def test_every_line_at_fault_is_told_up_to_a_few() -> None:
    said = faults(["10.0.0.1", *["x"] * 20, "10.0.0.1"])
    assert said.startswith("list can't be used, and nothing was changed: line 2: 'x' is no IPv4")
    assert "line 9: 'x'" in said
    assert "line 10:" not in said
    assert "and 13 more" in said


def test_what_is_there_twice_is_told_with_the_first() -> None:
    assert "line 3: '10.0.0.1/32' is there twice, first in line 1" in faults(
        ["10.0.0.1", "dst 10.0.0.1", "10.0.0.1/32"]
    )
    assert "line 2: src,dst 10.0.0.1 is there for both sides too, in line 1" in faults(
        ["10.0.0.1", "both 10.0.0.1"]
    ).replace("line 2: src 10.0.0.1", "line 2: src,dst 10.0.0.1")
    assert "'10.0.0.1' is there twice\n" in faults(["10.0.0.1", "10.0.0.1"], source="")


@pytest.mark.parametrize("lines", [[], [""], ["# nothing", "  "]])
def test_no_rules_at_all(lines: list[str]) -> None:
    assert "there is no rule in it" in faults(lines)


def test_what_the_program_says_of_a_line() -> None:
    said = "rule 2: src 10.1.0.0/16 is needless: src 10.0.0.0/8, in rule 5, covers all of it"
    assert parse(["10.0.0.0/8"], Side.SRC, "list").located(said) == (
        "list, line 2: src 10.1.0.0/16 is needless: src 10.0.0.0/8, in line 5, covers all of it"
    )
    assert parse(["10.0.0.0/8"], Side.SRC).located(said) == (
        "src 10.1.0.0/16 is needless: src 10.0.0.0/8, covers all of it"
    )
    assert parse(["10.0.0.0/8"], Side.SRC, "list").located("no room") == "no room"


# ---- where rules come from


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.txt"
    file.write_bytes(b"\xef\xbb\xbf# from Windows\r\n\r\n192.0.2.7\r\ndst 10.0.0.0/8 # why\r\n")
    found = read(str(file), "src,dst")
    assert numbered(found) == [
        (Rule(Side.BOTH, ipaddress.ip_network("192.0.2.7")), 3),
        (Rule(Side.DST, ipaddress.ip_network("10.0.0.0/8")), 4),
    ]
    assert found.text == "# from Windows\n\n192.0.2.7\ndst 10.0.0.0/8 # why\n"
    assert found.side is Side.BOTH


def test_a_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "rules.txt"
    file.write_bytes(bytes(range(256)))
    with pytest.raises(BadRules, match="line 1: "):
        read(str(file), "src")
    with pytest.raises(BadRules, match="is no IPv4"):
        read(str(tmp_path / "nope"), "src")


def test_a_list() -> None:
    assert in_rules(read("10.0.0.1, dst ::1,10.0.0.0/8", "src")) == [
        "src 10.0.0.1", "dst ::1", "src 10.0.0.0/8",
    ]  # fmt: skip
    assert not read(None, "src")


# ---- held against the ipaddress module

widths = st.sampled_from([4, 16])
few_bytes = st.sampled_from([1, 127, 128, 254])  # so that prefixes meet, none of them IPv4-mapped


@st.composite
def networks(draw: st.DrawFn) -> Network:
    size = draw(widths)
    packed = bytes(draw(st.lists(few_bytes, min_size=size, max_size=size)))
    length = draw(st.sampled_from([0, 1, 7, 8, 9, size * 8 - 1, size * 8]))
    return ipaddress.ip_network((packed, length), strict=False)


rulesets = st.lists(
    st.builds(Rule, st.sampled_from(Side), networks()), min_size=1, unique=True
).map(
    lambda given: [
        one for one in given if one.side is Side.BOTH or Rule(Side.BOTH, one.network) not in given
    ]
)


@given(rulesets)
def test_what_is_told_is_read_again(given: list[Rule]) -> None:
    found = parse([told(one) for one in given], Side.DST)
    assert dict(numbered(found)) == {rule: at for at, rule in enumerate(given, 1)}


@given(rulesets, st.lists(networks(), min_size=1))
def test_rules_of_an_address(given: list[Rule], others: list[Network]) -> None:
    addresses = [one.broadcast_address for one in others]
    found = parse(list(map(str, given)), Side.SRC).of(*addresses)
    assert len(found) == len(set(found))
    assert set(found) == {
        one for one in given if any(address in one.network for address in addresses)
    }


@given(rulesets, rulesets)
def test_without(given: list[Rule], others: list[Rule]) -> None:
    some, more = (parse(list(map(str, one)), Side.SRC) for one in (given, others))
    assert [rule for rule, _ in numbered(some.without(more))] == [
        rule for rule, _ in numbered(some) if rule not in others
    ]


words = st.one_of(
    st.sampled_from(
        ["src", "dst", "both", "src,dst", "#", "10.0.0.1", "10.0.0.0/8", "::1", "/", ""]
    ),
    networks().map(str),
    st.text(max_size=4),
)
any_lines = st.lists(st.lists(words, max_size=3).map(" ".join), max_size=8)
alike = st.lists(st.ip_addresses().map(str), max_size=12)
nearly = st.lists(
    st.builds("{}{}{}".format, st.sampled_from(["", "src ", "dst "]),
              networks() | st.ip_addresses(v=4) | st.ip_addresses(v=4).map("{}/".format),
              st.sampled_from(["", "", "  # 1,000 packets", " ", "#"])),
    max_size=12,
)  # fmt: skip


@given(st.one_of(any_lines, alike, nearly), st.sampled_from(list(MODES.values())))
def test_reading_many_at_once_is_reading_them_one_by_one(lines: list[str], side: Side) -> None:
    def outcome() -> object:
        try:
            return sorted(map(str, numbered(parse(lines, side, "list"))))
        except BadRules as refused:
            return refused.message, refused.cure

    at_once = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "_take_alike", lambda *_: False)
        assert outcome() == at_once


def test_a_long_list() -> None:
    lines = [f"10.{a}.{b}.{c}" for a in range(4) for b in range(100) for c in range(100)]
    found = parse(lines, Side.DST, "list")
    assert len(found) == 40_000
    assert numbered(found)[-1][1] == 40_000
    assert "line 40001: '10.0.0.0' is there twice, first in line 1" in faults([*lines, "10.0.0.0"])


@pytest.mark.parametrize(
    "line", ["\u00a010.0.0.1", "10.0.0.1\u2003", "\x1c10.0.0.1", "src\x0010.0.0.1"]
)
def test_spaces_are_asciis_alone(line: str) -> None:
    """The filter's own program reads these lines too, and knows no others."""
    assert "is no IPv4" in faults([line])
