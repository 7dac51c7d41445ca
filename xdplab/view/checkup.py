"""What the doctor finds, as a table, lines and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xdplab.doctor import Finding, Outcome
from xdplab.probes import Machine
from xdplab.view.text import aligned

SCHEMA = 1  # of `doctor --json`, described in docs/readings.md
_STYLES = {
    Outcome.OK: "green",
    Outcome.WARNING: "yellow",
    Outcome.MISSING: "bold red",
    Outcome.UNKNOWN: "magenta",
}


def lines(findings: Sequence[Finding]) -> str:
    """A line for each thing, their columns one below the other."""
    return aligned(
        [
            (one.outcome, one.need.section, one.need.what, one.found, f"needed: {one.needed}",
             f"for: {one.need.why}" if one.cure else "", one.cure)
            for one in findings
        ]
    )  # fmt: skip


def show(out: Console, findings: Sequence[Finding]) -> None:
    """A table, and below it what can be done: a command for each thing that isn't well."""
    table = Table(box=None, pad_edge=False)
    for head in ("", "what", "found", "needed"):
        table.add_column(head, overflow="fold", no_wrap=head == "what")
    for section, members in groupby(findings, lambda one: one.need.section):
        table.add_row("", Text(section, style="bold"))
        for one in members:
            table.add_row(_mark(one), one.need.what, one.found, one.needed)
    out.print(table, soft_wrap=False)
    for one in findings:
        if one.cure:
            said = f" {one.need.what}: {one.found}\n  for {one.need.why}\n  {one.cure}"
            out.print(Text.assemble("\n", _mark(one), said))


def _mark(finding: Finding) -> Text:
    return Text(finding.outcome, style=_STYLES[finding.outcome])


def as_json(machine: Machine, findings: Sequence[Finding]) -> str:
    """All of it as a JSON object."""
    tree = machine.tree
    return json.dumps(
        {
            "schema": SCHEMA,
            "tree": str(tree.path) if tree else None,
            "version": str(tree.version) if tree else None,
            "dev": machine.dev,
            "fit": all(one.outcome is not Outcome.MISSING for one in findings),
            "checks": list(_checks(findings)),
        },
        indent=2,
    )


def _checks(findings: Sequence[Finding]) -> Iterator[dict[str, str]]:
    for one in findings:
        yield {
            "section": one.need.section,
            "what": one.need.what,
            "outcome": one.outcome,
            "found": one.found,
            "needed": one.needed,
            "why": one.need.why,
            "cure": one.cure,
        }
