"""What several test files need: fixture trees, and a look at what is on disk."""

import os
import shutil
import subprocess
from pathlib import Path

from xdplab.tree import STATE, Tree

TREES = Path(__file__).parent / "trees"
LOGS = Path(__file__).parent / "logs"
ERAS = (
    *("linux-4.19", "linux-5.0", "linux-5.4", "linux-5.6", "linux-5.10", "linux-5.15"),
    *("linux-5.17", "linux-6.1", "linux-6.8", "linux-6.13", "linux-7.2", "vendor"),
)


def copied(era: str, to: Path) -> Tree:
    """A fixture tree, copied to where a test may change it."""
    return Tree.at(Path(shutil.copytree(TREES / era, to / era)))


def contents(directory: Path) -> dict[str, bytes]:
    """All files below a directory but the harness's own and git's, with what is in them."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not {str(STATE), ".git"} & set(path.relative_to(directory).parts)
    }


def git(directory: Path, *arguments: str) -> str:
    """What a git command prints; whose configuration is on this machine plays no part."""
    identity = ["-c", "user.name=A Test", "-c", "user.email=test@example.org"]
    finished = subprocess.run(
        ["git", *identity, *arguments],
        cwd=directory,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
        capture_output=True,
        check=True,
        text=True,
    )
    return finished.stdout
