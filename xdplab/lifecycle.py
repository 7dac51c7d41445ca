"""What runs now, how to end it, and how to take back all that was changed."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xdplab import damage, editor, footprint, netlink, patching, testbed, tracing
from xdplab.boot.guest import LOGGED, READ_LOG, in_guest
from xdplab.errors import (
    LogsNothing,
    NoSuchInterface,
    NotBuiltYet,
    NothingRuns,
    NotOurs,
    NoTracing,
    StillAttached,
)
from xdplab.files import locked
from xdplab.logs import Tail
from xdplab.netlink import IP_LINK_WORDS, Attached
from xdplab.packets import Pinged
from xdplab.process import Shell
from xdplab.testbed import door, kernel_log
from xdplab.testbed.local import LOOPBACK
from xdplab.testbed.netns import join
from xdplab.tracing import Log, Logged
from xdplab.tree import Tree
from xdplab.trees import fetched, foreign
from xdplab.workspace import PROJECT, RunRecord, Workspace, boot_id

# Testbeds whose network is ours alone, and what a run in one ends with.
PRIVATE = {"netns": "network namespace", "vm": "virtual machine"}

LAB = "lab"  # in its record, where a run's has its testbed
NOT_OURS = "not attached by this harness"

_TO_SIGN = 1.0  # seconds for who has attached a program to have that on record
_PATIENCE = 5.0  # seconds for a filter to be gone after it was told to


@dataclass(frozen=True, slots=True)
class Status:
    """A program on an interface, and the run it belongs to, if it is one of ours."""

    attached: Attached
    record: dict[str, Any] | None
    alive: bool  # whether its process is there

    def words(self) -> str:
        """Whose it is, for people."""
        if not self.record:
            return NOT_OURS
        if not self.alive:
            return f"ours, tag {self.record['tag']}, left behind by a process that is gone"
        since = time.strftime("%T", time.localtime(self.record["started"]))
        return f"ours, tag {self.record['tag']}, {purpose(self.record)} since {since}"


def holder(one: Attached, workspace: Workspace) -> str:
    """Who has attached a program to an interface of the host, and since when, for people.

    Who has just done so may not have it on record yet.
    """
    deadline = time.monotonic() + _TO_SIGN
    while not (ours := _record_of(one, workspace)):
        if time.monotonic() > deadline:
            return NOT_OURS
        time.sleep(0.05)
    fields = ours.read()
    since = time.strftime("%F %T", time.localtime(fields["started"]))
    left = "" if fields.get("stays") or _alive(ours) else ", and left behind"
    return f"by process {fields['pid']} ({purpose(fields)}), since {since}{left}"


def purpose(run: Mapping[str, Any]) -> str:
    """What a run does, by its record."""
    return f"filters {run['ip']}" if run["ip"] else f"runs {run['build']['sample']}"


def status(workspace: Workspace, dev: str | None = None) -> list[Status]:
    """Every XDP program on the host's interfaces."""
    found = []
    for one in netlink.attached(dev):
        record = _record_of(one, workspace)
        fields = record.read() if record else {}
        alive = bool(record and (fields.get("stays") or _alive(record)))
        found.append(Status(one, fields or None, alive))
    return found


def _record_of(one: Attached, workspace: Workspace) -> RunRecord | None:
    """The record of the run that has attached a program, if it is ours."""
    records = _open_records(workspace, "host")
    return next((r for r in records if r.read()["program"] == one.program), None)


def running_in(where: str, workspace: Workspace) -> list[dict[str, Any]]:
    """The runs in a private testbed that are under way, the newest first."""
    return [record.read() for record in under_way(where, workspace)]


def under_way(where: str, workspace: Workspace) -> Iterator[RunRecord]:
    """The records of the runs in a testbed that are under way, the newest first."""
    return filter(_alive, _open_records(workspace, where))


def attached_in(where: str, dev: str, workspace: Workspace, shell: Shell) -> list[Attached]:
    """The XDP programs on an interface, as the kernel of a testbed shows them.

    In a private one, where the newest run is: none if there is no run.
    """
    if where not in PRIVATE:
        return netlink.attached(dev)
    record = next(under_way(where, workspace), None)
    if not record:
        return []
    if where == "vm":
        return [Attached(**one) for one in door.knock(record.path.parent, "attached", dev)]
    with join(shell, workspace, record.read()["netns"]) as bench:
        return bench.attached(dev)


def _open_records(workspace: Workspace, where: str) -> Iterator[RunRecord]:
    """The runs of this boot that have not ended in an orderly way."""
    for record in workspace.runs():
        fields = record.read()
        if (
            fields.get("on") == where
            and fields.get("boot") == boot_id()
            and not fields.get("ended")
        ):
            yield record


def _alive(record: RunRecord) -> bool:
    """Whether the run's process is still that process, and not another of its number."""
    fields = record.read()
    try:
        command = Path(f"/proc/{fields['pid']}/cmdline").read_bytes()
    except OSError:
        return False
    return str(fields["binary"]).encode() in command


def _dead(record: RunRecord) -> bool:
    return not _alive(record)


@contextlib.contextmanager
def sender_in(
    where: str, workspace: Workspace, shell: Shell
) -> Iterator[tuple[Callable[[str, str, int], Pinged], str]]:
    """What sends packets, on the host or where the newest private run is, and their usual target.

    Raises NothingRuns if there is no such run.
    """
    if where not in PRIVATE:
        with testbed.named(where, workspace).open(shell, packets=True) as bench:
            yield bench.ping, LOOPBACK.target
        return
    record = next(under_way(where, workspace), None)
    if not record:
        raise NothingRuns(where)
    fields = record.read()
    if where == "vm":
        knock = partial(door.knock, record.path.parent, "ping")
        yield lambda *what: Pinged(**knock(*what)), fields["target"]
        return
    with join(shell, workspace, fields["netns"]) as bench:
        yield bench.ping, LOOPBACK.target


def log(
    where: str,
    workspace: Workspace,
    shell: Shell,
    say: Callable[[str], None],
    seconds: float | None = None,
    *,
    everything: bool = False,
) -> Iterator[Logged]:
    """What the newest run somewhere logs, from now on to its end, or for so many seconds.

    With `everything` also what other programs log; on this machine that needs no run.
    Raises NothingRuns, LogsNothing, NoTracing, SessionLost.
    """
    if where not in PRIVATE:
        testbed.named(where, workspace)
    record = next((r for r in _open_records(workspace, where) if _alive(r)), None)
    if not record and not (everything and where != "vm"):
        raise NothingRuns(where)
    if record and not everything:
        require_log(record.read()["build"], workspace)
    if shell.dry:
        shell.run([in_guest(READ_LOG)] if where == "vm" else kernel_log.reader(shell))
        return
    formats = record.read()["build"].get("logs") if record else None
    ours = Log(formats or [], everything=everything)
    alive = partial(_alive, record) if record else lambda: True
    with contextlib.ExitStack() as stack:
        if record and where == "vm":
            new = _guest_log(record)
        else:
            reading = kernel_log.KernelLog.opened(shell)
            stack.callback(reading.running.end)
            for remark in reading.remarks:
                say(remark)
            new = reading.new
        say("following it until the run ends, or Ctrl-C" if record else "following it until Ctrl-C")
        yield from filter(None, map(ours.take, kernel_log.followed(new, alive, seconds)))


def _guest_log(record: RunRecord) -> Callable[[], list[str]]:
    """What gives the new lines of a guest's log; whoever runs the guest writes them down."""
    tail = Tail(record.log)
    tail.lines(last=False)
    said = door.knock(record.path.parent, "log")
    if said:
        raise NoTracing(said)

    def new() -> list[str]:
        lines = tail.lines(last=False)
        return [line.removeprefix(LOGGED) for line in lines if line.startswith(LOGGED)]

    return new


def require_log(facts: Mapping[str, Any], workspace: Workspace) -> None:
    """Raise LogsNothing, with the command that helps, if a build's kernel half doesn't log."""
    if facts.get("logs") is not None:
        return
    kern = facts["sources"][0]
    if facts["trace"] and "logs" in facts:
        raise LogsNothing(facts["sample"], f"call bpf_printk() in {kern}, and build it again")
    options = [] if facts["tree"] == str(workspace.current_tree()) else [f"--tree={facts['tree']}"]
    options += [] if Path(kern).parent == PROJECT else [f"--sample={kern}"]
    command = shlex.join(["invoke", "build", "--trace", *options])
    raise LogsNothing(facts["sample"], f"{command}\nand run it again; {tracing.COST}")


def end_private(where: str, workspace: Workspace, shell: Shell) -> list[str]:
    """End the runs in a private testbed; gives what was done."""
    done = []
    for record in under_way(where, workspace):
        _end(record, shell)
        _wait_until(partial(_dead, record))
        done.append(f"program {record.read()['program']} and its {PRIVATE[where]} are gone")
    return done


def end_labs(workspace: Workspace, shell: Shell) -> list[str]:
    """End the labs, with all that is in them; gives what was done."""
    done = []
    for record in under_way(LAB, workspace):
        fields = record.read()
        shell.run(shell.as_root(["kill", "-TERM", str(fields["pid"])], "ending a lab"))
        if not shell.dry and _wait_until(partial(_dead, record)):
            done.append(f"the lab with {fields['hosts']} hosts is gone")
    return done


def _end(record: RunRecord, shell: Shell) -> None:
    """End a run in an orderly way: its program detaches."""
    fields = record.read()
    if fields["on"] != "vm":
        _interrupt(fields, shell)
    elif not shell.dry:
        door.knock(record.path.parent, "stop")


def _interrupt(fields: dict[str, Any], shell: Shell) -> None:
    argv = ["kill", "-INT", str(fields["pid"])]
    shell.run(shell.as_root(argv, "detaching an XDP program"))


def detach(dev: str, workspace: Workspace, shell: Shell) -> list[str]:
    """End our filter on an interface of the host, or remove what one left there.

    Gives what was done.  Only programs of ours are touched: raises NotOurs for
    another, StillAttached if it would not go.
    """
    if dev not in netlink.interfaces():
        raise NoSuchInterface(dev, netlink.interfaces())
    done = []
    for one in status(workspace, dev):
        program, word = one.attached.program, IP_LINK_WORDS[one.attached.mode]
        if not one.record:
            raise NotOurs(dev, program, word)
        if "unload" in one.record:  # a packet filter: on all its interfaces, with its maps
            _unload(one.record, shell)
        elif one.alive:
            _interrupt(one.record, shell)
        else:
            # with the mode's own word: a bare "xdp off" can return 0 and leave it there
            argv = ["ip", "link", "set", "dev", dev, word, "off"]
            shell.run(shell.as_root(argv, "detaching an XDP program"))
        if not shell.dry and not _wait_until(partial(_gone, dev, program)):
            raise StillAttached(dev, program)
        done.append(f"program {program} is off {dev}")
    return done


def _unload(fields: dict[str, Any], shell: Shell) -> None:
    """End a packet filter by its own program; raises NotBuiltYet if that was removed."""
    facts = fields["build"]
    if not Path(fields["binary"]).exists():
        options = [f"--sample={facts['sample']}", f"--tree={facts['tree']}"]
        raise NotBuiltYet(facts["sample"], facts["version"], options)
    shell.run(shell.as_root(fields["unload"], "ending an XDP filter"))


def _gone(dev: str, program: int) -> bool:
    return all(one.program != program for one in netlink.attached(dev))


def _wait_until(reached: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def clean(workspace: Workspace, shell: Shell, *, trees: bool) -> list[str]:
    """End our filters, take samples and patches out of every tree, remove builds and runs.

    With `trees` the fetched trees and downloads go too; a tree of the user's
    own is never removed.  Gives what was done.  Raises CannotRevert, and Held if somebody
    is at work.
    """
    done = []
    for one in status(workspace):
        if one.record:
            done += detach(one.attached.dev, workspace, shell)
    for where in PRIVATE:
        done += end_private(where, workspace, shell)
    done += end_labs(workspace, shell)
    if any(_logged_here(record) for record in workspace.runs()):
        shell.run(kernel_log.reader(shell, "sweep"), check=False)
    for tree in [*foreign(workspace), *([] if trees else fetched(workspace))]:
        with tree.locked(dry=shell.dry):
            if shell.dry:
                shell.echo(f"invoke patch --revert --tree {tree.path}")
                continue
            done += as_found(tree)
    done += editor.remove(workspace, shell)
    with contextlib.ExitStack() as stack:  # what is being fetched stays, or nobody cleans
        for lock in workspace.root.glob("locks/*/lock"):
            stack.enter_context(locked(lock, dry=shell.dry))
        done += _remove(workspace, shell, trees=trees)
    return done


def _remove(workspace: Workspace, shell: Shell, *, trees: bool) -> list[str]:
    """Remove what is ours in the workspace; gives what was done."""
    done = []
    ours = ["builds", "runs", "matrix", "bench", "torture", "tools", "locks"]
    ours += ["foreign-trees.json", "compilers.json", "exercises.json", "tutorial.json"]
    ours += ["trees", "git", "kernels", "downloads", "apt", "release", "current"] if trees else []
    for path in (workspace.root / name for name in ours):
        if path.exists():
            shell.echo(f"rm -r {path}")
            if shell.dry:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            done.append(f"removed {path}")
    with contextlib.suppress(OSError):  # there is more in it, or it was never there
        workspace.root.rmdir()
    return done


def _logged_here(record: RunRecord) -> bool:
    """Whether a run's log may have been read on this machine, by a reader that was killed."""
    fields = record.read()
    return fields.get("on") != "vm" and bool(fields.get("build", {}).get("logs"))


def revert(tree: Tree, *, dry: bool = False) -> list[str]:
    """Take back what was done to the tree's own files, the last first; gives what was done.

    Raises CannotRevert.
    """
    done = [f"reverted {tree.path / name}" for name in patching.revert(tree, dry=dry)]
    restored, kept = damage.revert(tree, dry=dry)
    if restored:
        done.append(f"brought {restored} mended files of {tree.path} back to what they were")
    return done + _left(tree, kept)


def as_found(tree: Tree) -> list[str]:
    """Revert all changes of a tree, and remove what builds left in it."""
    done = revert(tree)
    removed, kept = footprint.remove(tree)
    if removed:
        done.append(f"removed {removed} files that builds left in {tree.path}")
    tree.forget()
    return done + _left(tree, kept)


def _left(tree: Tree, kept: Sequence[str]) -> list[str]:
    return [f"left {tree.path / name}: somebody wrote to it since" for name in kept]
