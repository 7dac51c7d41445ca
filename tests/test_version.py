"""Kernel versions: read, written, put in order."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ERAS, TREES

from xdplab.errors import NotAVersion
from xdplab.version import KernelVersion, Range, nearest

IN_ORDER = ("v4.19", "4.19.71", "v5.10-rc1", "v5.10-rc2", "v5.10-rc11", "5.10", "5.10.1", "6.1")

numbers = st.integers(0, 999)
suffixes = st.sampled_from(("", "-amd64", "+", "-56-amd64", "~bpo12", "-cip4", "+dirty"))
versions = st.builds(KernelVersion, numbers, numbers, numbers, numbers, suffixes)


def head(*lines: str) -> str:
    return "\n".join(["# SPDX-License-Identifier: GPL-2.0", *lines, "NAME = A Name", ""])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6.1", KernelVersion(6, 1)),
        ("v6.1", KernelVersion(6, 1)),
        ("v7.2-rc3", KernelVersion(7, 2, rc=3)),
        ("5.10.223", KernelVersion(5, 10, 223)),
        (" v6.12\n", KernelVersion(6, 12)),
        ("6.1.0-rc8", KernelVersion(6, 1, rc=8)),
        ("7.3~rc7-1~exp1", KernelVersion(7, 3, rc=7)),  # Debian's package of v7.3-rc7
    ],
)
def test_versions_are_read(text: str, expected: KernelVersion) -> None:
    assert KernelVersion.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "suffix"),
    [("6.1.0-56-amd64", "-56-amd64"), ("6.8.0-rc2+", "+"), ("4.19.71~bpo", "~bpo"), ("5.4", "")],
)
def test_what_follows_the_numbers_is_the_suffix(text: str, suffix: str) -> None:
    assert KernelVersion.parse(text).suffix == suffix


@pytest.mark.parametrize(
    "text",
    ["", "6", "v", "6.", ".1", "linux-6.1", "6.1rc3", "6.1 rc3", "latest", "-6.1", "\u0666.\u0661"],
)
def test_what_is_no_version_is_refused_by_name(text: str) -> None:
    with pytest.raises(NotAVersion) as refused:
        KernelVersion.parse(text)
    assert repr(text) in refused.value.message


@given(versions)
def test_what_is_written_can_be_read_again(version: KernelVersion) -> None:
    again = KernelVersion.parse(str(version))
    assert (again, again.suffix) == (version, version.suffix)


@given(versions)
def test_a_tag_has_all_but_the_suffix(version: KernelVersion) -> None:
    again = KernelVersion.parse(version.tag)
    assert (again, again.suffix) == (version, "")


def test_a_release_candidate_comes_before_its_release() -> None:
    for earlier, later in combinations(map(KernelVersion.parse, IN_ORDER), 2):
        assert earlier < later
        assert earlier != later


@given(versions, versions, versions)
def test_the_order_is_total(a: KernelVersion, b: KernelVersion, c: KernelVersion) -> None:
    assert (a < b) + (a == b) + (a > b) == 1
    low, middle, high = sorted((a, b, c))
    assert low <= middle <= high
    assert low <= high


@given(versions, suffixes)
def test_the_suffix_has_no_part_in_the_order(version: KernelVersion, suffix: str) -> None:
    other = KernelVersion(version.major, version.minor, version.patch, version.rc, suffix)
    assert version == other
    assert hash(version) == hash(other)


def test_a_version_equals_no_other_thing() -> None:
    assert KernelVersion(6, 1) != "6.1"


@pytest.mark.parametrize(
    ("asked", "given", "covered"),
    [
        ("6.12", "6.12.95", True),
        ("6.12", "6.12", True),
        ("6.12", "6.12-rc3", False),  # a candidate is had by who names it
        ("6.12", "6.1.12", False),
        ("6.12-rc3", "6.12-rc3", True),
        ("6.12-rc3", "6.12-rc4", False),
        ("6.12-rc3", "6.12", False),
        ("6.12.95", "6.12.95-cip1", True),
        ("6.12.95", "6.12.96", False),
        ("6.12.95", "6.12", False),
    ],
)
def test_a_series_covers_its_releases_and_a_number_itself(
    asked: str, given: str, covered: bool
) -> None:
    assert KernelVersion.parse(asked).covers(KernelVersion.parse(given)) is covered


@given(versions, st.lists(versions), st.integers(1, 9))
def test_the_nearest_are_the_closest_on_either_side(
    version: KernelVersion, known: list[KernelVersion], count: int
) -> None:
    line = sorted(set(known))
    near = nearest(version, known, count)
    assert len(near) == min(count, len(line))
    start = line.index(near[0]) if near else 0
    assert near == line[start : start + count]
    below = [one for one in near if one < version]
    left_out_below = [one for one in line if one < version and one not in near]
    left_out_above = [one for one in line if one > version and one not in near]
    # nothing is left out on a side of which less than half is shown
    assert not left_out_below or len(below) >= count // 2
    assert not left_out_above or len(near) - len(below) >= count - count // 2


def test_distributions_name_packages_after_the_series() -> None:
    assert KernelVersion.parse("6.1.50-rc1-cip").series == "6.1"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["VERSION = 6", "PATCHLEVEL = 1", "SUBLEVEL = 0", "EXTRAVERSION ="], "6.1"),
        (["VERSION = 7", "PATCHLEVEL = 2", "SUBLEVEL = 0", "EXTRAVERSION = -rc3"], "7.2-rc3"),
        (["VERSION = 5", "PATCHLEVEL = 10", "SUBLEVEL = 9", "EXTRAVERSION = -cip1"], "5.10.9-cip1"),
        (["VERSION=4", "PATCHLEVEL\t=\t19"], "4.19"),
        (["VERSION = 4", "PATCHLEVEL = 19", "EXTRAVERSION = Word"], "4.19Word"),
    ],
)
def test_a_makefile_says_the_version(lines: list[str], expected: str) -> None:
    for text in (head(*lines), head(*lines).replace("\n", "\r\n")):
        version = KernelVersion.of_makefile(text)
        assert str(version) == expected


def test_later_assignments_of_a_makefile_do_not_count() -> None:
    text = head("VERSION = 6", "PATCHLEVEL = 1", "SUBLEVEL = 2", "VERSION = 9", "SUBLEVEL = 9")
    assert str(KernelVersion.of_makefile(text)) == "6.1.2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "all:\n\ttrue\n",
        head("VERSION = 6"),
        head("VERSION = $(shell date)", "PATCHLEVEL = 1"),
        head("VERSION = six", "PATCHLEVEL = 1"),
        head("MY_VERSION = 6", "MY_PATCHLEVEL = 1"),
    ],
)
def test_other_makefiles_say_none(text: str) -> None:
    assert KernelVersion.of_makefile(text) is None


@pytest.mark.parametrize("era", [era for era in ERAS if era.startswith("linux-")])
def test_the_fixture_trees_are_named_after_their_series(era: str) -> None:
    version = KernelVersion.of_makefile((TREES / era / "Makefile").read_text())
    assert version
    assert era == f"linux-{version.series}"


@pytest.mark.parametrize(
    ("since", "until", "version", "expected"),
    [
        ("-", "-", "4.19", True),
        ("", "", "4.19", True),
        ("-", "v5.17", "5.16.20", True),
        ("-", "v5.17", "5.17-rc8", True),
        ("-", "v5.17", "5.17", False),
        ("v5.4", "-", "5.4-rc1", False),
        ("v5.4", "-", "5.4", True),
        ("v5.4", "v5.17", "5.10.223-cip", True),
        ("v5.4", "v5.4", "5.4", False),
    ],
)
def test_ranges_are_half_open(since: str, until: str, version: str, expected: bool) -> None:
    assert (KernelVersion.parse(version) in Range.parse(since, until)) is expected


@pytest.mark.parametrize(
    ("since", "until", "words"),
    [
        ("", "", "always"),
        ("v5.5", "", "from v5.5"),
        ("", "v5.5", "before v5.5"),
        ("v5.5", "v5.11", "from v5.5 to before v5.11"),
    ],
)
def test_a_range_in_words(since: str, until: str, words: str) -> None:
    assert str(Range.parse(since, until)) == words
