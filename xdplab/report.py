"""What a matrix found, for machines and for people: JSON, JUnit XML, and a page of its own."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from xdplab import templates
from xdplab.cell import Cell, Result
from xdplab.files import read_json, write_json, write_whole
from xdplab.matrix import Plan, take_over
from xdplab.verify import Check, Outcome
from xdplab.workspace import Workspace

SCHEMA = 1  # of matrix.json, described in docs/readings.md
JSON, JUNIT, PAGE = "matrix.json", "junit.xml", "matrix.html"

_LOG = 32_000  # characters of a log that the page has
_TAIL = 4_000  # of a log in JUnit's, whose readers show all of it

# What XML 1.0 has no place for (its production Char), and HTML no use: a terminal's
# escapes and worse, as programs print them.
_UNPRINTABLE = re.compile("[^\t\n\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Report:
    """A matrix: what was asked for, on what, and the results so far."""

    plan: Plan
    started: float  # seconds since the epoch
    seconds: float  # that it took
    host: dict[str, str]  # what it ran on, and with: names and versions
    results: tuple[Result, ...]

    @property
    def totals(self) -> dict[Outcome, int]:
        """How many cells have which outcome."""
        count = Counter(result.outcome for result in self.results)
        return {outcome: count[outcome] for outcome in Outcome}

    @property
    def unfinished(self) -> int:
        """How many cells have no result: it was interrupted."""
        return len(self.plan.cells) - len(self.results)

    def of(self, cell: Cell) -> Result | None:
        """A cell's result."""
        return next((result for result in self.results if result.cell == cell), None)


def recording(
    results: Generator[Result], plan: Plan, host: dict[str, str], directories: Sequence[Path],
    found: list[Result],
) -> Generator[Result]:  # fmt: skip
    """Pass results on, each once it is in `found` and on record in the first directory.

    At the end, an early one too, the whole report is put into all of them.  Whoever
    shows `found` shows what is on record, wherever Ctrl-C hit.
    """
    started, begun = time.time(), time.monotonic()

    def report() -> Report:
        return Report(plan, started, round(time.monotonic() - begun, 3), host, tuple(found))

    try:
        with closing(results):
            for result in results:
                found.append(result)
                write_json(directories[0] / JSON, to_json(report()))
                yield result
    finally:
        whole = report()
        for directory in directories if found else ():
            write(whole, directory)


def write(report: Report, directory: Path) -> None:
    """Write the three files."""
    write_json(directory / JSON, to_json(report))
    write_whole(directory / JUNIT, to_junit(report).encode())
    write_whole(directory / PAGE, to_html(report).encode())


# ---- JSON


def to_json(report: Report) -> dict[str, Any]:
    """The report as an object, see docs/readings.md."""
    return {
        "schema": SCHEMA,
        **asdict(report.plan),
        "started": report.started,
        "seconds": report.seconds,
        "host": report.host,
        "totals": report.totals,
        "cells": [_row(result) for result in report.results],
    }


def _row(result: Result) -> dict[str, Any]:
    fields: dict[str, Any] = asdict(result)
    return {**fields.pop("cell"), **fields}


def of_json(read: dict[str, Any]) -> Report:
    """The report that an object holds."""
    kernels, compilers, modes = (tuple(read[axis]) for axis in ("kernels", "compilers", "modes"))
    return Report(
        Plan(read["sample"], read["name"], kernels, compilers, modes, read["ip"], read["dev"]),
        read["started"],
        read["seconds"],
        read["host"],
        tuple(_result(row) for row in read["cells"]),
    )


def _result(row: dict[str, Any]) -> Result:
    fields = row | {
        "cell": Cell(row["kernel"], row["compiler"], row["mode"]),
        "outcome": Outcome(row["outcome"]),
        "checks": tuple(Check(**check) for check in row["checks"]),
        **{name: tuple(row[name]) for name in ("said", "commands", "again", "workers")},
    }
    return Result(**{name: fields[name] for name in Result.__dataclass_fields__})


def passed_before(plan: Plan, workspace: Workspace) -> list[Result]:
    """What the last matrix of the same sample and packets found passed; raises Wrecked."""
    for path in workspace.matrices():
        report = of_json(read_json(path))
        same = ("sample", "ip", "dev")
        if all(getattr(report.plan, name) == getattr(plan, name) for name in same):
            return take_over(plan, report.results, path.parent.name)
    return []


# ---- JUnit


def to_junit(report: Report) -> str:
    """The report as XML that CI systems read: a suite for each kernel, a case for each cell."""
    xml = JUnitXml(printable(f"{report.plan.name} on {len(report.plan.kernels)} kernels"))
    for kernel in report.plan.kernels:
        suite = TestSuite(printable(f"{report.plan.name} on {kernel}"))
        suite.timestamp = time.strftime("%FT%T", time.gmtime(report.started))
        for result in report.results:
            if result.cell.kernel == kernel:
                suite.add_testcase(_case(report.plan, result))
        xml.add_testsuite(suite)
    xml.update_statistics()  # type: ignore[no-untyped-call]
    text: bytes = xml.tostring()  # type: ignore[no-untyped-call]
    return text.decode()


_ELEMENTS = {Outcome.FAILED: Failure, Outcome.ERROR: Error, Outcome.SKIPPED: Skipped}


def _case(plan: Plan, result: Result) -> TestCase:
    name = ", ".join(filter(None, (result.cell.mode, result.cell.compiler)))
    case = TestCase(printable(name), printable(f"{plan.name}.{result.cell.kernel}"), result.spent)
    kind = _ELEMENTS.get(result.outcome)
    if kind:
        element = kind(printable(result.reason), str(result.outcome))
        element.text = printable("\n".join([result.reason, *result.said, *result.again]))
        case.result = [element]
    tails = [f"== {name}\n{excerpt(text, _TAIL)}" for name, text in logs_of(result)]
    if tails:
        case.system_out = "\n".join(tails)
    return case


# ---- what was printed


def logs_of(result: Result) -> list[tuple[str, str]]:
    """A cell's logs, by name, fit to be shown; those that are gone are left out."""
    found = []
    for name, path in result.logs.items():
        with contextlib.suppress(OSError):
            found.append((name, printable(Path(path).read_text(errors="backslashreplace"))))
    return found


def printable(text: str) -> str:
    """The text; what can't be shown in it is spelt as Python does."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def excerpt(text: str, most: int) -> str:
    """A text of at most so many characters: cut in the middle, and it says so."""
    if len(text) <= most:
        return text
    head, tail = text[: most // 4], text[-(most - most // 4) :]
    return f"{head}\n[... {len(text) - most} characters are left out here ...]\n{tail}"


# ---- the page

# beside word and colour, so that neither has to be seen
_SIGNS = {Outcome.PASSED: "✓", Outcome.FAILED: "✗", Outcome.ERROR: "!", Outcome.SKIPPED: "»"}


def to_html(report: Report) -> str:
    """The report as one page that needs nothing else, not even scripts."""
    numbered = [(number, cell, report.of(cell)) for number, cell in enumerate(report.plan.cells)]
    releases = {one.cell.kernel: one.release for one in report.results if one.release}
    rows = [
        (kernel, releases.get(kernel, ""), [one for one in numbered if one[1].kernel == kernel])
        for kernel in report.plan.kernels
    ]
    found = [(number, result) for number, _, result in numbered if result]
    page = templates.render(
        f"{PAGE}.j2",
        report=report,
        rows=rows,
        passed=[one for one in found if one[1].outcome is Outcome.PASSED],
        others=[one for one in found if one[1].outcome is not Outcome.PASSED],
        signs=_SIGNS,
        date=time.strftime("%F %H:%M UTC", time.gmtime(report.started)),
        logs_of=logs_of,
        excerpt=lambda text: excerpt(text, _LOG),
    )
    return printable(page)
