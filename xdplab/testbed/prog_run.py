"""Frames run through a loaded XDP program by the kernel itself: BPF_PROG_TEST_RUN of bpf(2).

The program is the very one that a user half has loaded, configured and attached.  No
network is needed, and no frame is sent: the program sees it as if it had come in on the
loopback interface of the network namespace that this is done in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from xdplab.errors import FrameRefused

WHY = "running frames through an XDP program"


def command(tool: str | Path, program: int) -> list[str | Path]:
    """What runs frames, which it reads, through the program of that id."""
    return [tool, "verdicts", str(program)]


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
