"""invoke bench: each stage of the work against its floor and its peers, side by side."""

from enum import StrEnum


class Stage(StrEnum):
    """What can be measured, in the order that it is shown."""

    SETUP = "setup"
    BUILD = "build"
    PACKET = "packet"
    PATH = "path"
    MATRIX = "matrix"
    START = "start"
