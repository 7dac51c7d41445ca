"""What people see.  Results go to standard output; all that is said besides, to standard error."""

from __future__ import annotations

import contextlib
import functools
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xdplab.errors import BuildFailed, LabError
from xdplab.view.text import aligned, as_long_as_read, drawable

if TYPE_CHECKING:
    from rich.console import Console

    from xdplab.bench.record import Record
    from xdplab.boot.built import Built
    from xdplab.build import Build
    from xdplab.cases import Met
    from xdplab.cell import Result
    from xdplab.census import Seen
    from xdplab.counters import Reading
    from xdplab.doctor import Finding
    from xdplab.exercises import Exercise
    from xdplab.explain import Explanation
    from xdplab.filtering import Counted, Loaded, Stats
    from xdplab.kernels import Inventory
    from xdplab.lessons import Texts
    from xdplab.making import AllSamples
    from xdplab.matrix import Plan
    from xdplab.network import Network
    from xdplab.packets import Pinged
    from xdplab.patching import Change
    from xdplab.probes import Machine
    from xdplab.runner import Run
    from xdplab.sample import Sample
    from xdplab.survey import Proof
    from xdplab.testbed import Place
    from xdplab.torture import ordeal as torture
    from xdplab.tracing import Logged
    from xdplab.traffic import Order, Sent
    from xdplab.tree import Tree
    from xdplab.verify import Check, Outcome
    from xdplab.view.board import Board
    from xdplab.view.lesson import Lesson
    from xdplab.view.stage import Stage

_WIDEST = 100  # characters of a paragraph's line


class View:
    """A terminal or a pipe, coloured or plain (rich knows NO_COLOR)."""

    @functools.cached_property
    def out(self) -> Console:
        """Where results are shown."""
        return _console()

    @functools.cached_property
    def err(self) -> Console:
        """Where all else is."""
        return _console(stderr=True)

    # ---- words

    def echo(self, command: str) -> None:
        """A command that is run, as it can be pasted."""
        self.err.print(f"$ {command}", style="dim")

    def say(self, text: str) -> None:
        """A sentence beside the result."""
        print(text, file=sys.stderr)

    def confirm(self, question: str) -> bool:
        """Whether somebody at the terminal says yes; no, where nobody can."""
        if not sys.stdin.isatty():
            return False
        try:
            return self.err.input(f"{question} (y/N) ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    def answer(self, text: str) -> None:
        """A line of the result."""
        with as_long_as_read():
            print(text)

    def text(self, text: str) -> None:
        """Text for another program, as it is."""
        with as_long_as_read():
            sys.stdout.write(text)

    def lines(self, lines: Iterable[str]) -> None:
        """Somebody else's words, untouched: a compiler's, a binary's."""
        for line in lines:
            print(line, file=sys.stderr)

    def done(self, what: Sequence[str], nothing: str) -> None:
        """What a command did, a line each."""
        for line in what or [nothing]:
            self.say(line)

    def remarks(self, what: Sequence[str], most: int = 8) -> None:
        """Sentences beside the result, the first of them if they are many."""
        for line in what[:most]:
            self.say(line)
        if what[most:]:
            self.say(f"and {len(what) - most:,} more")

    def made(self, files: Sequence[Path], *, dry: bool) -> None:
        """A new pair's files, and the commands that go on with it."""
        for file in files:
            self.say(f"{'would make' if dry else 'made'} {file}")
        if not dry:
            from xdplab import skeleton

            option = shlex.join(["--sample", skeleton.named(files[0])])
            for command in ("build", "verify", "run --on netns"):
                self.say(f"  invoke {command} {option}")

    def packed(self, files: Sequence[Path]) -> None:
        """Files that can be handed on, as sha256sum(1) has them."""
        from xdplab.files import sha256

        for file in files:
            self.answer(f"{sha256(file)}  {file}")

    # ---- stages

    @contextlib.contextmanager
    def stage(self, title: str, pair: Sample | None = None) -> Iterator[Stage]:
        """Show that something is under way, how far, and for how long.

        Afterwards, what compilers said: of the pair always, all of it if make failed.
        """
        from xdplab.view.stage import Stage

        stage = Stage(self, title)
        said: list[str] = []
        try:
            with stage:
                yield stage
        except BuildFailed:
            said = stage.about(pair)
            if not any("error" in line for line in said):  # it is something else that failed
                said = [line.text for line in stage.errors]
            raise
        else:
            said = stage.about(pair)
        finally:
            self.lines(said)

    # ---- trees and builds

    def tree(self, tree: Tree | None) -> None:
        """The outcome of setup; a dry run may have none."""
        if not tree:
            return
        from xdplab.dialect import Dialect

        dialect = Dialect.of(tree)
        self.answer(
            f"{tree.path}: Linux {tree.version}, from {tree.origin}; it says {dialect.programs}"
            f" and {dialect.always}, and has {dialect.helpers}"
        )
        self.answer(f"origin: {tree.checked}")

    def changes(self, tree: Tree, changes: Sequence[Change]) -> None:
        """A plan as a unified diff: coloured on a terminal, fit for patch(1) in a pipe."""
        if not changes:
            self.say(f"{tree.path} has all of it already")
        for change in changes:
            self.say(f"# {change.file}, for {change.why}")
            if self.out.is_terminal:
                from rich.syntax import Syntax

                self.out.print(Syntax(change.diff(), "diff", background_color="default"))
            else:
                sys.stdout.write(change.diff())

    def built(self, build: Build, *, dry: bool) -> None:
        """Where the result of a build is."""
        if not dry:
            done = "up to date" if build.unchanged else f"in {build.facts['seconds']:.1f} s"
            self.answer(
                f"{build.program}: for Linux {build.facts['version']}, {done};"
                f" log: {build.facts['log']}"
            )

    def commands(self, written: Path | None, tree: Tree) -> None:
        """Where an editor finds how the pair is compiled; a dry run wrote nothing."""
        if written:
            self.answer(f"{written}: the pair's commands, as Linux {tree.version} has them")
            self.say(
                "an editor with clangd takes them from there; one that is open, once restarted"
            )

    def all_built(self, samples: AllSamples) -> None:
        """How many of the tree's own samples came out."""
        self.answer(f"{len(samples.good)} BPF objects in all; log: {samples.log}")
        for path in samples.empty:
            self.say(f"warning: make returned 0, but {path} has no BPF program in it")

    def kernel(self, built: Built | None) -> None:
        """Where a kernel that was built is; a dry run has none."""
        if built:
            self.answer(
                f"{built.kernel.image}: Linux {built.kernel.release},"
                f" in {built.seconds:.1f} s; log: {built.log}"
            )

    def kernels(self, inventory: Inventory, *, json: bool) -> None:
        """What can be had: two tables on a terminal, aligned lines in a pipe, or an object."""
        from xdplab.view import inventory as inventories

        for line in inventory.unanswered:
            self.say(line)
        rows = {
            "tree": [inventories.tree_row(tree) for tree in inventory.trees],
            "kernel": [inventories.kernel_row(kernel) for kernel in inventory.kernels],
        }
        with as_long_as_read():
            if json:
                print(inventories.kernels_json(inventory))
            elif self.out.is_terminal:
                for kind, cells in rows.items():
                    self.out.print(inventories.table(f"{kind}s", cells), soft_wrap=False)
            else:
                print(aligned([(kind, *row) for kind in rows for row in rows[kind]]))

    def checkup(self, machine: Machine, findings: Sequence[Finding], *, json: bool) -> None:
        """What the doctor found: a table on a terminal, aligned lines in a pipe, or an object."""
        from xdplab.view import checkup

        tree = machine.tree
        self.say(
            f"for {tree.path}: Linux {tree.version}" if tree else "for no tree: none is set up"
        )
        with as_long_as_read():
            if json:
                print(checkup.as_json(machine, findings))
            elif self.out.is_terminal:
                checkup.show(self.out, findings)
            else:
                print(checkup.lines(findings))

    def proofs(self, survey: Iterable[Proof]) -> list[Proof]:
        """What a survey finds, a line each as it comes."""
        proofs = []
        for proof in survey:
            found = proof.reason or f"prepared in {proof.prepare} s, built in {proof.build} s"
            what = f"{proof.version} from {proof.source}: {proof.gcc}; {proof.clang}"
            self._outcome(proof.outcome, f"{what}: {found}")
            proofs.append(proof)
        return proofs

    def _outcome(self, outcome: Outcome, what: str) -> None:
        from rich.text import Text

        from xdplab.view.marks import MARKS

        mark, style = MARKS[outcome]
        self.out.print(Text(mark, style=style), Text(what))

    # ---- matrices

    @contextlib.contextmanager
    def board(self, plan: Plan, directory: Path) -> Iterator[Board]:
        """Show a matrix while it runs: a live table; off a terminal, a line for each result.

        At the end, an early one too: the table, why cells did not pass, and where the report is.
        """
        from rich.live import Live

        from xdplab.report import JSON, JUNIT, PAGE
        from xdplab.view.board import Board

        live = self.out.is_terminal and self.err.is_terminal
        board = Board(plan, (lambda _: None) if live else self._result)
        try:
            if live:
                with Live(console=self.err, get_renderable=board.table, transient=True):
                    yield board
            else:
                yield board
        finally:
            if board.found:
                self._found(board, live=live)
                self.say(f"report: {directory / PAGE}; for machines {JSON} and {JUNIT} beside it")

    def _found(self, board: Board, *, live: bool) -> None:
        if not live:
            self.answer(aligned(board.rows()))
            return
        self.out.print(board.table(), soft_wrap=False)
        for result in board.found:
            if result.reason:
                self._result(result)

    def _result(self, result: Result) -> None:
        found = result.reason or f"in {result.spent:.1f} s"
        earlier = f" (found by the matrix {result.taken_from})" if result.taken_from else ""
        self._outcome(result.outcome, f"{result.cell}: {found}{earlier}")

    # ---- benches

    def bench(self, records: Iterable[Record], directory: Path, *, json: bool) -> Record:
        """Show each comparison once it is made, or all of it as an object; gives the last record.

        However it ends, where what was found is kept.
        """
        from xdplab.view import bench as benches

        found: list[Record] = []
        try:
            for record in records:
                found.append(record)
                if not json:
                    benches.show(self.out, record.measured[-1])
        finally:
            if found:
                self.say(f"kept in {directory}, with pictures")
        if json:
            print(benches.as_json(found[-1]))
        return found[-1]

    # ---- tortures

    def torture(
        self, records: Iterable[torture.Record], directory: Path, *, json: bool
    ) -> torture.Record:
        """Follow a torture to its end, or Ctrl-C, and show what was found; gives it."""
        from xdplab.view import torture as tortures

        found: list[torture.Record] = []
        try:
            for record in records:
                found = [record]
        finally:
            self.say(f"kept in {directory}")
            for record in found:
                if json:
                    print(tortures.as_json(record))
                else:
                    tortures.show(self.out, record)
        return found[-1]

    # ---- the tutorial

    def lesson(self, texts: Texts) -> Lesson:
        """Who shows the tutorial's steps, and asks."""
        from xdplab.view.lesson import Lesson

        return Lesson(self.out, texts)

    # ---- runs

    def follow(self, run: Run, seconds: float | None, form: str | None) -> None:
        """Show a run until it ends, `seconds` are over, Ctrl-C, or nobody reads any more.

        In a form of live.FORMS; else it is drawn on a terminal, and plain elsewhere.
        """
        from xdplab.view import live as living

        for remark in run.remarks():
            self.say(remark)
        drawn = form is None and drawable(self.out)
        run.on_log = lambda line: (self.out if drawn else self.err).print(living.log_line(line))
        with as_long_as_read(), contextlib.suppress(TimeoutError, KeyboardInterrupt):
            if drawn:
                living.draw(self.out, run, run.output(seconds))
            else:
                living.write(run, seconds, form or living.PLAIN, self.say)

    def filter(self, readings: Iterable[Stats | str], *, json: bool = False) -> None:
        """Show the packet filter until its end, or Ctrl-C: drawn on a terminal, else in lines."""
        from xdplab.view import filter as filters

        with as_long_as_read(), contextlib.suppress(KeyboardInterrupt):
            if drawable(self.out) and not json:
                filters.draw(self.out, readings)
            else:
                filters.write(readings, json=json, tell=self.say)

    def filtering(self, it: Loaded, interval: float, *, json: bool) -> None:
        """A packet filter that was loaded just now, to its end or how to end it."""
        self.remarks(it.remarks)
        if it.process:
            from xdplab.filtering import watch

            self.filter(watch(it.filter, interval, it.process), json=json)

    def rules(self, counted: Iterable[Counted], *, json: bool) -> None:
        """The packet filter's rules, and what each covered."""
        from xdplab.view import filter as filters

        with as_long_as_read():
            if json:
                print(filters.rules_json(counted))
            else:
                sys.stdout.writelines(f"{line}\n" for line in filters.rule_lines(counted))

    def log(self, lines: Iterator[Logged]) -> None:
        """Show what is logged until there is no more, Ctrl-C, or nobody reads any more."""
        from xdplab.view.live import log_line

        with as_long_as_read(), contextlib.suppress(KeyboardInterrupt):
            for line in lines:
                self.out.print(log_line(line))
                self.out.file.flush()

    def reading(self, reading: Reading) -> None:
        """A reading of a run that is not watched for its own sake."""
        from xdplab.view import live as living

        self.say(f"     {living.sentence(reading)}")

    def plot(self, readings: Sequence[Reading], title: str) -> None:
        """A run's rates, drawn as large as the terminal is; and in words."""
        from xdplab import plotting

        size = (self.out.width, min(self.out.height - 2, 24))
        colour = self.out.color_system is not None and not self.out.no_color
        with as_long_as_read():
            print(plotting.in_terminal(readings, title, size, colour=colour))
            print(plotting.summary(readings))

    def pictured(self, path: Path, readings: Sequence[Reading]) -> None:
        """Where the picture of a run is; and what is in it, in words."""
        from xdplab import plotting

        self.answer(f"{path}: {plotting.summary(readings)}")

    def checks(self, checks: Iterable[Check]) -> list[Check]:
        """Show each claim as it is decided; gives those that did not hold."""
        from xdplab.verify import Outcome

        failed = []
        for check in checks:
            outcome = Outcome.PASSED if check.held else Outcome.FAILED
            self._outcome(outcome, f"{check.claim}: {check.found}")
            if not check.held:
                failed.append(check)
        return failed

    def cases(
        self, met: Sequence[Met], file: str, place: Place, *, wire: bool, json: bool
    ) -> list[Met]:
        """What became of packet cases, the reason below those that are wrong; gives these."""
        from xdplab.verify import Outcome
        from xdplab.view import cases as trials

        wrong = [one for one in met if not one.held]
        frames = sum(len(one.found) for one in met)
        with as_long_as_read():
            if json:
                print(trials.to_json(met, file, place, wire=wire))
            else:
                lines = aligned([*trials.rows(met)]).splitlines()
                for one, line in zip(met, lines, strict=True):
                    self._outcome(Outcome.PASSED if one.held else Outcome.FAILED, line)
                    if not one.held:
                        print(f"     {one.case.why}")
        self.say(
            f"{len(met)} cases of {file}, {frames} frames, on Linux {place.release}"
            f" ({place.where}): {f'{len(wrong)} wrong' if wrong else 'all hold'}"
        )
        return wrong

    def explanations(self, found: Sequence[Explanation]) -> None:
        """What messages mean, each below the first line that has it."""
        for one in found:
            self.out.print(one.line, style="bold")
            self.out.print(f"{_paragraph(one.means)}\n")

    def pinged(self, source: str, target: str, pinged: Pinged) -> None:
        """What became of packets that were sent by hand."""
        self.answer(
            f"{pinged.sent} from {source} to {target}: {pinged.delivered} got past XDP,"
            f" {pinged.answered} answered"
        )

    def traffic(self, order: Order, frames: list[bytes], dev: str, news: Iterable[Sent]) -> None:
        """Frames while they are sent, and what became of it in the end."""
        from xdplab.view import traffic as sending

        last = sending.follow(self.err, news, self.say)
        if last.why:
            self.say(f"not as fast as it might be: {last.why}")
        self.answer(sending.outcome(order, frames, dev, last))

    def programs(self, seen: Sequence[Seen], *, json: bool) -> None:
        """The XDP programs of this machine."""
        from xdplab.programs import statistics
        from xdplab.view import programs

        counted = statistics()
        with as_long_as_read():
            if json:
                print(programs.to_json(seen, counted))
                return
            for line in programs.lines(seen, counted):
                print(line)
        if not any(one.attached for one in seen):
            self.say("no XDP program is on any interface that was looked at; --all looks at all")

    # ---- labs

    def network(self, network: Network, here: str, *, beside: bool) -> None:
        """Who is where in a lab, and who is `here`; beside a command's own output if asked."""
        from xdplab.view import drawing

        console = self.err if beside else self.out
        if console.is_terminal:
            drawing.show(console, network, here)
            return
        for line in drawing.lines(network, here):
            console.print(line)

    # ---- exercises

    def exercises(self, exercises: Sequence[tuple[Exercise, bool | None]]) -> None:
        """Every exercise and how far it is."""
        from xdplab.view import exercises as assignments

        with as_long_as_read():
            print(aligned(list(assignments.rows(exercises))))

    def assignment(self, exercise: Exercise, *, hints: bool) -> None:
        """What an exercise asks for."""
        from xdplab.view import exercises as assignments

        with as_long_as_read():
            print(assignments.assignment(exercise, hints=hints, width=min(self.out.width, 88)))


def _console(*, stderr: bool = False) -> Console:
    """A terminal that shows words as they are."""
    from rich.console import Console

    return Console(stderr=stderr, emoji=False, highlight=False, markup=False, soft_wrap=True)


def error_text(error: LabError) -> str:
    """An error as it is shown: what is wrong, what to do, and what somebody's words mean."""
    from xdplab import explain

    cure = error.cure.replace("\n", "\n  ")
    text = f"error: {error.message}\n  {cure}"
    known = explain.cause(error.said)
    return f"{text}\n\n{_paragraph(known.means)}" if known else text


def _paragraph(text: str) -> str:
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
