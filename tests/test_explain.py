"""What messages mean: the table against recorded ones, and failures that are provoked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import KERNELS, NOBODY, PRIVATE, PROJECT, Invoke, assert_refused, copy_pair
from hypothesis import given
from hypothesis import strategies as st

from xdplab import explain, verifier
from xdplab.explain import cause, table

RECORDED: dict[str, list[str]] = tomllib.loads(
    (PROJECT / "tests" / "explanations.toml").read_text()
)
WHOLE = Path("/a/run/output.log")  # what a shortened log names


# ---- the table


def test_every_entry_has_a_recorded_message() -> None:
    assert len(table()) >= 40
    assert set(RECORDED) == set(table())


@pytest.mark.parametrize(
    ("name", "said"), [(name, said) for name, all_said in RECORDED.items() for said in all_said]
)
def test_a_recorded_message_is_explained_by_its_own_entry(name: str, said: str) -> None:
    (found,) = explain.explain(said)
    assert found.name == name
    assert "{" not in found.means.replace("{ __uint", "").replace("= {}", "")
    assert "?" not in re.findall(r"[\w.-]+\?|\?\(|\(\?\)", found.means)


@pytest.mark.parametrize("name", table())
def test_an_explanation_is_one_paragraph_of_cause_and_cure(name: str) -> None:
    means = table()[name].means
    assert "\n" not in means
    assert "  " not in means
    assert 80 < len(means) < 500
    assert means.endswith(".")


@pytest.mark.parametrize("name", ["whole", "ended", "cut_in_line", "garbled"])
def test_counters_are_not_explained(name: str) -> None:
    log = PROJECT / "tests" / "logs" / f"{name}.txt"
    assert explain.explain(log.read_text(errors="replace")) == []


@pytest.mark.tree
def test_a_good_builds_log_is_not_explained(program: Path) -> None:
    log = (program.parent / "build.log").read_text()
    assert "xdp_ip_filter_kern.o" in log
    assert explain.explain(log) == []


def test_of_several_the_most_special_is_the_cause() -> None:
    said = RECORDED["not-permitted"][0] + "\n" + RECORDED["memlock"][0]
    found = cause(said)
    assert found
    assert found.name == "memlock"
    assert [one.name for one in explain.explain(said)] == ["not-permitted", "memlock"]
    assert cause("all is well") is None


def test_that_a_limit_cannot_be_raised_either_is_no_cause() -> None:
    remark = "RLIMIT_MEMLOCK can't be raised either: Operation not permitted"
    assert cause(remark) is None
    for name in ("object-btf", "maybe-null", "no-bpf-syscall"):
        found = cause(f"{RECORDED[name][0]}\n{remark}")
        assert found
        assert found.name == name


@given(st.text())
def test_no_text_is_too_strange(said: str) -> None:
    explain.explain(said)
    verifier.shortened(said, WHOLE)


# ---- the verifier's log

LOG = """\
libbpf: prog 'filter': BPF program load failed: Permission denied
libbpf: prog 'filter': -- BEGIN PROG LOAD LOG --
0: R1=ctx(off=0,imm=0) R10=fp0
; void *data = (void *)(long)ctx->data;
0: (61) r2 = *(u32 *)(r1 +0)          ; R1=ctx(off=0,imm=0) R2_w=pkt(off=0,r=0,imm=0)
; if (iph->saddr == 7) @ filter_kern.c:12
1: (61) r3 = *(u32 *)(r2 +26)
invalid access to packet, off=26 size=4, R2(id=0,off=26,r=0)
R2 offset is outside of the packet
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --
libbpf: prog 'filter': failed to load: -13
"""


def test_the_log_is_read_from_its_end() -> None:
    (found,) = verifier.refusals(LOG.splitlines())
    assert found.reason == (
        "invalid access to packet, off=26 size=4, R2(id=0,off=26,r=0)",
        "R2 offset is outside of the packet",
    )
    assert (found.code, found.place) == ("if (iph->saddr == 7)", "filter_kern.c:12")
    assert found.instructions[-1] == "1: (61) r3 = *(u32 *)(r2 +26)"


def test_a_long_log_is_cut_from_its_start() -> None:
    steps = "".join(f"{n}: (b7) r0 = {n}\n" for n in range(2, 9000))
    begin, end = LOG.split("; if")
    shown = verifier.shortened(f"{begin}{steps}; if{end}", WHOLE)
    assert len(shown.splitlines()) < 20
    for word in (
        "-- BEGIN PROG LOAD LOG",
        "R2 offset is outside",
        "filter_kern.c:12",
        "8999: ",
        str(WHOLE),
    ):
        assert word in shown
    assert "; void *data" not in shown


@pytest.mark.parametrize("cut", range(0, len(LOG), 37))
def test_a_log_that_breaks_off_is_no_trouble(cut: int) -> None:
    verifier.shortened(LOG[:cut], WHOLE)


# ---- the command


def test_a_log_can_be_explained(invoke: Invoke, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\0\xff\n" * 99 + RECORDED["legacy-maps"][0].encode() + b"\nfine\n")
    outcome = invoke("explain", "--file", log)
    assert outcome.code == 0, outcome.err
    assert "legacy map definitions" in outcome.out.splitlines()[0]
    assert "Write them as BTF" in " ".join(outcome.out.split())


def test_of_a_huge_log_the_end_is_read(invoke: Invoke, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("fine\n" * 2**20 + RECORDED["vmlinux-btf"][0])
    assert "VMLINUX_BTF" in invoke("explain", "--file", log).out


def test_standard_input_is_read_if_no_file_is_named(workspace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "explain"], input=RECORDED["asm-types"][0], text=True,
        cwd=PROJECT, capture_output=True, check=True,
        env=os.environ | {"INVOKE_WORKSPACE": str(workspace)},
    )  # fmt: skip
    assert "--target=bpf" in done.stdout


def test_what_nobody_knows_is_said_so(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("all is well\n")
    assert_refused(invoke("explain", "--file", tmp_path / "log"), 2, "nothing in it is known")
    assert_refused(invoke("explain", "--file", tmp_path / "none"), 2, "none")


# ---- provoked

MTU = """
ip link add veth0 type veth peer name veth1 && ip link set veth0 up &&
ip link set veth1 mtu 9000 up && exec "$@"
"""


@pytest.mark.tree
@pytest.mark.root
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernels_own_reason_for_refusing_a_mode_is_told(
    labs: Callable[[str], Invoke], kernel: str
) -> None:
    place = (*PRIVATE, "sh", "-c", MTU, "sh")
    lab, run = labs(kernel), ["run", "--dev=veth0", "--rounds=1", "--interval=0.1"]
    assert_refused(lab(*run, "--mode=native", under=place), 2, "the MTU of its peer veth1 is 9000")
    auto = lab(*run, under=place)
    assert auto.code == 0, auto.err
    assert "Peer MTU is too large to set XDP" in auto.err
    assert "generic instead" in auto.err


@pytest.mark.tree
@pytest.mark.root
def test_a_program_that_the_verifier_refuses_is_shown_with_its_line(
    labs: Callable[[str], Invoke], tmp_path: Path
) -> None:
    lab = labs("6.1")
    kern, _ = copy_pair(tmp_path / "pair")
    check = "\tif ((void *)(iph + 1) > data_end)\n\t\treturn XDP_PASS;\n"
    text = kern.read_text()
    assert text.count(check) == 1
    kern.write_text(text.replace(check, ""))
    sample = f"--sample={tmp_path}/pair/xdp_ip_filter"
    assert lab("build", sample).code == 0
    try:
        outcome = lab("verify", sample)
    finally:
        assert lab("build").code == 0  # the fixture's own again
    assert outcome.code == 1
    assert "invalid access to packet, off=26 size=4" in outcome.err
    assert "nothing before it proves that the packet is that long" in " ".join(outcome.err.split())


@pytest.mark.tree
@pytest.mark.root
def test_who_may_not_load_programs_is_told_what_lacks(program: Path) -> None:
    done = subprocess.run(
        [*PRIVATE, *NOBODY, program, "-n", "1"], cwd=program.parent, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    found = cause(done.stderr)
    assert found
    assert found.name in ("memlock", "not-permitted")
