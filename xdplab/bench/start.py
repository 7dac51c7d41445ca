"""How long a command takes until it begins: `invoke --list`, beside that of an empty project."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

from xdplab.bench.measure import Comparison, Figures, Goal, Means, Way
from xdplab.workspace import PROJECT

_EMPTY = "from invoke.tasks import task\n\n@task\ndef nothing(c):\n    '''Do nothing.'''\n"
_MOST = 1.5


def comparisons(means: Means) -> Generator[Comparison]:
    """`invoke --list` here, and where tasks.py has one task that does nothing."""
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "tasks.py").write_text(_EMPTY)
        yield Comparison(
            "the list of commands",
            (
                Way("an empty project", partial(_timed, means, Path(empty)), "invoke --list"),
                Way("this one", partial(_timed, means, PROJECT), "invoke --list"),
            ),
            (Goal("this one", "s", _MOST),),
            rounds=11,
        )


def _timed(means: Means, project: Path) -> Figures:
    before, began = os.times(), time.monotonic()
    means.shell.run([sys.executable, "-m", "invoke", "--list"], cwd=project)
    took, after = time.monotonic() - began, os.times()
    children = "children_user", "children_system"
    return {"s": took, "cpu s": sum(getattr(after, n) - getattr(before, n) for n in children)}
