"""Frames run through a loaded XDP program by the kernel itself: BPF_PROG_TEST_RUN of bpf(2).

The program is the very one that a user half has loaded, configured and attached.  No
network is needed, and no frame is sent: the program sees it as if it had come in on the
loopback interface of the network namespace that this is done in.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from xdplab.errors import FrameRefused
from xdplab.files import write_whole
from xdplab.process import Shell
from xdplab.workspace import PROJECT, Workspace

WHY = "running frames through an XDP program"

_SOURCE = PROJECT / "xdplab/testbed/test_run.c"


def tool(workspace: Workspace, shell: Shell) -> Path:
    """The tool test_run, compiled for this machine unless that was done before.

    Statically where that can be had: a guest then needs no library for it.  Raises
    MissingTools without gcc, and CommandFailed if that refuses.
    """
    source = _SOURCE.read_bytes()
    made = workspace.root / "tools" / f"test_run-{hashlib.sha256(source).hexdigest()[:12]}"
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        fresh = Path(scratch) / "test_run"
        compiling: list[str | Path] = ["gcc", "-O2", "-Wall", "-o", fresh, _SOURCE]
        if shell.run([*compiling, "-static"], check=False).code:
            shell.run(compiling)  # there is no static C library
        write_whole(made, fresh.read_bytes(), 0o755)
    return made


def command(tool: PurePath, program: int) -> list[str]:
    """What runs frames, which it reads, through the program of that id."""
    return [str(tool), "verdicts", str(program)]


def request(frames: Iterable[bytes]) -> list[str]:
    """The lines that the tool reads."""
    return [*(frame.hex() for frame in frames), "end"]


def returned(lines: Iterable[str], frames: Sequence[bytes]) -> list[int]:
    """What the program returned for each frame, of what the tool printed.

    Raises FrameRefused for the first that the kernel didn't run.
    """
    found = []
    for number, (line, frame) in enumerate(zip(lines, frames, strict=True), start=1):
        if line.startswith("refused"):
            raise FrameRefused(number, len(frame), line.split(maxsplit=2)[2])
        found.append(int(line))
    return found
