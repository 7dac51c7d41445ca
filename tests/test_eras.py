"""The dated tables of docs/kernels.md, held to the fixture trees, and the page itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from support import ERAS as FIXTURES
from support import TREES

from xdplab.dialect import Dialect
from xdplab.eras import (
    ERAS,
    PAGE,
    SHIFTS,
    SPELLINGS,
    Era,
    compilers_table,
    mainline,
    page,
    short,
    usual_compilers,
)
from xdplab.survey import Proof, recorded
from xdplab.tree import Tree
from xdplab.verify import Outcome
from xdplab.version import KernelVersion

GCC12, GCC14 = "gcc (Debian 12.2.0-14+deb12u1) 12.2.0", "gcc-14 (Debian 14.2.0-19) 14.2.0"
CLANG14, CLANG19 = "Debian clang version 14.0.6", "Debian clang version 19.1.7 (3~deb12u1)"


def proof(
    version: str, gcc: str = GCC12, clang: str = CLANG14, outcome: Outcome = Outcome.PASSED
) -> Proof:
    words = {"programs": "tprogs-y", "always": "always-y", "libbpf": "tools/lib/bpf"}
    reason = "" if outcome is Outcome.PASSED else "a reason"
    return Proof(version, "distro", gcc, clang, outcome, reason, words)


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text() == page(recorded()), "invoke docs writes it anew"


@pytest.mark.parametrize("fixture", [name for name in FIXTURES if name != "vendor"])
def test_the_dates_of_the_probes_fit_the_trees(fixture: str) -> None:
    tree = Tree.at(TREES / fixture)
    # of the release: what is new in it came before its first candidate
    assert Dialect.of(tree) == mainline(replace(tree.version, rc=0))


def test_every_version_is_in_one_era() -> None:
    assert ERAS[-1].versions.until is None
    for era, following in pairwise(ERAS):
        assert era.versions.until == following.versions.since
    for era in ERAS:
        assert KernelVersion.parse(era.example) in era.versions


def test_shifts_are_in_order_and_name_commits() -> None:
    versions = [KernelVersion.parse(shift.since) for shift in SHIFTS]
    assert versions == sorted(versions)
    for shift in SHIFTS:
        assert re.fullmatch(r"[0-9a-f]{12}|", shift.commit)
        assert any(KernelVersion.parse(shift.since) in era.versions for era in ERAS)


@pytest.mark.parametrize("era", ERAS, ids=lambda era: era.example)
@pytest.mark.parametrize(
    ("half", "word"),
    [("kern", "#include"), ("kern", "ip_map"), ("user", "_kern.o"), ("user", "prog_fd, flags")],
)
def test_each_piece_is_spelt_in_one_way(era: Era, half: str, word: str) -> None:
    example = KernelVersion.parse(era.example)
    fit = [one for one in SPELLINGS if one.half == half and example in one.versions]
    assert len([one for one in fit if word in one.code]) == 1


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (GCC12, "gcc 12"),
        (GCC14, "gcc 14"),
        ("gcc (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0", "gcc 13"),
        (CLANG14, "clang 14"),
        (CLANG19, "clang 19"),
        ("clang version 23.1.4", "clang 23"),
    ],
)
def test_a_compilers_release_is_not_its_packages(said: str, name: str) -> None:
    assert short(said) == name


def test_the_usual_compilers_are_those_of_most_proofs() -> None:
    proofs = [proof("6.1"), proof("5.10"), proof("6.1", gcc=GCC14)]
    assert usual_compilers(proofs) == ("gcc 12", "clang 14")


def cells(proofs: Sequence[Proof]) -> dict[str, dict[str, str]]:
    names, rows = compilers_table(proofs)
    return {tree: dict(zip(names, row, strict=True)) for tree, row in rows}


def test_what_builds_with_what() -> None:
    failed = proof("5.10", gcc=GCC14, outcome=Outcome.FAILED)
    proofs = [proof("5.10"), proof("6.1"), failed, proof("5.10", clang=CLANG19)]
    assert cells(proofs) == {
        "5.10 distro": {
            "gcc 12": "yes", "gcc 14": "failed: a reason", "clang 14": "yes", "clang 19": "yes",
        },
    }  # fmt: skip


def test_what_passed_beside_any_other_compiler_passed() -> None:
    failed = proof("5.10", gcc=GCC14, clang=CLANG14, outcome=Outcome.FAILED)
    passed = proof("5.10", gcc=GCC14, clang=CLANG19)
    for proofs in ([failed, passed], [passed, failed]):
        assert cells(proofs)["5.10 distro"]["gcc 14"] == "yes"
        assert cells(proofs)["5.10 distro"]["clang 14"] == "failed: a reason"


def test_a_page_without_proofs_says_so() -> None:
    assert page([]).count("No tree of these versions was tried.") == len(ERAS)


def test_a_proof_is_in_its_era() -> None:
    sections = page([proof("5.10.223")]).split("\n## ")
    (section,) = [text for text in sections if "| 5.10.223 | distro |" in text]
    assert section.startswith("From v5.5 to before v5.11: ")
