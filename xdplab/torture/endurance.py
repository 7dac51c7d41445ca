"""Promise 8, endurance: a run with packets all the time, as long as the torture lasts.

One run goes on through all tries.  Of it nothing may grow: a reading takes about a kilobyte
while it is on its way, and some twenty come in a second, so whoever kept them, or a line of
each, would grow by megabytes in minutes, where what is allowed is for allocators and caches.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from xdplab import TUTORIAL, formats, logs
from xdplab.bench.measure import Means
from xdplab.errors import LabError, NotToBeHad
from xdplab.sending import live_frames
from xdplab.testbed.netns import FAR, NEAR
from xdplab.torture import Name
from xdplab.torture.ground import Ground, Subject, invoke, made
from xdplab.torture.ordeal import Finding, Ordeal, Try
from xdplab.torture.programs import built
from xdplab.traffic import Proto, Recipe

SECONDS = 10.0  # of sending, in a try
SOURCE, TARGET = "10.0.9.2", "10.0.9.1"
INTERVAL = 0.05  # seconds between readings
GROWTH = {"Python": 8 * 2**10, "the binary": 2**10}  # KiB of resident memory since the warm-up
_WARM = 2  # tries
_KEPT = 3 * logs.PART + formats.MOST * 1024  # bytes of a run's directory, at most
_PATIENCE = 60.0  # seconds for a count to be told


@dataclass(frozen=True, slots=True)
class Size:
    """What a process takes."""

    kib: int  # of memory, resident
    files: int  # that it has open

    @classmethod
    def of(cls, pid: int) -> Size:
        """Raise OSError if it is gone."""
        status = Path(f"/proc/{pid}/status").read_text()
        resident = re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)
        return cls(
            int(resident[1]) if resident else 0, len(list(Path(f"/proc/{pid}/fd").iterdir()))
        )


@dataclass(slots=True)
class Endurance:
    """A run that goes on, and what was sent to it so far."""

    ground: Ground
    run: Subject
    frame: bytes
    seconds: float = SECONDS
    patience: float = _PATIENCE
    sent: int = 0
    tries: int = 0
    total: int = -1  # of the last reading
    warm: dict[str, Size] = field(default_factory=dict)

    def once(self, _: Random) -> Try:
        """Send for some seconds; all of it was counted, and nothing has grown."""
        self.tries += 1
        how = ""
        try:
            for news in self.ground.bench.send(
                FAR, [self.frame], rate=None, count=0, seconds=self.seconds, fast=True
            ):
                how, number = news.how, news.sent
            self.sent += number
            finding = self._miscounted() or self._grown()
        except (LabError, OSError) as error:
            finding = Finding(f"the run has ended: {error}", said="\n".join(self.run.said[-20:]))
        return Try(f"a run on a cable, {how} for {self.seconds:.0f} s", finding=finding)

    def _miscounted(self) -> Finding | None:
        deadline = time.monotonic() + self.patience
        with contextlib.suppress(TimeoutError):
            for line in self.run.running.lines(self.patience):
                if line.stream == "out" and line.text.startswith("{"):
                    self.total = int(json.loads(line.text)["total"])
                else:
                    self.run.said.append(line.text)
                if self.total == self.sent or time.monotonic() > deadline:
                    break
        if self.total == self.sent:
            return None
        return Finding(f"{self.sent} frames were sent, and {self.total} counted")

    def sizes(self) -> dict[str, Size]:
        """Of who watches and of who counts."""
        pids = {"Python": self.run.harness}
        for pid, words in self.ground.processes().items():
            if Path(words[0]).name == TUTORIAL:
                pids["the binary"] = pid
        return {who: Size.of(pid) for who, pid in pids.items() if pid}

    def _grown(self) -> Finding | None:
        now = self.sizes()
        if now.keys() != GROWTH.keys():
            return Finding(f"of the run only {', '.join(now) or 'nothing'} is left")
        if self.tries <= _WARM:
            self.warm = now
        wrong = [
            f"{who}: {self.warm[who]}, and after {self.tries} tries {size}"
            for who, size in now.items()
            if size.kib > self.warm[who].kib + GROWTH[who] or size.files > self.warm[who].files
        ]
        files = [one for one in self.ground.workspace.root.glob("runs/*/*") if one.is_file()]
        if (kept := sum(one.stat().st_size for one in files)) > _KEPT:
            wrong.append(f"the run's directory: {kept} bytes")
        return Finding("something grows", tuple(wrong)) if wrong else None


@contextlib.contextmanager
def opened(means: Means) -> Iterator[Ordeal]:
    """A run at the end of a cable; raises NotToBeHad before v5.18, which has no live frames."""
    if not live_frames():
        raise NotToBeHad("live frames", "this kernel", ["v5.18 and later"], "boot a newer one")
    with made(means) as ground, begun(means, ground) as endurance:
        yield Ordeal(Name.ENDURANCE, 8, endurance.once)


@contextlib.contextmanager
def begun(means: Means, ground: Ground) -> Iterator[Endurance]:
    """The run, attached; it ends with the block."""
    built(means, ground, (TUTORIAL,))
    ground.bench.ask("lay_cable", ends=(NEAR, FAR), napi=True)
    recipe = Recipe(SOURCE, TARGET, Proto.UDP)
    frame = recipe.frame(ground.bench.outlet(FAR, None))
    options = [f"--dev={NEAR}", "--mode=native", f"--ip={SOURCE}", "--rounds=0", "--json"]
    with ground.started(*invoke("run", f"--interval={INTERVAL}", *options)) as run:
        run.wait_for(re.compile('^{"'), _PATIENCE)
        yield Endurance(ground, run, frame)
