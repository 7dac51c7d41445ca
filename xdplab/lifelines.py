"""What a filter must not cut: the ssh sessions that this machine is used by, and its gateways.

All of it is read without root, of the network namespace that this process is in.
What a filter would do to them is asked of the model of it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdplab.errors import LockedOut
from xdplab.model import Action, Address, Policy, Rule, xdp_filter
from xdplab.process import Shell, find, parent
from xdplab.rules import Ruleset, told

_PROC = Path("/proc")
_SSH = "SSH_CONNECTION"  # see ssh(1)
_WHO = re.compile(r"(\S+)\s+(\S+).*\((\S+)[^()]*\)")  # user, line, and last where from
_ESTABLISHED = "01"  # in /proc/net/tcp
_UNICAST = 1  # RTN_UNICAST of linux/rtnetlink.h

_ETHERNET = struct.Struct("!12xH")
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_TCP, _ICMPV6 = 6, 58  # protocol numbers
_ADVERTISEMENT, _SOLICITATION = 134, 135  # a router's, a neighbour's (RFC 4861)
_ALL_NODES = ipaddress.IPv6Address("ff02::1")
_SOLICITED = ipaddress.IPv6Address("ff02::1:ff00:0")


@dataclass(frozen=True, slots=True)
class Lifeline:
    """Somebody at the other end of a wire, whose packets must arrive."""

    what: str  # for people
    remote: Address
    local: Address
    devs: frozenset[str]  # the interfaces that its packets come through, one above the other
    neighbour: bool  # whether it is on the same link: both have to find each other there

    @property
    def addresses(self) -> list[Address]:
        """Those that are in its frames."""
        return [self.remote, self.local, _ALL_NODES, self._group]

    @property
    def _group(self) -> ipaddress.IPv6Address:
        """Where IPv6's neighbours ask for this machine (RFC 4291)."""
        return ipaddress.IPv6Address(int(_SOLICITED) | int(self.local) & 0xFFFFFF)

    @property
    def frames(self) -> list[bytes]:
        """A frame of each kind that must arrive, as the interface gets it."""
        frames = [_packet(self.remote, self.local, _TCP, bytes(20))]
        if not self.neighbour:
            return frames
        if self.remote.version == 4:
            # hardware and protocol, the sizes of their addresses, a request
            arp = struct.pack("!HHBBH6x4s6x4s", 1, _IPV4, 6, 4, 1,
                              self.remote.packed, self.local.packed)  # fmt: skip
            return [*frames, _ETHERNET.pack(_ARP) + arp]
        asking = struct.pack("!B7x", _SOLICITATION) + self.local.packed
        frames.append(_packet(self.remote, self._group, _ICMPV6, asking))
        if self.remote.is_link_local:
            told = struct.pack("!B15x", _ADVERTISEMENT)
            frames.append(_packet(self.remote, _ALL_NODES, _ICMPV6, told))
        return frames


def _packet(source: Address, destination: Address, protocol: int, content: bytes) -> bytes:
    ends = source.packed + destination.packed
    if source.version == 4:
        head = struct.pack("!BxH4xBBxx", 0x45, 20 + len(content), 64, protocol)
        return _ETHERNET.pack(_IPV4) + head + ends + content
    head = struct.pack("!B3xHBB", 0x60, len(content), protocol, 255)
    return _ETHERNET.pack(_IPV6) + head + ends + content


def here() -> list[Lifeline]:
    """The lifelines of this network namespace: sessions first, this one before others."""
    return [*sessions(), *gateways()]


def addresses(lines: Iterable[Lifeline]) -> list[Address]:
    """All that are in their frames, each once."""
    return list(dict.fromkeys(address for line in lines for address in line.addresses))


# ---- what a filter would do to them


def cut(
    lines: Iterable[Lifeline], devs: Collection[str], policy: Policy, ruleset: Ruleset
) -> dict[Lifeline, Rule | None]:
    """Those that a filter on some interfaces would cut, each with the rule that does, if any.

    `ruleset`: its rules, asked about the addresses of these lifelines.  What comes through
    no interface that is known may come through one of these.
    """
    found: dict[Lifeline, Rule | None] = {}
    rules = ruleset.rules
    for line in lines:
        if line.devs and line.devs.isdisjoint(devs):
            continue
        verdicts = (xdp_filter(frame, policy, rules) for frame in line.frames)
        dropped = [one for one in verdicts if one.action is Action.DROP]
        if dropped:
            found[line] = dropped[0].rule
    return found


def spare(
    lines: Collection[Lifeline],
    devs: Collection[str],
    policy: Policy,
    after: Ruleset,
    before: Ruleset | None,
    *,
    force: bool,
    tell: Callable[[str], None],
) -> None:
    """Raise LockedOut if rules cut what those before did not; with `force`, only tell it.

    `before`: None, if there was no filter.
    """
    lost = cut(lines, devs, policy, after)
    for line in cut(lines, devs, policy, before) if before is not None else ():
        lost.pop(line, None)
    if not lost:
        return
    words = [f"{line.what} ({_why(rule)})" for line, rule in lost.items()]
    if not force:
        raise LockedOut(words, _cures(lost))
    for one in words:
        tell(f"cut, as --force says: {one}")


def _why(rule: Rule | None) -> str:
    return f"by the rule {told(rule)}" if rule else "no rule lets it through"


def _cures(lost: Mapping[Lifeline, Rule | None]) -> Iterator[str]:
    through = dict.fromkeys(str(line.remote) for line, rule in lost.items() if not rule)
    if through:
        yield f"have rules that let them through: {','.join(through)}"
    if not all(rule is None for rule in lost.values()):
        yield "leave that rule out, or name another interface"
    yield (
        "or if it is meant, --force; safer with a filter that was loaded with --for 60s: it ends"
        " by itself"
    )


# ---- sessions


def sessions() -> list[Lifeline]:
    """The ssh sessions whose packets come to this network namespace.

    That of who started this process, also where sudo(8) or su(1) has taken
    SSH_CONNECTION away; and those of all who are logged in, by who(1).
    """
    ends: dict[tuple[Address, Address], str] = {}
    logged_in = dict(_logged_in())
    with _netlink() as netlink:
        mine = _addresses(netlink)
        for remote, local in _inherited():
            if local in mine:
                ends.setdefault((remote, local), f"this ssh session, from {remote}")
        for remote, local in _connected() if logged_in else ():
            if remote in logged_in:
                ends.setdefault((remote, local), logged_in[remote])
        return [
            _lifeline(netlink, what, remote, local, mine.get(local))
            for (remote, local), what in ends.items()
        ]


def come_through(dev: str) -> bool:
    """Whether one of the ssh sessions comes through an interface."""
    return any(dev in line.devs for line in sessions())


def _inherited() -> Iterator[tuple[Address, Address]]:
    """Client and server of SSH_CONNECTION, of this process and all that it comes from."""
    yield from _ends(os.environ.get(_SSH, ""))
    process = os.getppid()
    while process > 1:
        place = _PROC / str(process)
        with contextlib.suppress(OSError):  # it is another user's
            for setting in (place / "environ").read_bytes().split(b"\0"):
                name, _, value = setting.decode(errors="replace").partition("=")
                yield from _ends(value if name == _SSH else "")
        try:
            process = parent(process)
        except OSError:  # it has ended
            return


def _ends(connection: str) -> Iterator[tuple[Address, Address]]:
    """Client and server, as sshd(8) writes them: each an address and a port."""
    words = connection.split()
    client, server = (_address(one) for one in (words[0], words[2])) if words[3:] else (None, None)
    if client and server:
        yield client, server


def _logged_in() -> Iterator[tuple[Address, str]]:
    """From where somebody is logged in, and who that is; names of hosts are passed over."""
    who = find("who")
    for line in Shell().ask([who], env={"LC_ALL": "C"}).lines if who else ():
        found = _WHO.match(line.text)
        remote = found and _address(found[3])
        if found and remote:
            yield remote, f"the session of {found[1]} on {found[2]}, from {remote}"


def _connected() -> Iterator[tuple[Address, Address]]:
    """Remote and local address of each TCP connection of this network namespace (proc(5))."""
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (_PROC / "self" / table).read_text().splitlines()[1:]
        except OSError:  # there is no IPv6
            continue
        for line in lines:
            _, local, remote, state, *_ = line.split()
            if state == _ESTABLISHED:
                yield _of_proc(remote), _of_proc(local)


def _of_proc(text: str) -> Address:
    """An address and port as /proc/net/tcp has them: words of four bytes, as in memory."""
    words = bytes.fromhex(text.partition(":")[0])
    packed = struct.pack(f"={len(words) // 4}I", *struct.unpack(f">{len(words) // 4}I", words))
    return _plain(ipaddress.ip_address(packed))


def _address(text: str) -> Address | None:
    """An address, its zone and an IPv4-mapped one's IPv6 left away; None if it is none."""
    try:
        return _plain(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return None


def _plain(address: Address) -> Address:
    return (address.version == 6 and address.ipv4_mapped) or address


# ---- gateways


def gateways() -> list[Lifeline]:
    """The next hops of all default routes, of every table."""
    with _netlink() as netlink:
        routes = [one for family in (socket.AF_INET, socket.AF_INET6)
                  for one in netlink.get_routes(family=family)]  # fmt: skip
        hops = {
            hop
            for route in routes
            if route["dst_len"] == 0 and route["type"] == _UNICAST
            for hop in _hops(route)
        }
        return [
            _lifeline(netlink, f"the default gateway, {gateway}", gateway, None, index)
            for gateway, index in sorted(hops, key=lambda hop: (hop[0].version, *hop))
        ]


def _hops(route: Any) -> Iterator[tuple[Address, int]]:
    """The gateways of a route, each with the index of the interface that leads to it."""
    for hop in route.get_attr("RTA_MULTIPATH") or [route]:
        via = hop.get_attr("RTA_VIA")  # of another version of IP than the route
        gateway = via["addr"] if via else hop.get_attr("RTA_GATEWAY")
        if gateway:
            yield ipaddress.ip_address(gateway), hop.get_attr("RTA_OIF") or hop["oif"]


# ---- of both


def _netlink() -> Any:
    from pyroute2 import IPRoute  # here: it takes a while to import

    return IPRoute()


def _addresses(netlink: Any) -> dict[Address, int]:
    """The addresses of this network namespace, and the index of each one's interface."""
    own = ((one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS"), one["index"])
           for one in netlink.get_addr())  # fmt: skip
    return {ipaddress.ip_address(address): index for address, index in own}


def _lifeline(
    netlink: Any, what: str, remote: Address, local: Address | None, index: int | None
) -> Lifeline:
    """To whom the way is as the kernel finds it; `index`: an interface that is known of it."""
    from pyroute2.netlink.exceptions import NetlinkError

    indexes = {index} if index else set()
    neighbour = False
    # a link-local address says nothing without its link; a gateway's link is its route's
    only = {"oif": index} if remote.is_link_local or local is None else {}
    try:
        way = netlink.route("get", dst=str(remote), **only)[0]
    except NetlinkError:  # there is none
        way = None
    if way:
        indexes.add(way.get_attr("RTA_OIF"))
        neighbour = not (way.get_attr("RTA_GATEWAY") or way.get_attr("RTA_VIA"))
        source = way.get_attr("RTA_PREFSRC")
        local = local or (ipaddress.ip_address(source) if source else None)
    unknown = ipaddress.ip_address(bytes(len(remote.packed)))
    return Lifeline(what, remote, local or unknown, _below(netlink, indexes), neighbour)


def _below(netlink: Any, indexes: set[int]) -> frozenset[str]:
    """The names of interfaces, and of those that they stand on: cards, ports, members.

    A veth's link is its other end.
    """
    links = {one["index"]: one for one in netlink.get_links()}
    found: set[int] = set()
    left = indexes & links.keys()
    while left:
        index = left.pop()
        found.add(index)
        info, lower = links[index].get_attr("IFLA_LINKINFO"), links[index].get_attr("IFLA_LINK")
        under = {one for one in links if links[one].get_attr("IFLA_MASTER") == index}
        if lower and not (info and info.get_attr("IFLA_INFO_KIND") == "veth"):
            under.add(lower)
        left |= (under & links.keys()) - found
    return frozenset(links[index].get_attr("IFLA_IFNAME") for index in found)
