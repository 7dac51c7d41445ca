"""The lab's network, planned: a box in the middle, hosts around it, each on a cable of its own.

Addresses tell who and where: host 3 has 10.0.3.2 and 2001:db8:0:3::2, the box's end of
its cable 10.0.3.1; on the VLAN 10.1.3.2 and so on.  They are private (RFC 1918) and
for documentation (RFC 3849), MAC addresses locally administered.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdplab.errors import NotANumber

BOX = "box"
NODE = "XDPLAB_NODE"  # in the environment of what runs in a node: its name
VLAN = 100  # the tag on each cable's 802.1Q interfaces
MOST = 64  # hosts
_BOX_SIDE, _HOST_SIDE = 1, 2


@dataclass(frozen=True, slots=True)
class Port:
    """An interface of a node."""

    node: str
    dev: str
    mac: str
    addresses: tuple[str, ...]  # each with its prefix length
    vlan: int = 0  # its 802.1Q tag; 0: it is the cable's end itself


@dataclass(frozen=True, slots=True)
class Cable:
    """A cable's two ends, each followed by the VLAN's interface on it, if there is one."""

    host: tuple[Port, ...]
    box: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """Who is where."""

    hosts: int
    vlan: bool = False
    ipv6: bool = False

    def __post_init__(self) -> None:
        """Raise NotANumber."""
        if not 1 <= self.hosts <= MOST:
            raise NotANumber("--hosts", self.hosts, f"a number from 1 to {MOST}")

    @property
    def nodes(self) -> list[str]:
        """The names of the box and the hosts."""
        return [BOX, *(f"host{number}" for number in range(1, self.hosts + 1))]

    @property
    def cables(self) -> list[Cable]:
        """Cable n is between host n's eth0 and the box's eth<n>."""
        return [
            Cable(
                self._end(number, f"host{number}", "eth0", _HOST_SIDE),
                self._end(number, BOX, f"eth{number}", _BOX_SIDE),
            )
            for number in range(1, self.hosts + 1)
        ]

    def _end(self, number: int, node: str, dev: str, side: int) -> tuple[Port, ...]:
        mac = f"02:00:00:00:{number:02x}:{side:02x}"
        plain = Port(node, dev, mac, self._addresses(0, number, side))
        if not self.vlan:
            return (plain,)
        tagged = Port(node, f"{dev}.{VLAN}", mac, self._addresses(1, number, side), VLAN)
        return plain, tagged

    def _addresses(self, net: int, number: int, side: int) -> tuple[str, ...]:
        # without the last a router asks for nobody's MAC address (ndisc_send_ns of net/ipv6)
        ipv6 = [f"2001:db8:{net}:{number:x}::{side}/64", f"fe80::{side}/64"] if self.ipv6 else []
        return (f"10.{net}.{number}.{side}/24", *ipv6)

    def routes(self, cable: Cable) -> list[tuple[str, str]]:
        """A host's routes, destination and gateway: to all others by way of the box."""
        nets = ["default", "default"], ["10.1.0.0/16", "2001:db8:1::/48"]
        return [
            (net, address.partition("/")[0])
            for port, destinations in zip(cable.box, nets, strict=False)
            for net, address in zip(destinations, port.addresses, strict=False)
        ]
