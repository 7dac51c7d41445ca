"""What a torture tried and found, as a table, and below it each finding."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xdplab.torture.ordeal import Found, Record, Tally
from xdplab.torture.session import to_json
from xdplab.view.text import aligned

_HEADS = ("ordeal", "promise", "tries", "disturbed", "kinds", "moments", "seconds", "found")
_SAID = 15  # lines of what was printed last


def as_json(record: Record) -> str:
    """All of it as a JSON object."""
    return json.dumps(to_json(record), indent=2)


def show(out: Console, record: Record) -> None:
    """A table on a terminal, aligned lines elsewhere; then what was left out, and findings."""
    rows = [_row(one) for one in record.ordeals]
    if out.is_terminal:
        table = Table(*_HEADS, box=None)
        for row in rows:
            table.add_row(*row, style="bold red" if row[-1] != "0" else "")
        out.print(table, soft_wrap=False)
    else:
        out.print(Text(aligned([_HEADS, *rows])))
    for one in record.ordeals:
        for kind, why in one.skipped.items():
            out.print(Text(f"skipped: {one.name}, {kind}: {why}", style="yellow"))
    for name, found in record.found:
        out.print(Text("\n".join(_finding(name, found))))


def _row(one: Tally) -> tuple[str, ...]:
    counts = (one.promise or "", one.tries, one.times, len(one.kinds), len(one.moments))
    return (one.name, *map(str, counts), f"{one.seconds:.0f}", str(len(one.found)))


def _finding(name: str, found: Found) -> Iterator[str]:
    finding = found.tried.finding
    if not finding:
        return
    yield ""
    yield f"{name}, --seed {found.seed}: {found.tried.kind}, {found.tried.moment}: {finding.what}"
    yield from (f"  left: {one}" for one in finding.left)
    yield from (f"  | {line}" for line in finding.said.splitlines()[-_SAID:])
