"""What compilers say of the pair, told in the user's own paths."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from support import LOGS

from xdplab.making import about_pair, user_paths
from xdplab.process import Line
from xdplab.sample import Sample
from xdplab.workspace import PROJECT

# gcc's and clang's own words, of a pair, of another sample, and of headers;
# up to v6.12 make calls compilers in the tree's top, from v6.13 on in samples/bpf
RECORDED = sorted((LOGS / "compilers").glob("*.txt"))


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Sample:
    """The tutorial's pair, seen from the directory that it is in."""
    monkeypatch.chdir(PROJECT)
    return Sample.find("xdp_ip_filter")


def on(stream: str, lines: Iterable[str]) -> list[Line]:
    return [Line("out" if stream == "out" else "err", line) for line in lines]


def recorded(log: Path) -> list[str]:
    return log.read_text().splitlines()


@pytest.mark.parametrize("directory", ["", "samples/bpf/", "/a/tree/samples/bpf/", "./"])
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("{}xdp_ip_filter_user.c:9:24: error: x", "xdp_ip_filter_user.c:9:24: error: x"),
        ("{}xdp_ip_filter_kern.c:3: note: x", "xdp_ip_filter_kern.c:3: note: x"),
        ("{}xdp_compat.h: In function 'f':", "xdp_compat.h: In function 'f':"),
        ("In file included from {}xdp_ip_filter_user.c:3,",
         "In file included from xdp_ip_filter_user.c:3,"),
    ],
)  # fmt: skip
def test_copies_are_told_as_the_files_they_are_copies_of(
    directory: str, said: str, shown: str, pair: Sample
) -> None:
    assert user_paths(pair, said.format(directory)) == shown


@pytest.mark.parametrize(
    "line",
    [
        "samples/bpf/xdp_ip_filter_user.o: in function `main':",
        "samples/bpf/my_xdp_ip_filter_user.c:3:1: error: x",
        "samples/bpf/xdp_ip_filter_user_c:3:1: error: x",
        "./include/linux/xdp_compat.h:3:1: error: x",
        '    3 | #include "xdp_compat.h"',
        '   10 |         puts("xdp_ip_filter_user.c");',
        "",
    ],
)
def test_other_lines_are_told_as_they_are(line: str, pair: Sample) -> None:
    assert user_paths(pair, line) == line


def test_a_pair_elsewhere_is_told_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for half in ("kern", "user"):
        (tmp_path / f"mine_{half}.c").touch()
    mine = Sample.find(str(tmp_path / "mine_kern.c"))
    said = "samples/bpf/mine_kern.c:1:2: error: x"
    assert user_paths(mine, said) == f"{tmp_path}/mine_kern.c:1:2: error: x"
    monkeypatch.chdir(tmp_path)
    assert user_paths(mine, said) == "mine_kern.c:1:2: error: x"


@pytest.mark.parametrize("log", RECORDED, ids=lambda log: log.stem)
def test_other_samples_are_left_out(log: Path, pair: Sample) -> None:
    assert any("other_user.c" in line for line in recorded(log))
    said = about_pair(pair, on("err", recorded(log)))
    assert said
    assert not any("other" in line for line in said)


@pytest.mark.parametrize("log", RECORDED, ids=lambda log: log.stem)
def test_a_header_that_fails_is_told_with_the_way_to_it(log: Path, pair: Sample) -> None:
    said = about_pair(pair, on("err", recorded(log)))
    fault = next(index for index, line in enumerate(said) if "worse.h:1:1: error: " in line)
    assert any("bad.h:2" in line for line in said[:fault])
    assert any(line.lstrip().startswith("no_such_type t;") or "| no_such_type t;" in line
               for line in said[fault:])  # fmt: skip


@pytest.mark.parametrize("log", RECORDED, ids=lambda log: log.stem)
def test_all_that_names_the_pair_is_told_in_its_order(log: Path, pair: Sample) -> None:
    lines = [user_paths(pair, line) for line in recorded(log)]
    said = about_pair(pair, on("err", recorded(log)))
    assert {line for line in lines if "xdp_" in line} <= set(said)
    rest = iter(lines)
    assert all(line in rest for line in said)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_both_ways_of_calling_compilers_are_told_alike(compiler: str, pair: Sample) -> None:
    old = about_pair(pair, on("err", recorded(LOGS / "compilers" / f"{compiler}-6.12.txt")))
    new = about_pair(pair, on("err", recorded(LOGS / "compilers" / f"{compiler}-6.13.txt")))
    assert old == [line.replace("../../tools/", "tools/") for line in new]


def test_standard_output_is_no_complaint(pair: Sample) -> None:
    assert about_pair(pair, on("out", ["xdp_ip_filter_user.c:1:1: error: not really"])) == []


@pytest.mark.parametrize("tree", ["6.12", "6.13"])
def test_a_note_on_another_file_belongs_to_its_message(tree: str, pair: Sample) -> None:
    said = about_pair(pair, on("err", recorded(LOGS / "compilers" / f"gcc-{tree}.txt")))
    (note,) = [index for index, line in enumerate(said) if "bad.h:3:19: note: expected" in line]
    assert any("xdp_ip_filter_user.c:10:26: warning" in line for line in said[:note])


def test_make_ends_a_message(pair: Sample) -> None:
    lines = [
        "xdp_ip_filter_kern.c:9:1: error: x",
        "   context",
        "make[2]: *** [scripts/Makefile.build:250: samples/bpf/xdp_ip_filter_kern.o] Error 1",
        "make: *** [Makefile:224: __sub-make] Error 2",
    ]
    assert about_pair(pair, on("err", lines)) == lines[:2]


def test_the_linker_is_heard_too(pair: Sample) -> None:
    lines = [
        "/usr/bin/ld: samples/bpf/xdp_ip_filter_user.o: in function `main':",
        "xdp_ip_filter_user.c:(.text+0x5): undefined reference to `undefined'",
        "collect2: error: ld returned 1 exit status",
    ]
    assert lines[1] in about_pair(pair, on("err", lines))
