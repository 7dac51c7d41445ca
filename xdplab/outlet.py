"""Where frames are sent into: an interface, and whom they get to by it.  Needs no root."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_UP, _LOOPBACK = 1, 8  # IFF_* of netdevice(7)
_KNOWN = 0xDE  # NUD_* of linux/neighbour.h in which an address is there to be used
_DISCARD = 9  # the port of RFC 863
_PATIENCE = 1.0  # seconds for an answer to who has an address
_POLL = 0.02
BROADCAST = "ff:ff:ff:ff:ff:ff"


@dataclass(frozen=True, slots=True)
class Outlet:
    """An interface as it is now."""

    dev: str
    index: int
    up: bool
    loopback: bool
    mtu: int
    mac: str
    default_route: bool = False
    next_hop: str = BROADCAST  # the MAC address that frames to somebody go to


def of(dev: str, target: str | None = None) -> Outlet:
    """An interface that is there, and the way to a target; raises OSError.

    Where nobody has the target's address, or its gateway's, the next hop is all.
    """
    from pyroute2 import IPRoute

    index = socket.if_nametoindex(dev)
    with IPRoute() as netlink:
        link = netlink.get_links(index)[0]
        loopback = bool(link["flags"] & _LOOPBACK)
        mac = link.get_attr("IFLA_ADDRESS")
        hop = mac if loopback else _next_hop(netlink, index, target)
        up, mtu = bool(link["flags"] & _UP), link.get_attr("IFLA_MTU")
        families = socket.AF_INET, socket.AF_INET6
        routes = [one for family in families for one in netlink.get_default_routes(family=family)]
        default = any(route.get_attr("RTA_OIF") == index for route in routes)
        return Outlet(dev, index, up, loopback, mtu, mac, default, hop or BROADCAST)


@dataclass(frozen=True, slots=True)
class Counters:
    """What an interface has counted since it is there, in packets."""

    received: int
    sent: int
    lost: int  # of those that were to be sent


def counters(dev: str) -> Counters:
    """Those of an interface of this thread's network namespace; raises OSError."""
    # proc_pid_net(5): eight columns of what came in, then as many of what went out
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, columns = line.partition(":")
        if name.strip() == dev:
            found = list(map(int, columns.split()))
            return Counters(found[1], found[9], found[11])
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), dev)


def _next_hop(netlink: Any, index: int, target: str | None) -> str | None:
    from pyroute2.netlink.exceptions import NetlinkError

    if target is None:
        return None
    family = socket.AF_INET6 if ipaddress.ip_address(target).version == 6 else socket.AF_INET
    try:
        route = netlink.route("get", dst=target, oif=index, family=family)[0]
    except NetlinkError:  # there is none
        return None
    hop = route.get_attr("RTA_GATEWAY") or target
    if found := _neighbour(netlink, index, hop, family):
        return found
    # the kernel asks who has it when there is something to be sent there
    with socket.socket(family, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
        asking.sendto(b"", (target, _DISCARD))
    deadline = time.monotonic() + _PATIENCE
    while not found and time.monotonic() < deadline:
        time.sleep(_POLL)
        found = _neighbour(netlink, index, hop, family)
    return found


def _neighbour(netlink: Any, index: int, address: str, family: int) -> str | None:
    for one in netlink.get_neighbours(family=family, ifindex=index, dst=address):
        if one["state"] & _KNOWN and one.get_attr("NDA_LLADDR"):
            return str(one.get_attr("NDA_LLADDR"))
    return None
