"""What a command imports before it begins: the rest would cost time on every TAB."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Invoke, modules

EMPTY = "from invoke.tasks import task\n\n@task\ndef nothing(c):\n    pass\n"
ALWAYS = {"errors", "options"}
# of a command that runs: where things are, how commands are run, what people see
LAB = ALWAYS | {"lab", "workspace", "tree", "version", "files", "process", "logs"}
LAB |= {"view", "view.text"}
# org: pickle looks for Jython; psutil: pyroute2 does, and takes it where it is
NOT_THE_COMMANDS = {"xdplab", "org", "psutil"}

Imported = Callable[..., tuple[set[str], set[str]]]


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What Invoke imports itself, to list one task."""
    empty = tmp_path_factory.mktemp("empty")
    (empty / "tasks.py").write_text(EMPTY)
    return modules(Invoke(empty, empty), "--list")


@pytest.fixture
def imported(floor: set[str], invoke: Invoke) -> Imported:
    """Gives our modules that a command imports, and which other people's it adds to Invoke's."""

    def of(*asked: str | Path) -> tuple[set[str], set[str]]:
        added = modules(invoke, *asked) - floor
        ours = {name.removeprefix("xdplab.") for name in added if name.startswith("xdplab.")}
        tops = {name.partition(".")[0] for name in added}
        return ours, tops - sys.stdlib_module_names - NOT_THE_COMMANDS

    return of


@pytest.mark.parametrize("asked", [["--list"], ["--help", "build"], ["--help", "filter.load"]])
def test_the_list_and_help_need_nothing_of_the_library(
    imported: Imported, asked: list[str]
) -> None:
    assert imported(*asked) == (ALWAYS, set())


@pytest.mark.parametrize(
    ("line", "of_the_option"),
    [
        ("invoke bu", set()),
        ("invoke build --", set()),
        ("invoke run --on ", {"testbed"}),
        ("invoke build --kernel ", {"trees"}),
        ("invoke build --sample ", {"sample"}),
        ("invoke new --kind ", {"skeleton", "sample", "templates"}),
        ("invoke run --dev ", {"netlink"}),
    ],
)
def test_a_tab_imports_what_the_option_takes(
    imported: Imported, line: str, of_the_option: set[str]
) -> None:
    ours = LAB | {"completion"} | of_the_option
    assert imported("completion", "bash", "--line", line) == (ours, {"platformdirs"})


@pytest.mark.parametrize(
    ("asked", "others"),
    [
        (["build"], set()),  # there is no tree: an error
        (["--dry", "run"], set()),
        (["--dry", "detach"], {"pyroute2"}),
        (["status", "--json"], {"pyroute2", "rich"}),
    ],
)
def test_other_peoples_modules_are_imported_where_they_are_used(
    imported: Imported, asked: list[str], others: set[str]
) -> None:
    assert imported(*asked)[1] == {"platformdirs"} | others
