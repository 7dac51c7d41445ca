"""Where traffic is sent from: this machine, or where the newest private run is."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from xdplab import lifecycle, netlink, testbed
from xdplab.boot import qemu, version_of
from xdplab.errors import NoDevice, NotAChoice, NotANumber, NothingRuns
from xdplab.network import NODE
from xdplab.options import one_of
from xdplab.outlet import Outlet
from xdplab.process import Shell, interrupts_noted
from xdplab.testbed import door
from xdplab.testbed.local import LOOPBACK, LocalBench, agent_in
from xdplab.testbed.netns import join
from xdplab.testbed.vm import DEV, ON_CARD
from xdplab.traffic import Order, Recipe, Sent, paced
from xdplab.version import KernelVersion
from xdplab.workspace import Workspace

_LIVE_SINCE = KernelVersion.parse("v5.18")  # b530e9e1063e: live frames
_GUESTS_RATE = 1000.0  # frames a second that reach a guest, at most: each is handed on by hand
_GUESTS_BATCH = 100
_GUESTS_MTU = 1500


class Source(Protocol):
    """Who can send frames somewhere."""

    def outlet(self, dev: str, target: str | None) -> Outlet:
        """The interface that they are sent into, and the way to a target."""

    def send(
        self, dev: str, frames: Sequence[bytes], *,
        rate: float | None, count: int, seconds: float | None, fast: bool,
    ) -> Iterator[Sent]:  # fmt: skip
        """Send frames in turn, until all is done or Ctrl-C; gives how far it is."""


def order(
    where: str, source: str, target: str | None, *, dev: str | None, proto: str | None,
    size: str | None, vlan: str | None, pcap: str | None, rate: str | None, count: str | None,
    duration: str | None, fast: bool, named: bool,
) -> Order | None:  # fmt: skip
    """What options ask for; None: no frames, but the post's packets, which are answered.

    `named`: whether the source was.  Raises NotTogether, and what Recipe.of and Order.of raise.
    """
    asked = [dev, proto, size, vlan, pcap, rate, duration]
    plain = not fast and count != "0" and ":" not in f"{source}{target}"
    if plain and all(one is None for one in asked):
        return None
    if pcap is None:
        to = _usual_target(where, dev, source) if target is None else target
        recipe = Recipe.of(source, to, proto, size, vlan)
    else:
        recipe, made = None, {"to": target, "proto": proto, "size": size, "vlan": vlan}
        one_of(pcap=True, ip=named, **{name: one is not None for name, one in made.items()})
    return Order.of(recipe, pcap, rate, count, duration, fast=fast)


def _usual_target(where: str, dev: str | None, source: str) -> str | None:
    """Whom packets are for if nobody is named; None where there is nobody usual."""
    if where == "vm":
        return ON_CARD.target
    if dev == "lo" or where in lifecycle.PRIVATE:
        return "::1" if ":" in source else LOOPBACK.target
    return None


def _rights(*, fast: bool) -> tuple[str, ...]:
    """Capabilities of who sends: live frames are a BPF program's."""
    return ("net_raw", "net_admin", "bpf") if fast and live_frames() else ("net_raw",)


def live_frames() -> bool:
    """Whether the running kernel has them."""
    running = version_of(platform.release())
    return running is not None and running >= _LIVE_SINCE


@contextlib.contextmanager
def opened(
    where: str, dev: str | None, workspace: Workspace, shell: Shell, *, fast: bool
) -> Iterator[tuple[Source, str]]:
    """Who sends where --on says, and the interface that is meant there.

    Raises NotAChoice, NothingRuns, and NoDevice: of this machine's own none is taken unasked.
    """
    if where not in lifecycle.PRIVATE:
        testbed.named(where, workspace)
        if dev is None:
            raise NoDevice(netlink.interfaces())
        yield _Here(shell, workspace), dev
        return
    record = next(lifecycle.under_way(where, workspace), None)
    if not record:
        raise NothingRuns(where)
    fields = record.read()
    if where == "vm":
        if fields["dev"] != DEV or dev not in (None, DEV) or fast:
            raise NotAChoice("--on", where, ["host or netns: what is sent into a virtual machine"
                             f" goes through the cable to its {DEV}, and slowly"])  # fmt: skip
        yield _Cable(record.path.parent), DEV
        return
    with join(shell, workspace, fields["netns"], _rights(fast=fast)) as bench:
        yield bench, fields["dev"] if dev is None else dev


def begin(
    source: Source, dev: str, order: Order, say: Callable[[str], None]
) -> tuple[list[bytes], Iterator[Sent]]:
    """The frames of an order, and how far it is while they are sent; `say` hears warnings.

    Raises what Order.frames raises, NoSuchInterface, and SessionLost.
    """
    outlet = source.outlet(dev, order.recipe.target if order.recipe else None)
    frames = order.frames(outlet)
    if outlet.default_route and NODE not in os.environ:
        say(f"{dev} has the default route: this goes to the network behind it")
    news = source.send(
        dev, frames, rate=order.rate, count=order.number(frames), seconds=order.seconds,
        fast=order.fast,
    )  # fmt: skip
    return frames, news


@dataclass(frozen=True, slots=True)
class _Here:
    """This machine: its rights are asked for when all else is clear."""

    shell: Shell
    workspace: Workspace

    def outlet(self, dev: str, target: str | None) -> Outlet:
        return LocalBench(self.shell, self.workspace).outlet(dev, target)

    def send(
        self, dev: str, frames: Sequence[bytes], *,
        rate: float | None, count: int, seconds: float | None, fast: bool,
    ) -> Iterator[Sent]:  # fmt: skip
        with agent_in(LocalBench(self.shell, self.workspace), [], _rights(fast=fast)) as bench:
            yield from bench.send(dev, frames, rate=rate, count=count, seconds=seconds, fast=fast)


@dataclass(frozen=True, slots=True)
class _Cable:
    """The cable to a guest's card, whose other end is with the process that runs the guest."""

    directory: Path

    def outlet(self, dev: str, target: str | None) -> Outlet:
        return Outlet(dev, 0, up=True, loopback=False, mtu=_GUESTS_MTU, mac=qemu.HOST_MAC,
                      next_hop=qemu.MAC)  # fmt: skip

    def send(
        self, dev: str, frames: Sequence[bytes], *,
        rate: float | None, count: int, seconds: float | None, fast: bool,
    ) -> Iterator[Sent]:  # fmt: skip
        if rate is None or rate > _GUESTS_RATE:
            raise NotANumber("--rate", rate, f"at most {_GUESTS_RATE:.0f} in a virtual machine")
        turn = itertools.cycle(frame.hex() for frame in frames)

        def send(number: int) -> int:
            return int(door.knock(self.directory, "frames", [next(turn) for _ in range(number)]))

        with interrupts_noted() as pressed:

            def stopped(seconds: float) -> bool:
                time.sleep(seconds)
                return pressed()

            for sent, passed in paced(
                send, lambda: _GUESTS_BATCH, stopped, rate=rate, count=count, seconds=seconds
            ):
                yield Sent(sent, passed, "the cable to the guest's card")
