"""A network interface: its facts, and what they say of XDP on it.

All of it is read without root, of the network namespace that this process is in.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import platform
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xdplab.boot import version_of
from xdplab.version import KernelVersion

_CLASS = Path("/sys/class/net")
_UP, _LOOPBACK = 1, 8  # IFF_* of netdevice(7)
_SIOCETHTOOL, _DRVINFO, _DRVINFO_SIZE = 0x8946, 3, 196  # linux/sockios.h, linux/ethtool.h

# Bits of NETDEV_A_DEV_XDP_FEATURES (linux/netdev.h, v6.3: d3d854fd6a1d).
_BASIC, _OFFLOAD = 1, 16
# What makes frames larger than the wire's, by the kernel's own names for ethtool(8).
_MERGING = ("rx-lro", "rx-gro-hw")


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as it is now."""

    name: str
    driver: str  # as `ethtool --driver` calls it, or a virtual one's kind: "veth", "loopback"
    up: bool
    mtu: int
    rx_queues: int
    tx_queues: int
    most_queues: int = 1  # that could receive
    merging: tuple[str, ...] = ()  # of "rx-lro" and "rx-gro-hw" those that are on
    virtio: frozenset[int] = frozenset()  # the feature bits that a virtio device settled on
    native: bool | None = None  # whether the driver has it, if the kernel says so
    offload: bool | None = None
    default_route: bool = False
    peer: Interface | None = None  # a veth's other end, if it is in the same namespace


def of(name: str) -> Interface:
    """The facts of an interface that is there."""
    from pyroute2 import IPRoute  # here: it takes a while to import

    with IPRoute() as netlink:
        link = netlink.get_links(ifname=name)[0]
        found, peer = _read(link), link.get_attr("IFLA_LINK")
        if found.driver == "veth" and peer and link.get_attr("IFLA_LINK_NETNSID") is None:
            found = replace(found, peer=_read(netlink.get_links(peer)[0]))
    return found


def _read(link: Any) -> Interface:
    name, info = link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    loopback = "loopback" if link["flags"] & _LOOPBACK else ""
    features = _xdp_features(link["index"])
    rx_queues, tx_queues, most_queues = _queues(link)
    return Interface(
        name,
        _driver(name) or kind or loopback,
        up=bool(link["flags"] & _UP),
        mtu=link.get_attr("IFLA_MTU"),
        rx_queues=rx_queues,
        tx_queues=tx_queues,
        most_queues=most_queues,
        merging=_merging(name),
        virtio=_virtio(link),
        native=None if features is None else bool(features & _BASIC),
        offload=None if features is None else bool(features & _OFFLOAD),
        default_route=_carries_default_route(link["index"]),
    )


def _driver(name: str) -> str:
    """What the device's driver is called; "" if it has none, or one that doesn't say."""
    answer = ctypes.create_string_buffer(_DRVINFO.to_bytes(4, sys.byteorder), _DRVINFO_SIZE)
    request = struct.pack("16sP", name.encode(), ctypes.addressof(answer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, _SIOCETHTOOL, request)
        except OSError:
            return ""
    return answer.raw[4:36].rstrip(b"\0").decode()


def _queues(link: Any) -> tuple[int, int, int]:
    """How many queues receive, how many send, and how many could receive."""
    from pyroute2 import Ethtool
    from pyroute2.ethtool.ioctl import NotSupportedError

    try:
        with contextlib.closing(Ethtool()) as ethtool:
            channels = ethtool.get_channels(link.get_attr("IFLA_IFNAME"))
    except NotSupportedError:  # their number can't be changed
        receiving, sending = (link.get_attr(f"IFLA_NUM_{way}_QUEUES") for way in ("RX", "TX"))
        return receiving, sending, receiving
    both, most = channels.combined_count, channels.max_rx + channels.max_combined
    return channels.rx_count + both, channels.tx_count + both, most


def _virtio(link: Any) -> frozenset[int]:
    """The bits of a virtio device, as sysfs writes them: bit 0 first.

    sysfs(5) shows the network namespace of who mounted it, which may be another's.
    """
    place = _CLASS / link.get_attr("IFLA_IFNAME")
    try:
        if (place / "address").read_text().strip() != link.get_attr("IFLA_ADDRESS"):
            return frozenset()
        bits = (place / "device/features").read_text().strip()
    except OSError:
        return frozenset()
    return frozenset(number for number, bit in enumerate(bits) if bit == "1")


def _merging(name: str) -> tuple[str, ...]:
    from pyroute2 import Ethtool

    with contextlib.closing(Ethtool()) as ethtool:
        features = ethtool.get_features(name).features
    return tuple(one for one in _MERGING if one in features and features[one].enable)


def _xdp_features(index: int) -> int | None:
    """What the driver says that it has, before anything is attached; None before v6.3."""
    from pyroute2.netlink import NLM_F_REQUEST, genlmsg
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.generic import GenericNetlinkSocket

    class Dev(genlmsg):  # type: ignore[misc]  # the "dev" of Documentation/netlink/specs/netdev.yaml
        nla_map = (
            ("NETDEV_A_DEV_UNSPEC", "none"),
            ("NETDEV_A_DEV_IFINDEX", "uint32"),
            ("NETDEV_A_DEV_PAD", "none"),
            ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        )

    request = Dev()
    request["cmd"], request["version"] = 1, 1  # NETDEV_CMD_DEV_GET
    request["attrs"] = [("NETDEV_A_DEV_IFINDEX", index)]
    with GenericNetlinkSocket() as netdev:
        try:
            netdev.bind("netdev", Dev)
            answers = netdev.nlm_request(request, netdev.prid, NLM_F_REQUEST)
            return next((int(one.get_attr("NETDEV_A_DEV_XDP_FEATURES")) for one in answers), None)
        except NetlinkError:
            return None


def _carries_default_route(index: int) -> bool:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        routes = [
            *netlink.get_default_routes(family=socket.AF_INET),
            *netlink.get_default_routes(family=socket.AF_INET6),
        ]
    return any(route.get_attr("RTA_OIF") == index for route in routes)


# ---- which drivers have native XDP


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver, and since when it has native XDP; None: it never had."""

    name: str
    since: str | None
    commit: str = ""  # upstream's


# For kernels before v6.3, which don't say it themselves: bcc's docs/kernel-versions.md
# and the page on XDP of docs.ebpf.io have the commits.
DRIVERS = (
    Driver("mlx4_en", "v4.8", "47a38e155037"),
    Driver("mlx5_core", "v4.9", "86994156c736"),
    Driver("nfp", "v4.10", "ecd63a0217d5"),
    Driver("qede", "v4.10", "496e05170958"),
    Driver("virtio_net", "v4.10", "f600b6905015"),
    Driver("bnxt_en", "v4.11", "c6d30e8391b8"),
    Driver("ixgbe", "v4.12", "924708081629"),
    Driver("nicvf", "v4.12", "05c773f52b96"),
    Driver("i40e", "v4.13", "0c8493d90b6b"),
    Driver("tun", "v4.14", "761876c857cb"),
    Driver("ixgbevf", "v4.17", "c7aec59657b6"),
    Driver("veth", "v4.19", "948d4f214fde"),
    Driver("fsl_dpaa2_eth", "v5.0", "7e273a8ebdd3"),
    Driver("netsec", "v5.3", "ba2b232108d3"),
    Driver("cpsw", "v5.3", "9ed4050c0d75"),
    Driver("sfc", "v5.5", "e45a4fed9d00"),
    Driver("ice", "v5.5", "efc2214b6047"),
    Driver("mvneta", "v5.5", "0db51da7a8e9"),
    Driver("ena", "v5.6", "838c93dc5449"),
    Driver("hv_netvsc", "v5.6", "351e1581395f"),
    Driver("mvpp2", "v5.9", "07dd0a7aae7f"),
    Driver("igb", "v5.10", "9cbc948b5a20"),
    Driver("igc", "v5.13", "26575105d6ed"),
    Driver("bonding", "v5.15", "9e2ee5c7e7c3"),
    Driver("mana", "v5.17", "ed5356b53f07"),
    Driver("atlantic", "v5.19", "0d14657f4083"),
    Driver("e1000", None),
    Driver("e1000e", None),
    Driver("r8169", None),
    Driver("loopback", None),
)


def native(interface: Interface, running: KernelVersion | None = None) -> tuple[bool | None, str]:
    """Whether the driver has native XDP, None if nobody knows; and that in words.

    `running` is the kernel's version; by default this machine's.
    """
    if interface.native is not None:
        has = "has it" if interface.native else "has none"
        return interface.native, f"{interface.driver or 'its driver'} {has}, says the kernel"
    running = running or version_of(platform.release())
    row = next((one for one in DRIVERS if one.name == interface.driver), None)
    if not row or not running:
        return None, f"nothing is known of {interface.driver or 'its driver'}"
    if row.since is None:
        return False, f"{row.name} has none"
    since = KernelVersion.parse(row.since)
    return running >= since, f"{row.name} has it since {row.since} ({row.commit})"


# ---- what speaks against native XDP, though the driver has it


@dataclass(frozen=True, slots=True)
class Hindrance:
    """Something about an interface for which its driver refuses native XDP."""

    words: str
    cure: str  # a line for a shell
    says: str  # the kernel's own words for it
    certain: bool  # on every kernel; else many drivers do
    one_page: bool  # a program that takes packets in fragments (xdp.frags) doesn't mind


@dataclass(frozen=True, slots=True)
class Refusal:
    """A state in which a driver refuses; words and cure are formatted with `it`, the interface."""

    driver: str  # "": any
    holds: Callable[[Interface], bool]
    words: str
    cure: str
    file: str  # of the kernel, that says so, and how: the words are the same from v5.10 to v6.1
    says: str
    certain: bool = True
    one_page: bool = False


# A page, less the headroom (256), what a packet carries at its end (320) and the
# Ethernet header: what drivers leave of it for a packet that is to be in one piece.
_ONE_PAGE = mmap.PAGESIZE - 256 - 320 - 14
_VIRTIO_PAGE = mmap.PAGESIZE - 16  # v4.19's; later ones leave less

# Feature bits of section 5.1.3 of the virtio specification: packets come merged or
# without a checksum (GUEST_CSUM, GUEST_TSO4, _TSO6, _ECN, _UFO, _USO4, _USO6), and
# the driver may turn that off (CTRL_GUEST_OFFLOADS).
_VIRTIO_MERGES, _VIRTIO_CONTROL = frozenset({1, 7, 8, 9, 10, 54, 55}), 2


def _peer_mtu(it: Interface) -> bool:
    return it.peer is not None and it.peer.mtu > _ONE_PAGE


def _too_few_queues(it: Interface) -> bool:
    return it.peer is not None and it.rx_queues < it.peer.tx_queues


def _host_merges(it: Interface) -> bool:
    return bool(it.virtio & _VIRTIO_MERGES) and _VIRTIO_CONTROL not in it.virtio


REFUSALS = (
    Refusal(
        "veth", _peer_mtu,
        f"the MTU of its peer {{it.peer.name}} is {{it.peer.mtu}}, and must be {_ONE_PAGE} or less",
        "sudo ip link set dev {it.peer.name} mtu 1500",
        "drivers/net/veth.c", "Peer MTU is too large to set XDP", one_page=True,
    ),
    Refusal(
        "veth", _too_few_queues,
        "it has {it.rx_queues} receive queues, its peer {it.peer.name} sends by"
        " {it.peer.tx_queues}",
        "sudo ethtool --set-channels {it.peer.name} tx {it.rx_queues}",
        "drivers/net/veth.c", "XDP expects number of rx queues not less than peer tx queues",
    ),
    Refusal(
        "virtio_net", _host_merges,
        "its host merges packets or leaves out checksums, and doesn't let this machine turn"
        " that off",
        "invoke run --dev {it.name} --mode skb",
        "drivers/net/virtio_net.c", "Can't set XDP while host is implementing GRO_HW/CSUM",
    ),
    Refusal(
        "virtio_net", lambda it: it.mtu > _VIRTIO_PAGE,
        f"its MTU is {{it.mtu}}, and must be {_VIRTIO_PAGE} or less",
        "sudo ip link set dev {it.name} mtu 1500",
        "drivers/net/virtio_net.c", "MTU too large to enable XDP", one_page=True,
    ),
    Refusal(
        "mlx5_core", lambda it: "rx-lro" in it.merging,
        "LRO is on",
        "sudo ethtool --features {it.name} lro off",
        "drivers/net/ethernet/mellanox/mlx5/core/en_main.c", "LRO is on, disable",
    ),
    Refusal(
        "nicvf", lambda it: it.mtu > 1530 - 14 - 2 * 4,
        "its MTU is {it.mtu}, and must be 1508 or less",
        "sudo ip link set dev {it.name} mtu 1500",
        "drivers/net/ethernet/cavium/thunder/nicvf_main.c",
        "Jumbo frames not yet supported with XDP",
    ),
    Refusal(
        "", lambda it: it.mtu > _ONE_PAGE and it.driver not in ("veth", "loopback"),
        "its MTU is {it.mtu}: a packet may not fit into one page, and many drivers refuse that",
        "sudo ip link set dev {it.name} mtu 1500",
        "drivers/net/ethernet/intel/ice/ice_main.c", "MTU too large for loading XDP",
        certain=False, one_page=True,
    ),
    Refusal(
        "", lambda it: "rx-lro" in it.merging,
        "LRO is on: packets come merged, and many drivers refuse that",
        "sudo ethtool --features {it.name} lro off",
        "drivers/net/ethernet/mellanox/mlx5/core/en_main.c", "LRO is on, disable", certain=False,
    ),
)  # fmt: skip


def against_native(interface: Interface) -> list[Hindrance]:
    """What speaks against native XDP on it as it is now; of two with one cure, the certain one."""
    drivers = [interface.driver, *([] if native(interface)[0] is False else [""])]
    found = [
        Hindrance(row.words.format(it=interface), row.cure.format(it=interface), row.says,
                  row.certain, row.one_page)
        for row in REFUSALS
        if row.driver in drivers and row.holds(interface)
    ]  # fmt: skip
    cures = [one.cure for one in found]
    return [one for at, one in enumerate(found) if one.cure not in cures[:at]]
