"""Whether a program may cost the way by which this machine is reached: told before it is attached.

Whom that concerns `xdplab.lifelines` knows, and also what the packet filter's rules do to
them.  Here it is the interface that counts: a native program has its driver set up the
queues anew, and many take the link down for that, or leave it down when it fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from xdplab import interfaces, netlink
from xdplab.errors import LockedOut, MayLockOut
from xdplab.lifelines import Lifeline
from xdplab.runner import Job


@dataclass(frozen=True, slots=True)
class Consent:
    """What the user has said to the risk."""

    yes: bool  # go on, though the link may be lost
    force: bool = False  # also if it cuts somebody for certain
    limited: bool = False  # it ends by itself
    limit: str = ""  # the option with which it does, if the command has one


def require(
    lines: Collection[Lifeline], devs: Iterable[str], mode: str, consent: Consent,
    tell: Callable[[str], None], ask: Callable[[str], bool], *, ip: str | None = None,
) -> None:  # fmt: skip
    """Tell what the interfaces of this machine carry, before a program is attached to them.

    `lines`: all of this machine, see lifelines.here.  `ip`: whose packets the program
    drops, if it drops one address's.  `ask` is asked for consent where none was given, and
    says no where nobody can answer.  Raises LockedOut if the address is that of an ssh
    session's other end or a gateway, and MayLockOut where a native program would take the
    risk and nobody has agreed.
    """
    here = set(netlink.interfaces())
    for dev in devs:
        if dev not in here:  # whoever attaches says so
            continue
        through = [line for line in lines if not line.devs or dev in line.devs]
        _spare(through, ip, consent, tell)
        carried = [line.what for line in through]
        if not carried and interfaces.of(dev).default_route:  # a way without a gateway
            carried = ["the default route"]
        if not carried:
            continue
        risk = f"{dev} carries {' and '.join(carried)}"
        tell(f"warning: {risk}")
        if not _may_be_native(dev, mode) or consent.limited or consent.yes:
            continue
        if not ask("a native program may take its link down: go on?"):
            raise MayLockOut(risk, consent.limit)


def limited(job: Job, seconds: float | None) -> Job:
    """A job that ends by itself soon after a time, whatever becomes of who was to end it.

    Whoever follows a run may hang with the terminal that it was cut off from.
    """
    if seconds is None:
        return job
    most = math.floor(seconds / job.interval) + 1
    return replace(job, rounds=min(job.rounds or most, most))


def _spare(
    through: Iterable[Lifeline], ip: str | None, consent: Consent, tell: Callable[[str], None]
) -> None:
    """Raise LockedOut if it is one of these whose packets die; with --force, only tell it."""
    cut = [line.what for line in through if str(line.remote) == ip]
    if cut and not consent.force:
        raise LockedOut(cut, ["name another address, or another interface; or if it is meant,"
                              f" --force, safer with {consent.limit}"])  # fmt: skip
    for one in cut:
        tell(f"cut, as --force says: {one}")


def _may_be_native(dev: str, mode: str) -> bool:
    if mode != "auto":
        return mode != "skb"
    return interfaces.native(interfaces.of(dev))[0] is not False
