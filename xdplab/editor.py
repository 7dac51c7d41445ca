"""compile_commands.json: how kbuild compiles the pair, told of the user's own files.

clangd(1) looks for it beside a source and in the directories above.  The commands
are those that make says while it builds; see clang's JSONCompilationDatabase for
the format, which has no room for a word on who wrote the file.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from xdplab import build as building
from xdplab import recipe
from xdplab.errors import BuildFailed, NotBuilt, NotOurCommands
from xdplab.files import read_json, sha256, write_json
from xdplab.process import OnLine, Shell
from xdplab.sample import COMPAT, LOADER, Sample
from xdplab.sources import Tell
from xdplab.toolchain import Toolchain
from xdplab.tree import Tree
from xdplab.workspace import Workspace

NAME = "compile_commands.json"
_WRITTEN = "editor.json"  # in the workspace: what was written, with its SHA-256

# What an editor has no use for: the list of headers, which kbuild alone reads.
_LEFT_OUT = ("-Wp,-M*",)
# The user half is gcc's, and gcc has warnings that clang doesn't know; a pair that
# isn't beside xdp_compat.h finds it where the harness has it.
_ADDED = ("-Wno-unknown-warning-option", "-iquote", str(COMPAT.parent))

Entry = dict[str, Any]


def write(
    tree: Tree, sample: Sample, tools: Toolchain, workspace: Workspace, shell: Shell,
    on_line: OnLine, tell: Tell,
) -> Path | None:  # fmt: skip
    """Build the pair, and write beside it what was said; gives the file, none in a dry run.

    A pair that doesn't compile will do: it is what an editor is wanted for, and
    `tell` hears of it.  Other pairs of the directory keep their entries.  Raises
    NotOurCommands, and what build.build raises if a half wasn't even tried.
    """
    path = sample.kern.parent / NAME
    written = _written(workspace)
    if path.exists() and not _is_ours(path, written):
        raise NotOurCommands(path)
    kept = tree.state("editor")
    log = kept / "build.log"
    failed = None
    if not shell.dry:
        log.unlink(missing_ok=True)  # an earlier call's
    try:
        building.build(tree, sample, tools, workspace, shell, on_line, tell, keep=kept, aloud=True)
    except BuildFailed as error:
        failed = error
    if shell.dry:
        return None
    text = log.read_text() if log.exists() else ""
    halves = [half for half in (sample.kern, sample.user) if half != LOADER]
    entries = [_entry(tree, half, text) for half in halves]
    said = [entry for entry in entries if entry]
    if len(said) < len(entries):
        raise failed or NotBuilt(sample.kern, "was not compiled", log)
    if failed:
        tell(f"{sample.name} does not compile yet; the editor shows where")
    ours = {entry["file"] for entry in said}
    others = [entry for entry in read_json(path) or [] if entry["file"] not in ours]
    write_json(path, [*others, *said])
    write_json(workspace.root / _WRITTEN, written | {str(path): sha256(path)})
    return path


def remove(workspace: Workspace, shell: Shell) -> list[str]:
    """Remove what was written, but for what somebody changed since; gives what was done."""
    written = _written(workspace)
    done = []
    for path in filter(Path.exists, map(Path, written)):
        if not _is_ours(path, written):
            done.append(f"left {path}: somebody wrote to it since")
            continue
        shell.echo(shlex.join(["rm", str(path)]))
        if not shell.dry:
            path.unlink()
            done.append(f"removed {path}")
    if not shell.dry:
        (workspace.root / _WRITTEN).unlink(missing_ok=True)
    return done


def _written(workspace: Workspace) -> dict[str, str]:
    return read_json(workspace.root / _WRITTEN) or {}


def _is_ours(path: Path, written: dict[str, str]) -> bool:
    return written.get(str(path)) == sha256(path)


# ---- what make said


def _entry(tree: Tree, source: Path, log: str) -> Entry | None:
    """How make compiled the copy of a source, as a compilation database has it."""
    for words in filter(_compiles, map(recipe.words, recipe.commands(log))):
        named = next((word for word in words if Path(word).name == source.name), None)
        if named:
            here = recipe.place(tree, named)
            kept = [word for word in words if not any(fnmatch(word, one) for one in _LEFT_OUT)]
            arguments = [str(source) if word == named else word for word in kept]
            return {"directory": str(here), "file": str(source), "arguments": [*arguments, *_ADDED]}
    return None


def _compiles(words: Sequence[str]) -> bool:
    return "-c" in words
