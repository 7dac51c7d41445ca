"""Tries an XDP mode on an interface, with a program that lets every packet pass.

Run as `python -m xdplab.trial DEV MODE`, with CAP_BPF and CAP_NET_ADMIN; it prints why
the mode can't be had, and nothing if it can.  A bpf_link holds the program (v5.9 and
newer), so that nothing is left however this ends.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Any

from xdplab import bpf

_ATTACH_XDP = 37  # linux/bpf.h
_IF_NOEXIST = 1  # this and the modes: XDP_FLAGS_* of linux/if_link.h
_MODES = {"native": 4, "skb": 2}


def why_not(dev: str, mode: str) -> str:
    """Why an interface refuses a mode; empty if it takes it.  Raises OSError."""
    index, program, flag = socket.if_nametoindex(dev), bpf.load_xdp(bpf.PASS), _MODES[mode]
    try:
        link = bpf.call(bpf.LINK_CREATE, struct.pack("<IIII", program, index, _ATTACH_XDP, flag))
    except OSError as error:
        return _in_words(index, program, flag) or str(error.strerror)
    os.close(link)
    return ""


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
