"""The packets of the tutorial, sent and answered for real.  Needs CAP_NET_RAW."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ECHO_REPLY, _ECHO_REQUEST = 0, 8  # RFC 792
_ETH_P_ALL = 3  # linux/if_ether.h
_MARK = b"\x02xdp"  # begins an Ethernet source address of ours; the frame's number follows


@dataclass(frozen=True, slots=True)
class Pinged:
    """What became of some ICMP echo requests."""

    sent: int
    delivered: int  # that came past XDP to a raw(7) socket
    answered: int  # that the kernel replied to


def ping(source: str, target: str, count: int, timeout: float = 1.0) -> Pinged:
    """Send `count` echo requests from a source address of our choice, as the post does.

    `timeout`: seconds to wait for the answers, after the last was sent.
    """
    from scapy.config import conf  # here: scapy takes most of a second to import
    from scapy.sendrecv import sr
    from scapy.supersocket import L3RawSocket

    # what is sent to loopback is only seen by a raw socket, not by AF_PACKET's default
    conf.L3socket = L3RawSocket
    conf.verb = 0
    identity = os.getpid() & 0xFFFF
    requests = echo_requests(source, target, count, identity)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as above_xdp:
        answers, _ = sr(requests, timeout=timeout)
        delivered = _requests_in(above_xdp, source, identity)
    return Pinged(sent=count, delivered=delivered, answered=len(answers))


def echo_requests(source: str, target: str, count: int, identity: int) -> list[Any]:
    """ICMP echo requests as scapy's packets, numbered from 1."""
    from scapy.layers.inet import ICMP, IP

    return [
        IP(src=source, dst=target) / ICMP(id=identity, seq=number) for number in range(1, count + 1)
    ]


def _requests_in(receiver: socket.socket, source: str, identity: int) -> int:
    """How many of our requests wait in the socket."""
    receiver.setblocking(False)
    seen: set[int] = set()
    while True:
        try:
            packet, (sender, _) = receiver.recvfrom(2048)
        except BlockingIOError:
            return len(seen)
        header = (packet[0] & 0xF) * 4  # IPv4's, in bytes
        kind, _code, _checksum, owner, number = struct.unpack_from("!BBHHH", packet, header)
        if kind == _ECHO_REQUEST and owner == identity and sender == source:
            seen.add(number)


def arrivals(frames: Sequence[bytes], sender: str, receiver: str, patience: float) -> list[bool]:
    """Which Ethernet frames, sent into one end of a cable, come out of the other, past XDP.

    Each is told by its Ethernet source address, which is written over.  All keep
    their order, so when the last is there the others won't come any more; if it
    doesn't come, they have had `patience` seconds.
    """
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as into,
        # a packet(7) socket hears what XDP lets pass
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as out_of,
    ):
        into.bind((sender, 0))
        out_of.bind((receiver, _ETH_P_ALL))
        for number, frame in enumerate(frames):
            into.send(frame[:6] + _MARK + struct.pack("!H", number) + frame[12:])
        arrived = [False] * len(frames)
        deadline = time.monotonic() + patience
        while not all(arrived[-1:]) and (left := deadline - time.monotonic()) > 0:
            out_of.settimeout(left)
            try:
                address = out_of.recv(65536)[6:12]
            except TimeoutError:
                break
            if address.startswith(_MARK):
                arrived[int.from_bytes(address[len(_MARK) :])] = True
    return arrived
