"""XDP programs on interfaces, asked of the kernel through rtnetlink(7), without root."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The attributes of IFLA_XDP that carry a program's id, by mode (linux/if_link.h,
# v4.18), and what `ip link` calls the mode.
_IDS = {
    "native": "IFLA_XDP_DRV_PROG_ID",
    "skb": "IFLA_XDP_SKB_PROG_ID",
    "hw": "IFLA_XDP_HW_PROG_ID",
}
_ATTACHED_MODES = {1: "native", 2: "skb", 3: "hw"}
_IN6_ADDR_GEN_MODE_NONE = 1  # linux/if_link.h
_HAS_IPV6 = Path("/proc/net/if_inet6")
IP_LINK_WORDS = {"native": "xdpdrv", "skb": "xdpgeneric", "hw": "xdpoffload"}


@dataclass(frozen=True, slots=True)
class Attached:
    """A program on an interface."""

    dev: str
    ifindex: int
    mode: str
    program: int  # its id


def attached(dev: str | None = None) -> list[Attached]:
    """Every XDP program on every interface of this network namespace, or on one."""
    from pyroute2 import IPRoute  # here: it takes a while to import

    found = []
    with IPRoute() as netlink:
        for link in netlink.get_links():
            name, xdp = link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_XDP")
            if dev not in (None, name) or not xdp:
                continue
            for mode, attribute in _IDS.items():
                program = xdp.get_attr(attribute)
                if program:
                    found.append(Attached(name, link["index"], mode, program))
    return found


def of_ip_link(said: str) -> list[Attached]:
    """The XDP programs in what `ip -json link` prints, of another machine perhaps.

    The modes are numbers there: XDP_ATTACHED_* of linux/if_link.h.
    """
    found = []
    for link in filter(None, json.loads(said)):
        xdp = link.get("xdp", {})
        for one in xdp.get("attached", [xdp] if xdp else []):
            mode = _ATTACHED_MODES[one["mode"]]
            found.append(Attached(link["ifname"], link["ifindex"], mode, one["prog"]["id"]))
    return found


def of_tool(said: str, dev: str) -> list[Attached]:
    """The XDP programs on an interface in what our tool `links` prints of it, in a guest."""
    rows = (line.split() for line in said.splitlines())
    return [Attached(dev, int(ifindex), mode, int(program)) for ifindex, mode, program in rows]


def interfaces() -> list[str]:
    """The names of this network namespace's interfaces."""
    return [name for _, name in socket.if_nameindex()]


def bring_up(dev: str) -> None:
    """Set an interface up; needs CAP_NET_ADMIN."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname=dev)[0], state="up")


def lay_cable(ends: tuple[str, str], queues: int = 1, *, napi: bool = False) -> None:
    """Make a veth pair, silent and up; needs CAP_NET_ADMIN.

    Each end has so many queues.  With `napi` it polls as a card does whether or not there is
    an XDP program: generic receive offload makes a veth do that (veth_set_features).
    """
    from pyroute2 import IPRoute
    from pyroute2.ethtool.ioctl import IoctlEthtool

    each = {"num_tx_queues": queues, "num_rx_queues": queues}
    with IPRoute() as netlink:
        peer = {"ifname": ends[1], **each}
        netlink.link("add", ifname=ends[0], kind="veth", peer=peer, **each)
        for end in ends:
            index = netlink.link_lookup(ifname=end)[0]
            silence(netlink, index)
            if napi:
                IoctlEthtool(end).set_offload_flag("generic-receive-offload", 1)
            netlink.link("set", index=index, state="up")


def silence(netlink: Any, index: int) -> None:
    """Keep an interface that is down from talking of itself once it comes up.

    It would give itself an IPv6 address, and tell the other end of it
    (addr_gen_mode in the kernel's ip-sysctl).
    """
    none = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _IN6_ADDR_GEN_MODE_NONE)]}
    if _HAS_IPV6.exists():
        netlink.link("set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", none)]})


def add_address(dev: str, address: str) -> None:
    """Give an interface an IPv4 address of its own (/32); needs CAP_NET_ADMIN."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname=dev)[0]
        netlink.addr("replace", index=index, address=address, prefixlen=32)
