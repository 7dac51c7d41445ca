"""How the modules hang together, read from their imports."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from xdplab.workspace import PROJECT

FILES = [PROJECT / "tasks.py", *sorted((PROJECT / "xdplab").rglob("*.py"))]


def name_of(file: Path) -> str:
    parts = file.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): ast.parse(file.read_text()) for file in FILES}


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that are imported below a node; of a package its modules, where named."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def at_module_level(tree: ast.Module) -> Iterator[str]:
    """What is imported when the module is: not in functions, not for type checkers only."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


def ours(names: Iterator[str]) -> set[str]:
    return {name for name in names if name in MODULES}


def of_view(name: str) -> bool:
    return name == "xdplab.view" or name.startswith("xdplab.view.")


def top_level(name: str) -> set[str]:
    return {imported.partition(".")[0] for imported in imports(MODULES[name])}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(MODULES[name])


def test_only_the_commands_know_invoke() -> None:
    assert [name for name in MODULES if "invoke" in top_level(name)] == ["tasks"]


def test_nobody_imports_the_commands() -> None:
    assert [name for name in MODULES if "tasks" in top_level(name)] == []


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("xdplab.counters", set()),
        ("xdplab.packets", set()),
        ("xdplab.model", set()),
        ("xdplab.netlink", set()),
        ("xdplab.errors", set()),
        ("xdplab.version", {"xdplab.errors"}),
        ("xdplab.notation", {"xdplab.errors"}),
        ("xdplab.options", {"xdplab.errors"}),
        ("xdplab.files", {"xdplab.errors"}),
        ("xdplab.logs", set()),
        ("xdplab.trust", {"xdplab.errors"}),
        ("xdplab.process", {"xdplab.errors", "xdplab.logs", "xdplab.trust"}),
    ],
)
def test_the_foundations_stand_alone(name: str, allowed: set[str]) -> None:
    assert ours(imports(MODULES[name])) == allowed


def test_the_library_does_not_know_who_shows_it() -> None:
    shown_by = [
        name
        for name, tree in MODULES.items()
        if any(of_view(imported) for imported in imports(tree)) and not of_view(name)
    ]
    assert sorted(shown_by) == ["tasks", "xdplab.lab"]


def test_rich_is_the_views_alone() -> None:
    assert [name for name in MODULES if "rich" in top_level(name) and not of_view(name)] == []


def test_dask_is_an_extra_that_two_modules_know() -> None:
    assert [name for name in MODULES if "distributed" in top_level(name)] == [
        "xdplab.cluster",
        "xdplab.worker",
    ]
    # and what a command imports before it is asked for a cluster does without it
    eager = {name for name, tree in MODULES.items() if "xdplab.worker" in at_module_level(tree)}
    assert eager == set()
    assert "distributed" not in set(at_module_level(MODULES["xdplab.cluster"]))


def test_only_one_module_starts_processes() -> None:
    assert [name for name in MODULES if "subprocess" in top_level(name)] == ["xdplab.process"]


def test_imports_go_one_way() -> None:
    graph = {name: ours(at_module_level(tree)) for name, tree in MODULES.items()}
    # a cycle raises CycleError, which names it
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


def test_every_module_is_used() -> None:
    started = {"tasks", "xdplab.testbed.agent", "xdplab.trial"}  # by `python -m`
    started |= {"xdplab.torture.fuzz"}  # that way too
    started |= {"xdplab.testbed.borrow"}  # by its path
    used = {one for tree in MODULES.values() for one in ours(imports(tree))}
    assert set(MODULES) - used == started
