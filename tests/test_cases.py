"""Packet cases: what a file may say, and that a program which does otherwise is found out."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT, Invoke, Outcome, assert_refused, copy_pair
from hypothesis import given
from hypothesis import strategies as st

from xdplab import cases, testbed, verify
from xdplab.boot import Kernel
from xdplab.build import Build, cases_of
from xdplab.cases import ARRIVED, GONE, NOT_SENT, Cases, Verdict
from xdplab.errors import BadCases
from xdplab.process import Shell
from xdplab.runner import Job, started
from xdplab.sample import Sample
from xdplab.testbed.netns import NEAR, wired
from xdplab.workspace import Workspace

IP = "192.168.1.78"
TUTORIAL = PROJECT / "xdp_ip_filter_cases.toml"

GOOD = """
[[case]]
name = "one"
frame = "Ether() / IP(src='$ip') / ICMP()"
verdict = "drop"
why = "It comes from there."
"""


def parsed(text: str, ip: str = IP) -> Cases:
    return Cases.parse(text, "x_cases.toml", ip)


# ---- the file


def test_a_frame_is_made_for_the_address() -> None:
    for ip in (IP, "10.0.0.1"):
        (only,) = parsed(GOOD, ip).tries
        assert only.frame[26:30] == bytes(map(int, ip.split(".")))
        assert only.case.verdict is Verdict.DROP


def test_hexadecimal_has_the_address_too() -> None:
    text = GOOD.replace("frame", "hex").replace(
        "Ether() / IP(src='$ip') / ICMP()", "ff ff ff ff ff ff 020000000002 88b5 $high$low"
    )
    (only,) = parsed(text).tries
    assert only.frame.hex() == "ffffffffffff02000000000288b5c0a8014e"


@pytest.mark.parametrize(
    ("cut", "lengths"),
    [('"every"', [*range(14, 42)]), ("[14, 42, 20]", [14, 42, 20]), ("[]", [42])],
)
def test_a_frame_is_cut(cut: str, lengths: list[int]) -> None:
    tries = parsed(f"{GOOD}cut = {cut}\n").tries
    assert [len(one.frame) for one in tries] == lengths
    assert len({one.frame[:14] for one in tries}) == 1


def test_an_address_that_reads_the_same_in_reverse_has_no_such_case() -> None:
    text = GOOD + GOOD.replace("one", "two").replace("$ip", "$reversed")
    assert [one.case.name for one in parsed(text).tries] == ["one", "two"]
    assert [one.case.name for one in parsed(text, "10.1.1.10").tries] == ["one"]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (GOOD, "", "it has no [[case]]"),
        (GOOD, "case = 1", "it has no [[case]]"),
        (GOOD, "[[case", "it is no TOML: "),
        (GOOD, f"cases = []\n{GOOD}", "'cases' isn't known; there are case and counts"),
        (GOOD, f"counts = 'drop'\n{GOOD}", "counts must be a list"),
        (GOOD, f"counts = ['dropped']\n{GOOD}", "'dropped' is no verdict; there are aborted, drop"),
        (GOOD, GOOD + GOOD, "case 'one': two cases have this name"),
        ('name = "one"', "", "the case number 1 has no name"),
        ('"one"', '" "', "the case number 1 has no name"),
        ('"drop"', '"dropped"', "case 'one': 'dropped' is no verdict; there are aborted, drop"),
        ('verdict = "drop"', "", "case 'one': it has no verdict; there are aborted, drop"),
        ('verdict = "drop"', "verdict = 1", "case 'one': verdict must be a text"),
        ('why = "It comes from there."', "", "case 'one': it has no why"),
        ("It comes from there.", "  ", "case 'one': it has no why"),
        ("why", "because", "case 'one': 'because' isn't known; there are name, verdict, why"),
        ("Ether() / IP(src='$ip') / ICMP()", "", "case 'one': it must have either"),
        ("why", 'hex = "00"\nwhy', "case 'one': it must have either a frame or hex"),
        ("IP(", "IPv5(", "case 'one': scapy has no layer IPv5"),
        ("$ip", "$addr", "case 'one': $addr stands for nothing; there are $ip, $next"),
        ("$ip", "$ ", "case 'one': frame: Invalid placeholder"),
        ("frame = ", 'hex = "00zz" #', "case 'one': hex: non-hexadecimal number"),
        ("frame = ", 'hex = "0011" #', "case 'one': it has 2 bytes, and an Ethernet header"),
        ("why", 'cut = "some"\nwhy', "case 'one': cut must be \"every\" or a list"),
        ("why", "cut = [14, true]\nwhy", "case 'one': cut must be"),
        ("why", "cut = [13]\nwhy", "it can be cut to 14 to 42 bytes, and not to 13"),
        ("why", "cut = [43]\nwhy", "it can be cut to 14 to 42 bytes, and not to 43"),
    ],
)
def test_what_is_wrong_is_told_with_the_file_and_the_case(old: str, new: str, why: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(BadCases) as refused:
        parsed(text)
    assert refused.value.message.startswith("x_cases.toml")
    assert why in refused.value.message
    assert "docs/cases.md" in refused.value.cure


@given(st.text("[]case =\"'\n#{}name1frhxutvdip", max_size=60))
def test_any_text_is_a_file_of_cases_or_is_refused(text: str) -> None:
    with pytest.raises(BadCases):  # by chance nobody writes a whole one
        parsed(text)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    copy_pair(tmp_path)
    (tmp_path / TUTORIAL.name).write_bytes(b"\xff\xfe")
    with pytest.raises(BadCases, match="no text in UTF-8"):
        cases_of(Sample.find(f"{tmp_path}/xdp_ip_filter"))


def test_the_tutorials_cases_have_what_they_must() -> None:
    text = TUTORIAL.read_text()
    known = {one.case for one in parsed(text).tries}
    assert len(known) == text.count("[[case]]")
    assert {one.verdict for one in known} == {Verdict.DROP, Verdict.PASS}
    assert all(one.why.rstrip().endswith(".") for one in known)
    # none of them leans on what address it is
    for ip in ("127.0.0.1", "203.0.113.255", "10.1.1.10"):
        assert len(parsed(text, ip).tries) >= len(parsed(text).tries) - 1


# ---- the program


def a_build(lab: Invoke, text: str | None = None) -> Build:
    """The tutorial's pair as it was built, with these cases or its own."""
    (directory,) = lab.workspace.glob("builds/*/xdp_ip_filter")
    found = Build.load(directory)
    assert found
    kept = {"file": "x_cases.toml", "text": TUTORIAL.read_text() if text is None else text}
    return dataclasses.replace(found, facts=found.facts | {"cases": kept})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("cases"))


def verified(build: Build, workspace: Workspace, ip: str = IP) -> list[verify.Check]:
    with testbed.named("netns", workspace).open(Shell(), packets=True) as bench:
        record = workspace.new_run()
        return [*verify.verify(build, Job(ip), bench, record, lambda _: None)]


@pytest.mark.root
@pytest.mark.tree
def test_they_hold_in_the_kernel_and_the_wire_agrees(lab: Invoke, workspace: Workspace) -> None:
    known = cases.required(a_build(lab), IP)
    job, record = cases.job(IP, "netns", wire=True), workspace.new_run()
    with (
        wired(Shell(), workspace) as bench,
        started(a_build(lab), job, bench, record) as run,
    ):
        told = cases.run(known, bench, run.program.program)
        seen = cases.send(known, bench)
    assert [one for one in told if not one.held] == []
    words = {str(Verdict.PASS): ARRIVED, str(Verdict.DROP): GONE}
    assert [[words[what] for _, what in one.found] for one in told] == [
        [what for _, what in one.found] for one in seen
    ]


@pytest.mark.root
@pytest.mark.tree
def test_a_wrong_verdict_is_seen_to_fail(lab: Invoke, workspace: Workspace) -> None:
    text = TUTORIAL.read_text().replace('counts = ["drop"]', 'counts = ["drop", "pass"]')
    head, tail = text.split('name = "options"')
    wrong = f'{head}name = "options"{tail.replace("drop", "pass", 1)}'
    checks = verified(a_build(lab, wrong), workspace)
    failed = [check for check in checks if not check.held]
    assert [check.claim for check in failed] == [
        "case options: pass",
        "the counters rise by the 72 frames of the verdict drop and pass",
    ]
    assert failed[0].found.startswith("drop; Options come behind the addresses")
    assert failed[1].found == "by 30"
    assert "47 packet cases hold" in [check.claim for check in checks]


@pytest.mark.root
@pytest.mark.tree
def test_of_a_pair_that_takes_no_address_its_cases_are_all(
    lab: Invoke, workspace: Workspace
) -> None:
    made = a_build(lab)
    silent = dataclasses.replace(made, facts=made.facts | {"options": "dmtne"})
    checks = verified(silent, workspace, "127.0.0.1")  # what it filters if nobody says
    assert [(check.claim, check.held) for check in checks] == [
        ("the kernel shows it on lo", True),
        ("48 packet cases hold", True),
        ("the counters rise by the 30 frames of the verdict drop", True),
        ("stopped, it leaves nothing on the link", True),
    ]


@pytest.mark.root
@pytest.mark.tree
def test_what_can_not_be_sent_or_run(lab: Invoke, workspace: Workspace) -> None:
    """Longer than the cable takes, and than any kernel."""
    text = GOOD.replace("IP(", "IP(len=1, ").replace("ICMP()", "{}")
    long = a_build(lab, text.format("(b'x' * 2000)"))
    longest = cases.required(a_build(lab, text.format(" / ".join(["(b'x' * 65535)"] * 2))), IP)
    job, record = Job(IP, NEAR, "native", rounds=0), workspace.new_run()
    with wired(Shell(), workspace) as bench, started(long, job, bench, record) as run:
        (seen,) = cases.send(cases.required(long, IP), bench)
        assert (seen.held, seen.words) == (True, NOT_SENT)
        (told,) = cases.run(cases.required(long, IP), bench, run.program.program)
        assert (told.held, told.words) == (True, "drop")
        with pytest.raises(BadCases, match=r"case 'one': frame 1, of 131104 bytes, is too long"):
            cases.run(longest, bench, run.program.program)


MISTAKES = (
    ("\tif (eth->h_proto != htons(ETH_P_IP))\n\t\treturn XDP_PASS;\n", ""),
    ("(iph + 1) > data_end)\n\t\treturn XDP_PASS", "(iph + 1) > data_end)\n\t\treturn XDP_ABORTED"),
    ("iph->saddr != *ip", "iph->saddr != *ip || (iph->daddr & htonl(15 << 28)) == htonl(14 << 28)"),
)
FOUND = {
    "multicast": "pass",
    **dict.fromkeys(["cut header", "nothing but an Ethernet header"], "aborted"),
    **dict.fromkeys(["vlan, address where it would be", "ipv6, address where it would be"], "drop"),
    **dict.fromkeys(["unknown ethertype", "ethertype in reverse"], "drop"),
}


@pytest.fixture(scope="module")
def mistaken(
    copies: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Callable[..., Outcome]]:
    """A pair with mistakes in its kernel half and the tutorial's cases, built."""
    kern, _ = copy_pair(tmp_path_factory.mktemp("mistaken"))
    text = kern.read_text()
    for old, new in MISTAKES:
        assert text.count(old) == 1
        text = text.replace(old, new)
    kern.write_text(text)
    shutil.copy(TUTORIAL, kern.parent)
    invoke = Invoke(tmp_path_factory.mktemp("workspace"))

    def call(command: str, *options: str) -> Outcome:
        return invoke(command, f"--tree={copies('6.1')}", f"--sample={kern}", *options)

    assert call("build").code == 0
    return kern, call


@pytest.mark.root
@pytest.mark.tree
def test_a_program_that_does_otherwise_is_found_out(
    mistaken: tuple[Path, Callable[..., Outcome]],
) -> None:
    _, call = mistaken
    outcome = call("cases", "--json")
    assert_refused(outcome, 1, "not as claimed: case multicast; case cut header")
    found = json.loads(outcome.out)
    wrong = {
        case["name"]: {frame["found"] for frame in case["frames"]}
        for case in found["cases"]
        if not case["held"]
    }
    assert wrong == {name: {what} for name, what in FOUND.items()}
    assert (found["schema"], found["on"], found["wire"]) == (1, "netns", False)

    outcome = call("cases", "--wire")
    assert_refused(outcome, 1, "aborted, tx and redirect look like drop")
    on_wire = {name: {"pass": ARRIVED}.get(what, GONE) for name, what in FOUND.items()}
    lines = [line for line in outcome.out.splitlines() if line.startswith("FAIL")]
    for line, (name, what) in zip(lines, on_wire.items(), strict=True):
        assert re.match(rf"FAIL {name} .* {what}( \(\d+ frames\))?$", line)
    assert "\n     It comes from the address, and others who hear it" in outcome.out


@pytest.mark.tree
def test_a_bad_file_is_refused_before_anything_is_attached(
    mistaken: tuple[Path, Callable[..., Outcome]],
) -> None:
    kern, call = mistaken
    file = kern.with_name(TUTORIAL.name)
    file.write_text(GOOD.replace("IP(", "IPv5("))
    for command in ("cases", "verify"):
        outcome = call(command)
        assert_refused(outcome, 2, f"{file}, case 'one': scapy has no layer IPv5", "docs/cases.md")
        assert not [one for one in outcome.commands() if " -i " in one]
    file.unlink()
    assert_refused(call("cases"), 2, "no packet cases", f"no {file.name} beside it")
    assert_refused(call("cases", "--wire", "--on=host"), 2, "--on can't be 'host'", "--wire")
    assert_refused(call("cases", "--ip=1.2.3"), 2, "'1.2.3' is not an IPv4 address")


@pytest.mark.image
@pytest.mark.tree
def test_they_hold_in_a_virtual_machine(
    lab: Invoke, bootable: Callable[[str], Kernel], trees_workspace: Path
) -> None:
    kernel = bootable("6.1-cloud")
    outcome = lab("cases", "--on=vm", f"--boot={kernel.image}", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert all(case["held"] for case in found["cases"])
    assert found["release"] == kernel.release
    assert "72 frames" in outcome.err
