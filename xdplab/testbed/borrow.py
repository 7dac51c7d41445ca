"""Run a command with the environment of another process of the same user.

    python -I xdplab/testbed/borrow.py PID COMMAND...

sudo hands over almost none of the user's, and what is in a command line all can read.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(pid: str, *command: str) -> None:
    """Become the command; proc(5) has the environment as it was when the process began."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    environment = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    os.execvpe(command[0], command, environment)  # noqa: S606  # that is what it is for


if __name__ == "__main__":
    main(*sys.argv[1:])
