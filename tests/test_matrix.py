"""Matrices: what is planned, how cells run side by side, what is made of how they end."""

from __future__ import annotations

import json
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused, path_without, snapshot, wait_until
from support import TREES, copied, vmlinux

from xdplab.cell import JUDGEMENTS, Cell, Result, judge
from xdplab.errors import (
    BuildFailed,
    CannotRun,
    DidNotAttach,
    GuestHangs,
    GuestLost,
    GuestPanic,
    Held,
    InputError,
    KernelSplat,
    LabError,
    MissingTools,
    ModeRefused,
    NoBoot,
    NotAChoice,
    NotAllPassed,
    NotAllTried,
    NotAnAddress,
    NoTree,
    NotToBeHad,
    SampleFailed,
)
from xdplab.files import locked
from xdplab.matrix import (
    Leash,
    Once,
    Plan,
    available_memory,
    gathered,
    patiently,
    places,
    require_passed,
    take_over,
    tree_for,
)
from xdplab.process import Running, Shell
from xdplab.verify import Check, Outcome
from xdplab.version import KernelVersion
from xdplab.view.board import Board
from xdplab.workspace import Workspace

IP = "192.168.1.78"
A, B, C, D = (Cell(kernel, "", "generic") for kernel in ("5.10", "6.1", "6.12", "7.2"))
HELD, BROKEN = (
    Check("it does", True, "so it is"),
    Check("packets pass", False, "sent 3, answered 0"),
)


def plan(
    kernels: Iterable[str] = ("5.10", "6.1"), compilers: Iterable[str] = (),
    modes: Iterable[str] = ("generic",), ip: str = IP, dev: str = "eth0",
) -> Plan:  # fmt: skip
    return Plan.of("xdp_ip_filter", kernels, compilers, modes, ip, dev)


# ---- the plan


def test_every_kernel_meets_every_compiler_in_every_mode() -> None:
    asked = plan(compilers=["clang-14", "clang-19"], modes=["generic", "native"])
    assert [str(cell) for cell in asked.cells[:4]] == [
        "5.10 clang-14 generic",
        "5.10 clang-14 native",
        "5.10 clang-19 generic",
        "5.10 clang-19 native",
    ]
    assert len(asked.cells) == 8


def test_what_is_asked_twice_is_proved_once() -> None:
    asked = plan(kernels=["6.1", "5.10", "6.1"], modes=["native", "native"])
    assert asked.cells == [Cell("6.1", "", "native"), Cell("5.10", "", "native")]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"modes": ["fast"]}, NotAChoice),
        ({"modes": []}, NotAChoice),
        ({"kernels": []}, NotAChoice),
        ({"ip": "192.168"}, NotAnAddress),
    ],
)
def test_a_plan_that_makes_no_sense(wrong: dict[str, list[str]], error: type[LabError]) -> None:
    with pytest.raises(error):
        plan(**wrong)  # type: ignore[arg-type]


def test_a_cell_can_be_proved_by_itself() -> None:
    asked = replace(plan(dev="lo"), sample="my/pair_kern.c")
    assert asked.again(Cell("6.1", "clang-19", "generic"), Path("/a tree")) == (
        "invoke build '--tree=/a tree' --sample=my/pair_kern.c --clang=clang-19",
        "invoke verify '--tree=/a tree' --sample=my/pair_kern.c --on=vm --boot=6.1 --dev=lo"
        " --mode=skb --ip=192.168.1.78",
    )
    assert "--gcc=gcc-13" in asked.again(Cell("6.1", "gcc-13", "native"), Path("/tree"))[0]


def test_the_pair_is_built_in_the_tree_of_the_kernels_series(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(NoTree):
        tree_for(KernelVersion(6, 1), workspace)
    (tmp_path / "trees").mkdir()
    for era in ("linux-6.1", "linux-5.10"):
        copied(era, tmp_path / "trees")
    with pytest.raises(NoTree, match="7"):
        tree_for(KernelVersion(7, 2), workspace)
    assert tree_for(KernelVersion(5, 10, 46), workspace).version.series == "5.10"
    workspace.set_current_tree(TREES / "linux-6.13")
    assert tree_for(KernelVersion(5, 10, 46), workspace).version.series == "5.10"
    assert tree_for(KernelVersion(7, 2), workspace).version.series == "6.13"
    assert tree_for(None, workspace).version.series == "6.13"


# ---- verdicts


def raised(kind: type[LabError]) -> LabError:
    made: dict[type[LabError], LabError] = {
        DidNotAttach: DidNotAttach("eth0", 1, "it said this", "it said this"),
        NoBoot: NoBoot(Path("vmlinux"), "it hangs", "the kernel's last words:"),
        GuestPanic: GuestPanic("Kernel panic - not syncing: VFS", "last words"),
        GuestHangs: GuestHangs("ls", 30.0, "last words"),
        GuestLost: GuestLost(-9, ["terminating"], "last words"),
        KernelSplat: KernelSplat(["WARNING: CPU: 0"], Path("kernel.log")),
        ModeRefused: ModeRefused("lo", "native", "no driver"),
        MissingTools: MissingTools(["qemu-system-x86_64"], "vm"),
        NotToBeHad: NotToBeHad("v3.1", "the distribution", ["v6.1"]),
    }
    return made[kind]


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (DidNotAttach, Outcome.FAILED),
        (KernelSplat, Outcome.FAILED),
        (NoBoot, Outcome.ERROR),
        (GuestPanic, Outcome.FAILED),
        (GuestHangs, Outcome.ERROR),
        (GuestLost, Outcome.ERROR),
        (ModeRefused, Outcome.SKIPPED),
        (MissingTools, Outcome.SKIPPED),
        (NotToBeHad, Outcome.SKIPPED),
    ],
)
def test_what_an_error_says_of_the_sample(kind: type[LabError], outcome: Outcome) -> None:
    error = raised(kind)
    verdict = judge([HELD], error)
    assert verdict.outcome is outcome
    assert error.message in verdict.reason
    assert "\n".join(verdict.said) == error.cure


def test_no_error_passes() -> None:
    kinds = [kind for kind, _ in JUDGEMENTS]
    assert {SampleFailed, BuildFailed, CannotRun, InputError, Exception} <= set(kinds)
    assert Outcome.PASSED not in [outcome for _, outcome in JUDGEMENTS]
    # the first that fits counts: none is behind one that it is derived from
    for number, kind in enumerate(kinds):
        assert not any(issubclass(kind, before) for before in kinds[:number])


def test_what_nobody_foresaw_is_an_error_with_its_name() -> None:
    assert judge([], ZeroDivisionError("by zero")) == (
        Outcome.ERROR, "ZeroDivisionError: by zero", ()
    )  # fmt: skip
    assert judge([], BrokenPipeError("gone")).outcome is Outcome.ERROR


def test_a_full_disk_is_no_fault_of_the_samples(tmp_path: Path) -> None:
    verdict = judge([], OSError(28, "No space left on device", str(tmp_path)))
    assert verdict.outcome is Outcome.SKIPPED
    assert "MiB are free" in verdict.reason


def test_a_claim_that_did_not_hold_is_the_reason() -> None:
    assert judge([HELD, BROKEN], None) == (
        Outcome.FAILED, "packets pass: sent 3, answered 0", ()
    )  # fmt: skip
    splat = judge([BROKEN], raised(KernelSplat))
    assert splat.reason == "packets pass: sent 3, answered 0; the kernel reported: WARNING: CPU: 0"
    assert judge([HELD], None) == (Outcome.PASSED, "", ())


NEW = """\
libbpf: prog '_xdp_ip_filter': BPF program load failed: Invalid argument
libbpf: prog '_xdp_ip_filter': -- BEGIN PROG LOAD LOG --
R1 type=ctx expected=fp
0: R1=ctx(off=0,imm=0) R10=fp0
; __u64 now = bpf_ktime_get_tai_ns();
0: (85) call bpf_ktime_get_tai_ns#208
unknown func bpf_ktime_get_tai_ns#208
processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --
libbpf: prog '_xdp_ip_filter': failed to load: -22
can't load xdp_ip_filter_kern.o: Invalid argument
"""
OLD = """\
libbpf: load bpf program failed: Permission denied
libbpf: -- BEGIN DUMP LOG ---
libbpf:
0: (61) r2 = *(u32 *)(r1 +4)
from 12 to 15: R0=map_value(id=0,off=0,ks=4,vs=4,imm=0) R10=fp0 fp-8=mmmm????
15: (71) r3 = *(u8 *)(r7 +12)
invalid access to packet, off=12 size=1, R7(id=0,off=12,r=0)
R7 offset is outside of the packet

libbpf: -- END LOG --
libbpf: failed to load program 'xdp_ip_filter'
"""


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (NEW, ["unknown func bpf_ktime_get_tai_ns#208"]),
        (OLD, ["R7 offset is outside of the packet"]),
        (NEW + OLD + NEW, ["unknown func bpf_ktime_get_tai_ns#208",
                           "R7 offset is outside of the packet"]),
        ("can't load x_kern.o: No such file or directory", []),
        ("libbpf: -- BEGIN DUMP LOG ---", []),
    ],
)  # fmt: skip
def test_the_verifiers_own_words_are_found(said: str, found: list[str]) -> None:
    verdict = judge([], DidNotAttach("eth0", 1, "shortened", said))
    assert verdict.reason == "; ".join(["the sample did not attach to eth0, exit code 1", *found])


def test_a_result_can_be_sent_to_another_process() -> None:
    result = Result(A, *judge([BROKEN], raised(KernelSplat)), checks=(HELD, BROKEN))
    assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301  # it is our own


@pytest.mark.parametrize(
    ("outcomes", "error"),
    [
        ({Outcome.PASSED}, None),
        ({Outcome.PASSED, Outcome.SKIPPED}, NotAllTried),
        ({Outcome.PASSED, Outcome.ERROR}, NotAllTried),
        (set(Outcome), NotAllPassed),
    ],
)
def test_only_what_passed_everywhere_passes(
    outcomes: set[Outcome], error: type[LabError] | None
) -> None:
    results = [
        Result(cell, outcome)
        for cell, outcome in zip((A, B, C, D), Outcome, strict=True)
        if outcome in outcomes
    ]
    if error is None:
        require_passed(results)
        return
    with pytest.raises(error) as refused:
        require_passed(results)
    named = [str(result.cell) for result in results if str(result.cell) in refused.value.message]
    wanted = [Outcome.FAILED] if error is NotAllPassed else [Outcome.ERROR, Outcome.SKIPPED]
    assert named == [str(result.cell) for result in results if result.outcome in wanted]


def test_what_passed_before_is_taken_over_and_marked() -> None:
    earlier = [
        Result(A, Outcome.PASSED),
        Result(B, Outcome.FAILED),
        Result(C, Outcome.PASSED, taken_from="the first"),
        Result(D, Outcome.PASSED),
    ]
    asked = plan(kernels=["5.10", "6.1", "6.12"])
    assert [(one.cell, one.taken_from) for one in take_over(asked, earlier, "the second")] == [
        (A, "the second"),
        (C, "the first"),
    ]


# ---- side by side


@pytest.mark.parametrize(
    ("cores", "free", "count"),
    [(2, 20000, 2), (8, 20000, 8), (8, 1600, 2), (8, 700, 1), (2, 0, 1)],
)
def test_there_are_as_many_machines_as_cores_and_memory_allow(
    cores: int, free: int, count: int
) -> None:
    assert places(cores, free, 512) == count


def test_available_memory_is_the_kernels_word_for_it() -> None:
    told = "MemTotal:  24682888 kB\nMemFree:  1 kB\nMemAvailable:   20110112 kB\n"
    assert available_memory(told) == 19638
    assert available_memory("MemTotal: 5 kB\n") == 0  # a kernel of a container's own kind
    assert available_memory(Path("/proc/meminfo").read_text()) > 0


def submitted(
    pool: ThreadPoolExecutor, deeds: dict[Cell, Callable[[], Result]]
) -> dict[Future[Result], Cell]:
    return {pool.submit(deed): cell for cell, deed in deeds.items()}


def fails(error: Exception) -> Result:
    raise error


def test_no_cell_stops_another_whatever_it_raises() -> None:
    deeds: dict[Cell, Callable[[], Result]] = {
        A: partial(fails, ZeroDivisionError("by zero")),
        B: partial(Result, B, Outcome.PASSED),
        C: partial(fails, raised(NoBoot)),
        D: partial(Result, D, Outcome.PASSED),
    }
    with ThreadPoolExecutor(2) as pool:
        found = {one.cell: one for one in gathered(submitted(pool, deeds), lambda: None)}
    assert [found[cell].outcome for cell in (A, B, C, D)] == [
        *(Outcome.ERROR, Outcome.PASSED, Outcome.ERROR, Outcome.PASSED),
    ]
    assert found[A].reason == "ZeroDivisionError: by zero"


def test_interrupted_it_gives_what_has_finished_and_ends_the_rest() -> None:
    stopped = threading.Event()

    def until_stopped() -> Result:
        stopped.wait()
        return Result(A, Outcome.ERROR)

    deeds: dict[Cell, Callable[[], Result]] = {
        A: until_stopped,
        B: partial(Result, B, Outcome.PASSED),
        C: partial(Result, C, Outcome.PASSED),
        D: until_stopped,
    }
    with ThreadPoolExecutor(2) as pool:
        futures = submitted(pool, deeds)
        wait([future for future, cell in futures.items() if cell in (B, C)])
        results = gathered(futures, stopped.set)
        given = [next(results), results.throw(KeyboardInterrupt())]
        assert not stopped.is_set()
        with pytest.raises(KeyboardInterrupt):
            next(results)
    assert {result.cell for result in given} == {B, C}


def test_who_wants_no_more_results_ends_the_rest() -> None:
    stopped = threading.Event()

    def until_stopped() -> Result:
        stopped.wait()
        return Result(A, Outcome.ERROR)

    deeds: dict[Cell, Callable[[], Result]] = {
        A: until_stopped,
        B: partial(Result, B, Outcome.PASSED),
        C: until_stopped,
    }
    with ThreadPoolExecutor(2) as pool:
        futures = submitted(pool, deeds)
        with closing(gathered(futures, stopped.set)) as results:
            assert next(results).cell is B
    assert [future.cancelled() for future in futures] == [False, False, True]


@pytest.fixture
def sleeper() -> Iterator[Callable[[Leash], Running]]:
    """Starts a command, held by a leash, that lasts."""
    started: list[Running] = []

    def start(leash: Leash) -> Running:
        started.append(Shell(hold=leash.hold).start(["sleep", "1000"]))
        return started[-1]

    yield start
    for running in started:
        running.end()


def test_a_leash_ends_what_runs_and_what_comes_too_late(
    sleeper: Callable[[Leash], Running],
) -> None:
    leash = Leash()
    under_way = sleeper(leash)
    leash.cut()
    late = sleeper(leash)
    assert [running.wait(0) for running in (under_way, late)] == [-signal.SIGTERM] * 2


def test_who_waits_for_another_process_says_so_once(tmp_path: Path) -> None:
    lock, told = tmp_path / "lock", threading.Event()
    said: list[str] = []

    def tell(text: str) -> None:
        said.append(text)
        told.set()

    def work() -> str:
        with locked(lock):
            return "done"

    with ThreadPoolExecutor(1) as pool:
        with locked(lock):
            waiting = pool.submit(patiently, work, tell)
            wait_until(told.is_set)
        assert waiting.result() == "done"
    assert len(said) == 1
    assert "is being worked on by process" in said[0]


def test_what_was_had_once_is_not_had_again() -> None:
    asked: list[int] = []

    def ask(number: int) -> int:
        asked.append(number)
        if number:
            raise Held(Path("a tree"), "somebody")
        return number

    once = Once(ask)
    for _ in range(2):
        assert once(0) == 0
        with pytest.raises(Held):
            once(1)
    assert asked == [0, 1]


def test_the_board_tells_what_each_cell_is_at_and_what_became_of_it() -> None:
    shown: list[Result] = []
    board = Board(plan(kernels=["5.10", "6.1", "6.12"]), shown.append)
    results = [
        Result(A, Outcome.FAILED, "a reason", seconds={"build": 9.0, "boot": 2.0, "prove": 1.25}),
        Result(C, Outcome.PASSED, taken_from="the first"),
    ]

    def come() -> Generator[Result]:
        board.at(A, "booting")
        board.at(B, "building")
        board.found.append(results[0])
        yield results[0]
        board.at(B, "booting")
        assert [row[0] for row in board.rows()] == ["kernel", "5.10", "6.1", "6.12"]
        assert [row[1].split(",")[0] for row in board.rows()] == [
            *("generic", "FAIL 3.2 s", "booting", "not run"),
        ]
        assert board.table().row_count == 3
        board.found.append(results[1])
        yield results[1]

    assert board.follow(come()) == shown == results
    assert board.rows() == [
        ["kernel", "generic"],
        ["5.10", "FAIL 3.2 s"],
        ["6.1", "not run"],  # interrupted: nothing is under way any more
        ["6.12", "ok earlier"],
    ]


# ---- the command


@pytest.fixture
def without_bpf(tmp_path: Path) -> Path:
    """An image of a kernel whose configuration has no BPF: it is not even booted."""
    image = tmp_path / "vmlinux"
    image.write_bytes(vmlinux("6.1.0-9-test", config="CONFIG_NET=y\n"))
    return image


@pytest.fixture
def current(invoke: Invoke, fake_tree: Path) -> Path:
    """A tree that is the current one."""
    outcome = invoke("setup", "--tree", fake_tree)
    assert outcome.code == 0, outcome.err
    return fake_tree


def reports(invoke: Invoke) -> list[Path]:
    return sorted(invoke.workspace.glob("matrix/*/matrix.json"))


def test_a_dry_run_tells_what_it_comes_to(invoke: Invoke, current: Path) -> None:
    before = snapshot(current, invoke.workspace)
    outcome = invoke(
        *("--dry", "matrix", "--kernels=6.1,7.2", "--compilers=clang-14,gcc-12", "--modes=native")
    )
    assert outcome.code == 0, outcome.err
    sample = "--sample=xdp_ip_filter"
    verify = [
        f"invoke verify --tree={current} {sample} --on=vm --boot={kernel} --dev=eth0"
        f" --mode=native --ip={IP}"
        for kernel in ("6.1", "7.2")
    ]
    assert outcome.commands() == [
        f"invoke build --tree={current} {sample} --clang=clang-14", *verify,
        f"invoke build --tree={current} {sample} --gcc=gcc-12", *verify,
    ]  # fmt: skip
    assert snapshot(current, invoke.workspace) == before


def test_a_kernel_that_can_not_run_it_is_skipped_with_its_reason(
    invoke: Invoke, current: Path, without_bpf: Path
) -> None:
    outcome = invoke("matrix", f"--kernels={without_bpf}")
    assert_refused(outcome, 69, "2 could not be tried")
    lines = outcome.out.splitlines()
    assert [line.startswith(f"skip {without_bpf} ") for line in lines[:2]] == [True, True]
    assert "has no CONFIG_BPF_SYSCALL" in lines[0]
    assert lines[2].split() == ["kernel", "generic", "native"]
    (report,) = reports(invoke)
    cells = json.loads(report.read_text())["cells"]
    assert [(cell["mode"], cell["outcome"]) for cell in cells] == [
        ("generic", "skipped"),
        ("native", "skipped"),
    ]
    assert {path.name for path in report.parent.iterdir()} == {
        *("junit.xml", "matrix.html", "matrix.json"),
    }


def test_lo_has_no_native_mode(invoke: Invoke, current: Path, without_bpf: Path) -> None:
    outcome = invoke("matrix", f"--kernels={without_bpf}", "--dev=lo", "--modes=native")
    assert_refused(outcome, 69)
    assert f"skip {without_bpf} native: lo has no native XDP" in outcome.out
    assert not any("M=samples/bpf" in command for command in outcome.commands())


def test_a_pair_that_does_not_compile_fails_in_the_compilers_words(
    invoke: Invoke, current: Path, tmp_path: Path
) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(vmlinux("6.1.0-9-test", config="CONFIG_BPF_SYSCALL=y\n"))
    makefile = current / "Makefile"
    text = makefile.read_text()
    assert "clang --target=bpf" in text
    fails = "> @echo LLVM ERROR: it gives up >&2; exit 134"
    makefile.write_text(
        "\n".join(fails if "clang --target=bpf" in line else line for line in text.splitlines())
        + "\n"
    )
    outcome = invoke("matrix", f"--kernels={image}")
    assert_refused(outcome, 1, "2 failed")
    assert f"FAIL {image} generic: LLVM ERROR: it gives up\n" in outcome.out
    made = [command for command in outcome.commands() if "M=samples/bpf" in command]
    assert len(made) == 1  # for both cells


def test_the_report_goes_where_it_is_wanted(
    invoke: Invoke, current: Path, without_bpf: Path, tmp_path: Path
) -> None:
    wanted = tmp_path / "for" / "ci"
    outcome = invoke("matrix", f"--kernels={without_bpf}", "--report", wanted)
    assert outcome.code == 69
    assert f"report: {wanted}/matrix.html" in outcome.err
    names = ["junit.xml", "matrix.html", "matrix.json"]
    assert sorted(path.name for path in wanted.iterdir()) == names
    (kept,) = reports(invoke)
    assert (wanted / "matrix.json").read_text() == kept.read_text()


def test_only_what_did_not_pass_is_tried_again(
    invoke: Invoke, current: Path, without_bpf: Path
) -> None:
    again = ("matrix", f"--kernels={without_bpf}", "--only-failed")
    assert invoke(*again).code == 69  # there is no earlier one: all cells
    (first,) = reports(invoke)
    found = json.loads(first.read_text())
    found["cells"][0]["outcome"] = "passed"
    first.write_text(json.dumps(found))
    outcome = invoke(*again)
    assert_refused(outcome, 69, "1 could not be tried")
    assert f"(found by the matrix {first.parent.name})" in outcome.out.splitlines()[0]
    cells = json.loads(reports(invoke)[-1].read_text())["cells"]
    assert [(cell["outcome"], cell["taken_from"]) for cell in cells] == [
        ("passed", first.parent.name),
        ("skipped", ""),
    ]
    # other packets are another matrix
    assert "found by" not in invoke(*again, "--dev=lo").out


def test_clean_removes_what_matrices_left(invoke: Invoke, current: Path, without_bpf: Path) -> None:
    invoke("matrix", f"--kernels={without_bpf}")
    assert reports(invoke)
    assert invoke("clean").code == 0
    assert not (invoke.workspace / "matrix").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--modes=fast"], "--modes can't be 'fast'"),
        (["--modes=,"], "--modes can't be ''"),
        (["--kernels=,"], "--kernels can't be ''"),
        (["--kernels=six"], "'six' is not a kernel version"),
        (["--kernels=/nowhere/vmlinux"], "/nowhere/vmlinux"),
        (["--sample=nothing"], "'nothing' is no sample"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    invoke: Invoke, current: Path, options: list[str], words: str
) -> None:
    assert_refused(invoke("matrix", *options), 2, words)
    assert not (invoke.workspace / "matrix").exists()


def test_a_compiler_that_is_none_is_refused(
    invoke: Invoke, current: Path, without_bpf: Path
) -> None:
    outcome = invoke("matrix", f"--kernels={without_bpf}", "--compilers=clang-999")
    assert_refused(outcome, 2, "'clang-999' is no clang")


def test_a_matrix_needs_a_tree(invoke: Invoke, without_bpf: Path) -> None:
    assert_refused(invoke("matrix", f"--kernels={without_bpf}"), 2, "is set up")


def test_a_matrix_needs_qemu(invoke: Invoke, current: Path, tmp_path: Path) -> None:
    env = {"PATH": path_without(tmp_path / "bin", "qemu-system-x86_64")}
    assert_refused(invoke("matrix", env=env), 69, "qemu-system-x86_64")
