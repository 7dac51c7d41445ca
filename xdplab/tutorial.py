"""The guided tutorial: the post's thirteen steps, each explained, run and checked.

What a step does is a row here: its commands, which are run as they are shown, each
in a process of its own, and a check that looks at the world and does not believe
what the commands said.  `invoke run` goes on beside the steps, as in a second
terminal.  What a step says is in lessons.py.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from xdplab import TUTORIAL, lifecycle, logs, making, patching, runner, trust
from xdplab.boot import qemu
from xdplab.build import Build
from xdplab.counters import Reading, readings
from xdplab.dialect import Dialect
from xdplab.errors import (
    CannotRun,
    LabError,
    NotAChoice,
    NotANumber,
    NotATerminal,
    StepFailed,
    StepNotTried,
)
from xdplab.files import read_json, write_json
from xdplab.options import whole_number
from xdplab.process import Running, Shell
from xdplab.sample import Sample
from xdplab.testbed.vm import DEV
from xdplab.toolchain import Toolchain
from xdplab.tree import MAKEFILE, Tree
from xdplab.trees import find
from xdplab.version import KernelVersion
from xdplab.workspace import PROJECT, RunRecord, Workspace

_PATIENCE = 30.0  # seconds for two more readings, or for a filter to be gone
_INTERRUPTED = (130, -signal.SIGINT)  # a command that Ctrl-C ended
# what makes the kernel half the post's
_PARTS = ('SEC("xdp_ip_filter")', "ip_map", "counter_map", "XDP_DROP", "XDP_PASS", '"license"')


# ---- what a tutorial is about


@dataclass(frozen=True, slots=True)
class Place:
    """A testbed, as the tutorial uses it."""

    dev: str
    other: str  # an address whose packets get through


PLACES = {
    "host": Place("lo", "127.0.0.2"),
    "netns": Place("lo", "127.0.0.2"),
    "vm": Place(DEV, "198.51.100.2"),
}


def usual_place() -> str:
    """A namespace where root can be had without a question, else a virtual machine."""
    if os.geteuid() == 0 or not shutil.which(qemu.QEMU):
        return "netns"
    may = shutil.which("sudo") and not Shell().ask(["sudo", "-n", trust.command("true")]).code
    return "netns" if may else "vm"


@dataclass(frozen=True, slots=True)
class Choices:
    """What the learner chose, or didn't: remembered with the progress."""

    ip: str
    on: str
    kernel: str | None = None
    tree: str | None = None  # the one, or the other
    boot: str | None = None

    def __post_init__(self) -> None:
        """Raise NotAnAddress, NotAChoice or NotAVersion before anything is done."""
        runner.check_address(self.ip)
        if self.on not in PLACES:
            raise NotAChoice("--on", self.on, PLACES)
        if self.boot is not None and self.on != "vm":
            raise NotAChoice("--on", self.on, ["vm, as there is a --boot"])
        if self.kernel is not None:
            KernelVersion.parse(self.kernel)

    @property
    def place(self) -> Place:
        """The testbed's facts."""
        return PLACES[self.on]

    @property
    def words(self) -> dict[str, str]:
        """What texts and commands are filled in with."""
        target = ["--tree", self.tree] if self.tree else ["--kernel", str(self.kernel)]
        dev = [] if self.place.dev == "lo" else ["--dev", self.place.dev]
        boot = [] if self.boot is None else ["--boot", self.boot]
        return {
            "target": shlex.join(target),
            "where": shlex.join(["--on", self.on]),
            "at": shlex.join(["--on", self.on, *dev, *boot]),
            "ip": self.ip,
            "dev": self.place.dev,
            "other": self.place.other,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the learner is, in the workspace."""

    workspace: Workspace

    @property
    def _file(self) -> Path:
        return self.workspace.root / "tutorial.json"

    @property
    def step(self) -> int:
        """The step that is to be taken next."""
        return int(self._saved().get("step", 1))

    def _saved(self) -> dict[str, Any]:
        return read_json(self._file) or {}

    def choices(self, given: Mapping[str, str | None], kernel: str, ip: str) -> Choices:
        """What was given now, or else before, or else `kernel`, `ip` and what is usual here.

        A tree that is set up already is good enough.  Raises what Choices does.
        """
        chosen: dict[str, Any] = dict(self._saved().get("choices", {}))
        for pair in (("kernel", "tree"), ("on", "boot")):  # one speaks for the other
            if any(given[name] is not None for name in pair):
                chosen |= {name: given[name] for name in pair}
        chosen |= {name: value for name, value in given.items() if value is not None}
        current = self.workspace.current_tree()
        if chosen.get("tree"):
            chosen["tree"] = str(Path(chosen["tree"]).expanduser().absolute())
        elif not chosen.get("kernel"):
            known = current and current.exists()
            chosen |= {"tree": str(current)} if known else {"kernel": kernel}
        on = chosen.get("on") or ("vm" if chosen.get("boot") else usual_place())
        return Choices(**{"ip": ip} | chosen | {"on": on})

    def remember(self, step: int, choices: Choices) -> None:
        """Let the next time begin with a step; behind the last one, anew."""
        if step > len(STEPS):
            self.forget()
        else:
            write_json(self._file, {"step": step, "choices": asdict(choices)})

    def forget(self) -> None:
        """Begin anew the next time."""
        self._file.unlink(missing_ok=True)


# ---- a tutorial under way


@dataclass(slots=True)
class Session:
    """The learner's two terminals: this one, and one for the filter, which ends with the block."""

    choices: Choices
    workspace: Workspace
    shell: Shell
    tools: Callable[[], Toolchain]
    hear: Callable[[str], None]  # what is said in the filter's terminal
    before: Reading | None = None  # the counters when the step began
    _filter: Running | None = field(default=None, repr=False)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def perform(self, command: str) -> int:
        """Run a command; gives its exit code.  Raises KeyboardInterrupt if Ctrl-C ended it."""
        if command.startswith("invoke run"):
            return self.start(command)
        code = self.shell.hand_over(_argv(command), cwd=PROJECT, env=self._environment)
        if code in _INTERRUPTED:
            raise KeyboardInterrupt
        return code

    def look_around(self) -> None:
        """Let the learner have a shell."""
        self.shell.hand_over(
            [os.environ.get("SHELL") or "/bin/sh"], cwd=PROJECT, env=self._environment
        )

    @property
    def _environment(self) -> dict[str, str]:
        """The same workspace, and `invoke` itself on PATH."""
        path = [str(Path(sys.executable).parent), *os.get_exec_path()]
        return {"INVOKE_WORKSPACE": str(self.workspace.root), "PATH": os.pathsep.join(path)}

    # ---- the filter's terminal

    def start(self, command: str) -> int:
        """Start the filter, and wait for its first reading; gives its exit code, or 0."""
        self.stop()
        if self.choices.on != "vm":  # sudo can ask for a password here, and not there
            self.shell.borrow_root("invoke run", "the filter is run as root")
        self._filter = Shell().start(_argv(command), cwd=PROJECT, env=self._environment)
        for line in self._filter.lines():
            if line.stream == "err":
                self.hear(line.text)
            elif self.reading():
                return 0
        return self._filter.wait()

    def stop(self) -> None:
        """Press Ctrl-C in the filter's terminal, and wait for its end."""
        running, self._filter = self._filter, None
        if not running:
            return
        with running, contextlib.suppress(TimeoutError):
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGINT)
            for line in running.lines(_PATIENCE):
                if line.stream == "err" and not line.text.startswith("$ "):
                    self.hear(line.text)

    def ended(self) -> bool:
        """Whether the filter's command ends of itself, in good order; or there is none of ours."""
        try:
            return self._filter is None or self._filter.wait(_PATIENCE) == 0
        except TimeoutError:
            return False

    def prepare(self, step: Step) -> None:
        """See to it that a filter runs if the step needs one, and none of ours if it doesn't."""
        if not step.filter:
            self.stop()
        elif not self.record():
            self.start(FILTER.format_map(self.choices.words))
        self.before = self.settled() if step.filter else None

    # ---- what is there

    def tree(self) -> Tree:
        """The tree that the tutorial is about; raises NoTree, NotAKernelTree."""
        path = Path(self.choices.tree) if self.choices.tree else None
        return find(self.workspace, self.choices.kernel, path)

    def build(self) -> Build | None:
        """The pair's build, if there is one and no source was edited since."""
        build = Build.load(self.workspace.build(self.tree().key, TUTORIAL))
        return build if build and not build.older_than(Sample.find(TUTORIAL)) else None

    def record(self) -> RunRecord | None:
        """The newest run that is under way, whoever started it."""
        return next(lifecycle.under_way(self.choices.on, self.workspace), None)

    def reading(self) -> Reading | None:
        """The newest counters of the run that is under way, from its log."""
        record = self.record()
        if not record or not record.log.exists():
            return None
        lines = logs.read(record.log).splitlines()
        found = [item for item in readings(lines) if isinstance(item, Reading)]
        return found[-1] if found else None

    def settled(self) -> Reading | None:
        """Counters that were surely read after now: the second next reading."""
        first = now = self.reading()
        deadline = time.monotonic() + _PATIENCE
        while first and now and now.round < first.round + 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            now = self.reading()
        return now


def _argv(command: str) -> list[str]:
    words = shlex.split(command)
    return [sys.executable, "-m", *words] if words[0] == "invoke" else words


# ---- the checks


@dataclass(frozen=True, slots=True)
class Found:
    """Whether a step is done, and what its sentence about that is filled in with."""

    held: bool
    facts: dict[str, object]  # if it isn't: `found`, what was there instead


def _not(found: str) -> Found:
    return Found(False, {"found": found})


def _tree(session: Session) -> Found:
    tree, current = session.tree(), session.workspace.current_tree()
    if current != tree.path:
        return _not(str(current))
    return Found(True, {"version": tree.version, "path": tree.path})


def _tools(session: Session) -> Found:
    tools = session.tools()
    return Found(True, {"gcc": tools.gcc, "clang": tools.clang})


def _headers(session: Session) -> Found:
    tree = session.tree()
    return Found(True, {"path": tree.path}) if tree.is_prepared() else _not(str(tree.path))


def _samples(session: Session) -> Found:
    tree = session.tree()
    log = session.workspace.build(tree.key, "all-samples") / "build.log"
    good = [one for one in making.all_samples_in(tree, log).good if one.name not in tree.placed()]
    own = [one for one in good if not one.name.startswith(TUTORIAL)]
    return Found(True, {"number": len(own)}) if log.exists() and own else _not(str(tree.samples))


def _makefile(session: Session) -> Found:
    tree = session.tree()
    missing = [change.diff() for change in patching.plan(tree, TUTORIAL)]
    if missing:
        return _not("".join(missing))
    return Found(True, {"makefile": tree.path / MAKEFILE, "programs": Dialect.of(tree).programs})


def _pair(_: Session) -> Found:
    pair = Sample.find(TUTORIAL)
    missing = [part for part in _PARTS if part not in pair.kern.read_text(errors="replace")]
    return _not(", ".join(missing)) if missing else Found(True, {"kern": pair.kern})


def _built(session: Session) -> Found:
    build = session.build()
    return Found(True, {"program": build.program}) if build else _not("")


def _runs(session: Session) -> Found:
    record, reading = session.record(), session.reading()
    if not record or not reading:
        return _not("")
    return Found(True, {**record.read(), "cpus": len(reading.per_cpu)})


def _attached(session: Session) -> Found:
    record, place = session.record(), session.choices.place
    if not record:
        return _not("")
    ours = record.read()["program"]
    seen = lifecycle.attached_in(
        session.choices.on, place.dev, session.workspace, session.shell
    )  # fmt: skip
    if [one.program for one in seen] != [ours]:
        return _not(", ".join(str(one) for one in seen))
    return Found(True, asdict(seen[0]))


def _detached(session: Session) -> Found:
    record = session.record()
    if record or not session.ended():  # the filter's own command looks whether it is gone, too
        return _not(str(record.path if record else ""))
    seen = lifecycle.attached_in(
        session.choices.on, session.choices.place.dev, session.workspace, session.shell
    )
    return _not(", ".join(map(str, seen))) if seen else Found(True, {})


def _counted(session: Session, sent: int) -> Found:
    """Whether what was sent was counted; and that such a packet dies, and another passes."""
    before, after = session.before, session.settled()
    if not before or not after:
        return _not("")
    choices = session.choices
    with lifecycle.sender_in(choices.on, session.workspace, session.shell) as (ping, target):
        died, passed = (ping(source, target, 1) for source in (choices.ip, choices.place.other))
    found = f"{before.total} -> {after.total}; past XDP: {died.delivered} from {choices.ip},"
    if (after.total - before.total, died.delivered, passed.delivered) != (sent, 0, 1):
        return _not(f"{found} {passed.delivered} from {choices.place.other}")
    rose = {cpu: count - before.per_cpu[cpu] for cpu, count in after.per_cpu.items()}
    on = ", ".join(f"cpu {cpu}: +{more}" for cpu, more in rose.items() if more)
    return Found(True, {"before": before.total, "after": after.total, "sent": sent, "on": on})


def _logs(session: Session) -> Found:
    build, reading = session.build(), session.settled()
    if not build or not build.facts["trace"] or not reading or not reading.total:
        return _not("")
    return Found(True, {"total": reading.total})


# ---- the steps


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the post."""

    number: int
    key: str  # of its texts
    post: str  # what one typed in 2019
    commands: tuple[str, ...]
    check: Callable[[Session], Found]
    filter: bool = False  # whether one must run
    optional: bool = False

    @property
    def lasts(self) -> bool:
        """Whether what it did is there after the tutorial's end."""
        return not self.filter and FILTER not in self.commands


FILTER = "invoke run --ip {ip} {at} --interval 0.5"
_SEND = "invoke send --ip {ip} {where}"
_KEY_LINES = ("grep", "-n", "-e", "SEC", "-e", "BPF_MAP", "-e", "return", f"{TUTORIAL}_kern.c")

STEPS = (
    Step(1, "tree", "git clone git://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git",
         ("invoke setup {target}",), _tree),
    Step(2, "tools", "apt-get install bison clang flex libelf-dev llvm",
         ("gcc --version", "clang --version"), _tools),
    Step(3, "headers", "make headers_install; make menuconfig",
         ("invoke setup {target}",), _headers),
    Step(4, "samples", "make samples/bpf/", ("invoke build --all-samples",), _samples,
         optional=True),
    Step(5, "makefile", "editor samples/bpf/Makefile",
         ("invoke patch --show", "invoke patch"), _makefile),
    Step(6, "pair", f"editor samples/bpf/{TUTORIAL}_kern.c samples/bpf/{TUTORIAL}_user.c",
         (shlex.join(_KEY_LINES),), _pair),
    Step(7, "build", "make samples/bpf/", ("invoke build",), _built),
    Step(8, "run", f'sudo ./{TUTORIAL} -i "192.168.1.78"', (FILTER,), _runs),
    Step(9, "attached", "ip link list", ("invoke status",), _attached, filter=True),
    Step(10, "detach", "ip link set dev lo xdp off", ("invoke detach {where}",), _detached,
         filter=True),
    Step(11, "packet", 'sr1(IP(src="192.168.1.78", dst="127.0.0.1")/ICMP())', (_SEND,),
         partial(_counted, sent=1), filter=True),
    Step(12, "counter", f'sudo ./{TUTORIAL} -i "192.168.1.78"',
         (f"{_SEND} --count 3", "invoke send --ip {other} {where}"),
         partial(_counted, sent=3), filter=True),
    Step(13, "log", "cat /sys/kernel/debug/tracing/trace",
         ("invoke build --trace", FILTER, _SEND), _logs),
)  # fmt: skip


# ---- leading through them


class Answer(StrEnum):
    """What a learner can say to a step, by the key."""

    RUN = ""
    SKIP = "s"
    BACK = "b"
    LOOK = "!"
    QUIT = "q"


class Teacher(Protocol):
    """Who shows the steps, and asks."""

    def show(self, step: Step, words: Mapping[str, str]) -> None:
        """A step: what it is, why, and its commands."""

    def ask(self, answers: tuple[Answer, ...]) -> Answer:
        """What to do now, one of these; QUIT where nobody is left to answer."""

    def command(self, command: str) -> None:
        """A command that is run now."""

    def passed(self, step: Step, words: Mapping[str, object]) -> None:
        """The step is done; what to look at."""

    def failed(self, step: Step, words: Mapping[str, object]) -> None:
        """The step isn't done."""

    def fault(self, error: LabError) -> None:
        """An error of the harness's own."""

    def say(self, key: str, **facts: object) -> None:
        """A sentence that belongs to no step."""


def span(start: str | None, only: str | None) -> tuple[int | None, int]:
    """The step to begin with, if --from or --step names one, and the last; raises NotANumber."""
    option, given = ("--from", start) if only is None else ("--step", only)
    if given is None:
        return None, len(STEPS)
    number = whole_number(option, given)
    if not 1 <= number <= len(STEPS):
        raise NotANumber(option, given, f"the number of a step, 1 to {len(STEPS)}")
    return number, number if only else len(STEPS)


def done(session: Session, progress: Progress) -> dict[int, bool]:
    """Which steps are done: as the world shows, or where nothing lasts, by what is remembered."""
    return {
        step.number: _holds(step, session) if step.lasts else step.number < progress.step
        for step in STEPS
    }


def _holds(step: Step, session: Session) -> bool:
    try:
        return step.check(session).held
    except LabError:
        return False


def lead(
    session: Session, progress: Progress, teacher: Teacher, first: int | None, last: int
) -> None:
    """Lead a learner from a step to the next, as fast as they like, and back.

    Raises NotATerminal where nobody can answer.
    """
    if not sys.stdin.isatty():
        raise NotATerminal(
            "the tutorial",
            "invoke tutorial --yes takes all steps without a question; --list only shows them",
        )
    number = first or _first_step(session, progress, teacher)
    shown = 0
    with session:
        while number <= last:
            step = STEPS[number - 1]
            if number != shown:
                teacher.show(step, session.choices.words)
                shown = number
            answer = teacher.ask(tuple(Answer))
            if answer is Answer.QUIT:
                teacher.say("bye", step=progress.step)
                return
            number += _move(answer, step, session, teacher)
            if last == len(STEPS):  # not where only one was asked for
                progress.remember(number, session.choices)
        if number > len(STEPS):
            teacher.say("end")
            while teacher.ask((Answer.RUN, Answer.LOOK)) is Answer.LOOK:
                session.look_around()


def _move(answer: Answer, step: Step, session: Session, teacher: Teacher) -> int:
    """Do what the learner wants; gives how many steps that leads on."""
    if answer is Answer.LOOK:
        session.look_around()
    if answer is Answer.RUN:
        return int(not _attempt(step, session, teacher))
    return {Answer.SKIP: 1, Answer.BACK: -min(1, step.number - 1)}.get(answer, 0)


def _first_step(session: Session, progress: Progress, teacher: Teacher) -> int:
    """The step that was reached, or one before it that holds no more."""
    for step in STEPS[: progress.step - 1]:
        if step.lasts and not step.optional and not _holds(step, session):
            teacher.say("holds_no_more", step=step.number)
            return step.number
    if progress.step > 1:
        teacher.say("goes_on", step=progress.step)
    return progress.step


def rehearse(session: Session, teacher: Teacher, first: int, last: int) -> None:
    """Take the steps without a question, optional ones only if named.

    Raises StepFailed, or StepNotTried if it is this machine that can't.
    """
    with session:
        for step in STEPS[first - 1 : last]:
            teacher.show(step, session.choices.words)
            if step.optional and first != last:
                teacher.say("left_out", step=step.number)
                continue
            code = _attempt(step, session, teacher)
            if code:
                raise (StepNotTried if code == CannotRun.exit_code else StepFailed)(step.number)


def _attempt(step: Step, session: Session, teacher: Teacher) -> int:
    """Take a step; gives 0, or the exit code of what went wrong."""
    words = session.choices.words
    try:
        session.prepare(step)
        for command in (template.format_map(words) for template in step.commands):
            teacher.command(command)
            code = session.perform(command)
            if code:
                teacher.failed(step, words | {"found": ""})
                return code
        found = step.check(session)
    except LabError as error:
        teacher.fault(error)
        teacher.failed(step, words | {"found": ""})
        return error.exit_code
    if not found.held:
        teacher.failed(step, words | found.facts)
        return StepFailed.exit_code
    teacher.passed(step, words | found.facts)
    return 0
