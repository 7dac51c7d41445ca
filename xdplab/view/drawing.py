"""The lab, drawn: the hosts on the left, the box on the right, cables between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from xdplab.network import BOX, Network, Port

_CABLE = 7  # characters


def lines(network: Network, here: str) -> Iterator[str]:
    """It in plain text; `here` is told."""
    ends = [(_end(cable.host), _end(cable.box)) for cable in network.cables]
    names = [_title(cable.host[0].node, here) for cable in network.cables]
    width = max(len(line) for host, _ in ends for line in host)
    yield f"{'':<{width + _CABLE + 4}}{_title(BOX, here)}"
    for name, (host, box) in zip(names, ends, strict=True):
        yield name
        for number, (left, right) in enumerate(zip(host, box, strict=True)):
            cable = ("-" if number == 0 else " ") * _CABLE
            yield f"  {left:<{width}} {cable} {right}"


def show(console: Console, network: Network, here: str) -> None:
    """It on a terminal, in frames where these have room."""
    frames = _frames(network, here)
    if console.measure(frames).maximum > console.width:
        for line in lines(network, here):
            console.print(Text(line))
    else:
        console.print(frames, soft_wrap=False)


def _end(ports: Sequence[Port]) -> list[str]:
    """A cable's end: its interfaces, each with its addresses, the first with its MAC too."""
    name = max(len(port.dev) for port in ports)
    rows = []
    for port in ports:
        words = port.addresses if port.vlan else (port.mac, *port.addresses)
        heads = [port.dev, *[""] * (len(words) - 1)]
        rows += [f"{head:<{name}}  {word}" for head, word in zip(heads, words, strict=True)]
    return rows


def _frames(network: Network, here: str) -> Table:
    """A panel for each host, one for the box that is as high as all of them."""
    ends = [(_end(cable.host), _end(cable.box)) for cable in network.cables]
    hosts, cables, box = [], [], []
    for cable, (host, far) in zip(network.cables, ends, strict=True):
        hosts.append(_panel(cable.host[0].node, host, here))
        cables += ["", "─" * _CABLE, *[""] * len(host)]
        box += [*far, "", ""]
    drawn = Table.grid()
    drawn.add_row(Group(*hosts), Text("\n".join(cables)), _panel(BOX, box[:-2], here))
    return drawn


def _panel(node: str, rows: Sequence[str], here: str) -> Panel:
    style = "bold green" if node == here else ""
    text, title = Text("\n".join(rows)), _title(node, here)
    return Panel(text, title=title, title_align="left", border_style=style, expand=False)


def _title(node: str, here: str) -> str:
    return f"{node}, you are here" if node == here else node
