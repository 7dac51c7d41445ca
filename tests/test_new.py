"""A pair of one's own: begun by `invoke new`, built, run, and what a user can get wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import KERNELS, Invoke, assert_refused, contents, copy_checkout, snapshot

from xdplab import cases
from xdplab.build import Build
from xdplab.errors import AlreadyThere, CannotMake, NotASample
from xdplab.process import Shell
from xdplab.runner import UNKNOWN, Job, Run, started
from xdplab.sample import KERN, LOADER, Sample
from xdplab.skeleton import Kind, make, named
from xdplab.testbed.local import LOOPBACK, LocalBench
from xdplab.testbed.netns import Netns
from xdplab.verify import COUNT, settled_total
from xdplab.workspace import Workspace

# ---- files


@pytest.mark.parametrize("kind", Kind)
def test_a_new_pair_is_complete_and_found_by_its_name(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make("mine", None, kind, dry=False)
    assert [str(file) for file in made] == [
        f"mine/mine{end}" for end in (KERN, "_user.c", "_cases.toml")
    ]
    sample = Sample.find("mine")
    assert sample.kern == made[0].absolute()
    assert sample.user.read_text() == LOADER.read_text()
    assert "{" not in made[2].read_text().replace("{}", "")
    assert named(made[0]) == "mine"
    monkeypatch.chdir("/")
    assert named(tmp_path / made[0]) == str(tmp_path / made[0])


def test_nothing_is_overwritten_and_nothing_left_half_done(tmp_path: Path) -> None:
    theirs = tmp_path / "mine_cases.toml"
    theirs.symlink_to("nowhere")
    before = snapshot(tmp_path)
    for dry in (True, False):
        with pytest.raises(AlreadyThere, match=r"mine_cases\.toml"):
            make("mine", tmp_path, Kind.DROP, dry=dry)
    theirs.unlink()
    assert [file.exists() for file in make("mine", tmp_path, Kind.DROP, dry=True)] == [False] * 3
    theirs.symlink_to("nowhere")
    assert snapshot(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_where_nothing_can_be_made(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotMake, match="no pair can be made in"):
        make("mine", tmp_path / place, Kind.PASS, dry=False)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *dict.fromkeys(["9lives", "../mine", "int main", "größe", ""], "letters, digits").items(),
        ("xdp_ip_filter", "one of that name already"),
    ],
)
def test_what_can_not_be_a_name(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(NotASample, match=why):
        make(name, tmp_path, Kind.PASS, dry=False)
    assert not list(tmp_path.iterdir())


def test_what_is_told_of_it(invoke: Invoke, tmp_path: Path) -> None:
    outcome = invoke("new", "mine", "--kind=tx")
    assert_refused(outcome, 2, "--kind", "drop, count, pass, redirect")
    assert_refused(invoke("new", "mine", "--dir=/proc/none"), 2, "/proc/none", "--dir takes")
    outcome = invoke("new", "mine", "--dir", tmp_path)
    assert outcome.code == 0
    assert f"invoke build --sample {tmp_path}/mine_kern.c" in outcome.out + outcome.err


def test_two_samples_of_one_name(tmp_path: Path, workspace: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    second = checkout / "samples/xdp_ip_filter_kern.c"
    second.touch()
    outcome = Invoke(workspace, cwd=checkout)("run")
    assert_refused(outcome, 2, "two of that name", str(checkout), str(second.parent), "path")


# ---- what compiles, and can't be run


LICENCE = 'char _license[] __attribute__((section("license"))) = "GPL"; '
PROGRAM = '__attribute__((section("xdp"))) int {}(void) {{ return 0; }} '
UNFIT = {
    "licence": (PROGRAM.format("f"), ["no licence", 'SEC("license") = "GPL"']),
    "section": ("int f(void) { return 0; } " + LICENCE,
                ["no function of it is in a section", 'SEC("xdp")']),
    "two": (PROGRAM.format("f") + PROGRAM.format("g") + LICENCE, ["2 programs: f, g", "_user.c"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", UNFIT)
def test_a_kernel_half_that_is_no_program(
    fault: str, invoke: Invoke, fake_tree: Path, tmp_path: Path
) -> None:
    text, words = UNFIT[fault]
    top = fake_tree / "Makefile"  # what it compiles is always the same
    top.write_text(re.sub("(?m)^PROGRAM := .*", f"PROGRAM := {text}", top.read_text()))
    kern = tmp_path / "own_kern.c"
    kern.touch()
    outcome = invoke("build", "--tree", fake_tree, "--sample", kern)
    assert_refused(outcome, 3, str(kern), *words)


@pytest.mark.parametrize("theirs", ["own_kern.c", "own.c", "own.bpf.c"])
def test_a_name_that_the_trees_own_sample_has(
    theirs: str, invoke: Invoke, fake_tree: Path, tmp_path: Path
) -> None:
    (fake_tree / "samples/bpf" / theirs).write_text("/* theirs */\n")
    before = contents(fake_tree)
    (tmp_path / "own_kern.c").touch()
    outcome = invoke("build", "--tree", fake_tree, "--sample", tmp_path)
    assert_refused(outcome, 2, theirs, "is there already", "another name")
    assert {name: one for name, one in contents(fake_tree).items()
            if not name.startswith(".xdplab/")} == before  # fmt: skip


def test_a_build_of_another_pair_of_the_name_is_not_run(
    invoke: Invoke, fake_tree: Path, tmp_path: Path
) -> None:
    for place in ("a", "b"):
        make("mine", tmp_path / place, Kind.PASS, dry=False)
    assert invoke("build", "--tree", fake_tree, "--sample", tmp_path / "a").code == 0
    outcome = invoke("--dry", "run", "--tree", fake_tree, "--sample", tmp_path / "b")
    assert_refused(outcome, 2, "mine is not built yet", "invoke build")
    outcome = invoke("--dry", "run", "--tree", fake_tree, "--sample", tmp_path / "a")
    assert outcome.code == 0
    assert outcome.commands()[-1].endswith("/mine -d lo -t 2 -n 1000 -e)")
    outcome = invoke("run", "--ip=192.0.2.1", "--tree", fake_tree, "--sample", tmp_path / "a")
    assert_refused(outcome, 2, "mine takes no address", "leave --ip out")


# ---- each kind, with real packets

# A user half in the manner of 2019: it takes no -e, and doesn't say what it has attached.
OF_2019 = """\
#include <linux/bpf.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include "xdp_compat.h"

static int ifindex;

static void int_exit(int sig)
{
	xdp_netlink_set(ifindex, -1, XDP_FLAGS_SKB_MODE);
	exit(0);
}

int main(int argc, char **argv)
{
	const char *optstr = "d:";
	struct bpf_object *obj = bpf_object__open("own_pass_kern.o");
	struct bpf_program *prog, *xdp = NULL;

	while (getopt(argc, argv, optstr) != -1)
		ifindex = if_nametoindex(optarg);
	bpf_object__for_each_program(prog, obj)
		bpf_program__set_type(xdp = prog, BPF_PROG_TYPE_XDP);
	signal(SIGINT, int_exit);
	if (bpf_object__load(obj))
		return 1;
	if (xdp_netlink_set(ifindex, bpf_program__fd(xdp), XDP_FLAGS_SKB_MODE))
		return 1;
	for (;;)
		pause();
}
"""

# Nobody listens on that port: what comes back, the program has sent back.
ECHO = """\
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.settimeout(5)
    udp.sendto(b"hello", ("127.0.0.1", 7))
    assert udp.recvfrom(64) == (b"hello", ("127.0.0.1", 7))
"""


def answered(bench: LocalBench) -> int:
    return bench.ping(LOOPBACK.others[0], LOOPBACK.target, COUNT).answered


def drops(bench: LocalBench, run: Run) -> None:
    assert answered(bench) == 0
    assert settled_total(run, 0.1, lambda _: None, COUNT) == COUNT


def counts(bench: LocalBench, run: Run) -> None:
    assert answered(bench) == COUNT
    assert settled_total(run, 0.1, lambda _: None, 2 * COUNT) == 2 * COUNT  # requests and replies


def passes(bench: LocalBench, run: Run) -> None:
    assert answered(bench) == COUNT
    assert run.program.tag == UNKNOWN  # it said nothing: the kernel was asked


def redirects(bench: LocalBench, run: Run) -> None:
    for _ in range(COUNT):
        subprocess.run([*bench.enter, sys.executable, "-c", ECHO], check=True, timeout=60)
    assert answered(bench) == COUNT
    assert settled_total(run, 0.1, lambda _: None, COUNT) == COUNT


CLAIMS = {Kind.DROP: drops, Kind.COUNT: counts, Kind.PASS: passes, Kind.REDIRECT: redirects}


@pytest.fixture
def own(invoke: Invoke, copies: Callable[[str], Path], tmp_path: Path) -> Callable[[Kind], Build]:
    """Builds a new pair of a kind, in a directory of its own."""

    def build(kind: Kind) -> Build:
        name, tree = f"own_{kind}", copies(KERNELS[0])
        assert invoke("new", name, "--kind", kind, "--dir", tmp_path).code == 0
        user = tmp_path / f"{name}_user.c"
        if kind is Kind.COUNT:
            user.unlink()  # then the generic one serves
        elif kind is Kind.PASS:
            user.write_text(OF_2019)
        outcome = invoke("build", "--tree", tree, "--sample", tmp_path)
        assert outcome.code == 0, outcome.err
        assert ("no user half of its own" in outcome.err) == (kind is Kind.COUNT)
        (directory,) = invoke.workspace.glob(f"builds/*/{name}")
        found = Build.load(directory)
        assert found
        return found

    return build


@pytest.mark.root
@pytest.mark.tree
@pytest.mark.parametrize("kind", Kind)
def test_each_kind_does_what_it_says(
    kind: Kind, own: Callable[[Kind], Build], workspace: Path
) -> None:
    build, job = own(kind), Job("192.0.2.1", "lo", interval=0.1, rounds=0)
    known = cases.required(build, job.ip)
    with Netns(Workspace(workspace)).open(Shell(), packets=True) as bench:
        assert answered(bench) == COUNT
        with started(build, job, bench, Workspace(workspace).new_run()) as run:
            assert [one.program for one in bench.attached("lo")] == [run.program.program]
            CLAIMS[kind](bench, run)
            met = cases.run(known, bench, run.program.program)
            assert [one.case.name for one in met if not one.held] == []
        assert not bench.attached("lo")
