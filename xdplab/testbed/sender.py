"""Who sends frames into an interface: a packet(7) socket, or XDP's own way.

Measured where XDP drops, million frames a second of one core that sends and drops, the best of
six, into a veth (native) and into lo (generic): 0.37 and 0.41 by send(2), 0.50 and 0.55 by
sendmmsg(2), 5.4 and 2.5 by live frames: what a BPF_PROG_TEST_RUN redirects or passes
(b530e9e1063e, v5.18).  A ring (PACKET_TX_RING) gains less than a tenth: what costs is the
kernel's way from a socket to a card.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

from xdplab import bpf, outlet
from xdplab.traffic import Sent, paced

_AT_ONCE = 64  # frames by a socket
_TRIED = 64  # frames by which it is seen whether live ones get out
_BUSY = 0.001  # seconds until a full queue is tried again
# a test run has a fixed cost, 22 ms here: so it does much, but lets Ctrl-C be heard
_RUN_SECONDS = 0.25
_BATCH = 64  # frames that go together: 16 take 1.2 times as long, 256 overrun a veth's ring


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))  # iovec


class _Message(ctypes.Structure):
    _fields_ = (  # msghdr
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("number", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Sent(ctypes.Structure):
    _fields_ = (("message", _Message), ("length", ctypes.c_uint))  # mmsghdr


class Socket:
    """Sends frames in turn by a packet(7) socket; needs CAP_NET_RAW."""

    how, why = "a packet socket", ""

    def __init__(self, dev: str, frames: Sequence[bytes]) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((dev, 0))
        turns = -(-_AT_ONCE // len(frames))  # so many that few frames fill a call too
        self._kept = [ctypes.create_string_buffer(frame, len(frame)) for frame in frames]
        vectors = [_Vector(ctypes.addressof(one), len(one)) for one in self._kept] * turns
        self._messages = (_Sent * len(vectors))()
        for message, vector in zip(self._messages, vectors, strict=True):
            message.message.vectors, message.message.number = ctypes.pointer(vector), 1
        self._call = ctypes.CDLL(None, use_errno=True).sendmmsg
        self._at = 0

    def most(self) -> int:
        """As many as go by one call."""
        return _AT_ONCE

    def send(self, number: int) -> int:
        """Send the next frames, up to so many; raises OSError."""
        left = min(number, len(self._messages) - self._at)
        where = ctypes.byref(self._messages, self._at * ctypes.sizeof(_Sent))
        sent = int(self._call(self._socket.fileno(), where, left, 0))
        if sent < 0:
            if ctypes.get_errno() not in (errno.ENOBUFS, errno.ENOMEM):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            time.sleep(_BUSY)
            return 0
        self._at = (self._at + sent) % len(self._messages)
        return sent


class Live:
    """Sends one frame again and again, an XDP program's way; needs CAP_NET_ADMIN and CAP_BPF.

    It is redirected.  A device takes it that has such a way out, a veth if there is native XDP
    or GRO at its other end; what it doesn't take is lost without a word, so it is asked how
    many it sent.  Neither a queue discipline nor tcpdump(8) on this end sees them.  `lo` has no
    such way out: but a frame that the program passes has come in there, on its way to whatever
    looks at what comes in.
    """

    how = "live frames"

    def __init__(self, dev: str, frame: bytes) -> None:
        """Raise OSError where the kernel or our rights don't reach so far."""
        self._dev, self._loops = dev, dev == "lo"
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        code = bpf.PASS if self._loops else bpf.redirecting(socket.if_nametoindex(dev))
        self._program = bpf.load_xdp(code)
        self._each = 0.0  # seconds that a frame took

    def most(self, seconds: float = _RUN_SECONDS) -> int:
        """As many as take about so long, at least one; a few at first."""
        return max(1, int(seconds / self._each)) if self._each else _TRIED

    def run(self, number: int) -> float:
        """Send it so often, whatever becomes of it; gives the seconds it took.  Raises OSError."""
        took = bpf.send_live(self._program, self._frame, number, min(_BATCH, number))
        self._each = took / number
        return took

    def send(self, number: int) -> int:
        """Send it so often; gives how many got out.  Raises OSError."""
        before = outlet.counters(self._dev).sent
        self.run(number)
        return number if self._loops else min(number, outlet.counters(self._dev).sent - before)


class Fastest:
    """Sends by live frames as long as they get out, else by a socket."""

    def __init__(self, dev: str, frames: Sequence[bytes]) -> None:
        self._dev = dev
        self._socket = Socket(dev, frames)
        self._live: Live | None = None
        self.why = "live frames are all the same one"
        if len(frames) == 1:
            try:
                self._live, self.why = Live(dev, frames[0]), ""
            except OSError as error:
                self.why = f"the kernel gives no live frames: {error.strerror}"

    @property
    def how(self) -> str:
        """The way that is taken."""
        return (self._live or self._socket).how

    def most(self) -> int:
        """As many as that way takes at once."""
        return (self._live or self._socket).most()

    def send(self, number: int) -> int:
        """Send the next frames, up to so many; raises OSError."""
        if not self._live:
            return self._socket.send(number)
        try:
            sent = self._live.send(number)
            why = f"live frames don't get into {self._dev}: no native XDP at its other end?"
        except OSError as error:
            sent, why = 0, f"the kernel gives no live frames: {error.strerror}"
        if not sent:
            self._live, self.why = None, why
        return sent


def send(
    dev: str, frames: list[str], *,
    rate: float | None, count: int, seconds: float | None, fast: bool,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Send frames, in hexadecimal, in turn, until all is done or a line comes on standard input.

    Gives traffic.Sent, now and then and at the end.  Raises OSError.
    """
    whole = [bytes.fromhex(frame) for frame in frames]
    sender = Fastest(dev, whole) if fast else Socket(dev, whole)
    for sent, passed in paced(
        sender.send, sender.most, _stopped, rate=rate, count=count, seconds=seconds
    ):
        yield asdict(Sent(sent, passed, sender.how, sender.why))


def flood(dev: str, frame: str, cpus: list[int], seconds: float) -> dict[str, float]:
    """Send a frame, in hexadecimal, by live frames from several CPUs at once, as fast as it goes.

    Gives how many were sent, whatever became of them, and how long each CPU took for its
    share, in seconds of the kernel's.  Needs CAP_SYS_NICE too, to be disturbed by nobody.
    Raises OSError.
    """
    with ThreadPoolExecutor(len(cpus)) as threads:
        from_each = partial(_flood, dev, bytes.fromhex(frame), seconds)
        shares = list(threads.map(from_each, cpus))
    return {"sent": sum(sent for sent, _ in shares), "seconds": max(took for _, took in shares)}


def _flood(dev: str, frame: bytes, seconds: float, cpu: int) -> tuple[int, float]:
    """Do so in a thread of its own, which ends with it."""
    os.sched_setaffinity(0, {cpu})
    with contextlib.suppress(PermissionError):  # where groups have their share of real time
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    live = Live(dev, frame)
    sent, took = 0, 0.0
    while took < seconds:
        number = live.most(seconds - took)
        took += live.run(number)
        sent += number
    return sent, took


def _stopped(seconds: float) -> bool:
    """Wait for so long; whether somebody said on standard input that it is enough."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    sys.stdin.readline()
    return True
