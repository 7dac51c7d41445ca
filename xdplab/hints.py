"""Why a filter may have nothing to count, as data: what to know where, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from xdplab.counters import Reading
from xdplab.errors import NotAVersion
from xdplab.runner import Run
from xdplab.testbed import Place
from xdplab.version import KernelVersion, Range

PATIENCE = 10.0  # seconds without a packet
READINGS = 3  # that have shown none, at least
OTHER = "other"  # drivers: a card's, or of what stands for one


@dataclass(frozen=True, slots=True)
class Hint:
    """Something that keeps packets from a program, or from being seen, and where it holds.

    A condition that is None holds everywhere.  The text may have {dev}, {ip}, {release}, and
    {source}: the option of invoke send that names the address.
    """

    text: str
    drivers: tuple[str, ...] | None = None  # loopback, veth, or OTHER
    places: tuple[str, ...] | None = None  # testbeds
    modes: tuple[str, ...] | None = None
    kernels: tuple[Range, ...] | None = None
    address: bool = False  # whether it is for filters of an address only

    def fits(self, place: Place, mode: str) -> bool:
        """Whether it holds there; of a kernel that says no version nothing is known."""
        driver = place.driver if place.driver in ("loopback", "veth") else OTHER
        return (
            (self.drivers is None or driver in self.drivers)
            and (self.places is None or place.where in self.places)
            and (self.modes is None or mode in self.modes)
            and (self.kernels is None or _runs_one_of(self.kernels, place.release))
        )


HINTS = (
    Hint(
        "lo has what this machine sends to itself, and nothing that comes from outside:"
        " for that name the interface it comes in on, with --dev",
        drivers=("loopback",), places=("host",),
    ),
    Hint(
        "XDP sees what comes in at {dev}, which is what its peer sends; what goes out at {dev} is"
        " to be dropped at the other end: attach there",
        drivers=("veth",),
    ),
    Hint(
        "XDP sees what {dev} receives, never what this machine sends",
        drivers=(OTHER,),
    ),
    Hint(
        "a card hands over what is addressed to it; for other machines' packets:"
        " sudo ip link set dev {dev} promisc on",
        drivers=(OTHER,), places=("host",),
    ),
    Hint(
        "the filter looks at untagged IPv4 alone: it lets frames with a VLAN tag pass",
        drivers=(OTHER,), address=True,
    ),
    # d445516966dc, v4.14, to ad1e03b2b3d4, v5.6: "core: Don't skip generic XDP program
    # execution for cloned SKBs"; in the stable releases v5.5.6, v5.4.22 and v4.19.106
    Hint(
        "Linux {release} may not show cloned packets to generic XDP, which most of TCP is when"
        " it comes from this very machine (mended in v5.6, v5.5.6, v5.4.22, v4.19.106): try ping",
        drivers=("loopback", "veth"), modes=("skb",),
        kernels=(
            Range.parse("v4.14", "v4.19.106"),
            Range.parse("v4.20", "v5.4.22"),
            Range.parse("v5.5", "v5.5.6"),
        ),
    ),
    Hint("to send one: invoke send{source}", drivers=("loopback",), places=("host",)),
    Hint("to send one: invoke send --on netns{source}", places=("netns",)),
    Hint("to send one: invoke send --on vm{source}", places=("vm",)),
    Hint(
        "to send one, ping from {ip}; to see first that all works: invoke run --on netns, and"
        " in another terminal invoke send --on netns",
        drivers=("veth", OTHER), places=("host",), address=True,
    ),
)  # fmt: skip


def _runs_one_of(kernels: Iterable[Range], release: str) -> bool:
    try:
        version = KernelVersion.parse(release)
    except NotAVersion:
        return False
    return any(version in kernel for kernel in kernels)


def fitting(run: Run) -> list[str]:
    """What may keep a run from counting anything, and last what command sends a packet."""
    source = f" --ip {run.ip}" if run.ip else ""
    facts = {"dev": run.program.dev, "ip": run.ip, "release": run.place.release, "source": source}
    return [
        hint.text.format(**facts)
        for hint in HINTS
        if hint.fits(run.place, run.program.mode) and (run.ip or not hint.address)
    ]


def hinted(
    items: Iterable[Reading | str], run: Run, tell: Callable[[str], None]
) -> Iterator[Reading | str]:
    """Pass everything on; `tell` hears the hints, once, when nothing came for a while."""
    first: Reading | None = None
    told = False
    for item in items:
        yield item
        if told or isinstance(item, str):
            continue
        first = first or item
        told = bool(item.total)  # who has seen one needs no hints
        if silent(first, item):
            told = True
            whose = f"from {run.ip} " if run.ip else ""
            tell(f"no packet {whose}for {item.at - first.at:.0f} seconds:")
            for hint in fitting(run):
                tell(f"  {hint}")


def silent(first: Reading, now: Reading) -> bool:
    """Whether there was nothing to count for long enough."""
    enough = now.round - first.round + 1 >= READINGS
    return not now.total and enough and now.at - first.at >= PATIENCE
