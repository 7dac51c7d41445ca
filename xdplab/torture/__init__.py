"""invoke torture: promises of the harness, and what tries to break them until a time is over."""

from enum import StrEnum


class Name(StrEnum):
    """What can be tried."""

    EXIT = "exit"
    GUEST = "guest"
    HALFWAY = "halfway"
    TOGETHER = "together"
    FRAMES = "frames"
    PARSER = "parser"
    ENDURANCE = "endurance"
