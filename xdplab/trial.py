"""Tries an XDP mode on an interface, with a program that lets every packet pass.

Run as `python -m xdplab.trial DEV MODE`, by root; it prints why the mode can't be
had, and nothing if it can.  A bpf_link holds the program (v5.9 and newer), so that
nothing is left however this ends.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import sys
from typing import Any

# bpf(2)'s number, commands, types and flags (linux/bpf.h, linux/if_link.h)
_SYSCALL = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _LINK_CREATE = 5, 28
_PROG_TYPE_XDP, _ATTACH_XDP = 6, 37
_IF_NOEXIST = 1
_MODES = {"native": 4, "skb": 2}
_PASS = bytes.fromhex("b700000002000000 9500000000000000")  # r0 = XDP_PASS; exit


def why_not(dev: str, mode: str) -> str:
    """Why an interface refuses a mode; empty if it takes it.  Raises OSError."""
    index, program, flag = socket.if_nametoindex(dev), _load(), _MODES[mode]
    try:
        link = _bpf(_LINK_CREATE, struct.pack("<IIII", program, index, _ATTACH_XDP, flag))
    except OSError as error:
        return _in_words(index, program, flag) or str(error.strerror)
    os.close(link)
    return ""


def _bpf(command: int, attributes: bytes) -> int:
    """A file descriptor that bpf(2) gives; raises OSError."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    number = _SYSCALL[platform.machine()]
    given = ctypes.c_long(call(number, command, attributes, len(attributes))).value
    if given < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return given


def _load() -> int:
    code, license_ = ctypes.create_string_buffer(_PASS), ctypes.create_string_buffer(b"GPL")
    where = ctypes.addressof(code), ctypes.addressof(license_)
    # type, instructions, code, licence; the verifier's log: none; any kernel's
    return _bpf(_PROG_LOAD, struct.pack("<IIQQIIQII", _PROG_TYPE_XDP, 2, *where, 0, 0, 0, 0, 0))


def _in_words(index: int, program: int, mode: int) -> str:
    """What the kernel says when it is asked once more by netlink: a bpf_link gives no words."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    def set_to(descriptor: int, flags: int) -> dict[str, Any]:
        return {"attrs": [("IFLA_XDP_FD", descriptor), ("IFLA_XDP_FLAGS", flags)]}

    with IPRoute(ext_ack=True) as netlink:
        try:
            netlink.link("set", index=index, IFLA_XDP=set_to(program, mode | _IF_NOEXIST))
        except NetlinkError as error:
            return str(error.args[1])
        netlink.link("set", index=index, IFLA_XDP=set_to(-1, mode))  # it can be had after all
    return ""


if __name__ == "__main__":
    try:
        print(why_not(*sys.argv[1:]), end="")
    except OSError as fault:
        sys.exit(f"a program can't be loaded: {fault.strerror}")
