"""Trees out of git over a wire that breaks, hangs, or leads to something else."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused, make_fake_tree, processes_in, wait_until
from support import git

from xdplab.errors import CommandFailed, NotToBeHad, Unreachable
from xdplab.process import Shell
from xdplab.sources import git as source
from xdplab.version import KernelVersion

FILES = 60  # that are wanted, and that zlib can't make smaller, beside the small tree's


# ---- a server of git's own protocol, which can be told to misbehave


@dataclass
class Wire:
    """A wire to the repositories of a directory, and what came over it."""

    base: Path
    address: str = ""
    cut: int | None = None  # it breaks after so many bytes
    mute: bool = False  # it takes a connection, and says nothing
    sent: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def url(self, name: str = "linux") -> str:
        return f"{self.address}/{name}"

    def mend(self) -> None:
        """Let all through, and count anew."""
        self.cut, self.sent = None, 0

    def serve(self, connection: socket.socket) -> None:
        """Take one request as git-daemon(1) does, and let git-upload-pack(1) answer."""
        length = int(connection.recv(4, socket.MSG_WAITALL), 16)
        request, _, extra = connection.recv(length - 4, socket.MSG_WAITALL).partition(b"\0")
        if self.mute:
            self.over.wait()
            return
        with subprocess.Popen(
            ["git", "upload-pack", self.base / request.decode().partition(" /")[2]],
            env={**os.environ, "GIT_PROTOCOL": extra.rpartition(b"\0\0")[2].strip(b"\0").decode()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            threading.Thread(target=self._ask, args=(connection, process), daemon=True).start()
            self._answer(process, connection)
            process.kill()

    @staticmethod
    def _ask(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        with contextlib.suppress(OSError, ValueError), process.stdin:
            while some := connection.recv(2**16):
                process.stdin.write(some)
                process.stdin.flush()

    def _answer(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        assert process.stdout
        with contextlib.suppress(OSError):
            while some := os.read(process.stdout.fileno(), 2**16):
                left = None if self.cut is None else self.cut - self.sent
                connection.sendall(some[:left])
                self.sent += len(some[:left])
                if self.sent == self.cut:
                    break
            connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire(repositories: Path) -> Iterator[Wire]:
    wire = Wire(repositories)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            wire.serve(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        wire.address = f"git://127.0.0.1:{server.server_address[1]}"
        yield wire
        wire.over.set()
        server.shutdown()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`linux`, a `shallow` clone of it, a `plain` one without filters, and `nothing`."""
    base = tmp_path_factory.mktemp("repositories")
    linux = make_fake_tree(base / "linux")
    for number in range(FILES):
        noise = (hashlib.sha512(bytes([number, i])).digest() for i in range(64))
        (linux / f"samples/bpf/noise{number}.h").write_bytes(b"".join(noise))
    git(linux, "init", "--initial-branch=master")
    git(linux, "add", "--all")
    for tag in ("v6.0", "v6.1"):
        git(linux, "commit", "--allow-empty", "--message", tag)
        git(linux, "tag", tag)
    git(base, "clone", "--bare", "linux", "plain")
    shallow = ["clone", "--bare", "--depth=1", "--branch=v6.1", f"file://{linux}", "shallow"]
    git(base, *shallow)
    for repository in (linux, base / "shallow"):
        git(repository, "config", "uploadpack.allowFilter", "true")
        git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    (base / "nothing").mkdir()
    return base


Fetch = Callable[..., list[str]]


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    """Fetches into the same directory every time; gives what was told besides the check."""

    def fetch(url: str, version: str = "v6.1") -> list[str]:
        told: list[str] = []
        path, store = tmp_path / "tree", tmp_path / "store"
        checked = source.fetch(
            KernelVersion.parse(version), url, path, store, Shell(), no_report, told.append
        )
        told.remove(checked)  # tests/trust/test_origin.py tries what that says
        assert git(path, "status", "--porcelain") == ""
        assert len(list(path.glob("samples/bpf/noise*"))) == FILES
        return told

    return fetch


def no_report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def whole(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many bytes the wanted files' contents are."""
    names = git(repositories / "linux", "ls-files", "samples/bpf").split()
    return sum((repositories / "linux" / name).stat().st_size for name in names)


# ---- it breaks


@pytest.mark.parametrize("share", [0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.5, 0.9])
def test_a_fetch_goes_on_where_the_wire_broke(
    wire: Wire, fetch: Fetch, whole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:  # fmt: skip
    monkeypatch.setattr(source, "_BATCH", FILES // 6)
    wire.cut = 1 + int(share * whole)
    with pytest.raises(Unreachable) as broken:
        fetch(wire.url())
    assert wire.url() in broken.value.message
    assert "again" in broken.value.cure
    assert ("is kept" in broken.value.cure) == (tmp_path / "store/HEAD").exists()
    wire.mend()
    assert fetch(wire.url()) == []
    # what is lost is a batch, and the commit comes once more if that was it
    assert wire.sent < (1 - share + 0.3) * whole


def test_a_wire_that_breaks_is_one_error_and_the_same_command_goes_on(
    invoke: Invoke, wire: Wire, whole: int
) -> None:
    command = ("setup", "--kernel=v6.1", "--source=git", "--remote", wire.url())
    wire.cut = whole // 2
    assert_refused(invoke(*command), 69, wire.url(), "do it again")
    assert not list(invoke.workspace.glob("trees/*/Makefile"))
    wire.mend()
    outcome = invoke(*command)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("cut", range(50, 450, 50))
def test_a_wire_that_breaks_while_a_missing_tag_is_looked_for(
    wire: Wire, fetch: Fetch, cut: int, tmp_path: Path
) -> None:
    wire.cut = cut
    with pytest.raises((Unreachable, NotToBeHad)):
        fetch(wire.url(), "v6.7")
    assert not list(tmp_path.iterdir())


def test_a_repository_that_was_damaged_while_nobody_is_there_to_mend_it(
    wire: Wire, fetch: Fetch, tmp_path: Path
) -> None:
    fetch(wire.url())
    for pack in tmp_path.glob("store/objects/pack/*"):
        pack.unlink()
    with pytest.raises((Unreachable, CommandFailed)):
        fetch("git://127.0.0.1:1/linux")
    fetch(wire.url())


# ---- it hangs, or nobody is there


def test_a_server_that_never_answers_is_given_up(
    wire: Wire, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_PATIENCE", 1.0)
    wire.mute = True
    with pytest.raises(Unreachable, match="nothing came for 1 seconds"):
        fetch(wire.url())
    wait_until(lambda: not processes_in(tmp_path))
    wire.mute = False
    fetch(wire.url())


@pytest.mark.parametrize("scheme", ["git", "http"])
def test_a_server_that_is_not_there(fetch: Fetch, scheme: str) -> None:
    with pytest.raises(Unreachable, match=r"[Cc]onnect"):
        fetch(f"{scheme}://127.0.0.1:1/linux")


def test_a_directory_that_is_no_repository(wire: Wire, fetch: Fetch) -> None:
    with pytest.raises(Unreachable) as none:
        fetch(wire.url("nothing"))
    assert wire.url("nothing") in none.value.message


@pytest.mark.parametrize("page", [True, False], ids=["a page", "nothing"])
def test_a_web_server_that_has_no_repository(fetch: Fetch, tmp_path: Path, page: bool) -> None:
    place = tmp_path / "web/linux/info"
    place.mkdir(parents=True)
    if page:
        (place / "refs").write_text("<!DOCTYPE html>\n<title>Sign in</title>\n")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Unreachable) as none:
            fetch(f"http://127.0.0.1:{server.server_port}/linux")
        server.shutdown()
    assert none.value.message.split("can't be reached: ")[1].startswith("fatal: ")


# ---- it is another kind of repository


def test_a_server_without_filters_will_do_and_is_told_of(wire: Wire, fetch: Fetch) -> None:
    (told,) = fetch(wire.url("plain"))
    assert told.startswith(f"{wire.url('plain')} knows no partial clones")


def test_a_shallow_repository_has_what_it_has(wire: Wire, fetch: Fetch) -> None:
    assert fetch(wire.url("shallow")) == []


def test_a_shallow_repository_lacks_the_rest(wire: Wire, fetch: Fetch) -> None:
    with pytest.raises(NotToBeHad, match=r"has no v6\.0; it has v6\.1$"):
        fetch(wire.url("shallow"), "v6.0")
