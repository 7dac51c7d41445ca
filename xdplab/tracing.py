"""What a kernel half logs with bpf_printk: which formats it has, and which lines are its own.

A line of the kernel's log doesn't name the program that wrote it.  So a line is
taken for ours if one of the kernel half's own formats can have made it.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

COST = (
    "logging costs some forty times what the filter does: about 1000 ns a packet, not 25;"
    " while it is read, 1600"
)

# A line of trace_pipe: task-pid, perhaps its thread group, CPU, flags, seconds since
# boot, and who logs: an event's name, or before v5.9 an address that means nothing.
_LINE = re.compile(
    r"\s*(?P<task>.{1,15})-(?P<pid>\d+)\s+(?:\(\s*[-\d]+\)\s+)?\[(?P<cpu>\d{1,6})\]\s+"
    r"(?P<flags>\S{4,9})\s+(?P<at>\d+\.\d+): (?:bpf_trace_printk|0x[0-9a-f]+|0): (?P<text>.*)",
    re.ASCII,
)
_LOST = re.compile(r"CPU:(?P<cpu>\d{1,6}) \[LOST (?P<count>\d+ )?EVENTS\]", re.ASCII)
# the third flag, of Documentation/trace/ftrace.rst: whom the packet interrupted says little
_CONTEXT = {"s": "softirq", "h": "hardirq", "H": "hardirq", "z": "NMI", "Z": "NMI"}

# comments, characters, includes, names of sections; and strings, of which neighbours are one
_TOKEN = re.compile(
    r"//[^\n]*|/\*.*?\*/|'(?:\\.|[^'\\\n])*'|^[ \t]*#[ \t]*include[^\n]*|\bSEC\([^)]*\)"
    r'|(?P<strings>"(?:\\.|[^"\\\n])*"(?:\s*"(?:\\.|[^"\\\n])*")*)',
    re.DOTALL | re.MULTILINE,
)
_STRING = re.compile(r'"((?:\\.|[^"\\\n])*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|\n|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}

_CONVERSION = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?(?:hh?|ll?|z)?([%diuxXocsp])(\w*)")
_NUMBERS = {"d": r"[-+]?\d+", "i": r"[-+]?\d+", "x": "(?:0[xX])?[0-9a-fA-F]+", "o": "[0-7]+"}
# a number after such a word is an address, as it lies in memory
_ADDRESS = re.compile(r"(?i)\b(?:[sd]?addr|address|ip)\b")
_LARGEST = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Logged:
    """A line that was logged, or the news that some are lost."""

    text: str
    cpu: int
    at: float | None = None  # seconds since boot; None: lines were lost here
    task: str = ""  # what the CPU was at, with its number, and in which interrupt


class Log:
    """The log as it is read: `take` gives what is to be shown of each line.

    That is what `formats` can have made; with `everything` other programs' lines too.
    """

    def __init__(self, formats: Sequence[str], *, everything: bool = False) -> None:
        self._formats = list(map(_pattern, formats))
        self._everything = everything
        self._last: Logged | None = None  # what a line without a head belongs to, if it is shown

    def take(self, line: str) -> Logged | None:
        """What a line says; None if it is another program's, or empty."""
        if lost := _LOST.fullmatch(line):
            what = f"{lost['count'] or 'some '}lines are lost: they came faster than they are read"
            return Logged(what, int(lost["cpu"]))
        if found := _LINE.fullmatch(line):
            context = _CONTEXT.get(found["flags"][2])
            task = f"{found['task'].strip()}-{found['pid']}" + (f" in {context}" if context else "")
            text = self._own(found["text"])
            self._last = (
                None if text is None else Logged(text, int(found["cpu"]), float(found["at"]), task)
            )
            return self._last
        # the rest of a text with line ends in it; one at its very end is an empty line
        if not self._last or not line:
            return None
        return Logged(line, self._last.cpu, self._last.at, self._last.task)

    def _own(self, text: str) -> str | None:
        """The text, with addresses made readable; None if it is not to be shown."""
        for pattern in self._formats:
            if found := pattern.fullmatch(text):
                numbers = [number for number in map(int, found.groups()) if number <= _LARGEST]
                return f"{text} ({', '.join(map(_dotted, numbers))})" if numbers else text
        return text if self._everything else None


def _dotted(number: int) -> str:
    return socket.inet_ntoa(struct.pack("=I", number))


def _pattern(form: str) -> re.Pattern[str]:
    """What the first line of a printf format can have made; its addresses are the groups."""
    first = form.partition("\n")[0]
    pattern, end = "", 0
    for found in _CONVERSION.finditer(first):
        literal = first[end : found.start()]
        pattern += re.escape(literal) + _made_by(found, address=bool(_ADDRESS.search(literal)))
        end = found.end()
    return re.compile(pattern + re.escape(first[end:]), re.ASCII)


def _made_by(conversion: re.Match[str], *, address: bool) -> str:
    kind, more = conversion.groups()
    if kind == "%":
        return "%" + more
    if kind == "p":  # %pI4, %pS and the like have names of letters and digits
        return ".*"
    if kind in "cs":
        return ".*" + more
    number = _NUMBERS.get(kind.lower(), r"\d{1,20}")
    return " *" + (f"({number})" if kind == "u" and address else number) + " *" + more


def formats(source: str) -> list[str]:
    """The string literals of a C source, in their order: its printf formats are among them."""
    found = (match["strings"] for match in _TOKEN.finditer(source))
    return ["".join(map(_unescaped, _STRING.findall(strings))) for strings in found if strings]


def _unescaped(literal: str) -> str:
    def one(found: re.Match[str]) -> str:
        octal, hexadecimal, letter = found.groups()
        if octal or hexadecimal:
            return chr(int(octal, 8) if octal else int(hexadecimal, 16))
        return _ESCAPED.get(letter, letter) if letter else ""  # a line end is no part of it

    return _ESCAPE.sub(one, literal)


def logged(lines: Iterable[str], log: Log) -> Iterator[Logged]:
    """What is to be shown of these lines."""
    return filter(None, map(log.take, lines))
