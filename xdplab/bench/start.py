"""How long a command takes until it begins: beside `invoke --list` of an empty project."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

from xdplab.bench.measure import Comparison, Figures, Goal, Means, Way
from xdplab.build import Build
from xdplab.errors import LabError
from xdplab.sample import Sample
from xdplab.workspace import PROJECT

# with no task at all, Invoke ends with an error before it has listed anything
_EMPTY = "from invoke.tasks import task\n\n@task\ndef nothing(c):\n    '''Do nothing.'''\n"
_MOST = 1.5
_ASKED = {
    "the list": ("--list",),
    "a command's help": ("--help", "run"),
    "TAB": ("completion", "bash", "--line=invoke run --mo"),
}
_PAIR = "xdp_ip_filter"
_BUILD = "a build with nothing to do"


def comparisons(means: Means) -> Generator[Comparison]:
    """What people and shells ask all the time, and where tasks.py has one task that does nothing.

    A build that has nothing to do is there too, if the current tree has one.
    """
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "tasks.py").write_text(_EMPTY)
        why_not = _not_built(means)
        yield Comparison(
            "until a command begins",
            (
                _way(means, "an empty project's list", ("--list",), Path(empty)),
                *(_way(means, name, asked) for name, asked in _ASKED.items()),
                _way(means, _BUILD, ("build",), skipped=why_not),
            ),
            tuple(Goal(name, "s", _MOST) for name in _ASKED),
            rounds=11,
        )


def _way(
    means: Means, name: str, asked: tuple[str, ...], project: Path = PROJECT, skipped: str = ""
) -> Way:
    read = partial(_timed, means, asked, project)
    return Way(name, read, f"invoke {' '.join(asked)}", skipped=skipped)


def _timed(means: Means, asked: tuple[str, ...], project: Path) -> Figures:
    before, began = os.times(), time.monotonic()
    means.shell.run([sys.executable, "-m", "invoke", *asked], cwd=project)
    took, after = time.monotonic() - began, os.times()
    children = "children_user", "children_system"
    return {"s": took, "cpu s": sum(getattr(after, n) - getattr(before, n) for n in children)}


def _not_built(means: Means) -> str:
    """Why a build in the current tree would have something to do; empty if it hasn't."""
    pair = Sample.find(_PAIR)
    try:
        build = Build.load(means.workspace.build(means.tree().key, pair.name))
    except LabError as error:
        return error.message
    return "" if build and not build.older_than(pair) else f"{pair.name} isn't built: invoke build"
