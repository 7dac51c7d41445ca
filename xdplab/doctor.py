"""Holds what a machine has against what is needed, and cures what is safe to cure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from xdplab.errors import LabError, NoSuchInterface, Unfit
from xdplab.needs import NEEDS, Need
from xdplab.netlink import interfaces
from xdplab.probes import Found, Machine
from xdplab.process import Line, Shell
from xdplab.workspace import PROJECT

_WHY = "curing what is missing"


class Outcome(StrEnum):
    """How a thing that is needed is found."""

    OK = "ok"
    WARNING = "warning"  # something that the tutorial can do without lacks it
    MISSING = "missing"
    UNKNOWN = "unknown"  # it can't be told here, and what was found says why


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, as it is."""

    need: Need
    outcome: Outcome
    found: str
    needed: str
    cure: str  # a line for a shell; empty where all is well


def examine(machine: Machine, needs: Sequence[Need] = NEEDS) -> Iterator[Finding]:
    """What there is of each thing that matters here; raises NoSuchInterface."""
    if machine.dev not in interfaces():
        raise NoSuchInterface(machine.dev, interfaces())
    for need in needs:
        if machine.running and machine.running not in need.kernels:
            continue
        found = _look(need, machine)
        if found:
            bad = Outcome.MISSING if need.must else Outcome.WARNING
            outcome = {True: Outcome.OK, False: bad, None: Outcome.UNKNOWN}[found.will_do]
            cure = "" if found.will_do else found.cure or need.cure.replace("{dev}", machine.dev)
            yield Finding(need, outcome, found.words, found.needed or need.needed, cure)


def _look(need: Need, machine: Machine) -> Found | None:
    """What a probe found; one that can't look says why."""
    try:
        return need.probe(machine, need.about or need.what)
    except (LabError, OSError) as error:
        return Found(None, str(error))


def curable(findings: Sequence[Finding]) -> list[str]:
    """The cures that are run when that is asked for, each once."""
    bad = (Outcome.MISSING, Outcome.WARNING)
    cures = [
        one.cure
        for one in findings
        # a cure that is better than the table's is for people
        if one.need.fix and one.outcome in bad and one.cure == one.need.cure
    ]
    return list(dict.fromkeys(cures))


def fix(findings: Sequence[Finding], shell: Shell, on_line: Callable[[Line], None]) -> list[str]:
    """Run the cures that are safe; gives what was run.

    Whether one helped is seen by examining again.  Raises NeedsRoot.
    """
    cures = curable(findings)
    for cure in cures:
        argv = shlex.split(cure, comments=True)
        if argv[0] == "sudo":
            argv = [str(word) for word in shell.as_root(argv[1:], _WHY)]
        else:  # bootstrap, whose own sudo then needs to ask for no password
            shell.borrow_root(argv[0], _WHY)
        shell.run(argv, cwd=PROJECT, on_line=on_line, check=False)
    return cures


def require_fit(findings: Sequence[Finding]) -> None:
    """Raise Unfit if something that is needed is missing."""
    missing = [one for one in findings if one.outcome is Outcome.MISSING]
    if missing:
        raise Unfit([one.need.what for one in missing], [one.cure for one in missing])
