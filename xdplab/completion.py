"""What can come next on a command line: commands, their options, and the options' values.

A shell asks on each TAB, so nothing here runs a command or asks the network, and what
an option takes is imported with it.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from xdplab.version import KernelVersion
from xdplab.workspace import PROJECT, Workspace

if TYPE_CHECKING:
    from xdplab.boot import Kernel

_PROGRAMS = ("invoke", "inv")


class Shell(StrEnum):
    """The shells that have a script in templates/."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a command, or an argument that has no name on the command line."""

    name: str  # without dashes
    flags: tuple[str, ...]
    takes_value: bool
    help: str = ""
    default: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or Invoke itself: what may follow it."""

    name: str
    help: str
    options: tuple[Option, ...]
    positional: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word that can come next, and what it means."""

    word: str
    help: str = ""


@dataclass(slots=True)
class Asked:
    """What the words before the last one say."""

    workspace: Workspace
    program: Command  # Invoke itself
    commands: Mapping[str, Command]
    command: Command
    given: dict[str, str] = field(default_factory=dict)  # the values of its options
    awaited: list[Option] = field(default_factory=list)  # whose values come next without a flag
    flagged: Option | None = None  # whose value comes next, as its flag was there

    def option(self, flag: str) -> Option | None:
        """The option of that flag, of the command or of Invoke."""
        every = (*self.command.options, *self.program.options)
        return next((one for one in every if flag in one.flags), None)

    def value(self, name: str) -> str:
        """What an option was given, or is anyway."""
        defaults = (one.default for one in self.command.options if one.name == name)
        return self.given.get(name) or next(defaults, "")

    def read(self, word: str) -> None:
        """Take one word in."""
        if self.flagged:
            self.given[self.flagged.name], self.flagged = word, None
        elif word.startswith("-"):
            flag, equals, value = word.partition("=")
            option = self.option(flag)
            if option and option.takes_value:
                self.given[option.name] = value
                self.flagged = None if equals else option
        elif self.awaited:
            self.given[self.awaited.pop(0).name] = word
        elif word in self.commands:
            self.command, self.given = self.commands[word], {}
            self.awaited = list(self.command.positional)


def script(shell: Shell) -> str:
    """What a shell has to source."""
    from xdplab import templates

    return templates.render(
        f"completion.{shell}.j2", checkout=shlex.quote(str(PROJECT)), programs=_PROGRAMS
    )


def candidates(
    line: str, program: Command, known: Iterable[Command], workspace: Workspace
) -> list[Candidate]:
    """What can stand in place of the last word of a line; nothing where a path is wanted.

    `line` ends at the cursor; `program` has the options that stand before a command.
    """
    *before, word = _words(line)
    asked = Asked(workspace, program, {command.name: command for command in known}, program)
    for one in before:
        asked.read(one)
    return [one for one in _possible(asked, word) if one.word.startswith(word)]


def _possible(asked: Asked, word: str) -> list[Candidate]:
    flag, equals, value = word.partition("=")
    named = asked.option(flag)
    if asked.flagged:
        return _values(asked.flagged, word, asked)
    if named and equals:
        values = _values(named, value, asked)
        return [Candidate(f"{flag}={one.word}", one.help) for one in values]
    if asked.awaited and not word.startswith("-"):
        return _values(asked.awaited[0], word, asked)
    if asked.command is asked.program and not word.startswith("-"):
        return _commands(asked)
    return [
        Candidate(flag, option.help)
        for option in asked.command.options
        for flag in option.flags
        if flag.startswith("--") or word.startswith("-")
    ]


def _words(line: str) -> list[str]:
    """The words behind the program's name; the last is the one that is being typed."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is still open
        words = line.split()
    if not line or line[-1].isspace():
        words.append("")
    names = [at for at, word in enumerate(words[:-1]) if Path(word).name in _PROGRAMS]
    return words[names[0] + 1 :] if names else words[-1:]


# ---- values


def _values(option: Option, typed: str, asked: Asked) -> list[Candidate]:
    choose = VALUES.get(option.name)
    if not choose:
        return [Candidate(option.default)] if option.default else []
    if option.name not in LISTS and (asked.command.name, option.name) not in LISTS:
        return list(choose(asked))
    before, comma, _ = typed.rpartition(",")
    left = [one for one in choose(asked) if one.word not in before.split(",")]
    return [Candidate(f"{before}{comma}{one.word}", one.help) for one in left]


def _commands(asked: Asked) -> list[Candidate]:
    return [Candidate(one.name, one.help) for one in asked.commands.values()]


def _trees(asked: Asked) -> list[Candidate]:
    """The trees that are here; for setup those that are known to work too."""
    from xdplab.trees import fetched, foreign

    here = [*fetched(asked.workspace), *foreign(asked.workspace)]
    found = {str(tree.version): f"here, from {tree.origin}" for tree in here}
    if asked.command.name == "setup":
        from xdplab.survey import recorded

        proved = (KernelVersion.parse(proof.version).series for proof in recorded())
        found |= dict.fromkeys(proved, "was proved")
    return _told(found)


def _kernels(asked: Asked) -> list[Candidate]:
    """What boots: what the workspace has, and what is in /boot."""
    from xdplab.boot import kept
    from xdplab.boot.beside import BOOT

    found = dict[str, str]()
    for kernel in kept(asked.workspace.kernels):
        found |= dict.fromkeys(_names(kernel), f"here: {kernel.release}")
    running = platform.release()
    for path in BOOT.glob("vmlinuz-*"):
        release = path.name.removeprefix("vmlinuz-")
        found[release] = "running" if release == running else "installed"
    return _told(found)


def _names(kernel: Kernel) -> list[str]:
    """What --boot calls it: see boot.choice.find."""
    from xdplab.boot import Source
    from xdplab.sources.distro import is_cloud

    if not kernel.version or kernel.source is Source.IMAGE:
        return []
    if kernel.source is Source.TREE:
        return [f"{kernel.version.tag}-tree"]
    cloud = "-cloud" if is_cloud(kernel.release) else ""
    return [f"{kernel.version.series}{cloud}", kernel.release]


def _trees_or_kernels(asked: Asked) -> list[Candidate]:
    return _kernels(asked) if asked.command.name == "matrix" else _trees(asked)


def _interfaces(asked: Asked) -> list[Candidate]:
    from xdplab import netlink

    guest = asked.command.name == "matrix" or asked.value("on") == "vm"
    private = ["lo"] if asked.value("on") == "netns" else netlink.interfaces()
    return _plain(["eth0", "lo"] if guest else private)


def _modes(asked: Asked) -> list[Candidate]:
    from xdplab import filtering, rules, runner

    modes = {
        "filter.load": filtering.MODES,
        "filter.add": rules.MODES,
        "filter.remove": rules.MODES,
    }
    return _plain(modes.get(asked.command.name, runner.MODES))


def _matrix_modes(_: Asked) -> list[Candidate]:
    from xdplab.cell import MODES

    return _plain(MODES)


def _samples(_: Asked) -> list[Candidate]:
    from xdplab.sample import KERN, known

    return [Candidate(path.name.removesuffix(KERN), str(path.parent)) for path in known()]


def _compilers(*kinds: str) -> Callable[[Asked], list[Candidate]]:
    def found(_: Asked) -> list[Candidate]:
        from xdplab.toolchain import installed

        return _plain(name for kind in kinds for name in [kind, *installed(kind)])

    return found


def _kinds(_: Asked) -> list[Candidate]:
    from xdplab.skeleton import Kind

    return _plain(Kind)


def _languages(_: Asked) -> list[Candidate]:
    from xdplab.language import LANGUAGES

    return _plain(LANGUAGES)


def _nodes(_: Asked) -> list[Candidate]:
    from xdplab.network import Network

    return _plain(Network(2).nodes)  # of the usual lab


def _testbeds(_: Asked) -> list[Candidate]:
    from xdplab.testbed import NAMES

    return _plain(NAMES)


def _parts(asked: Asked) -> list[Candidate]:
    from xdplab.bench import Stage
    from xdplab.torture import Name

    return _plain(Name if asked.command.name == "torture" else Stage)


def _policies(_: Asked) -> list[Candidate]:
    from xdplab.model import Policy

    return _plain(Policy)


def _protocols(_: Asked) -> list[Candidate]:
    from xdplab.traffic import Proto

    return _plain(Proto)


def _shells(_: Asked) -> list[Candidate]:
    return _plain(Shell)


def _sources(_: Asked) -> list[Candidate]:
    from xdplab.setup import Source

    return _plain(Source)


def _told(found: Mapping[str, str]) -> list[Candidate]:
    return [Candidate(word, what) for word, what in found.items()]


def _plain(words: Iterable[str]) -> list[Candidate]:
    return [Candidate(word) for word in words]


def _exercises(asked: Asked) -> list[Candidate]:
    from xdplab import exercises
    from xdplab.language import LANGUAGES

    known = exercises.every(LANGUAGES[0]) if asked.command.name == "exercise" else []
    return [Candidate(one.name, one.title) for one in known]  # of a new pair the user knows it


def _runs(asked: Asked) -> list[Candidate]:
    """The runs that left readings, the newest first."""
    kept = [run.path.parent.name for run in asked.workspace.runs() if run.readings.exists()]
    return [Candidate(name) for name in kept]


# By an option's name.  One that isn't here takes a path, or what only its user knows.
VALUES: Mapping[str, Callable[[Asked], Sequence[Candidate]]] = {
    "boot": _kernels,
    "clang": _compilers("clang"),
    "compilers": _compilers("gcc", "clang"),
    "dev": _interfaces,
    "gcc": _compilers("gcc"),
    "help": _commands,
    "kernel": _trees,
    "kernels": _trees_or_kernels,
    "kind": _kinds,
    "lang": _languages,
    "in": _nodes,
    "join": _nodes,
    "mode": _modes,
    "modes": _matrix_modes,
    "name": _exercises,
    "on": _testbeds,
    "only": _parts,
    "policy": _policies,
    "proto": _protocols,
    "run": _runs,
    "sample": _samples,
    "shell": _shells,
    "source": _sources,
}
# values with commas between, by an option's name, or by a command's and its
LISTS = ("compilers", "kernels", "modes", "only", ("filter.load", "dev"))
