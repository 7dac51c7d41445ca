"""The verifier's log, as libbpf prints it: read from its end, where the refusal is.

Pure.  A log at level 1 has each instruction before the one that was refused, with
the C line that it came from where the object has BTF line info (kernel v5.0,
d9762e84ede3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SHOWN = 6  # instructions before the refusal that are shown

# libbpf's frame around the log: before 0.7 (v5.17), and since
_BEGINS = re.compile(r"-- BEGIN (?:DUMP LOG ---|PROG LOAD LOG --)")
_ENDS = re.compile(r"-- END (?:PROG LOAD )?LOG --")
# What in the verifier's log is not its verdict: instructions, source lines, the
# state of registers, where it came from, and what it counted.
_DETAIL = re.compile(
    r"\d+: |; |\s*(?:R\d+\w*|fp-?\d+)=|from \d+ to |(?:last_idx|regs=|parent |mark_precise)"
    r"|(?:processed|verification time|stack depth|max_states)\b|(?:func|arg)#\d+ |libbpf: *$|\s*$"
)
_INSTRUCTION = re.compile(r"\d+: \([0-9a-f]{2}\) ")
_SOURCE = re.compile(r"; (?P<code>.*?)(?: @ (?P<place>\S+:\d+))?$")  # the place since v6.10


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the verifier refused a program."""

    reason: tuple[str, ...]  # its last words, a line or more
    instructions: tuple[str, ...]  # the last it looked at
    code: str  # the C line that the last came from; empty if the log doesn't say
    place: str  # its file and line, if the log says them
    lines: int  # that the whole log has


def refusals(said: Iterable[str]) -> list[Refusal]:
    """The refusals in what libbpf printed, each program's."""
    return [found for log in _logs(said)[1] if (found := _read(log))]


def shortened(said: str, whole: Path) -> str:
    """What libbpf printed, its verifier's logs cut down to their ends; `whole` has all of it."""
    outside, logs = _logs(said.splitlines())
    texts = [found for log in logs for found in [_read(log)]]
    shown: list[str] = []
    for line in outside:
        shown.append(line)
        if _BEGINS.search(line) and texts:
            refusal = texts.pop(0)
            shown += _words(refusal, whole) if refusal else []
    return "\n".join(shown)


def _words(refusal: Refusal, whole: Path) -> list[str]:
    left_out = refusal.lines - len(refusal.instructions) - len(refusal.reason)
    lines = [f"  ({left_out} lines before and between: {whole})"] if left_out else []
    lines += [f"  {one}" for one in (*refusal.instructions, *refusal.reason)]
    if refusal.code:
        lines.append(f"  the C line it speaks of: {refusal.code}{_at(refusal)}")
    return lines


def _at(refusal: Refusal) -> str:
    return f"   ({refusal.place})" if refusal.place else ""


def _logs(said: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """The lines around the logs, and the logs; one that never ends ends with the text."""
    outside: list[str] = []
    logs: list[list[str]] = []
    inside = False
    for line in said:
        if _BEGINS.search(line):
            inside = True
            logs.append([])
            outside.append(line)
        elif _ENDS.search(line):
            inside = False
            outside.append(line)
        elif inside:
            logs[-1].append(line.removeprefix("libbpf: ").rstrip())
        else:
            outside.append(line)
    return outside, logs


def _read(log: list[str]) -> Refusal | None:
    telling = [at for at, line in enumerate(log) if not _DETAIL.match(line)]
    if not telling:
        return None
    first = last = telling[-1]
    while first - 1 in telling:  # it may take several lines
        first -= 1
    before = [line for line in log[:first] if _INSTRUCTION.match(line)]
    sources = [found for line in log[:first] if (found := _SOURCE.match(line))]
    return Refusal(
        tuple(line.strip() for line in log[first : last + 1]),
        tuple(before[-_SHOWN:]),
        sources[-1]["code"].strip() if sources else "",
        (sources[-1]["place"] or "") if sources else "",
        len(log),
    )
