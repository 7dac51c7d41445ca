"""Small C tools of ours, compiled once for this machine: what Python can't do, or where it isn't.

Each is a source beside this file, whose first comment tells what it does.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from xdplab.files import write_whole
from xdplab.process import Shell
from xdplab.workspace import PROJECT, Workspace

INIT = "init"  # a guest's first process
TEST_RUN = "test_run"  # frames run through a loaded program: see prog_run
LINKS = "links"  # the XDP programs on an interface: see netlink.of_tool
TEST_TIME = "test_time"  # what a frame costs in a loaded program: see bench.packet
OF_GUESTS = (INIT, TEST_RUN, LINKS)

_SOURCES = PROJECT / "xdplab/testbed"


def compiled(name: str, workspace: Workspace, shell: Shell) -> Path:
    """A tool, compiled for this machine unless that was done before.

    Statically where that can be had: a guest then needs no library for it.  Raises
    MissingTools without gcc, and CommandFailed if that refuses.
    """
    source = _SOURCES / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    made = workspace.root / "tools" / f"{name}-{digest}"
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        fresh = Path(scratch) / name
        compiling: list[str | Path] = ["gcc", "-O2", "-Wall", "-s", "-o", fresh, source]
        if shell.run([*compiling, "-static"], check=False, leaves=True).code:
            shell.run(compiling, leaves=True)  # there is no static C library
        write_whole(made, fresh.read_bytes(), 0o755)
    return made
