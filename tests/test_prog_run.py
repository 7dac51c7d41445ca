"""The tool that runs frames through a loaded program, and what it is told and says."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Invoke

from xdplab import testbed
from xdplab.build import Build
from xdplab.errors import CommandFailed, FrameRefused
from xdplab.process import Shell
from xdplab.runner import Job, Run, started
from xdplab.testbed import Bench, tools
from xdplab.workspace import Workspace

IP = "192.168.1.78"
ETHER = bytes(12) + b"\x08\0"


def ipv4(source: bytes) -> bytes:
    """A frame with an IPv4 header in it, as far as the tutorial's filter looks."""
    return ETHER + b"\x45" + bytes(11) + source + bytes(4)


FROM_IT, FROM_ANOTHER = ipv4(bytes((192, 168, 1, 78))), ipv4(bytes((192, 168, 1, 79)))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("prog_run"))


@pytest.mark.parametrize("words", [(), ("verdicts",), ("live", "1"), ("verdicts", *"123")])
def test_what_it_is_not_made_for(workspace: Workspace, words: tuple[str, ...]) -> None:
    tool = tools.compiled(tools.TEST_RUN, workspace, Shell())
    ended = subprocess.run([tool, *words], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("usage: ")


def test_a_file_of_frames_that_is_not_there(workspace: Workspace, tmp_path: Path) -> None:
    tool, file = tools.compiled(tools.TEST_RUN, workspace, Shell()), tmp_path / "frames"
    ended = subprocess.run([tool, "verdicts", "1", file], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, f"{file}: No such file or directory\n".encode())


@pytest.fixture
def attached(lab: Invoke, workspace: Workspace) -> Iterator[tuple[Bench, Run]]:
    """The tutorial's filter, attached in a namespace."""
    (directory,) = lab.workspace.glob("builds/*/xdp_ip_filter")
    build = Build.load(directory)
    assert build
    job = Job(IP, interval=0.1, rounds=0)
    with (
        testbed.named("netns", workspace).open(Shell(), packets=False) as bench,
        started(build, job, bench, workspace.new_run()) as run,
    ):
        yield bench, run


@pytest.mark.root
@pytest.mark.tree
def test_frames_run_through_the_program_that_is_attached(attached: tuple[Bench, Run]) -> None:
    bench, run = attached
    program = run.program.program
    assert bench.test_run(program, [FROM_IT, FROM_ANOTHER, ETHER]) == [1, 2, 2]
    assert bench.test_run(program, []) == []
    many = [FROM_IT, FROM_ANOTHER] * 5000
    assert bench.test_run(program, many) == [1, 2] * 5000


@pytest.mark.root
@pytest.mark.tree
def test_what_the_kernel_does_not_run(attached: tuple[Bench, Run]) -> None:
    bench, run = attached
    program = run.program.program
    for short in (b"", ETHER[:-1]):
        with pytest.raises(FrameRefused, match=f"frame 2, of {len(short)} bytes, is too short"):
            bench.test_run(program, [ETHER, short])
    with pytest.raises(FrameRefused, match="frame 1, of 100000 bytes, is too long"):
        bench.test_run(program, [ETHER + bytes(100000 - len(ETHER))])
    with pytest.raises(CommandFailed, match="test_run-") as failed:
        bench.test_run(2**31 - 1, [ETHER])
    assert "can't be opened: No such file" in failed.value.cure
