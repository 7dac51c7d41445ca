"""The lab's nodes, made and held by the agent: network namespaces without a name.

They live as long as this process has them open, or another is in them, and the
cables with them (network_namespaces(7)).  So at its end, whatever brings that about,
all that is in them is ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xdplab.netlink import silence
from xdplab.network import BOX, Cable, Network, Port

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_IFA_F_NODAD = 2  # linux/if_addr.h: use it at once, without asking whether it is another's
_IPV6 = Path("/proc/net/if_inet6")
_GRACE = 1.0  # seconds from SIGHUP to SIGKILL, and for that to work
_POLL = 0.02
_BOTH = Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")
_PING = Path("/proc/sys/net/ipv4/ping_group_range")  # who may ping without a capability: icmp(7)

_held: dict[str, int] = {}  # descriptors of the nodes' namespaces


def lay_out(hosts: int, *, vlan: bool, ipv6: bool) -> dict[str, int]:
    """Make the nodes and join them; gives this process's descriptors of their namespaces.

    Needs CAP_SYS_ADMIN and CAP_NET_ADMIN, at the end CAP_KILL and CAP_SYS_PTRACE.
    Raises OSError.
    """
    network = Network(hosts, vlan=vlan, ipv6=ipv6)
    if ipv6 and not _IPV6.exists():
        raise OSError("this kernel has no IPv6")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    with _at_home():
        for node in network.nodes:
            _call("unshare", _CLONE_NEWNET)
            _held[node] = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            _prepare(node)
        for cable in network.cables:
            _lay(cable)
            _configure(cable.box)
            _configure(cable.host, network.routes(cable))
    return dict(_held)


def clear() -> None:
    """End all that is in the nodes, and let them go."""
    for number in (signal.SIGHUP, signal.SIGKILL):
        deadline = time.monotonic() + _GRACE
        told: set[int] = set()
        while (found := set(_inhabitants())) and time.monotonic() < deadline:
            for pid in found - told:  # children that came meanwhile too
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= found
            time.sleep(_POLL)
    while _held:
        os.close(_held.popitem()[1])


def _leave(*_: object) -> None:
    """Clear at once and end: an exception could end a clear() that is under way."""
    clear()
    os._exit(0)


def _inhabitants() -> Iterator[int]:
    """The processes in our nodes."""
    nodes = {os.fstat(descriptor).st_ino for descriptor in _held.values()}
    for process in Path("/proc").glob("[0-9]*") if nodes else ():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if (process / "ns/net").stat().st_ino in nodes:
                yield int(process.name)


# ---- parts


@contextlib.contextmanager
def _at_home() -> Iterator[None]:
    """Come back to this process's own network namespace after the block."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)


def _call(name: str, *arguments: int) -> None:
    """A system call that Python 3.11 hasn't got."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


@contextlib.contextmanager
def _in(node: str) -> Iterator[Any]:
    """Be in a node for the block, with rtnetlink(7) there; raises OSError for its refusals."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    _call("setns", _held[node], _CLONE_NEWNET)
    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise OSError(error.code, f"{node}: {error.args[1]}") from error


def _prepare(node: str) -> None:
    with _in(node) as netlink:
        netlink.link("set", index=1, state="up")  # lo is the first interface of any namespace
    _PING.write_text("0 2147483647")
    for switch in _BOTH if node == BOX else ():
        if switch.exists():
            switch.write_text("1")


def _lay(cable: Cable) -> None:
    box, host = cable.box[0], cable.host[0]
    far_end = {"ifname": host.dev, "address": host.mac, "net_ns_fd": _held[host.node]}
    with _in(BOX) as netlink:
        netlink.link("add", ifname=box.dev, kind="veth", address=box.mac, peer=far_end)


def _configure(ports: tuple[Port, ...], routes: list[tuple[str, str]] | None = None) -> None:
    """Bring a cable's end up, its VLAN too, with their addresses and a host's routes."""
    with _in(ports[0].node) as netlink:
        for port in ports:
            if port.vlan:
                _tag(netlink, ports[0].dev, port)
            index = netlink.link_lookup(ifname=port.dev)[0]
            silence(netlink, index)
            netlink.link("set", index=index, state="up")
            for address in port.addresses:
                flags = {"flags": _IFA_F_NODAD} if ":" in address else {}
                netlink.addr("add", index=index, address=address, **flags)
        for destination, gateway in routes or ():
            netlink.route("add", dst=destination, gateway=gateway)


def _tag(netlink: Any, below: str, port: Port) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    index = netlink.link_lookup(ifname=below)[0]
    try:
        netlink.link("add", ifname=port.dev, kind="vlan", link=index, vlan_id=port.vlan)
    except NetlinkError as error:
        if error.code != errno.EOPNOTSUPP:
            raise
        raise OSError(
            "this kernel has no 802.1Q interfaces: CONFIG_VLAN_8021Q, or sudo modprobe 8021q;"
            " invoke send --vlan sends tagged frames without them"
        ) from error
