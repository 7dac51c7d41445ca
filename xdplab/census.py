"""Every XDP program of this machine: where it is, whose it is, what the kernel knows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from xdplab import lifecycle, programs
from xdplab.errors import CannotRun
from xdplab.netlink import Attached
from xdplab.process import Shell
from xdplab.programs import Loaded
from xdplab.workspace import Workspace

NOWHERE = "loaded, but on no interface that was looked at"

_Got = TypeVar("_Got")


@dataclass(frozen=True, slots=True)
class Seen:
    """An XDP program."""

    program: int  # its id, in its kernel
    whose: str  # for people
    attached: Attached | None = None  # None: on no interface that was looked at
    place: str = ""  # where that is, if not in this network namespace
    run: dict[str, Any] | None = None  # the record of the run of ours that attached it
    alive: bool = False  # whether that run is under way
    loaded: Loaded | None = None  # None: not to be had, or of a guest's kernel


def take(
    workspace: Workspace, shell: Shell, tell: Callable[[str], None], *, everywhere: bool = False
) -> list[Seen]:
    """Every XDP program: on this network namespace's interfaces, in runs of ours, or on none.

    With `everywhere` those in all other namespaces too.  `tell` hears what could
    not be looked at, and why: only root sees more than ids.
    """
    attached = [*_here(workspace), *_private(workspace)]
    if everywhere:
        known = {one.program for one in attached}
        others = _reachable(lambda: programs.elsewhere(shell, tell), tell) or []
        attached += [
            Seen(one.attached.program, lifecycle.NOT_OURS, one.attached, one.place)
            for one in others
            if one.attached.program not in known
        ]
    loaded = _reachable(lambda: programs.loaded(shell), tell)
    return list(_with_facts(attached, loaded or []))


def _here(workspace: Workspace) -> Iterator[Seen]:
    for one in lifecycle.status(workspace):
        yield Seen(one.attached.program, one.words(), one.attached, "", one.record, one.alive)


def _private(workspace: Workspace) -> Iterator[Seen]:
    for where, kind in lifecycle.PRIVATE.items():
        for run in lifecycle.running_in(where, workspace):
            attached = Attached(run["dev"], run["ifindex"], run["mode"], run["program"])
            place = f"the {kind} of process {run.get('netns') or run['pid']}"
            whose = f"ours, tag {run['tag']}, {lifecycle.purpose(run)}"
            yield Seen(run["program"], whose, attached, place, run, alive=True)


def _with_facts(attached: Sequence[Seen], loaded: Sequence[Loaded]) -> Iterator[Seen]:
    facts = {one.id: one for one in loaded}
    for one in attached:
        in_guest = one.run and one.run["on"] == "vm"
        yield one if in_guest else replace(one, loaded=facts.pop(one.program, None))
    for number, loose in facts.items():
        yield Seen(number, NOWHERE, loaded=loose)


def _reachable(ask: Callable[[], _Got], tell: Callable[[str], None]) -> _Got | None:
    """What is asked for; None if this user or machine can't have it, and `tell` hears why."""
    try:
        return ask()
    except CannotRun as error:
        tell(f"{error.message} ({error.cure})")
        return None
