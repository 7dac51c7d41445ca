"""The filter of samples/xdp_filter: loaded, changed while it runs, watched, and ended.

Its own program does the work, as root; the rules go to it by standard input.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from xdplab import lifelines, netlink, rules, runner
from xdplab.build import Build
from xdplab.errors import (
    AlreadyLoaded,
    BadRules,
    DidNotAttach,
    EndedBadly,
    InterfaceTaken,
    LabError,
    ModeRefused,
    NoBpffs,
    NotAChoice,
    NotANumber,
    NothingLoaded,
    NotPermitted,
    RuleRefused,
    StillAttached,
    TooManyRules,
)
from xdplab.files import mounted
from xdplab.lifelines import Lifeline
from xdplab.model import Policy
from xdplab.options import choice, number, seconds, whole_number, words
from xdplab.process import Fed, Line, Running, Shell, since
from xdplab.rules import Given, Ruleset
from xdplab.testbed import Bench
from xdplab.workspace import RunRecord, Workspace, boot_id

SAMPLE = "xdp_filter"
BPFFS = Path("/sys/fs/bpf")
MODES = ("auto", "native", "skb")
DEFAULT_RULES, MOST_RULES = 16384, 2**24  # that there is room for, or can be

STAYS = "it stays: invoke filter.stats --watch shows it, invoke filter.unload ends it"
GONE = "nothing of the filter is left"

_WHY = "loading and changing an XDP filter"
_ATTACH_PATIENCE = 60.0  # seconds, with a million rules
_PATIENCE = 10.0  # seconds for it to be gone after it was told to


# ---- what is asked for


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter to be loaded."""

    devs: tuple[str, ...]
    policy: Policy
    mode: str  # auto, native or skb
    max_rules: int
    stay: bool  # after this command has ended
    seconds: int | None  # after which it undoes itself

    @classmethod
    def of(
        cls, devs: str, policy: str, mode: str, max_rules: str | None, until: str | None,
        new: Ruleset, *, stay: bool,
    ) -> Wanted:  # fmt: skip
        """What the options of filter.load say; without --max-rules there is room for `new`.

        Raises NotAChoice, NotANumber or TooManyRules.
        """
        if mode not in MODES:
            raise NotAChoice("--mode", mode, MODES)
        room = max(DEFAULT_RULES, len(new))
        if max_rules is not None:
            room = whole_number("--max-rules", max_rules)
            if not 1 <= room <= MOST_RULES:
                raise NotANumber("--max-rules", max_rules, f"a number from 1 to {MOST_RULES}")
        if len(new) > room:
            raise TooManyRules(len(new), 0, room)
        return cls(
            tuple(dict.fromkeys(words(devs))) or ("",),
            choice("--policy", policy, Policy),
            mode,
            room,
            stay,
            None if until is None else seconds("--for", until),
        )

    @property
    def options(self) -> list[str]:
        """The program's: see its -h.

        Rules come first by standard input (-r); what doesn't stay ends with that (-e).
        """
        devs = [word for dev in self.devs for word in ("-d", dev)]
        mode = [] if self.mode == "auto" else ["-m", self.mode]
        end = [] if self.seconds is None else ["-f", str(self.seconds)]
        return [*devs, "-p", self.policy, *mode, "-n", str(self.max_rules), *end, "-r",
                "-s" if self.stay else "-e"]  # fmt: skip


# ---- what it says


@dataclass(frozen=True, slots=True)
class Count:
    """What an action met."""

    packets: int
    bytes: int  # of whole frames


@dataclass(frozen=True, slots=True)
class Device:
    """An interface that the filter is on."""

    dev: str
    mode: str
    program: int


@dataclass(frozen=True, slots=True)
class Stats:
    """The filter as it is now."""

    at: float  # seconds since the epoch
    policy: Policy
    rules: int
    max_rules: int
    devices: tuple[Device, ...]
    actions: dict[str, Count]  # pass, drop, aborted

    @property
    def devs(self) -> list[str]:
        """The names of its interfaces."""
        return [one.dev for one in self.devices]

    @classmethod
    def of(cls, lines: Sequence[str], at: float) -> Stats:
        """Read what the program prints of itself."""
        policy, room, devices = Policy.ALLOW, (0, 0), []
        actions: dict[str, Count] = {}
        for line in lines:
            match line.split():
                case ["policy", word]:
                    policy = Policy(word)
                case ["rules", number, "of", most]:
                    room = int(number), int(most)
                case ["dev", dev, "mode", mode, "prog", program]:
                    devices.append(Device(dev, mode, int(program)))
                case ["pass" | "drop" | "aborted" as action, packets, size]:
                    actions[action] = Count(int(packets), int(size))
        return cls(at, policy, *room, tuple(devices), actions)


class Counted(NamedTuple):  # there may be a million
    """A rule, in the program's words, and what it covered."""

    side: str
    prefix: str
    packets: int
    bytes: int

    @property
    def rule(self) -> str:
        """It in people's words: see rules.told."""
        whole = "/128" if ":" in self.prefix else "/32"
        return f"{rules.WORDS[self.side]} {self.prefix.removesuffix(whole)}"


# ---- a filter that is loaded


@dataclass(frozen=True, slots=True)
class Filter:
    """The one that this machine has loaded, by way of its program."""

    program: Path
    shell: Shell

    @classmethod
    def find(cls, workspace: Workspace, shell: Shell) -> Filter:
        """The one that was loaded last, here or by hand; raises NothingLoaded if none can be."""
        records = (one.read() for one in workspace.runs())
        loaded = (Path(one["binary"]) for one in records if "policy" in one)
        built = sorted(workspace.root.glob(f"builds/*/{SAMPLE}/{SAMPLE}"))
        program = next((one for one in (*loaded, *built) if one.exists()), None)
        if not program:
            raise NothingLoaded
        return cls(program, shell)

    def stats(self) -> Stats:
        """How it is now."""
        return Stats.of(self._ask("stats"), time.time())

    def counted(self) -> Iterator[Counted]:
        """Its rules, sorted."""
        for line in self._ask("list"):
            side, prefix, packets, size = line.split()
            yield Counted(side, prefix, int(packets), int(size))

    def check(self, given: Given, lines: Iterable[Lifeline]) -> Ruleset:
        """What is known of rules that it may be given, for some lifelines.

        It takes no root, and no filter that is loaded.  Raises BadRules with every fault.
        """
        if given == rules.NOTHING:
            return Ruleset()
        asked = map(str, lifelines.addresses(lines))
        fed = self.shell.feed([self.program, "check", given.side, *asked], given.text)
        try:
            _require(fed.code, fed.err.strip())
        except _Refused as refused:
            found = rules.faults(given.text.split("\n"), given.side, given.source)
            raise BadRules(given.source, found or [given.located(refused.said)]) from None
        return Ruleset.of(fed.out.splitlines())

    def add(self, given: Given, *, force: bool, tell: Callable[[str], None]) -> int:
        """Give it more rules, all of them or none; gives how many.

        Raises BadRules, RuleRefused with the line at fault, TooManyRules, NothingLoaded, and
        LockedOut unless `force`.
        """
        lines = lifelines.here()
        new, now = self.check(given, lines), self.stats()
        if now.rules + len(new) > now.max_rules:
            raise TooManyRules(len(new), now.rules, now.max_rules)
        if now.policy is Policy.ALLOW:
            lifelines.spare(lines, now.devs, now.policy, new, None, force=force, tell=tell)
        self._change("add", given, tell)
        return len(new)

    def remove(self, given: Given, *, force: bool, tell: Callable[[str], None]) -> int:
        """Take rules from it, all of them or none; as `add`."""
        lines = lifelines.here()
        old = self.check(given, lines)
        said = self._ask("stats", *map(str, lifelines.addresses(lines)))
        now, there = Stats.of(said, time.time()), Ruleset.of(said)
        if now.policy is Policy.DENY:
            left = there.without(old)
            lifelines.spare(lines, now.devs, now.policy, left, there, force=force, tell=tell)
        self._change("remove", given, tell)
        return len(old)

    def unload(self) -> None:
        """End it, whoever holds it, and all that belongs to it."""
        self._ask("unload", changes=True)

    def _change(self, how: str, given: Given, tell: Callable[[str], None]) -> None:
        try:
            fed = self._feed([how, given.side], given.text, changes=True)
        except _Refused as refused:
            raise RuleRefused(given.located(refused.said)) from None
        for line in fed.err.splitlines():
            tell(given.located(line))

    def _ask(self, *words: str, changes: bool = False) -> list[str]:
        return self._feed(words, "", changes=changes).out.splitlines()

    def _feed(self, words: Sequence[str], given: str, *, changes: bool) -> Fed:
        argv = self.shell.as_root([self.program, *words], _WHY)
        if changes and self.shell.dry:
            self.shell.run(argv)
            return Fed(0, "", "")
        fed = self.shell.feed(argv, given)
        _require(fed.code, fed.err.strip())
        return fed


class _Refused(Exception):
    """The program's word that its input can't be used."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


def _require(code: int, said: str) -> None:
    """Raise what the program's end means, if that is no good one."""
    if not code:
        return
    if "nothing is loaded" in said:
        raise NothingLoaded
    if runner.NOT_PERMITTED.search(said):
        raise NotPermitted(said)
    if code == 2:
        raise _Refused(said)
    raise EndedBadly(code, said)


# ---- loading


@dataclass(frozen=True, slots=True)
class Loaded:
    """A filter that was loaded just now."""

    filter: Filter
    remarks: list[str]  # what was said meanwhile
    process: Running | None  # that it ends with; None: it stays by itself


def show(build: Build, wanted: Wanted, shell: Shell) -> None:
    """Echo the command that would load it, for a dry run."""
    shell.run(shell.as_root([build.program, "load", *wanted.options], _WHY), cwd=build.directory)


def check(
    wanted: Wanted, new: Ruleset, lines: Collection[Lifeline], bench: Bench, *,
    force: bool, tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Raise what is against it, before anything is started.

    NoSuchInterface, InterfaceTaken, NoBpffs, and LockedOut unless `force`.
    """
    for dev in wanted.devs:
        runner.check_interface(dev, bench)
    if str(BPFFS) not in mounted("bpf"):
        raise NoBpffs(BPFFS)
    lifelines.spare(lines, wanted.devs, wanted.policy, new, None, force=force, tell=tell)


@contextlib.contextmanager
def loaded(
    build: Build, wanted: Wanted, given: Given, shell: Shell, record: RunRecord
) -> Iterator[Loaded]:
    """The filter with its rules, from attached on; unless it is to stay, to its end.

    Raises RuleRefused, AlreadyLoaded, DidNotAttach, ModeRefused or NotPermitted if it can't
    be loaded, and after the end EndedBadly or StillAttached.
    """
    argv = shell.as_root([build.program, "load", *wanted.options], _WHY)
    record.log.parent.mkdir(parents=True, exist_ok=True)
    with shell.start(argv, cwd=build.directory, log=record.log) as process:
        process.write(f"{given.text}\nend")
        programs, said = _until_attached(process, wanted, given)
        _remember(record, build, wanted, programs, process)
        remarks = [given.located(one) for one in said if not one.startswith("attached:")]
        it = Loaded(Filter(build.program, shell), remarks, None if wanted.stay else process)
        last_words = ""
        try:
            yield it
        finally:
            if it.process:
                last_words = _end(it.process)
                record.update(ended=time.time())
    if it.process:
        for one in programs:
            if any(left.program == one.program for left in netlink.attached(one.dev)):
                raise StillAttached(one.dev, one.program)
        if it.process.wait():
            raise EndedBadly(it.process.wait(), last_words)


def _remember(
    record: RunRecord, build: Build, wanted: Wanted, programs: Sequence[runner.Program],
    process: Running,
) -> None:  # fmt: skip
    """What other commands need to find it, to know it as ours, and to end it."""
    record.update(
        **asdict(programs[0]),
        pid=process.pid,
        binary=str(build.program),
        unload=[str(build.program), "unload"],
        on="host",
        ip=None,  # it has many
        policy=wanted.policy,
        stays=wanted.stay,
        build=build.facts,
        boot=boot_id(),
        started=time.time(),
        ended=None,
    )


def _until_attached(
    process: Running, wanted: Wanted, given: Given
) -> tuple[tuple[runner.Program, ...], list[str]]:
    """Its word that it is on every interface, and what else it said; of what stays, to its end."""
    programs: list[runner.Program] = []
    said: list[Line] = []
    with contextlib.suppress(TimeoutError):
        for line in process.lines(_ATTACH_PATIENCE):
            said.append(line)
            program = runner.Program.of(line)
            programs += [program] if program else []
            if len(programs) == len(wanted.devs) and not wanted.stay:
                break
        else:
            if process.wait(_PATIENCE):
                programs = []
    if len(programs) == len(wanted.devs):
        return tuple(programs), [one.text for one in said]
    process.end()
    raise _why_not(process.wait(_PATIENCE), said, wanted, given)


def _why_not(code: int, lines: Sequence[Line], wanted: Wanted, given: Given) -> LabError:
    """Why it isn't loaded."""
    said = [line.text for line in lines if line.stream == "err"]
    text, devs = "\n".join(said), ", ".join(wanted.devs)
    if "loaded already" in text:
        return AlreadyLoaded(_since(text.partition(": xdp_filter")[0]))
    if runner.ALREADY in text:  # since it was looked at
        for one in (one for dev in wanted.devs for one in netlink.attached(dev)):
            return InterfaceTaken(one.dev, one.program, one.mode)
    if re.search(r"^rule \d+: ", text, re.MULTILINE):
        return RuleRefused(given.located(text))
    if runner.NOT_PERMITTED.search(text):
        return NotPermitted(text)
    refusals = [one for one in said if runner.REFUSED.search(one)]
    if refusals and wanted.mode != "auto":
        return ModeRefused(devs, wanted.mode, refusals[0].removeprefix(runner.KERNEL), text)
    return DidNotAttach(devs, code, text, text)


def _since(said: str) -> str:
    """That a process holds it, with since when."""
    held = re.search(r"held by process (\d+)", said)
    with contextlib.suppress(OSError):  # it is gone
        began = time.localtime(since(int(held[1]))) if held else None
        return f"{said}, since {time.strftime('%F %T', began)}" if began else said
    return said


def _end(process: Running) -> str:
    """End it in good order; gives what it said meanwhile."""
    process.end_input()
    said: list[Line] = []
    with contextlib.suppress(TimeoutError):
        said += process.lines(_PATIENCE)
    process.end()
    return "\n".join(line.text for line in said if line.stream == "err")


def pause(given: str) -> float:
    """The seconds of --interval; raises NotANumber."""
    value = number("--interval", given)
    if value < 0.1:
        raise NotANumber("--interval", given, "seconds, at least 0.1")
    return value


def watch(it: Filter, interval: float, process: Running | None = None) -> Iterator[Stats | str]:
    """The filter's state every so many seconds, to its end.

    Between them the lines that a process of it says.
    """
    quiet = Filter(it.program, Shell())  # once a second is no news
    while True:
        try:
            yield quiet.stats()
        except NothingLoaded:  # somebody has ended it, or its time was over
            return
        if not process:
            time.sleep(interval)
            continue
        try:
            yield from (line.text for line in process.lines(interval))
        except TimeoutError:
            continue
        return
