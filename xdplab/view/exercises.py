"""An exercise as it is read: what is asked, what the check relies on, what to do next."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence

from xdplab.exercises import Exercise


def assignment(exercise: Exercise, *, hints: bool, width: int) -> str:
    """The text of an exercise, with its hints if they are wanted."""
    labels = exercise.words["labels"]
    asked = f"invoke exercise {exercise.name}"
    return "\n\n".join(
        [
            f"{exercise.name}: {exercise.title}",
            textwrap.fill(" ".join(exercise.task.split()), width),
            _listed(labels["contract"], exercise.contract, width),
            *([_listed(labels["hints"], exercise.hints, width)] if hints else []),
            "\n".join(
                [labels["files"], *(f"  {os.path.relpath(file)}" for file in exercise.files)]
            ),
            f"{labels['check']}\n  {asked} --check",
            *([] if hints else [f"{labels['more']}\n  {asked} --hint"]),
        ]
    )


def _listed(label: str, items: Sequence[str], width: int) -> str:
    lines = (
        textwrap.fill(item, width, initial_indent="- ", subsequent_indent="  ") for item in items
    )
    return "\n".join([label, *lines])


def rows(exercises: Sequence[tuple[Exercise, bool | None]]) -> Iterator[tuple[str, str, str]]:
    """A line an exercise: its name, how far it is, what it is about."""
    for exercise, solved in exercises:
        state = {True: "solved", False: "begun", None: "open"}[solved]
        yield exercise.name, str(exercise.words["states"][state]), exercise.title
