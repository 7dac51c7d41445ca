"""What `invoke status` shows: real programs, in network namespaces of the tests' own."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NOBODY, PRIVATE, Invoke, path_without, wait_until

from xdplab import programs
from xdplab.census import NOWHERE, Seen
from xdplab.lifecycle import NOT_OURS
from xdplab.netlink import Attached
from xdplab.programs import Loaded, Map
from xdplab.view.programs import lines, to_json

IP = "127.0.0.9"
real = [pytest.mark.tree, pytest.mark.root]


# ---- how it is shown

LOADED = Loaded(
    7, "drop", "0123456789abcdef", 0.0, 0, 4, 1000, 3, ("prog (12)",),
    (
        Map(1, "ip_map", "hash", 1, ((0, "10.0.0.1"),), 1),
        Map(2, "counter_map", "percpu_array", 1, ((0, {"0": 0, "1": 5}),), 1),
        Map(3, "flows", "hash", 64, (({"port": 1}, 2),), 9),
        Map(4, "million", "hash", 1_000_000, (), None),
        Map(5, "none", "hash", 64, (), 0),
    ),
)  # fmt: skip
ON_LO = Seen(7, NOT_OURS, Attached("lo", 1, "skb", 7), "a place", loaded=LOADED)


def test_a_program_is_told_with_all_that_is_known() -> None:
    first, _name, *rest = lines([ON_LO], statistics=True)
    assert first == "1: lo: skb: prog/xdp id 7: not attached by this harness, in a place"
    assert [line.strip() for line in rest] == [
        "held by bpf_link 3, prog (12)",
        "ran 4 times, 250 ns each",
        "ip_map (hash): 0 = 10.0.0.1",
        "counter_map (percpu_array): 0 = 5 (cpu 1: 5)",
        'flows (hash): {"port": 1} = 2; and 8 more',
        "million (hash): not read, up to 1,000,000 entries: sudo bpftool map dump id 4",
        "none (hash): empty",
    ]


def test_every_name_is_there_in_every_program() -> None:
    loose = Seen(8, NOWHERE)
    one, other = json.loads(to_json([ON_LO, loose], statistics=None))["programs"]
    assert one.keys() == other.keys()
    assert other == dict.fromkeys(one) | {"id": 8}


@pytest.mark.parametrize(
    ("value", "name", "decoded"),
    [
        (["0x7f", "0x00", "0x00", "0x01"], "ip_map", "127.0.0.1"),
        (["0x03", "0x00", "0x00", "0x00"], "counter_map", 3),
        (["0x03", "0x00", "0x00"], "odd", "03 00 00"),
        (16777343, "ip_map", "127.0.0.1"),
        ({"saddr": 16777343, "zip": 5}, "flows", {"saddr": "127.0.0.1", "zip": 5}),
        ({"0": 16777343}, "ip_map", {"0": "127.0.0.1"}),
        ([104, 105, 10, 0], "", "hi"),
        ([0, 0], "", [0, 0]),
        ([300, 0], "ip", ["44.1.0.0", "0.0.0.0"]),  # noqa: S104
        (2**40, "ip_map", 2**40),
        (-1, "ip_map", -1),
        (True, "ip", True),
        ({"a": [{"b": ["0x01"]}]}, "", {"a": [{"b": 1}]}),
    ],
)
def test_bytes_are_numbers_and_addresses_are_written_as_such(
    value: Any, name: str, decoded: Any
) -> None:
    assert programs._decoded(value, name) == decoded


# ---- real ones


@contextlib.contextmanager
def theirs(program: Path, *options: str) -> Iterator[int]:
    """A program of nobody's, in a namespace of its own; gives a process in that."""
    script = 'ip link set dev lo up && exec "$0" "$@"'
    argv: list[str | Path] = ["sh", "-c", script, program, "-i", IP, "-n", "0", *options]
    with subprocess.Popen(
        [*PRIVATE, *argv], cwd=program.parent, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            next(line for line in process.stdout if line.startswith("cpu"))
            yield process.pid
        finally:
            process.terminate()


def shown(lab: Invoke, *options: str, **how: Any) -> list[dict[str, Any]]:
    """The programs that are told of; others may run on this machine."""
    outcome = lab("status", "--json", *options, **how)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["schema"] == 1
    programs: list[dict[str, Any]] = found["programs"]
    return programs


@pytest.fixture
def bpftool() -> None:
    if not shutil.which("bpftool", path="/usr/sbin:/usr/bin"):
        pytest.skip("bpftool is not installed")


@pytest.mark.usefixtures("bpftool")
class TestAsRoot:
    pytestmark = real

    def test_a_run_of_ours_is_told_with_its_maps(self, lab: Invoke) -> None:
        with lab.start("run", "--on=netns", "--json", "--interval=0.1", f"--ip={IP}") as run:
            run.wait_for("{")
            lab("send", "--on=netns", f"--ip={IP}", "--count=2")
            (one,) = [one for one in shown(lab) if one["run"]]
            text = lab("status").out
        assert (one["dev"], one["mode"], one["run"]["ip"]) == ("lo", "skb", IP)
        assert one["run"]["alive"]
        assert one["place"].startswith("the network namespace of process ")
        loaded = one["loaded"]
        assert (loaded["id"], loaded["name"]) == (one["id"], "_xdp_ip_filter")
        assert loaded["tag"] == one["run"]["tag"]
        contents = {each["name"]: each["entries"] for each in loaded["maps"]}
        assert contents["ip_map"] == [{"key": 0, "value": IP}]
        (counter,) = contents["counter_map"]
        assert sum(counter["value"].values()) == 2
        assert f"prog/xdp id {one['id']}: ours, tag {loaded['tag']}, filters {IP}, in the" in text
        assert f"ip_map (hash): 0 = {IP}" in text

    def test_somebody_elses_is_found_where_it_is(self, lab: Invoke, program: Path) -> None:
        with theirs(program) as pid:
            seen = [one for one in shown(lab, "--all") if str(pid) in str(one["place"])]
            nowhere = lab("status").out
        (one,) = seen
        assert one["place"] == f"the network namespace of process {pid} (xdp_ip_filter)"
        assert (one["dev"], one["run"]) == ("lo", None)
        assert one["loaded"]["link"]
        # it is loaded: but where, only --all finds out
        assert f"-: prog/xdp id {one['id']}: {NOWHERE}\n" in nowhere

    def test_what_is_gone_is_not_told_of(self, lab: Invoke, program: Path) -> None:
        with theirs(program) as pid:
            (one,) = [one for one in shown(lab, "--all") if str(pid) in str(one["place"])]
        wait_until(lambda: one["id"] not in [each["id"] for each in shown(lab, "--all")])

    def test_runs_are_counted_while_that_is_on(self, lab: Invoke) -> None:
        before = programs.STATISTICS.read_text()
        try:
            programs.STATISTICS.write_text("1")
        except OSError as error:
            pytest.skip(f"kernel.bpf_stats_enabled can't be set: {error}")
        try:
            with lab.start("run", "--on=netns", "--json", f"--ip={IP}") as run:
                run.wait_for("{")
                lab("send", "--on=netns", f"--ip={IP}", "--count=3")
                (one,) = [one for one in shown(lab) if one["run"]]
        finally:
            programs.STATISTICS.write_text(before)
        assert one["loaded"]["runs"] >= 3
        assert one["loaded"]["nanoseconds"] > 0

    def test_who_is_no_root_sees_where_they_are_and_why_no_more(
        self, program: Path, nobody: Path
    ) -> None:
        invoke = Invoke(nobody / "workspace", cwd=nobody / "checkout")
        with theirs(program) as pid:
            inside = ("nsenter", f"--net=/proc/{pid}/ns/net", *NOBODY)
            env = {"HOME": str(nobody), "PATH": path_without(nobody / "bin", "sudo")}
            outcome = invoke("status", env=env, under=inside)
        assert outcome.code == 0, outcome.err
        assert f": {NOT_OURS}\n" in outcome.out
        assert "bpftool needs root" in outcome.err

    def test_without_bpftool_it_says_what_would_bring_it(
        self, lab: Invoke, program: Path, tmp_path: Path
    ) -> None:
        hidden = path_without(tmp_path / "bin", "bpftool")
        # found there too, where an ordinary user's PATH does not lead
        covered = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            'for it in /usr/sbin /sbin; do mount --bind "$0" $it; done; exec "$@"',
            hidden,
        ]
        with theirs(program) as pid:
            inside = ("nsenter", f"--net=/proc/{pid}/ns/net", *covered)
            outcome = lab("status", env={"PATH": hidden}, under=inside)
        assert outcome.code == 0, outcome.err
        assert f": {NOT_OURS}\n" in outcome.out
        assert "not found on PATH: bpftool (scripts/bootstrap run)" in outcome.err
