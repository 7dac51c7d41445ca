"""The trees that are here: those in the workspace, the users' own, and which of them is meant."""

from __future__ import annotations

import contextlib
from pathlib import Path

from xdplab.errors import InputError, NoTree
from xdplab.tree import Tree
from xdplab.version import KernelVersion
from xdplab.workspace import Workspace


def find(workspace: Workspace, kernel: str | None, path: Path | None = None) -> Tree:
    """The tree that a command means: at `path`, of that version, or the current one.

    Raises NoTree if it was never set up, NotAKernelTree.
    """
    if path:
        return Tree.at(path)
    if kernel is not None:
        version = KernelVersion.parse(kernel)
        for tree in fetched(workspace):
            if version.covers(tree.version):
                return tree
        raise NoTree(version.tag)
    current = workspace.current_tree()
    if not current or not current.exists():
        raise NoTree
    return Tree.at(current)


def fetched(workspace: Workspace) -> list[Tree]:
    """The trees in the workspace that arrived whole, the newest version first."""
    found = []
    for path in workspace.trees.glob("*"):
        try:
            if path.suffix not in (".partial", ".package", ".unpacking"):
                found.append(Tree.at(path))
        except InputError:
            continue  # somebody's directory, not a tree
    return sorted(found, key=lambda tree: tree.version, reverse=True)


def foreign(workspace: Workspace) -> list[Tree]:
    """The users' own trees that commands were told to work in, as far as they are there."""
    found = []
    for path in workspace.foreign_trees():
        with contextlib.suppress(InputError):  # it is gone
            found.append(Tree.at(path))
    return found
