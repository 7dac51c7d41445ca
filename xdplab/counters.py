"""The binary's counter output, line by line, into readings.

    0                    the round's number
    cpu 0, value = 3     a line for each possible CPU: packets dropped so far
    cpu 1, value = 0
                         two empty lines end the block

Pure and lazy: a reading is given as soon as its block has ended.  Nothing is
lost and nothing is fatal: what belongs to no whole block comes out as it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_ROUND = re.compile(r"\d{1,10}", re.ASCII)
_CPU = re.compile(r"cpu (\d{1,5}), value = (\d{1,20})", re.ASCII)
_LARGEST = 2**64 - 1  # the map's values are u64
_WIDTHS = (32, 64)  # bits of a counter


@dataclass(frozen=True, slots=True)
class Reading:
    """One block of counter output."""

    at: float  # seconds since the epoch
    round: int
    per_cpu: dict[int, int]  # packets, by CPU
    # packets a second since the reading before, by CPU; none in the first
    rates: dict[int, float] = field(default_factory=dict)

    @classmethod
    def after(
        cls, before: Reading | None, at: float, number: int, per_cpu: dict[int, int]
    ) -> Reading:
        """A reading with the rates since the one before it."""
        seconds = at - before.at if before else 0.0
        if not before or seconds <= 0:  # the first, or the clock was set back
            return cls(at, number, per_cpu)
        rates = {
            cpu: _increase(before.per_cpu.get(cpu, 0), count) / seconds
            for cpu, count in per_cpu.items()
        }
        return cls(at, number, per_cpu, rates)

    @property
    def rate(self) -> float | None:
        """Packets a second on all CPUs; None in the first reading."""
        return sum(self.rates.values()) if self.rates else None

    @property
    def total(self) -> int:
        """Packets dropped on all CPUs since the program was attached."""
        return sum(self.per_cpu.values())


def readings(
    lines: Iterable[str], clock: Callable[[], float] = time.time
) -> Iterator[Reading | str]:
    """Turn lines into readings; other lines, and blocks that never end, come out as text.

    Lines of a block that turns out to be broken are given back in their order.
    """
    last: Reading | None = None
    block: list[str] = []  # the lines of the block so far, as they came
    number = 0
    per_cpu: dict[int, int] = {}
    for line in lines:
        text = line.rstrip("\r\n")
        found = _CPU.fullmatch(text)
        if block and found and _plausible(found, per_cpu):
            per_cpu[int(found[1])] = int(found[2])
            block.append(text)
        elif block and not text and per_cpu:
            last = Reading.after(last, clock(), number, per_cpu)
            yield last
            block, per_cpu = [], {}
        elif _ROUND.fullmatch(text):
            yield from block
            block, number, per_cpu = [text], int(text), {}
        elif text.startswith("cpu ") or not block:
            # a cpu's line that is garbled or fits nowhere breaks the block it is in
            yield from block
            block, per_cpu = [], {}
            if text:
                yield text
        else:
            yield text  # somebody else's line in the middle of a block
    yield from block


def busiest(counts: Mapping[int, int], most: int) -> list[int]:
    """The CPUs that have counted anything, in their order; of many those that have most."""
    counted = sorted((cpu for cpu in counts if counts[cpu]), key=lambda cpu: (-counts[cpu], cpu))
    return sorted(counted[: max(0, most)])


def _increase(before: int, now: int) -> int:
    """What was counted meanwhile.

    A count that went down has wrapped if it was in the upper half of 32 or of 64 bits; else it
    was begun anew, from 0.
    """
    if now >= before:
        return now - before
    bits = before.bit_length()
    return now + 2**bits - before if bits in _WIDTHS else now


def _plausible(found: re.Match[str], per_cpu: dict[int, int]) -> bool:
    return int(found[1]) not in per_cpu and int(found[2]) <= _LARGEST
