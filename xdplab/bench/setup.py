"""Getting a tree: what comes over the wire, and how long it takes, beside a shallow clone of all.

The current tree is committed to a repository of the bench's own, which is served by
git's own protocol on loopback, so that nothing depends on a server or a line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

from xdplab import footprint, setup
from xdplab.bench.measure import Comparison, Figures, Goal, Means, Way
from xdplab.process import Argv, Shell
from xdplab.sources import git
from xdplab.tree import Origin, Tree
from xdplab.version import KernelVersion
from xdplab.workspace import Workspace

_MB = 1e6
_NAME = "linux.git"
_PATIENCE = 5.0  # seconds for the server to listen
_EVERY = 50  # one file in so many differs in the second version
_WHO = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")


class Wire(socketserver.ThreadingTCPServer):
    """A way to a git-daemon(1) on loopback that counts what comes from it."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.port = port
        self.sent = self.requests = 0

    @property
    def url(self) -> str:
        """Where the repository is to be had through it."""
        return f"git://127.0.0.1:{self.server_address[1]}/{_NAME}"


class _Passing(socketserver.BaseRequestHandler):
    server: Wire

    def handle(self) -> None:
        """Pass one request on, and what it brings."""
        self.server.requests += 1
        with socket.create_connection(("127.0.0.1", self.server.port)) as daemon:
            threading.Thread(target=_pass, args=(self.request, daemon), daemon=True).start()
            for count in _passed(daemon, self.request):
                self.server.sent += count


def _pass(source: socket.socket, sink: socket.socket) -> None:
    for _ in _passed(source, sink):
        pass


def _passed(source: socket.socket, sink: socket.socket) -> Iterator[int]:
    """Pass on what comes, to its end; gives how many bytes, as they go."""
    with contextlib.suppress(OSError):  # one of the two is gone
        while some := source.recv(2**20):
            sink.sendall(some)
            yield len(some)
        sink.shutdown(socket.SHUT_WR)


def comparisons(means: Means) -> Generator[Comparison]:
    """A tree from a remote, by git alone and by us; raises NoTree if there is none to serve."""
    tree = means.tree()
    if tree.origin is Origin.GIT:
        why = "the current tree has not all files: invoke setup --source distro"
        yield Comparison("a tree", (Way("a shallow clone", dict, skipped=why),))
        return
    means.workspace.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=means.workspace.root) as name:
        scratch = Path(name)
        means.say(f"committing {tree.path} to a repository that is served on loopback")
        first = KernelVersion(tree.version.major, tree.version.minor)
        second = replace(first, minor=first.minor + 1)
        _commit(tree, scratch / _NAME, first.tag, second.tag, means.shell)
        with _serving(scratch / _NAME, means.shell) as wire:
            yield _comparison(means, wire, first, second, scratch)


def _comparison(
    means: Means, wire: Wire, first: KernelVersion, second: KernelVersion, scratch: Path
) -> Comparison:
    clone = ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", "--depth=1",
             f"--branch={first.tag}"]  # fmt: skip
    trees, store = scratch / "trees", scratch / "store"

    def cleared() -> None:
        for path in (trees, store, scratch / "workspace"):
            shutil.rmtree(path, ignore_errors=True)
        os.sync()  # what one way wrote isn't for the next to wait for

    def cloned(*options: str) -> Callable[[], Path]:
        def run() -> Path:
            place = trees / "clone"
            means.shell.run([*clone, *options, wire.url, place])
            return place

        return run

    def fetched(version: KernelVersion) -> Path:
        place = trees / version.tag
        git.fetch(version, wire.url, place, store, means.shell, _unheard, means.say)
        return place

    def set_up() -> Path:
        wanted = setup.Wanted(first, setup.Source.GIT, remote=wire.url)
        workspace = Workspace(scratch / "workspace")
        tools = means.toolchain()
        setup.obtain(wanted, workspace, tools, means.shell, _unheard, lambda _: None, means.say)
        return workspace.trees / wanted.name

    def one_before() -> None:
        cleared()
        fetched(first)
        os.sync()

    def way(
        name: str, do: Callable[[], Path], how: str, ready: Callable[[], object] = cleared
    ) -> Way:
        return Way(name, lambda: _taken(wire, do), how, ready)

    floor = "a shallow clone"
    ours, again = "setup's fetch", "a second version in the same workspace"
    return Comparison(
        "a tree",
        (
            way(floor, cloned(), "git clone --depth=1 --branch=TAG URL"),
            way("a blobless clone, all of it checked out", cloned("--filter=blob:none"),
                "git clone --depth=1 --filter=blob:none --branch=TAG URL"),
            way(ours, lambda: fetched(first), "invoke setup --source git --remote URL"),
            way(again, lambda: fetched(second), "the same with another --kernel", one_before),
            way("setup, headers and configuration included", set_up,
                "invoke setup --source git --remote URL"),
        ),
        (
            Goal(ours, "MB on the wire", 0.04),
            Goal(ours, "s", 0.06),
            Goal(again, "MB on the wire", 0.5, than=ours),
        ),
        rounds=2,
        note=f"served by git's own protocol on loopback; in the second version one file in {_EVERY}"
        " differs",
    )  # fmt: skip


def _taken(wire: Wire, do: Callable[[], Path]) -> Figures:
    sent, requests, began = wire.sent, wire.requests, time.monotonic()
    place = do()
    took = time.monotonic() - began
    names = (path.relative_to(place).parts for path in place.rglob("*") if path.is_file())
    files = sum(".git" not in parts for parts in names)
    return {
        "s": took,
        "MB on the wire": (wire.sent - sent) / _MB,
        "requests": wire.requests - requests,
        "files": files,
    }


def _unheard(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Nobody listens to a fetch of the bench's."""


@contextlib.contextmanager
def _serving(repository: Path, shell: Shell) -> Iterator[Wire]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv: Argv = ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", "--export-all",
            f"--base-path={repository.parent}", repository]  # fmt: skip
    with shell.start(argv), Wire(port) as wire:
        _await(port)
        thread = threading.Thread(target=wire.serve_forever, daemon=True)
        thread.start()
        try:
            yield wire
        finally:
            wire.shutdown()
            thread.join()


def _await(port: int) -> None:
    """Wait until somebody listens; whoever asks later learns it if nobody does."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)


def _commit(tree: Tree, repository: Path, first: str, second: str, shell: Shell) -> None:
    """Make a repository of the tree's own files, in two versions, that serves partial clones."""
    at = ["git", f"--git-dir={repository}", f"--work-tree={tree.path}", *_WHO]
    shell.run(["git", "init", "--quiet", "--bare", repository])
    for name in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        shell.run([*at, "config", name, "true"])
    made = set(footprint.made(tree))
    names = sorted(
        name for name in footprint.names_below(tree, [""]) - made if not name.endswith("/")
    )
    # "big" files go into one pack as they are read, the way a server has them
    add = ["-c", "core.bigFileThreshold=1", "update-index", "--add", "-z", "--stdin"]
    shell.feed([*at, *add], "\0".join(names) + "\0")
    shell.run([*at, "commit", "--quiet", "--message", "first"])
    shell.run([*at, "tag", first])
    with tempfile.TemporaryDirectory() as scratch:
        changed = names[::_EVERY]
        for name in changed:
            if (tree.path / name).is_file():
                path = Path(scratch, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((tree.path / name).read_bytes() + b"\n")
        there = [name for name in changed if Path(scratch, name).exists()]
        shell.feed(["git", f"--git-dir={repository}", f"--work-tree={scratch}", *_WHO,
                    "update-index", "-z", "--stdin"], "\0".join(there) + "\0")  # fmt: skip
    shell.run([*at, "commit", "--quiet", "--message", "second"])
    shell.run([*at, "tag", second])
