"""The oldest tools that a kernel tree takes: asked of the tree, as far as it says so."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xdplab.process import Shell
from xdplab.tree import Tree
from xdplab.version import Range

_SCRIPT, _PAGE = "scripts/min-tool-version.sh", "Documentation/process/changes.rst"

# What the page and the script call each tool; "": the script doesn't know it.
_NAMES = {
    "gcc": ("GNU C", "gcc"),
    "clang": ("Clang/LLVM (optional)", "llvm"),
    "make": ("GNU make", ""),
    "ld": ("binutils", "binutils"),
    "flex": ("flex", ""),
    "bison": ("bison", ""),
    "bc": ("bc", ""),
    "pahole": ("pahole", ""),
}


@dataclass(frozen=True, slots=True)
class Minimum:
    """The oldest release of a tool that trees of some versions take."""

    tool: str
    versions: Range
    number: str
    commit: str  # upstream's


# For trees that don't say it: what setup fetches from git has no Documentation, and
# the script came with v5.13 (e24b3ffcf421).
MINIMA = (
    Minimum("gcc", Range.parse("v4.19", "v5.8"), "4.6", "cafa0010cd51"),
    Minimum("gcc", Range.parse("v5.8", "v5.13"), "4.9", "6ec4476ac825"),
    Minimum("clang", Range.parse("v5.10", "v5.13"), "10.0.1", "1f7a44f63e6c"),
    Minimum("make", Range.parse("v6.11", ""), "4.0", "5f99665ee8f4"),
)


def minimum(tree: Tree, tool: str) -> tuple[str, str]:
    """The oldest release of a tool that will do, and where that is said; two times "" if nowhere.

    What make itself holds tools against, the script, counts more than the page.
    """
    documented, scripted = _NAMES[tool]
    script, page = tree.path / _SCRIPT, tree.path / _PAGE
    if scripted and script.exists():
        said = Shell().ask(["sh", script, scripted], env={"SRCARCH": "x86"}).text().strip()
        if re.fullmatch(r"[\d.]+", said):
            return said, _SCRIPT
    if page.exists():
        row = rf"^{re.escape(documented)}\s+([\d.]+)\s"
        found = re.search(row, page.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1], _PAGE
    dated = (one for one in MINIMA if one.tool == tool and tree.version in one.versions)
    return next(((one.number, one.commit) for one in dated), ("", ""))
