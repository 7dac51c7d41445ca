"""What is handed on, and what it is made of: archives, a bill of materials, an audit.

All three are of a commit, not of what lies about in the directory, and carry its date,
so that whoever makes them again gets the same bytes (reproducible-builds.org's
SOURCE_DATE_EPOCH).  The tools of the latter two have an environment of their own, made
from requirements-release.lock: nothing of theirs is in what it is about.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from xdplab.errors import (
    CommandFailed,
    KnownVulnerable,
    NoCommitDate,
    NotAudited,
    Unreachable,
)
from xdplab.files import locked, sha256, write_whole
from xdplab.process import Argv, Shell, scratch
from xdplab.workspace import PROJECT, Workspace

_EPOCH = "SOURCE_DATE_EPOCH"
_LOCK, _TOOLS_LOCK = "requirements.lock", "requirements-release.lock"
_HISTORY = PROJECT / ".git"
_SPEC = "1.6"  # CycloneDX's: https://cyclonedx.org/specification/overview/


@dataclass(frozen=True, slots=True)
class Vulnerability:
    """A weakness that is known of a package at the version that is locked."""

    package: str
    version: str
    id: str
    fixed_in: tuple[str, ...]  # versions; none: not yet

    def __str__(self) -> str:
        cure = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "not fixed yet"
        return f"{self.package} {self.version}: {self.id} ({cure})"


def dist(to: Path, shell: Shell) -> list[Path]:
    """Pack a source archive and a wheel of the library; gives both, none in a dry run.

    Of the last commit, where there is one: what isn't committed isn't packed.  Raises
    NoCommitDate, and CommandFailed.
    """
    environment = _dated(shell)
    with scratch() as place:
        sources, made = _sources(place, shell), place / "made"
        argv = [sys.executable, "-m", "hatchling", "build", "--directory", str(made)]
        shell.run(argv, cwd=sources, env=environment)
        for file in made.glob("*"):
            write_whole(to / file.name, file.read_bytes())
        return sorted(to / file.name for file in made.glob("*"))


def sbom(to: Path, workspace: Workspace, shell: Shell) -> None:
    """Write a bill of materials: each locked package, its version, hashes and package URL.

    CycloneDX, as JSON.  Raises NoCommitDate, CommandFailed, and what making the tools'
    environment raises.
    """
    environment = _dated(shell) | {"PYTHONWARNINGS": "ignore"}
    argv: Argv = [
        *_tool("cyclonedx_py", workspace, shell), "requirements", _LOCK,
        "--pyproject", "pyproject.toml", "--output-reproducible", "--spec-version", _SPEC,
        "--output-format", "JSON", "--output-file", to.absolute(),
    ]  # fmt: skip
    shell.run(argv, cwd=PROJECT, env=environment)


def audit(workspace: Workspace, shell: Shell) -> int:
    """Ask what is known against the packages that are locked; gives how many were asked about.

    Raises KnownVulnerable, and NotAudited, with the reason, where nobody can be asked:
    pip-audit takes whom from PIP_AUDIT_VULNERABILITY_SERVICE and PIP_AUDIT_OSV_URL.
    """
    try:
        tool = _tool("pip_audit", workspace, shell)
    except Unreachable as error:
        raise NotAudited(error.message) from error
    argv = [*tool, "--requirement", _LOCK, "--require-hashes", "--disable-pip",
            "--format", "json", "--progress-spinner", "off"]  # fmt: skip
    finished = shell.run(argv, cwd=PROJECT, check=False)
    if shell.dry:
        return 0
    try:
        packages = json.loads(finished.text())["dependencies"]
    except ValueError:
        said = finished.text("err").strip().splitlines()
        raise NotAudited(said[-1] if said else f"pip-audit ended with {finished.code}") from None
    found = [
        Vulnerability(one["name"], one["version"], known["id"], tuple(known["fix_versions"]))
        for one in packages
        for known in one.get("vulns", ())
    ]
    if found:
        raise KnownVulnerable(map(str, found))
    skipped = [one["skip_reason"] for one in packages if "skip_reason" in one]
    if skipped:
        raise NotAudited(f"{skipped[0]} ({len(skipped)} of {len(packages)} packages)")
    return len(packages)


# ---- the commit, and its date


def _dated(shell: Shell) -> dict[str, str]:
    """The environment that tells the date: that of who sets it, or the last commit's."""
    given = os.environ.get(_EPOCH)
    if not given and _HISTORY.exists():
        given = shell.ask(["git", "log", "-1", "--format=%ct"], cwd=PROJECT).text()
    if not given:
        raise NoCommitDate(PROJECT, _EPOCH)
    return {_EPOCH: given}


def _sources(scratch: Path, shell: Shell) -> Path:
    """The files of the last commit; of an unpacked archive, which has no history, its own."""
    if not _HISTORY.exists():
        return PROJECT
    tar, sources = scratch / "sources.tar", scratch / "sources"
    sources.mkdir()
    shell.run(["git", "archive", "--output", tar, "HEAD"], cwd=PROJECT)
    shell.run(["tar", "--extract", "--file", tar, "--directory", sources])
    return sources


# ---- the tools


def _tool(module: str, workspace: Workspace, shell: Shell) -> list[str | Path]:
    """The beginning of a tool's command; its environment is made where there is none of its lock.

    Raises Unreachable where what is in it can't be had, and Held.
    """
    place, lock = workspace.release_tools, PROJECT / _TOOLS_LOCK
    python, stamp, made_of = place / "bin/python", place / "made-of", sha256(lock)
    with locked(place.parent / "locks/release/lock", dry=shell.dry):
        if not stamp.exists() or stamp.read_text() != made_of:
            shell.run([sys.executable, "-m", "venv", "--clear", place])
            try:
                shell.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                           "--require-hashes", "--requirement", lock])  # fmt: skip
            except CommandFailed as error:
                raise Unreachable("the package index", error.cure, "try again") from error
            if not shell.dry:
                write_whole(stamp, made_of.encode())  # last: what has it is whole
    return [python, "-m", module]
