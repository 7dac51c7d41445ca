"""Matrices for real: kernels of the distribution booted side by side, and a planted fault found."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, Invoke, copy_pair, processes_in

from xdplab.cell import MODES
from xdplab.report import JSON, JUNIT, PAGE

pytestmark = pytest.mark.tree

ROW = ("5.10-cloud", "6.1-cloud", "6.12-cloud", "7.2-cloud")
FRAMES = "72 frames met their verdict"
KERNELS, FEW = (f"--kernels={','.join(kernels)}" for kernels in (ROW, ROW[1:3]))


@pytest.fixture(scope="module")
def lab(matrix_labs: Callable[..., Invoke]) -> Invoke:
    """The command line, with a tree of 6.1, and the kernels of the row."""
    return matrix_labs(*ROW)


def last(lab: Invoke) -> dict[str, Any]:
    """What the last matrix found."""
    path = sorted(lab.workspace.glob(f"matrix/*/{JSON}"))[-1]
    assert {JUNIT, PAGE} <= {one.name for one in path.parent.iterdir()}
    assert not (path.parent / "guests").exists()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def outcomes(found: dict[str, Any]) -> dict[str, str]:
    return {f"{cell['kernel']} {cell['mode']}": cell["outcome"] for cell in found["cells"]}


def test_the_pair_passes_on_the_whole_row(lab: Invoke) -> None:
    outcome = lab("matrix", KERNELS)
    assert outcome.code == 0, outcome.out + outcome.err
    found = last(lab)
    assert outcomes(found) == {
        f"{kernel} {mode}": "passed" for kernel in ROW for mode in ("generic", "native")
    }
    for cell in found["cells"]:
        assert cell["release"].startswith(cell["kernel"].removesuffix("-cloud"))
        assert all(check["held"] for check in cell["checks"])
        assert {"claim": "48 packet cases hold", "held": True, "found": FRAMES} in cell["checks"]
        assert {"build", "boot", "prove"} == set(cell["seconds"])
        seen = next(check for check in cell["checks"] if "the kernel shows it" in check["claim"])
        assert f"in {MODES[cell['mode']]} mode" in seen["found"]
        assert "Linux version" in Path(cell["logs"]["kernel.log"]).read_text()
        assert "cpu 0, value = 3" in Path(cell["logs"]["output.log"]).read_text()
    assert processes_in(lab.workspace) == []


def test_nothing_is_made_twice(lab: Invoke) -> None:
    """Four cells: one pair, one userland; and in the next matrix no tool, nor a kernel, anew."""
    images = [path.stat() for path in lab.workspace.glob("kernels/*/vmlinux")]
    made = []
    for _ in range(2):
        outcome = lab("matrix", FEW)
        assert outcome.code == 0, outcome.out + outcome.err
        commands = [command.split(" && ")[-1] for command in outcome.commands()]
        made.append([word for one in commands for word in ("make", "gcc", "ldd", "apt-get")
                     if re.match(rf"(\w+=\S+ )*{word} ", one)])  # fmt: skip
        assert made[-1].count("ldd") == 1
        assert made[-1].count("make") <= 1  # of the pair
    assert "gcc" not in made[1]
    assert "apt-get" not in made[0] + made[1]
    assert images == [path.stat() for path in lab.workspace.glob("kernels/*/vmlinux")]


# What is put in the place of a line of the pair: on one kernel the address is
# "any", and the helper is one that kernels before 6.1 don't have.
FAULTS = {
    "kern": {
        '	trace("starting xdp ip filter\\n");\n': """\
	if (!bpf_ktime_get_tai_ns())
		return XDP_PASS;
""",
        "	if (iph->saddr != *ip)\n": "	if (*ip && iph->saddr != *ip)\n",
    },
    "user": {
        "#include <sys/resource.h>\n": "#include <sys/resource.h>\n#include <sys/utsname.h>\n",
        "	ip = sin_addr.s_addr;\n": """\
	ip = sin_addr.s_addr;
	struct utsname running;
	if (!uname(&running) && !strncmp(running.release, "7.2.", 4))
		ip = 0;
""",
    },
}


def test_a_planted_fault_is_found_where_it_is_and_nowhere_else(lab: Invoke, tmp_path: Path) -> None:
    for file, faults in zip(copy_pair(tmp_path), FAULTS.values(), strict=True):
        text = file.read_text()
        for line, fault in faults.items():
            assert text.count(line) == 1
            text = text.replace(line, fault)
        file.write_text(text)
    shutil.copy(PROJECT / "xdp_ip_filter_cases.toml", tmp_path)
    outcome = lab("matrix", KERNELS, "--modes=generic", f"--sample={tmp_path}/xdp_ip_filter")
    assert outcome.code == 1, outcome.out + outcome.err
    assert "error: 2 failed: " in outcome.err
    found = {cell["kernel"]: cell for cell in last(lab)["cells"]}
    assert {kernel: cell["outcome"] for kernel, cell in found.items()} == {
        **{"5.10-cloud": "failed", "6.1-cloud": "passed"},
        **{"6.12-cloud": "passed", "7.2-cloud": "failed"},
    }
    assert found["5.10-cloud"]["reason"] == (
        "the sample did not attach to eth0, exit code 1; invalid func unknown#208"
    )
    assert re.match(
        r"3 packets from another address, [\d.]+, are answered: sent 3, delivered 0, answered 0",
        found["7.2-cloud"]["reason"],
    )
    page = sorted(lab.workspace.glob(f"matrix/*/{PAGE}"))[-1].read_text()
    assert "invalid func unknown#208" in page
    assert "case destination: pass: drop; It goes to the address" in page


def test_interrupted_it_keeps_what_has_finished_and_leaves_no_machine(lab: Invoke) -> None:
    with lab.start("matrix", FEW) as background:
        background.wait_for("ok  ")
        outcome = background.interrupt()
    assert outcome.code == 130, outcome.err
    assert "interrupted" in outcome.err
    assert processes_in(lab.workspace) == []
    found = last(lab)
    assert 1 <= len(found["cells"]) < 4
    assert set(outcomes(found).values()) == {"passed"}
    assert outcome.out.count("not run") == 4 - len(found["cells"])


def test_only_what_did_not_pass_is_booted_again(lab: Invoke) -> None:
    found = last(lab)
    assert len(found["cells"]) < 4
    outcome = lab("matrix", FEW, "--only-failed")
    assert outcome.code == 0, outcome.err
    again = last(lab)
    assert len(again["cells"]) == 4
    taken = {name for name, cell in zip(outcomes(again), again["cells"], strict=True)
             if cell["taken_from"]}  # fmt: skip
    assert taken == set(outcomes(found))


def test_two_matrices_at_once_do_not_disturb_each_other(lab: Invoke) -> None:
    options = ("matrix", "--kernels=6.1-cloud", "--modes=native")
    with lab.start(*options) as one, lab.start(*options) as other:
        for background in (one, other):
            outcome = background.wait()
            assert outcome.code == 0, outcome.out + outcome.err
