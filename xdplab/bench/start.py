"""How long a command takes until it begins: beside `invoke --list` of an empty project."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Generator
from functools import partial
from pathlib import Path

from xdplab.bench.measure import Comparison, Goal, Means, Way, timed
from xdplab.workspace import PROJECT

# with no task at all, Invoke ends with an error before it has listed anything
_EMPTY = "from invoke.tasks import task\n\n@task\ndef nothing(c):\n    '''Do nothing.'''\n"
_MOST = 1.5
_ASKED = {
    "the list": ("--list",),
    "a command's help": ("--help", "run"),
    "TAB": ("completion", "bash", "--line=invoke run --mo"),
}


def comparisons(means: Means) -> Generator[Comparison]:
    """What people and shells ask all the time, and where tasks.py has one task that does nothing.

    A build with nothing to do is of the stage build.
    """
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "tasks.py").write_text(_EMPTY)
        yield Comparison(
            "until a command begins",
            (
                _way(means, "an empty project's list", ("--list",), Path(empty)),
                *(_way(means, name, asked) for name, asked in _ASKED.items()),
            ),
            tuple(Goal(name, "s", _MOST) for name in _ASKED),
            rounds=11,
        )


def _way(means: Means, name: str, asked: tuple[str, ...], project: Path = PROJECT) -> Way:
    argv = [sys.executable, "-m", "invoke", *asked]
    run = partial(means.shell.run, argv, cwd=project)
    return Way(name, timed(run), f"invoke {' '.join(asked)}")
