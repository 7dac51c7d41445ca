"""Promise 3: two commands at once both work, or one says who is at work and since when."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from xdplab.bench.measure import Means
from xdplab.build import Build
from xdplab.torture import Name, halfway, programs, small
from xdplab.torture.ground import Ground, Subject, invoke, made
from xdplab.torture.ordeal import Finding, Ordeal, Try
from xdplab.torture.programs import FILTER, IP, MINE, NEAR, built, somebody_elses

_PATIENCE = 120.0  # seconds for both to end: that they wait for each other would be for ever
_WHO = re.compile(r"process \d+\b.*\bsince \d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


@dataclass(frozen=True, slots=True)
class Command:
    """One of two; `refusals` is what else it may say, after what the other has done by then."""

    words: tuple[str, ...]
    refusals: str = "(?!)"

    @property
    def kind(self) -> str:
        """It in short."""
        return " ".join([self.words[0], *(one for one in self.words[1:] if one in _TELLING)])


_TELLING = ("--revert", "--source=git", "--on=netns", f"--dev={NEAR}", "--stay")
_NOT_BUILT = "is not there any more|is not built yet|is set up"


def _commands(here: Path, remote: str, builds: dict[str, Build]) -> Iterator[Command]:
    tree, pair = f"--tree={here / 'linux'}", f"--sample={here / 'pair' / small.PAIR}_kern.c"
    kernel, mine = f"--kernel={small.VERSION}", f"--sample={builds[MINE].facts['sources'][0]}"
    real = f"--tree={builds[MINE].facts['tree']}"
    run = ("run", mine, real, f"--ip={IP}", "--interval=0.05", "--rounds=10")
    yield Command(("setup", tree))
    yield Command(("setup", kernel, "--source=git", f"--remote={remote}"))
    yield Command(("patch", tree, pair))
    yield Command(("patch", tree, "--revert"))
    yield Command(("build", tree, pair))
    yield Command(("editor", tree, pair))
    yield Command((*run, "--on=host"), _NOT_BUILT)
    yield Command((*run, f"--dev={NEAR}"), _NOT_BUILT)
    yield Command((*run, "--on=netns"), _NOT_BUILT)
    yield Command(("verify", mine, real), _NOT_BUILT)
    yield Command(("filter.load", "lo", real, "--for=1s"), _NOT_BUILT)
    yield Command(("filter.load", "lo", real, "--stay", "--for=1s"), _NOT_BUILT)
    yield Command(("filter.unload",), "no filter is loaded")
    yield Command(("detach",))
    yield Command(("detach", "--on=netns"))
    yield Command(("status",))
    yield Command(("lab", "--command=sleep 0.3"))
    yield Command(("log", "--all", "--duration=0.3"))
    yield Command(("kernels", "--offline"))
    yield Command(("clean",))


@dataclass(frozen=True, slots=True)
class Together:
    """Commands, two by two, in one workspace and on the same interfaces."""

    grounds: tuple[Ground, Ground]  # one place, whose processes are told from each other
    commands: Sequence[Command]
    template: Path  # of the workspace, and of a small tree and a pair beside it

    def once(self, rng: Random) -> Try:
        """Two commands, the second a little later; and all is as it was when it is cleaned."""
        first, second = (rng.choice(self.commands) for _ in range(2))
        wait = rng.random() ** 2
        here = self._lay()
        before = self.grounds[0].traces()
        with (
            self.grounds[0].started(*invoke(*first.words)) as one,
            _later(wait),
            self.grounds[1].started(*invoke(*second.words)) as other,
        ):
            finding = self._told(first, one) or self._told(second, other)
            said = one.last_words() + other.last_words()
        with self.grounds[0].started(*invoke("clean", "--trees")) as clean:
            code = clean.running.wait(_PATIENCE)
            if code and not finding:
                finding = Finding(f"invoke clean ended with {code}", (), clean.last_words())
        finding = finding or self._as_found(here, said)
        finding = finding or self.grounds[0].compare(before, lambda: said)
        return Try(" beside ".join(sorted((first.kind, second.kind))), "", finding)

    @staticmethod
    def _told(command: Command, subject: Subject) -> Finding | None:
        try:
            code = subject.running.wait(_PATIENCE)
        except TimeoutError:
            return Finding(f"{command.kind} does not end", (), subject.last_words())
        said = subject.last_words()
        refused = "error: " in said and re.search(f"{_WHO.pattern}|{command.refusals}", said)
        if code and not refused:
            return Finding(f"{command.kind} ended with {code}, and doesn't say who", (), said)
        return None

    def _lay(self) -> Path:
        here = self.grounds[0].workspace.root.parent
        for name in ("workspace", "linux", "pair"):
            shutil.rmtree(here / name, ignore_errors=True)
            shutil.copytree(self.template / name, here / name, symlinks=True)
        return here

    def _as_found(self, here: Path, said: str) -> Finding | None:
        """Once it is cleaned, the tree and the pair are as they were found."""
        for name in ("linux", "pair"):
            expected, found = (halfway.contents(one / name) for one in (self.template, here))
            if expected != found:
                changed = dict(expected.items() ^ found.items())
                return Finding(f"{name} is not as it was found", tuple(sorted(changed)), said)
        return None


@contextlib.contextmanager
def _later(seconds: float) -> Iterator[None]:
    time.sleep(seconds)
    yield


@contextlib.contextmanager
def opened(means: Means) -> Iterator[Ordeal]:
    """A workspace with samples that can be run, and a small tree."""
    with (
        made(means, programs.NAMES) as ground,
        somebody_elses(ground, builds := built(means, ground, (MINE, FILTER))),
    ):
        here = ground.workspace.root.parent
        (ground.workspace.root / "foreign-trees.json").unlink()  # nobody is to clean the real one
        remote = small.repository(here / "remote", means.shell)
        template = here / "template"
        small.tree(template / "linux")
        small.pair(template / "pair")
        shutil.copytree(ground.workspace.root, template / "workspace", symlinks=True)
        other = replace(ground, mark=f"{ground.mark}-other")
        together = Together((ground, other), list(_commands(here, remote, builds)), template)
        yield Ordeal(Name.TOGETHER, 3, together.once)
