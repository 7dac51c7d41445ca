"""Our C tools: compiled once, and what `links` says of interfaces."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import Invoke

from xdplab import testbed
from xdplab.build import Build
from xdplab.errors import MissingTools
from xdplab.netlink import of_tool
from xdplab.process import Shell
from xdplab.runner import Job, started
from xdplab.testbed import tools
from xdplab.testbed.local import LocalBench
from xdplab.workspace import Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("tools"))


@pytest.mark.parametrize("name", tools.OF_GUESTS)
def test_a_tool_is_compiled_once(tmp_path: Path, name: str) -> None:
    echoed: list[str] = []
    shell, workspace = Shell(echoed.append), Workspace(tmp_path)
    first, second = (tools.compiled(name, workspace, shell) for _ in range(2))
    assert first == second
    (command,) = echoed
    assert command.startswith("gcc ")
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTools, match="gcc"):
        tools.compiled(tools.LINKS, Workspace(tmp_path), Shell())


def test_an_interface_that_is_not_there(workspace: Workspace) -> None:
    tool = tools.compiled(tools.LINKS, workspace, Shell())
    ended = subprocess.run([tool, "nosuch0"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "nosuch0: No such device\n"
    assert subprocess.run([tool], capture_output=True, check=False).returncode == 2


@pytest.mark.root
@pytest.mark.tree
def test_it_sees_the_program_that_is_attached(lab: Invoke, workspace: Workspace) -> None:
    (directory,) = lab.workspace.glob("builds/*/xdp_ip_filter")
    build = Build.load(directory)
    assert build
    tool = tools.compiled(tools.LINKS, workspace, Shell())
    with testbed.named("netns", workspace).open(Shell(), packets=False) as bench:
        assert isinstance(bench, LocalBench)

        def said() -> str:
            return Shell().ask([*bench.enter, tool, "lo"]).text()

        assert said() == ""
        with started(build, Job("192.168.1.78", rounds=0), bench, workspace.new_run()) as run:
            (seen,) = of_tool(said(), "lo")
            assert [seen] == bench.attached("lo")
            assert (seen.program, seen.mode) == (run.program.program, "skb")
        assert said() == ""
