"""The workflow in docs/ci: it can be read, and what it runs is there to be run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, Invoke

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra cluster")

JOB: dict[str, Any] = yaml.safe_load((PROJECT / "docs/ci/matrix.yml").read_text())["jobs"]["kernel"]
KERNELS: list[str] = JOB["strategy"]["matrix"]["kernel"]
DEFAULTS = yaml.safe_load((PROJECT / "invoke.yaml").read_text())


def commands(kernel: str) -> Iterator[list[str]]:
    """What the job for a kernel runs."""
    for step in JOB["steps"]:
        script = step.get("run", "").replace("${{ matrix.kernel }}", kernel)
        assert "${{" not in script
        yield from map(shlex.split, script.splitlines())


def test_it_has_the_kernels_that_a_matrix_has() -> None:
    assert ",".join(KERNELS) == DEFAULTS["matrix"]["kernels"]


def test_what_it_keeps_is_where_kernels_are() -> None:
    (cache,) = (step["with"] for step in JOB["steps"] if "cache" in step.get("uses", ""))
    assert cache["path"] == f"{JOB['env']['INVOKE_WORKSPACE']}/kernels"


@pytest.mark.parametrize("kernel", KERNELS)
def test_its_commands_are_real(kernel: str, invoke: Invoke, fake_tree: Path) -> None:
    assert invoke("setup", "--tree", fake_tree).code == 0
    ran = list(commands(kernel))
    assert [command[:2] for command in ran if command[0] == "invoke"] == [
        ["invoke", "setup"],
        ["invoke", "matrix"],
    ]
    for program, *arguments in ran:
        if program == "invoke":
            outcome = invoke("--dry", *arguments)
            assert outcome.code == 0, outcome.err
            assert outcome.commands()
        elif program != "echo":
            assert (PROJECT / program).stat().st_mode & 0o111
    proved = next(line for line in outcome.commands() if line.startswith("invoke verify"))
    assert f"--boot={kernel}" in shlex.split(proved)


def test_its_groups_are_bootstraps() -> None:
    usage = (PROJECT / "scripts/bootstrap").read_text()
    (groups,) = (rest for program, *rest in commands("6.1") if program == "scripts/bootstrap")
    assert groups
    for group in groups:
        assert f"\n  {group} " in usage
