"""XDP's modes."""

from enum import IntFlag


class XDPFlag(IntFlag):
    """How a program is attached: linux/if_link.h."""

    SKB_MODE = 2
    DRV_MODE = 4
    HW_MODE = 8
