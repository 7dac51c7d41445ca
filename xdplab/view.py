"""What people see.  Results go to standard output; all that is said besides, to standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from xdplab.boot.built import Built
from xdplab.build import AllSamples, Build, about_pair
from xdplab.counters import Reading
from xdplab.dialect import Dialect
from xdplab.errors import BuildFailed, LabError
from xdplab.kernels import Inventory, ListedKernel, ListedTree
from xdplab.lifecycle import Status
from xdplab.packets import Pinged
from xdplab.patching import Change
from xdplab.process import Line
from xdplab.runner import Program, Run
from xdplab.sample import Sample
from xdplab.sources.distro import Offer
from xdplab.survey import Proof
from xdplab.tree import Origin, Tree
from xdplab.verify import Check, Outcome

if TYPE_CHECKING:  # only a matrix needs them
    from xdplab.cell import Cell, Result
    from xdplab.matrix import Plan

# of `run --json` and `kernels --json`, described in docs/readings.md
READING_SCHEMA = 1
KERNELS_SCHEMA = 1
_MARKS = {
    Outcome.PASSED: ("ok  ", "green"),
    Outcome.FAILED: ("FAIL", "bold red"),
    Outcome.ERROR: ("ERR ", "bold magenta"),
    Outcome.SKIPPED: ("skip", "yellow"),
}
_ONLINE = Path("/sys/devices/system/cpu/online")


class View:
    """A terminal or a pipe, coloured or plain (rich knows NO_COLOR)."""

    def __init__(self) -> None:
        self.out = Console(highlight=False, markup=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    # ---- words

    def echo(self, command: str) -> None:
        """A command that is run, as it can be pasted."""
        self.err.print(Text(f"$ {command}", style="dim"))

    def say(self, text: str) -> None:
        """A sentence beside the result."""
        self.err.print(Text(text))

    def lines(self, lines: Iterable[str]) -> None:
        """Somebody else's words, untouched: a compiler's, a binary's."""
        for line in lines:
            print(line, file=sys.stderr)

    def done(self, what: Sequence[str], nothing: str) -> None:
        """What a command did, a line each."""
        for line in what or [nothing]:
            self.say(line)

    # ---- stages

    @contextlib.contextmanager
    def stage(self, title: str, pair: Sample | None = None) -> Iterator[Stage]:
        """Show that something is under way, how far, and for how long.

        Afterwards, what compilers said: of the pair always, all of it if make failed.
        """
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        terminal = self.err.is_terminal
        progress = Progress(*columns, console=self.err, transient=True, disable=not terminal)
        stage = Stage(self, title, progress)
        said: list[str] = []
        try:
            with progress:
                yield stage
        except BuildFailed:
            said = about_pair(pair, stage.errors) if pair else []
            if not any("error" in line for line in said):  # it is something else that failed
                said = [line.text for line in stage.errors]
            raise
        else:
            said = about_pair(pair, stage.errors) if pair else []
        finally:
            self.lines(said)

    # ---- trees and builds

    def tree(self, tree: Tree | None) -> None:
        """The outcome of setup; a dry run may have none."""
        if not tree:
            return
        dialect = Dialect.of(tree)
        self.out.print(
            f"{tree.path}: Linux {tree.version}, from {tree.origin}; it says {dialect.programs}"
            f" and {dialect.always}, and has {dialect.helpers}"
        )

    def changes(self, tree: Tree, changes: Sequence[Change]) -> None:
        """A plan as a unified diff: coloured on a terminal, fit for patch(1) in a pipe."""
        if not changes:
            self.say(f"{tree.path} has all of it already")
        for change in changes:
            self.say(f"# {change.file}, for {change.why}")
            if self.out.is_terminal:
                self.out.print(Syntax(change.diff(), "diff", background_color="default"))
            else:
                sys.stdout.write(change.diff())

    def built(self, build: Build, *, dry: bool) -> None:
        """Where the result of a build is."""
        if not dry:
            self.out.print(
                f"{build.program}: for Linux {build.facts['version']},"
                f" in {build.facts['seconds']:.1f} s; log: {build.facts['log']}"
            )

    def all_built(self, samples: AllSamples) -> None:
        """How many of the tree's own samples came out."""
        self.out.print(f"{len(samples.good)} BPF objects in all; log: {samples.log}")
        for path in samples.empty:
            self.say(f"warning: make returned 0, but {path} has no BPF program in it")

    def kernel(self, built: Built | None) -> None:
        """Where a kernel that was built is; a dry run has none."""
        if built:
            self.out.print(
                f"{built.kernel.image}: Linux {built.kernel.release},"
                f" in {built.seconds:.1f} s; log: {built.log}"
            )

    def kernels(self, inventory: Inventory, *, json: bool) -> None:
        """What can be had: two tables on a terminal, aligned lines in a pipe, or an object."""
        for line in inventory.unanswered:
            self.say(line)
        rows = {
            "tree": [_tree_row(tree) for tree in inventory.trees],
            "kernel": [_kernel_row(kernel) for kernel in inventory.kernels],
        }
        with _as_long_as_read():
            if json:
                print(kernels_json(inventory))
            elif self.out.is_terminal:
                for kind, cells in rows.items():
                    self.out.print(_table(f"{kind}s", cells), soft_wrap=False)
            else:
                print(_aligned([(kind, *row) for kind in rows for row in rows[kind]]))

    def proofs(self, survey: Iterable[Proof]) -> list[Proof]:
        """What a survey finds, a line each as it comes."""
        proofs = []
        for proof in survey:
            found = proof.reason or f"prepared in {proof.prepare} s, built in {proof.build} s"
            what = f"{proof.version} from {proof.source}: {proof.gcc}; {proof.clang}"
            self._outcome(proof.outcome, what, found)
            proofs.append(proof)
        return proofs

    def _outcome(self, outcome: Outcome, what: str, found: str) -> None:
        mark, style = _MARKS[outcome]
        self.out.print(Text(mark, style=style), Text(f"{what}: {found}"))

    # ---- matrices

    @contextlib.contextmanager
    def board(self, plan: Plan, directory: Path) -> Iterator[Board]:
        """Show a matrix while it runs: a live table; off a terminal, a line for each result.

        At the end, an early one too: the table, why cells did not pass, and where the report is.
        """
        from xdplab.report import JSON, JUNIT, PAGE

        live = self.out.is_terminal and self.err.is_terminal
        board = Board(plan, (lambda _: None) if live else self._result)
        try:
            if live:
                with Live(console=self.err, get_renderable=board.table, transient=True):
                    yield board
            else:
                yield board
        finally:
            if board.results:
                self._found(board, live=live)
                self.say(f"report: {directory / PAGE}; for machines {JSON} and {JUNIT} beside it")

    def _found(self, board: Board, *, live: bool) -> None:
        if not live:
            self.out.print(Text(_aligned(board.rows())))
            return
        self.out.print(board.table(), soft_wrap=False)
        for result in board.results.values():
            if result.reason:
                self._result(result)

    def _result(self, result: Result) -> None:
        found = result.reason or f"in {result.spent:.1f} s"
        earlier = f" (found by the matrix {result.taken_from})" if result.taken_from else ""
        self._outcome(result.outcome, str(result.cell), found + earlier)

    # ---- runs

    def follow(self, run: Run, seconds: float | None, *, json: bool, plain: bool) -> None:
        """Show a run until it ends, `seconds` are over, Ctrl-C, or nobody reads any more."""
        for remark in run.remarks():
            self.say(remark)
        with _as_long_as_read(), contextlib.suppress(TimeoutError, KeyboardInterrupt):
            if plain:
                follow_plain(run.lines(seconds))
            elif json:
                follow_json(run.output(seconds))
            else:
                follow_live(self.out, run.program, run.output(seconds))

    def reading(self, reading: Reading) -> None:
        """A reading of a run that is not watched for its own sake."""
        each = ", ".join(f"cpu {cpu}: {count}" for cpu, count in reading.per_cpu.items() if count)
        self.say(f"     round {reading.round}: total {reading.total}{each and f' ({each})'}")

    def checks(self, checks: Iterable[Check]) -> list[Check]:
        """Show each claim as it is decided; gives those that did not hold."""
        failed = []
        for check in checks:
            outcome = Outcome.PASSED if check.held else Outcome.FAILED
            self._outcome(outcome, check.claim, check.found)
            if not check.held:
                failed.append(check)
        return failed

    def pinged(self, source: str, target: str, pinged: Pinged) -> None:
        """What became of packets that were sent by hand."""
        self.out.print(
            f"{pinged.sent} from {source} to {target}: {pinged.delivered} got past XDP,"
            f" {pinged.answered} answered"
        )

    def statuses(
        self, host: Sequence[Status], private: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> None:
        """What is attached, a line each; the columns are those of `ip link`."""
        for one in host:
            self.out.print(
                f"{one.attached.ifindex}: {one.attached.dev}: {one.attached.mode}:"
                f" prog/xdp id {one.attached.program}: {one.words()}"
            )
        for place, runs in private.items():
            for fields in runs:
                self.out.print(
                    f"{fields['ifindex']}: {fields['dev']}: {fields['mode']}: prog/xdp id"
                    f" {fields['program']}: ours, tag {fields['tag']}, filters {fields['ip']},"
                    f" in the {place} of process {fields.get('netns') or fields['pid']}"
                )
        if not host and not any(private.values()):
            self.say("no XDP program is on any interface of this machine")


@contextlib.contextmanager
def _as_long_as_read() -> Iterator[None]:
    """Write to standard output, to its end or until nobody reads any more."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # or else Python complains once more when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Stage:
    """One long step on the screen, phase by phase; off a terminal, a line for each phase."""

    def __init__(self, view: View, title: str, progress: Progress) -> None:
        self._view = view
        self._title = title
        self._progress = progress
        self.errors: list[Line] = []  # what make and the compilers complained of
        self._phase = ""
        self._task: TaskID | None = None

    def report(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """A source's news: see sources.Report."""
        if phase != self._phase and not self._view.err.is_terminal:
            self._view.say(f"  {phase}")
        self._show(phase, done, total, note)

    def line(self, line: Line) -> None:
        """What make is at, in its own short words."""
        if line.stream == "err":
            self.errors.append(line)
        elif line.text.startswith("  "):
            self._show(self._title, note=line.text.strip()[:48])

    def _show(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        if phase != self._phase or self._task is None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._phase = phase
            self._task = self._progress.add_task(phase, total=None, note="")
        self._progress.update(self._task, completed=done, total=total or None, note=note)


class Board:
    """A matrix under way: what each cell is at, since when, and what became of it."""

    def __init__(self, plan: Plan, on_result: Callable[[Result], None]) -> None:
        self._plan = plan
        self._on_result = on_result
        self._at: dict[Cell, tuple[str, float]] = {}
        self.results: dict[Cell, Result] = {}

    def at(self, cell: Cell, what: str) -> None:
        """A cell begins with something; called by the threads that cells are proved in."""
        if self._at.get(cell, ("",))[0] != what:
            self._at[cell] = what, time.monotonic()

    def follow(self, results: Generator[Result]) -> list[Result]:
        """Show results as they come, to the end; Ctrl-C ends what gives them first."""
        try:
            with contextlib.closing(results):
                for result in results:
                    self.results[result.cell] = result
                    self._on_result(result)
        finally:
            self._at.clear()  # nothing is under way any more
        return list(self.results.values())

    def table(self) -> Table:
        """The table as it is now."""
        heads, *rows = self.rows()
        table = Table(*heads, title=self._plan.name)
        styles = {mark.strip(): style for mark, style in _MARKS.values()}
        for row in rows:
            table.add_row(
                *(Text(cell, style=styles.get(cell.partition(" ")[0], "")) for cell in row)
            )
        return table

    def rows(self) -> list[list[str]]:
        """A line of heads, then one for each kernel: what each cell is at, or its outcome."""
        cells = self._plan.cells
        width = len(cells) // len(self._plan.kernels)
        heads = [" ".join(filter(None, (one.compiler, one.mode))) for one in cells[:width]]
        return [
            ["kernel", *heads],
            *(
                [cells[start].kernel, *map(self._words, cells[start : start + width])]
                for start in range(0, len(cells), width)
            ),
        ]

    def _words(self, cell: Cell) -> str:
        result = self.results.get(cell)
        if result:
            spent = f"{result.spent:.1f} s" if result.spent else ""
            words = (_MARKS[result.outcome][0].strip(), "earlier" if result.taken_from else spent)
            return " ".join(filter(None, words))
        what, since = self._at.get(cell, ("", 0.0))
        return f"{what}, {time.monotonic() - since:.1f} s" if what else "not run"


# ---- kernels

_COLUMNS = ("version", "source", "state", "where")


def _tree_row(tree: ListedTree) -> tuple[str, ...]:
    done = {"current": tree.current, "set up": tree.prepared, "patched": tree.patched}
    words = [word for word, holds in done.items() if holds]
    words += [f"built: {', '.join(tree.samples)}"] if tree.samples else []
    state = ", ".join(words) or tree.state
    return str(tree.version), tree.source, state, _where(tree.path, tree.offer, tree.remote)


def _kernel_row(kernel: ListedKernel) -> tuple[str, ...]:
    bpf = {True: ", with BPF", False: ", without BPF", None: ""}[kernel.bpf]
    source = Origin.DISTRO if kernel.offer else "this machine"
    return kernel.release, source, f"{kernel.state}{bpf}", _where(kernel.image, kernel.offer, None)


def _where(path: Path | None, offer: Offer | None, remote: str | None) -> str:
    return f"{offer.suite}: {offer.package}" if offer else str(path or remote or "")


def _table(title: str, rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*_COLUMNS, title=title)
    for row in rows:
        table.add_row(*row)
    return table


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pairs = (zip(row, widths, strict=True) for row in rows)
    lines = ("  ".join(cell.ljust(width) for cell, width in pair) for pair in pairs)
    return "\n".join(line.rstrip() for line in lines)


def kernels_json(inventory: Inventory) -> str:
    """An inventory as a JSON object."""
    trees = [
        {
            "version": str(tree.version),
            "source": tree.source,
            "state": tree.state,
            "path": _or_none(tree.path),
            "remote": tree.remote,
            **_package(tree.offer),
            "current": tree.current,
            "prepared": tree.prepared,
            "patched": tree.patched,
            "samples": tree.samples,
        }
        for tree in inventory.trees
    ]
    kernels = [
        {
            "release": kernel.release,
            "version": _or_none(kernel.version),
            "state": kernel.state,
            "image": _or_none(kernel.image),
            "bpf": kernel.bpf,
            **_package(kernel.offer),
        }
        for kernel in inventory.kernels
    ]
    return json.dumps({"schema": KERNELS_SCHEMA, "trees": trees, "kernels": kernels,
                       "unanswered": inventory.unanswered}, indent=2)  # fmt: skip


def _package(offer: Offer | None) -> dict[str, str | None]:
    return {
        "suite": offer.suite if offer else None,
        "package": offer.package if offer else None,
        "package_version": offer.version if offer else None,
    }


def _or_none(value: object) -> str | None:
    return None if value is None else str(value)


# ---- readings


class Counters:
    """The counters as they come: CPUs that are online, their counts and rates, the total."""

    def __init__(self) -> None:
        self._previous: Reading | None = None
        self._online = _online_cpus()

    def rates(self, reading: Reading) -> tuple[dict[int, float], float | None]:
        """Packets a second since the reading before, for each CPU and in all."""
        before, self._previous = self._previous, reading
        if not before or reading.at <= before.at:
            return {}, None
        seconds = reading.at - before.at
        each = {
            cpu: (count - before.per_cpu.get(cpu, 0)) / seconds
            for cpu, count in reading.per_cpu.items()
        }
        return each, (reading.total - before.total) / seconds

    def table(self, reading: Reading, program: Program) -> RenderableType:
        """A picture of one reading."""
        each, total = self.rates(reading)
        table = Table(
            title=f"{program.dev}: prog/xdp id {program.program} tag {program.tag}, "
            f"{program.mode} mode, round {reading.round}"
        )
        for name in ("cpu", "packets dropped", "per second"):
            table.add_column(name, justify="right")
        for cpu, count in reading.per_cpu.items():
            # a CPU that could be plugged in and isn't has nothing to show
            if self._online is None or cpu in self._online or count:
                table.add_row(str(cpu), f"{count:,}", _rate(each.get(cpu)))
        table.add_section()
        table.add_row("all", f"{reading.total:,}", _rate(total), style="bold")
        return table

    def json(self, reading: Reading) -> str:
        """One reading as a line of JSON."""
        _, rate = self.rates(reading)
        return json.dumps(
            {
                "schema": READING_SCHEMA,
                "at": round(reading.at, 6),
                "round": reading.round,
                "per_cpu": {str(cpu): count for cpu, count in reading.per_cpu.items()},
                "total": reading.total,
                "rate": None if rate is None else round(rate, 3),
            }
        )


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.1f}"


def _online_cpus() -> set[int] | None:
    """The CPUs of /sys/devices/system/cpu/online, "0-3,6"; None where there is no such file."""
    try:
        ranges = [part.split("-") for part in _ONLINE.read_text().strip().split(",")]
        return {
            cpu for low, *high in ranges for cpu in range(int(low), int((high or [low])[0]) + 1)
        }
    except (OSError, ValueError):
        return None


def follow_live(console: Console, program: Program, items: Iterable[Reading | str]) -> None:
    """Readings as a table that is drawn anew on a terminal; elsewhere a line a reading."""
    counters = Counters()
    if not console.is_terminal:
        for item in items:
            if isinstance(item, Reading):
                _, rate = counters.rates(item)
                print(f"round {item.round}: total {item.total}, {_rate(rate)} a second", flush=True)
            else:
                print(item, flush=True)
        return
    with Live(console=console, auto_refresh=False) as live:
        for item in items:
            if isinstance(item, Reading):
                live.update(counters.table(item, program), refresh=True)
            else:
                live.console.print(Text(item))


def follow_json(items: Iterable[Reading | str]) -> None:
    """Readings as JSON, one object a line; other lines are in the run's log."""
    counters = Counters()
    for item in items:
        if isinstance(item, Reading):
            print(counters.json(item), flush=True)


def follow_plain(lines: Iterable[str]) -> None:
    """The binary's own output, line for line."""
    for line in lines:
        print(line, flush=True)


def error_text(error: LabError) -> str:
    """An error as it is shown: what is wrong, and on lines of its own what to do."""
    cure = error.cure.replace("\n", "\n  ")
    return f"error: {error.message}\n  {cure}"
