"""Our hands inside a testbed: a process that does there what it is told.

Run as `python -m xdplab.testbed.agent`; it reads a JSON object a line from
standard input, {"do": NAME, ...}, and answers each with one on standard output; what
takes long tells its news before, and ends early when there is one more line.
It ends with its standard input, and what it holds, a network namespace
perhaps, ends with it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from xdplab import netlink, outlet, packets
from xdplab.testbed import nodes, sender


def _attached(dev: str) -> list[dict[str, Any]]:
    return [asdict(one) for one in netlink.attached(dev)]


def _ping(source: str, target: str, count: int) -> dict[str, Any]:
    return asdict(packets.ping(source, target, count))


def _arrivals(frames: list[str], **where: Any) -> list[bool]:
    return packets.arrivals([bytes.fromhex(frame) for frame in frames], **where)


def _counters(dev: str) -> dict[str, int]:
    return asdict(outlet.counters(dev))


def _outlet(dev: str, target: str | None) -> dict[str, Any]:
    return asdict(outlet.of(dev, target))


_DEEDS: dict[str, Callable[..., Any]] = {
    "attached": _attached,
    "ping": _ping,
    "bring_up": netlink.bring_up,
    "counters": _counters,
    "add_address": netlink.add_address,
    "lay_cable": netlink.lay_cable,
    "arrivals": _arrivals,
    "interfaces": netlink.interfaces,
    "lay_out": nodes.lay_out,
    "outlet": _outlet,
    "send": sender.send,
    "flood": sender.flood,
    "stop": lambda: None,  # it came too late
}


def main() -> None:
    """Say who we are, then do what each line asks for, until there are no more."""
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            done = _DEEDS[request.pop("do")](**request)
            while isinstance(done, Iterator) and (news := next(done, None)):
                print(json.dumps({"news": news}), flush=True)
            answer = {"answer": None if isinstance(done, Iterator) else done}
        except OSError as error:  # the kernel refused: the caller can say more about it
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    try:
        main()
    finally:
        nodes.clear()
