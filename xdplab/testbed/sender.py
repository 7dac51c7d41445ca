"""Who sends frames into an interface: a packet(7) socket, or XDP's own way.

Measured into a veth whose other end drops in native mode, million frames a second of one
core beside other work, the best of six: 0.16 by send(2), 0.20 by sendmmsg(2), 0.21 by a ring
(PACKET_TX_RING), 1.35 by live frames: what a BPF_PROG_TEST_RUN redirects (b530e9e1063e,
v5.18).  A ring gains less than a tenth: what costs is the kernel's way from a socket to a card.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from xdplab import bpf, outlet
from xdplab.traffic import Sent, paced

_AT_ONCE = 64  # frames by a socket
_TRIED = 64  # frames by which it is seen whether live ones get out
_BUSY = 0.001  # seconds until a full queue is tried again
# a test run has a fixed cost, 25 ms here: so it does much, but lets Ctrl-C be heard
_RUN_SECONDS, _FIRST_RUN, _LONGEST_RUN = 0.25, 1 << 14, 1 << 22
_LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES (linux/bpf.h)
_BATCH = 64  # frames that are redirected together


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
    """Sends one frame again and again by XDP_REDIRECT; needs CAP_NET_ADMIN and CAP_BPF.

    A device takes it that has such a way out, a veth if there is native XDP or GRO at its
    other end; what it doesn't take is lost without a word, so it is asked how many it sent.
    Neither a queue discipline nor tcpdump(8) on this end sees them.
    """

    how = "live frames"

    def __init__(self, index: int, frame: bytes) -> None:
        """Raise OSError where the kernel or our rights don't reach so far."""
        self._index = index
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        self._program = bpf.load_xdp(bpf.redirecting(index))
        self._run = _FIRST_RUN

    def most(self) -> int:
        """As many as take about as long as Ctrl-C may have to wait."""
        return self._run

    def send(self, number: int) -> int:
        """Send it so often; raises OSError."""
        before, began = outlet.sent_by(self._index), time.monotonic()
        # program, retval, size and address of the frame and of what doesn't come out, how
        # often, duration, the same for a context, flags, CPU, batch
        frame = (len(self._frame), 0, ctypes.addressof(self._frame), 0)
        context = (0, 0, 0, 0)
        what = (self._program, 0, *frame, number, 0, *context, _LIVE_FRAMES, 0, min(_BATCH, number))
        bpf.call(bpf.PROG_TEST_RUN, struct.pack("<IIIIQQIIIIQQIII", *what))
        if number == self._run:
            longer = _RUN_SECONDS / (time.monotonic() - began)
            self._run = int(min(max(number * min(longer, 2.0), _FIRST_RUN), _LONGEST_RUN))
        return min(number, outlet.sent_by(self._index) - before)


class Fastest:
    """Sends by live frames as long as they get out, else by a socket."""

    def __init__(self, dev: str, frames: Sequence[bytes]) -> None:
        self._dev = dev
        self._socket = Socket(dev, frames)
        self._live: Live | None = None
        self._proven = False  # whether live frames were seen to get out
        self.why = "live frames are all the same one"
        if len(frames) == 1:
            try:
                self._live, self.why = Live(socket.if_nametoindex(dev), frames[0]), ""
            except OSError as error:
                self.why = f"the kernel gives no live frames: {error.strerror}"

    @property
    def how(self) -> str:
        """The way that is taken."""
        return (self._live or self._socket).how

    def most(self) -> int:
        """As many as that way takes at once; a few at first."""
        return (self._live or self._socket).most() if self._proven or not self._live else _TRIED

    def send(self, number: int) -> int:
        """Send the next frames, up to so many; raises OSError."""
        if not self._live:
            return self._socket.send(number)
        try:
            sent = self._live.send(number)
            why = f"live frames don't get into {self._dev}: no native XDP at its other end?"
        except OSError as error:
            sent, why = 0, f"the kernel gives no live frames: {error.strerror}"
        self._proven = bool(sent)
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


def _stopped(seconds: float) -> bool:
    """Wait for so long; whether somebody said on standard input that it is enough."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    sys.stdin.readline()
    return True
