"""Promise 2: what is interrupted, or has no room, leaves nothing that the same command can't mend.

All of it in a tree that is built in a second, on a desk that is laid anew for each try.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from xdplab.bench.measure import Means
from xdplab.errors import CommandFailed
from xdplab.files import sha256
from xdplab.process import pasteable
from xdplab.torture import Name, small
from xdplab.torture.disks import Disk, Quota
from xdplab.torture.ends import ENDS, End
from xdplab.torture.ground import Ground, invoke, made
from xdplab.torture.ordeal import Finding, Ordeal, Try
from xdplab.workspace import Workspace

_PATIENCE = 120.0  # seconds for a command that nobody disturbs
# what isn't the same each time: logs, records of stamps, locks, what git and compilers keep
_VARIES = re.compile(
    r"(.*/)?\.git(/.*)?|workspace/(git|locks|downloads)/.*|workspace/(\w|-)+\.json|.*/made-of\.json"
    r"|(.*/)?\.xdplab/.*|.*\.log|.*/(build|recipe|receipt)\.json|.*/libbpf\.a|.*\.d"
)
_REFUSALS = (2, 69)  # the exit codes of who can't go on, and says why
_KIB = 1024

Contents = dict[str, str]  # a SHA-256 by path


@dataclass(frozen=True, slots=True)
class Deed:
    """A command, and those that must have been before it."""

    kind: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    once: bool = False  # what it has made it refuses to make again


def _deeds(desk: Path, remote: str, tarball: Path) -> Iterator[Deed]:
    tree, pair = f"--tree={desk / 'linux'}", f"--sample={desk / 'pair' / small.PAIR}_kern.c"
    kernel = f"--kernel={small.VERSION}"
    yield Deed("setup", ("setup", tree))
    yield Deed("setup from git", ("setup", kernel, "--source=git", f"--remote={remote}"))
    yield Deed("setup from a tarball", ("setup", kernel, f"--remote={tarball}"))
    yield Deed("patch", ("patch", pair), ("setup",))
    yield Deed("build", ("build", pair), ("setup",))
    yield Deed("editor", ("editor", pair), ("setup",))
    yield Deed("patch --revert", ("patch", "--revert"), ("setup", "build"))
    yield Deed("clean", ("clean",), ("setup", "build", "editor"))
    yield Deed("new", ("new", "other", f"--dir={desk / 'other'}"), once=True)


@dataclass(frozen=True, slots=True)
class Known:
    """A deed that was done once without a disturbance."""

    deed: Deed
    template: Path  # the desk before it
    before: Contents
    after: Contents
    seconds: float  # that it took


@dataclass(frozen=True, slots=True)
class Halfway:
    """Deeds that are disturbed, and then done."""

    ground: Ground
    desk: Path
    full: Sequence[Disk]
    known: Sequence[Known]

    def once(self, rng: Random) -> Try:
        """A deed that is disturbed in one of the ways."""
        known = rng.choice(self.known)
        how = rng.choices([self._ended, self._full, self._read_only], [8, 1, 1])[0]
        return how(known, rng)

    def _ended(self, known: Known, rng: Random) -> Try:
        """Ended at any moment, up to three times before it is let be."""
        end, times = rng.choice(ENDS), rng.choice((1, 1, 2, 3))
        self.lay(known.template)
        finding, moment = None, 0.0
        for _ in range(times):
            moment = rng.random() * known.seconds * 1.1
            finding = finding or self._end(known, end, moment, rng)
        kind = f"{known.deed.kind}: {end.name}"
        part = f"{10 * round(10 * moment / known.seconds)} % of its time"
        return Try(kind, part, finding or self._again(known, self.desk), times)

    def _end(self, known: Known, end: End, moment: float, rng: Random) -> Finding | None:
        with self.ground.started(*invoke(*known.deed.words), wrap=end.wrap(rng)) as subject:
            time.sleep(moment)
            end.how(subject)
            if left := self.ground.wait():
                return Finding("a process is left", tuple(left), subject.last_words())
            wrong = [*_broken(known, self.desk), *_temporary(self.desk)]
            return Finding(wrong[0], tuple(wrong), subject.last_words()) if wrong else None

    def _full(self, known: Known, rng: Random) -> Try:
        """On a disk that takes no more at some moment."""
        disk, room = rng.choice(self.full), rng.randrange(4, 600) * _KIB
        with disk.mounted(known.template) as seen:
            disk.limit(seen, room)
            finding = self._refused(known, seen)
            disk.lift()
            finding = finding or self._again(known, seen)
        left = f"{room // (100 * _KIB)}00 KiB or more left"
        return Try(f"{known.deed.kind}: {disk.name}", left, finding)

    def _read_only(self, known: Known, rng: Random) -> Try:
        """Where nothing can be written."""
        disk = rng.choice(self.full)
        with disk.mounted(known.template) as seen:
            disk.forbid()
            finding = self._refused(known, seen)
            disk.allow()
            finding = finding or self._again(known, seen)
        return Try(f"{known.deed.kind}: read-only", "", finding)

    # ---- what there must be

    def _refused(self, known: Known, desk: Path) -> Finding | None:
        """An error that says what is wrong, if it was not done."""
        code, said = self._done(known.deed)
        if code and (code not in _REFUSALS or "error: " not in said):
            return Finding(f"it ended with {code}, not with an error and its cure", (), said)
        wrong = [*_broken(known, desk), *_temporary(desk)]
        return Finding(wrong[0], tuple(wrong), said) if wrong else None

    def _again(self, known: Known, desk: Path) -> Finding | None:
        """The same command once more, and all is as if nothing had been."""
        code, said = self._done(known.deed)
        different = list(_differences(known.after, contents(desk)))
        if code and (different or not known.deed.once):
            return Finding(f"the same command again ended with {code}", tuple(different), said)
        if different:
            return Finding(f"after the same command again {different[0]}", tuple(different), said)
        return None

    def require(self, deed: Deed) -> None:
        """Do a deed that nobody disturbs; raises CommandFailed."""
        code, said = self._done(deed)
        if code:
            raise CommandFailed(pasteable(["invoke", *deed.words]), code, said)

    def _done(self, deed: Deed) -> tuple[int, str]:
        with self.ground.started(*invoke(*deed.words)) as subject:
            return subject.running.wait(_PATIENCE), subject.last_words()

    # ---- the desk

    def lay(self, template: Path) -> None:
        """Lay the desk as a template has it."""
        shutil.rmtree(self.desk, ignore_errors=True)
        shutil.copytree(template, self.desk, symlinks=True)


# ---- what is on a desk


def contents(desk: Path) -> Contents:
    """All files that are the same each time."""
    found = {}
    for path in desk.rglob("*"):
        name = str(path.relative_to(desk))
        if path.is_file() and not path.is_symlink() and not _VARIES.fullmatch(name):
            found[name] = sha256(path)
    return found


def _differences(expected: Contents, found: Contents) -> Iterator[str]:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            how = "is not as it should be" if name in found and name in expected else (
                "is there" if name in found else "is missing"
            )  # fmt: skip
            yield f"{name} {how}"


def _broken(known: Known, desk: Path) -> Iterator[str]:
    """Records that are no JSON, and files of the tree that are neither old nor new."""
    for path in desk.rglob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            yield f"{path.relative_to(desk)} is a wreck"
    for name, digest in contents(desk).items():
        may_be = (known.before.get(name), known.after.get(name))
        if name.startswith("linux/") and all(may_be) and digest not in may_be:
            yield f"{name} is neither as found nor as patched"


def _temporary(desk: Path) -> Iterator[str]:
    """What was to be there for a moment only."""
    for path in (desk / "tmp").iterdir():
        yield f"tmp/{path.name} is left"
    for path in desk.rglob(".*.????????"):
        if ".git" not in path.parts:
            yield f"{path.relative_to(desk)} is left"


# ---- made


@contextlib.contextmanager
def opened(means: Means) -> Iterator[Ordeal]:
    """A desk with a small tree, and each deed done once."""
    with made(means) as place:
        here = place.scratch.parent
        desk = here / "desk"
        ground = replace(place, workspace=Workspace(desk / "workspace"), scratch=desk / "tmp")
        remote, empty = small.repository(here / "remote", means.shell), here / "empty"
        (empty / "tmp").mkdir(parents=True)
        small.tree(empty / "linux")
        small.pair(empty / "pair")
        tarball = here / f"linux-{small.VERSION}.tar.gz"
        means.shell.run(["tar", "caf", tarball, "linux"], cwd=empty)
        full, quota = Disk("a full disk", ground, desk), Quota("a quota", ground, desk)
        why_not = quota.why_not()
        halfway = Halfway(ground, desk, [full] if why_not else [full, quota], [])
        deeds = {one.kind: one for one in _deeds(desk, remote, tarball)}
        known = [_known(halfway, one, deeds, empty, here / "templates") for one in deeds.values()]
        skipped = {"a quota": why_not} if why_not else {}
        yield Ordeal(Name.HALFWAY, 2, replace(halfway, known=known).once, skipped)


def _known(
    halfway: Halfway, deed: Deed, deeds: Mapping[str, Deed], empty: Path, templates: Path
) -> Known:
    """What becomes of a deed that nobody disturbs; raises CommandFailed."""

    def template(names: tuple[str, ...]) -> Path:
        """The desk after these deeds."""
        path = templates / "-".join(["after", *names]).replace(" ", "-")
        if names and not path.exists():
            halfway.lay(template(names[:-1]))
            halfway.require(deeds[names[-1]])
            shutil.copytree(halfway.desk, path, symlinks=True)
        return path if names else empty

    halfway.lay(before := template(deed.after))
    began = time.monotonic()
    halfway.require(deed)
    seconds = time.monotonic() - began
    return Known(deed, before, contents(before), contents(halfway.desk), seconds)
