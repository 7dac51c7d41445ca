"""bpf(2) by hand: what needs no map, no relocation, and so no libbpf."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator

_NUMBERS = {"x86_64": 321, "aarch64": 280}  # of the system call
PROG_LOAD, PROG_TEST_RUN, LINK_CREATE = 5, 10, 28  # commands (linux/bpf.h)
_NEXT_ID, _FD_BY_ID, _INFO_BY_FD = 11, 13, 15  # of programs
_NAME = slice(64, 80)  # where struct bpf_prog_info has it
_PROG_TYPE_XDP = 6
_LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES, since v5.18 (b530e9e1063e)
_DURATION = 36  # where a test run's answer has it: nanoseconds for one

PASS = bytes.fromhex("b700000002000000 9500000000000000")  # r0 = XDP_PASS; exit


def call(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """What bpf(2) returns, a file descriptor perhaps; raises OSError.

    Where it answers in the attributes they must be an array, which can be written to.
    """
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    number = _NUMBERS[platform.machine()]
    given = ctypes.c_long(syscall(number, command, attributes, len(attributes))).value
    if given < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return given


def load_xdp(code: bytes) -> int:
    """A file descriptor of an XDP program with these instructions; raises OSError."""
    kept, license_ = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    where = ctypes.addressof(kept), ctypes.addressof(license_)
    # type, instructions, code, licence; the verifier's log: none; any kernel's
    attributes = (_PROG_TYPE_XDP, len(code) // 8, *where, 0, 0, 0, 0, 0)
    return call(PROG_LOAD, struct.pack("<IIQQIIQII", *attributes))


def send_live(program: int, frame: ctypes.Array[ctypes.c_char], number: int, batch: int) -> float:
    """Let a program have a frame so often, and do with it what the program says.

    That is a test run with live frames, so many of them together.  Gives the seconds that it
    took, but for its beginning and end; raises OSError.
    """
    # program, retval, size and address of the frame and of what doesn't come out, how
    # often, duration, the same for a context, flags, CPU, batch
    what = (program, 0, len(frame), 0, ctypes.addressof(frame), 0, number, 0)
    packed = struct.pack("<IIIIQQIIIIQQIII", *what, 0, 0, 0, 0, _LIVE_FRAMES, 0, batch)
    attributes = ctypes.create_string_buffer(packed, len(packed))
    call(PROG_TEST_RUN, attributes)
    return float(number * struct.unpack_from("<I", attributes, _DURATION)[0]) * 1e-9


def redirecting(index: int) -> bytes:
    """The instructions of a program that sends each packet out of an interface."""
    helper = 23  # bpf_redirect(interface, flags)
    code = (
        struct.pack("<BBhi", 0xB7, 1, 0, index),  # r1 = index
        struct.pack("<BBhi", 0xB7, 2, 0, 0),  # r2 = 0
        struct.pack("<BBhi", 0x85, 0, 0, helper),
        struct.pack("<BBhi", 0x95, 0, 0, 0),  # exit
    )
    return b"".join(code)


def programs() -> Iterator[int]:
    """The ids of the programs that are loaded; needs CAP_SYS_ADMIN, raises OSError."""
    last = 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("<III", last, 0, 0), 12)
        try:
            call(_NEXT_ID, attributes)
        except FileNotFoundError:
            return
        last = struct.unpack_from("<I", attributes, 4)[0]
        yield last


def name_of(program: int) -> str:
    """The name of a program, as far as the kernel keeps it; empty if it is gone."""
    try:
        descriptor = call(_FD_BY_ID, struct.pack("<III", program, 0, 0))
    except FileNotFoundError:
        return ""
    try:
        info = ctypes.create_string_buffer(_NAME.stop)  # struct bpf_prog_info
        call(_INFO_BY_FD, struct.pack("<IIQ", descriptor, len(info), ctypes.addressof(info)))
    finally:
        os.close(descriptor)
    return info.raw[_NAME].partition(b"\0")[0].decode()
