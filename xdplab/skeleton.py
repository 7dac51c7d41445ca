"""A new pair of somebody's own, with its packet cases, from the templates of templates/new."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from xdplab.errors import AlreadyThere, CannotMake, NotASample
from xdplab.sample import KERN, LOADER, Sample, check_name, places
from xdplab.templates import render


class Kind(StrEnum):
    """What a new program does with a packet."""

    DROP = "drop"  # those of one kind
    COUNT = "count"
    PASS = "pass"  # noqa: S105  # no password
    REDIRECT = "redirect"


def make(name: str, directory: Path | None, kind: Kind, *, dry: bool) -> list[Path]:
    """Write the pair NAME and its cases: into a directory, or else into ./NAME, as cargo does.

    Gives the files.  Nothing is ever overwritten.  Raises NotASample for what can't be
    a name or is another pair's, AlreadyThere, and CannotMake with the system's reason.
    """
    check_name(name)
    place = Path(name) if directory is None else directory
    texts = {
        f"{name}{KERN}": render(f"new/{kind}_kern.c.j2", sample=name),
        f"{name}_user.c": LOADER.read_text(),
        f"{name}_cases.toml": render(f"new/{kind}_cases.toml.j2", sample=name),
    }
    files = {place / file: text for file, text in texts.items()}
    there = [file for file in files if os.path.lexists(file)]
    if there:
        raise AlreadyThere(there)
    _require_free(name)
    if not dry:
        _write(place, files)
    return list(files)


def _require_free(name: str) -> None:
    """Raise NotASample if a pair has the name already: it would mean either of the two."""
    for other in places(name):
        if (other / f"{name}{KERN}").exists():
            raise NotASample(name, f"there is one of that name already, in {other}")


def _write(place: Path, files: dict[Path, str]) -> None:
    """Write all of the files, or none."""
    written: list[Path] = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            with file.open("x") as opened:
                written.append(file)
                opened.write(text)
    except OSError as error:
        for file in written:
            file.unlink()
        raise CannotMake(place, error.strerror or str(error)) from error


def named(kern: Path) -> str:
    """How --sample names a new pair from here: by its name, if that is enough."""
    name = kern.name.removesuffix(KERN)
    try:
        return name if Sample.find(name).kern.samefile(kern) else str(kern)
    except NotASample:
        return str(kern)
