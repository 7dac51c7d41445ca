"""Rules as people write them, right, wrong and by the thousand."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Invoke
from hypothesis import given, settings
from hypothesis import strategies as st

from xdplab import rules
from xdplab.errors import BadRules, NotAChoice
from xdplab.model import Address, Network, Rule, Side
from xdplab.rules import MODES, NOTHING, Given, Ruleset, read, told


def faults(lines: Sequence[str], source: str = "list") -> str:
    """What is told of lines that can't be used."""
    refused = BadRules(source, rules.faults(lines, Side.SRC, source))
    return f"{refused.message}\n{refused.cure}"


@dataclass(frozen=True)
class Checked:
    """What the filter's program says of some lines."""

    code: int
    said: str
    found: Ruleset


Check = Callable[..., Checked]


@pytest.fixture(scope="module")
def check(labs: Callable[[str], Invoke]) -> Check:
    """Has the filter's program check lines, and asks it about addresses."""
    invoke = labs("6.1")
    outcome = invoke("build", "--sample", "xdp_filter")
    assert outcome.code == 0, outcome.err
    (program,) = invoke.workspace.glob("builds/*/xdp_filter/xdp_filter")

    def run(lines: Sequence[str], side: Side, *asked: Address) -> Checked:
        ended = subprocess.run(
            [program, "check", side, *map(str, asked)], input="\n".join(lines).encode(),
            capture_output=True, check=False,
        )  # fmt: skip
        return Checked(
            ended.returncode, ended.stderr.decode(), Ruleset.of(ended.stdout.decode().splitlines())
        )

    return run


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
        ("::192.0.2.7", "src ::192.0.2.7"),
    ],
)
@pytest.mark.tree
def test_a_rule(line: str, rule: str, check: Check) -> None:
    side, _, prefix = rule.partition(" ")
    network = ipaddress.ip_network(prefix)
    assert rules.faults([line], Side.SRC, "list") == []
    found = check([line], Side.SRC, network.broadcast_address).found
    assert (len(found), found.covering) == (1, frozenset({Rule(MODES[side], network)}))


@pytest.mark.tree
def test_the_prefix_of_ipv4_mapped_addresses_alone_is_a_rule(check: Check) -> None:
    """It is a part of IPv6 as any other."""
    assert rules.faults(["::ffff:0:0/96"], Side.SRC, "list") == []
    assert check(["::ffff:0:0/96"], Side.SRC).found == Ruleset({4: 0, 6: 1})


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
@pytest.mark.tree
def test_no_rule(line: str, why: str, check: Check) -> None:
    said = faults(["10.9.9.9", line])
    assert "line 2: " in said
    assert why in said
    checked = check(["10.9.9.9", line], Side.SRC)
    assert (checked.code, len(checked.found)) == (2, 0)
    assert checked.said.startswith("rule 2: ")


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
    assert Given("list").located(said) == (
        "list, line 2: src 10.1.0.0/16 is needless: src 10.0.0.0/8, in line 5, covers all of it"
    )
    assert Given().located(said) == (
        "src 10.1.0.0/16 is needless: src 10.0.0.0/8, covers all of it"
    )
    assert Given("list").located("no room") == "no room"


# ---- where rules come from


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.txt"
    file.write_bytes(b"\xef\xbb\xbf# from Windows\r\n\r\n192.0.2.7\r\ndst 10.0.0.0/8 # why\r\n")
    found = read(str(file), "src,dst")
    text = "# from Windows\n\n192.0.2.7\ndst 10.0.0.0/8 # why\n"
    assert found == Given(str(file), Side.BOTH, text)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "rules.txt"
    file.write_bytes(bytes(range(256)))
    assert "line 1: " in faults(read(str(file), "src").text.split("\n"))
    with pytest.raises(BadRules, match="is no IPv4"):
        read(str(tmp_path / "nope"), "src")


def test_a_list() -> None:
    words = "10.0.0.1, dst ::1,10.0.0.0/8"
    assert read(words, "src") == Given("", Side.SRC, words.replace(",", "\n"))
    assert read(None, "src") == NOTHING
    for empty in ("", ",", "# 10.0.0.1"):
        with pytest.raises(BadRules, match="there is no rule in it"):
            read(empty, "src")


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


def known(given: Sequence[Rule], asked: Sequence[Address] = ()) -> Ruleset:
    """What there is to know of rules."""
    covering = (one for one in given if any(address in one.network for address in asked))
    return Ruleset(Counter(one.network.version for one in given), frozenset(covering))


@pytest.mark.tree
@settings(deadline=None)  # each starts a process
@given(rulesets, st.lists(networks()))
def test_what_is_told_is_read_again(check: Check, given: list[Rule], others: list[Network]) -> None:
    asked = [one.broadcast_address for one in others]
    lines = [told(one) for one in given]
    found, expected = check(lines, Side.DST, *asked).found, known(given, asked)
    assert {version: found.counts[version] for version in expected.counts} == expected.counts
    assert (len(found), found.covering) == (len(given), expected.covering)
    assert rules.faults(lines, Side.DST, "list") == []


@given(rulesets, st.lists(networks(), min_size=1), st.data())
def test_without(given: list[Rule], others: list[Network], data: st.DataObject) -> None:
    asked = [one.broadcast_address for one in others]
    gone = data.draw(st.lists(st.sampled_from(given), unique=True))
    left = known(given, asked).without(known(gone, asked))
    expected = known([one for one in given if one not in gone], asked)
    assert (len(left), left.covering) == (len(expected), expected.covering)
    assert left.rules.versions == expected.rules.versions == set(expected.counts)


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


@pytest.mark.tree
@settings(deadline=None)  # each starts a process
@given(st.one_of(any_lines, alike, nearly), st.sampled_from(list(MODES.values())))
def test_the_program_and_we_find_the_same_lines_wrong(
    check: Check, lines: list[str], side: Side
) -> None:
    """The program tells of the first, and we of all; of two for a prefix the later is wrong."""
    text = "\n".join(lines)
    checked, found = check([text], side), rules.faults(text.split("\n"), side, "list")
    assert checked.code == (2 if found else 0), (checked.said, found)
    number = re.match(r"rule (\d+): ", checked.said)
    if number:
        assert any(one.startswith(f"line {number[1]}: ") for one in found)


def test_a_long_list() -> None:
    lines = [f"10.{a}.{b}.{c}" for a in range(4) for b in range(100) for c in range(100)]
    assert rules.faults(lines, Side.DST, "list") == []
    assert "line 40001: '10.0.0.0' is there twice, first in line 1" in faults([*lines, "10.0.0.0"])


@pytest.mark.parametrize(
    "line", ["\u00a010.0.0.1", "10.0.0.1\u2003", "\x1c10.0.0.1", "src\x0010.0.0.1"]
)
@pytest.mark.tree
def test_spaces_are_asciis_alone(line: str, check: Check) -> None:
    assert "is no IPv4" in faults([line])
    assert check([line], Side.SRC).code == 2
