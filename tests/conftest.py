"""What the tests that run the real commands share.

Kernel trees are expensive: they are fetched once, by `invoke setup` itself, into
$XDPLAB_TEST_WORKSPACE or a directory in the user's cache, and never built in.
Tests work in copies of them, whose files are hard links.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISDIR

import platformdirs
import pytest

from xdplab import trees
from xdplab.bench.measure import Means
from xdplab.boot import Kernel, choice
from xdplab.boot.qemu import QEMU
from xdplab.damage import EVERY_TREE
from xdplab.errors import CannotRun
from xdplab.process import Shell
from xdplab.toolchain import Toolchain
from xdplab.torture import small
from xdplab.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[1]
KERNELS = ("6.1", "5.10")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
SYSTEM = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
AS_ROOT = {"INVOKE_AS_ROOT": "1"}  # these trees are the tests' own
PATIENCE = 300.0  # seconds: a safety net, not an expectation
CHECKOUT = (
    *("tasks.py", "invoke.yaml", "xdplab", "templates", "patches", "samples"),
    *("xdp_ip_filter_kern.c", "xdp_ip_filter_user.c", "xdp_ip_filter_cases.toml"),
    *("xdp_compat.h", "xdp_attach.h", "xdp_caps.h"),
)


# ---- the command line


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command."""

    code: int
    out: str
    err: str

    def commands(self) -> list[str]:
        """The commands that it echoed."""
        return [line[2:] for line in self.err.splitlines() if line.startswith("$ ")]


class Background:
    """An `invoke` that is under way."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._err: list[str] = []
        self._out: list[str] = []
        self._threads = [
            threading.Thread(target=lines.extend, args=(stream,), daemon=True)
            for lines, stream in ((self._out, process.stdout), (self._err, process.stderr))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def out(self) -> str:
        """Its standard output so far."""
        return "".join(self._out)

    @property
    def err(self) -> str:
        """Its standard error so far."""
        return "".join(self._err)

    def wait_for(self, *words: str) -> None:
        """Wait until it has said all the words, on either stream."""
        wait_until(
            lambda: (
                all(word in self.out + self.err for word in words)
                or self.process.poll() is not None
            )
        )
        said = self.out + self.err
        assert all(word in said for word in words), said

    def interrupt(self) -> Outcome:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> Outcome:
        """Wait for its end."""
        code = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        return Outcome(code, self.out, self.err)


@dataclass(frozen=True, slots=True)
class Invoke:
    """`python -m invoke` in a process of its own, with a workspace of the test's choice."""

    workspace: Path
    cwd: Path = PROJECT

    def __call__(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None,
        under: Sequence[str | Path] = (), timeout: float = PATIENCE,
    ) -> Outcome:  # fmt: skip
        """Run a command to its end; `under`: through another command."""
        with self.start(*arguments, env=env, under=under) as background:
            background.process.wait(timeout)
            return background.wait()

    @contextlib.contextmanager
    def start(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None,
        under: Sequence[str | Path] = (),
    ) -> Iterator[Background]:  # fmt: skip
        """Start a command; it is ended, Ctrl-C first, when the block is left."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("INVOKE_")}
        process = subprocess.Popen(
            [*under, sys.executable, "-m", "invoke", *arguments],
            cwd=self.cwd,
            env=inherited | AS_ROOT | {"INVOKE_WORKSPACE": str(self.workspace)} | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        background = Background(process)
        try:
            yield background
        finally:
            for number in (signal.SIGINT, signal.SIGKILL):
                if process.poll() is None:
                    process.send_signal(number)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(15)


def modules(invoke: Invoke, *asked: str | Path) -> set[str]:
    """The modules that a command imports, as Python tells."""
    told = invoke(*asked, env={"PYTHONPROFILEIMPORTTIME": "1"}).err.splitlines()
    rows = {line.rpartition("|")[2].strip() for line in told if line.startswith("import time:")}
    assert "invoke.program" in rows
    return rows


def assert_refused(outcome: Outcome, code: int, *words: str) -> None:
    """It ended with the code, one line on what is wrong, and what to do about it below."""
    lines = outcome.err.splitlines()
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert outcome.code == code, outcome.err
    assert len(errors) == 1, outcome.err
    assert lines[errors[0] + 1 :][:1], f"no cure: {outcome.err}"
    assert lines[errors[0] + 1].startswith("  ")
    assert "Traceback" not in outcome.out + outcome.err
    for word in words:
        assert word in outcome.err


def wait_until(holds: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until it holds; a safety net ends the wait with a failure."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def snapshot(*directories: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below the directories, with its mode, size (a file's), and time of change."""
    found = {}
    for directory in directories:
        for path in (directory, *directory.rglob("*")):
            stat = path.lstat()
            size = 0 if S_ISDIR(stat.st_mode) else stat.st_size
            found[str(path)] = (stat.st_mode, size, stat.st_mtime_ns)
    return found


def contents(directory: Path) -> dict[str, str]:
    """Every file below a directory, with its SHA-256."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def processes_in(directory: Path) -> list[int]:
    """The processes whose current directory is in a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            where = (entry / "cwd").readlink()
        except OSError:
            continue  # it has ended meanwhile
        if where.is_relative_to(directory):
            found.append(int(entry.name))
    return found


def path_without(directory: Path, *hidden: str, folders: Sequence[str] = ()) -> str:
    """A PATH that leads to all that this one leads to, but for the hidden commands."""
    directory.mkdir()
    for folder in map(Path, folders or os.get_exec_path()):
        for command in folder.iterdir() if folder.is_dir() else ():
            link = directory / command.name
            if command.name not in hidden and not link.is_symlink():
                link.symlink_to(command)
    return str(directory)


def copy_checkout(to: Path) -> Path:
    """A copy of what a command needs of the checkout."""
    to.mkdir(parents=True)
    for name in CHECKOUT:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to / name)
    return to


def copy_pair(to: Path) -> tuple[Path, Path]:
    """A copy of the tutorial's pair, to be edited: its kernel half and its user half."""
    to.mkdir(exist_ok=True)
    kern, user = (
        Path(shutil.copy(PROJECT / f"xdp_ip_filter_{half}.c", to)) for half in ("kern", "user")
    )
    return kern, user


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace that isn't there yet."""
    return tmp_path / "workspace"


@pytest.fixture
def invoke(workspace: Path) -> Invoke:
    """The command line, with a workspace of the test's own."""
    return Invoke(workspace)


# ---- a tree that can be made in no time


FAKE = {
    **dict.fromkeys(EVERY_TREE, ""),
    # $(PAUSE) comes from the environment: a test can stop make where it likes
    "Makefile": """\
        VERSION = 6
        PATCHLEVEL = 1
        SUBLEVEL = 0
        EXTRAVERSION =

        .RECIPEPREFIX = >
        obj := $(M)
        PROGRAM := __attribute__((section("xdp"))) int f(void) { return 0; } \
        char _license[] __attribute__((section("license"))) = "GPL";
        all: $(always-y)
        allnoconfig:
        > @test "$(KCONFIG_ALLCONFIG)" -ef .xdplab/config
        > @cp .xdplab/config .config
        olddefconfig:
        > @echo CONFIG_OF_TODAY=y >> "$(KCONFIG_CONFIG)"
        prepare0: scripts
        > @$(PAUSE)
        > @mkdir -p include/generated
        > @touch include/generated/asm-offsets.h
        scripts:
        > @test -f .config
        $(obj)/%_kern.o: $(obj)/%_kern.c
        > @echo '$(PROGRAM)' | clang --target=bpf -x c -c -o $@ -
        $(obj)/%: $(obj)/%_user.c
        > @cp /bin/true $@
        .PHONY: all allnoconfig olddefconfig prepare0 scripts
        """,
    "Kbuild": "",
    "Kconfig": "",
    "scripts/Makefile": "",
    "drivers/net/loopback.c": "/* no sample needs it */\n",
    "samples/bpf/Makefile": small.SAMPLES,
    "tools/lib/bpf/libbpf.c": "",
    "tools/lib/bpf/bpf_helpers.h": "",
}


def make_fake_tree(path: Path) -> Path:
    """A kernel tree of a few lines, with targets of the right names."""
    small.write(path, {name: textwrap.dedent(text) for name, text in FAKE.items()})
    return path


@pytest.fixture
def fake_tree(tmp_path: Path) -> Path:
    """A small tree of the user's own, not set up yet."""
    return make_fake_tree(tmp_path / "linux")


def give_away(directory: Path) -> None:
    """Let all of it belong to an ordinary user."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A directory that belongs to an ordinary user, who can read the checkout."""
    if os.geteuid() != 0:
        pytest.skip("only root can become an ordinary user")
    home = Path(tempfile.mkdtemp())
    try:
        os.chown(home, 65534, 65534)
        copy_checkout(home / "checkout")
        works = 'test -x "$0" && exec "$0" -c "import invoke, xdplab.view"'
        tried = [*NOBODY, "sh", "-c", works, sys.executable]
        if subprocess.run(tried, cwd=home / "checkout", check=False).returncode:
            pytest.skip("an ordinary user can't reach this checkout's .venv, or its Python")
        make_fake_tree(home / "linux")
        give_away(home / "linux")
        yield home
    finally:
        shutil.rmtree(home)


@pytest.fixture
def with_sudo(tmp_path: Path) -> tuple[str | Path, ...]:
    """The prefix of commands of an ordinary user whom sudo lets do everything."""
    if not shutil.which("sudo"):
        pytest.skip("there is no sudo")
    rule = tmp_path / "sudoers"
    rule.write_text("nobody ALL=(root) NOPASSWD: ALL\n")
    script = 'mount --bind "$0" /etc/sudoers && exec "$@"'  # for this command alone
    return ("unshare", "--mount", "sh", "-c", script, rule, *NOBODY)


# ---- the lab of `invoke lab`


@contextlib.contextmanager
def open_lab(invoke: Invoke, *options: str) -> Iterator[Background]:
    """A lab that stays until the block is left."""
    command = "sh -c 'echo open; sleep 1000'"
    with invoke.start("lab", *options, "--command", command, under=["setsid"]) as background:
        try:
            background.wait_for("open\n")
            yield background
        finally:
            press_ctrl_c(background)


def press_ctrl_c(lab: Background) -> None:
    """All that is in the foreground of the terminal hears it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(lab.process.pid, signal.SIGINT)


# ---- real trees


@pytest.fixture(scope="session")
def trees_workspace() -> Path:
    """The workspace that holds the fetched trees from one test run to the next."""
    given = os.environ.get("XDPLAB_TEST_WORKSPACE")
    return Path(given) if given else platformdirs.user_cache_path("xdplab-tests")


@pytest.fixture(scope="session")
def fetched(trees_workspace: Path) -> Callable[[str], Path]:
    """Gives the distribution's tree of a kernel; nothing may be built in it."""
    known: dict[str, Path] = {}

    def fetch(kernel: str) -> Path:
        if kernel not in known:
            invoke = Invoke(trees_workspace)
            with waiting_lock(trees_workspace / "tests.lock"):
                outcome = invoke("setup", "--kernel", kernel, "--source", "distro", timeout=1800)
            if outcome.code == 69:
                pytest.skip(f"no tree of {kernel} can be had here: {outcome.err}")
            assert outcome.code == 0, outcome.err
            known[kernel] = Path(outcome.out.partition(":")[0])
        return known[kernel]

    return fetch


@pytest.fixture(scope="session")
def kernels(trees_workspace: Path) -> Callable[[str], Kernel]:
    """Gives a kernel of the distribution's that boots, fetched from one test run to the next."""

    def fetch(spec: str) -> Kernel:
        workspace = Workspace(trees_workspace)
        with waiting_lock(trees_workspace / "tests.lock"):
            try:
                kernel = choice.find(spec, workspace, Shell(), lambda *_: None, lambda _: None)
            except CannotRun as error:
                pytest.skip(f"no kernel {spec} can be had here: {error}")
        assert kernel
        return kernel

    return fetch


@contextlib.contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Let one test run at a time in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def copied(tree: Path) -> Iterator[Path]:
    """A copy of a tree: its sources are hard links, what make has made in it is not."""
    scratch = Path(tempfile.mkdtemp(prefix="copy-", dir=tree.parents[1]))
    copy = scratch / "linux"
    try:
        subprocess.run(["cp", "-al", tree, copy], check=True)
        since = (tree / ".xdplab/config").stat().st_mtime  # it is written before make is called
        for path in copy.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= since:
                path.unlink()
                shutil.copy2(tree / path.relative_to(copy), path)
        yield copy
    finally:
        shutil.rmtree(scratch)


@pytest.fixture(scope="session")
def copies(fetched: Callable[[str], Path]) -> Iterator[Callable[[str], Path]]:
    """Gives a copy of a kernel's tree, the same one all the time, to work in."""
    known: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:

        def copy(kernel: str) -> Path:
            if kernel not in known:
                known[kernel] = stack.enter_context(copied(fetched(kernel)))
            return known[kernel]

        yield copy


@pytest.fixture(params=KERNELS)
def tree(request: pytest.FixtureRequest, copies: Callable[[str], Path]) -> Path:
    """A real tree to build in.  Others do too: a test knows nothing of what it finds built."""
    return copies(request.param)


@pytest.fixture(params=KERNELS)
def fresh_tree(request: pytest.FixtureRequest, fetched: Callable[[str], Path]) -> Iterator[Path]:
    """A real tree for one test alone, set up, with nothing built in it."""
    with copied(fetched(request.param)) as path:
        yield path


@pytest.fixture(scope="session")
def labs(
    tmp_path_factory: pytest.TempPathFactory, copies: Callable[[str], Path]
) -> Callable[[str], Invoke]:
    """Gives the command line with the pair built for a kernel."""
    known: dict[str, Invoke] = {}

    def lab(kernel: str) -> Invoke:
        if kernel not in known:
            invoke = Invoke(tmp_path_factory.mktemp("lab") / "workspace")
            for command in (["setup", "--tree", str(copies(kernel))], ["build"]):
                outcome = invoke(*command)
                assert outcome.code == 0, outcome.err
            known[kernel] = invoke
        return known[kernel]

    return lab


@pytest.fixture
def lab(labs: Callable[[str], Invoke]) -> Invoke:
    """The pair, built for one kernel: for what has nothing to do with the tree."""
    return labs(KERNELS[0])


@pytest.fixture
def program(lab: Invoke) -> Path:
    """The binary itself."""
    (path,) = lab.workspace.glob("builds/*/xdp_ip_filter/xdp_ip_filter")
    return path


@pytest.fixture(scope="session")
def bootable(kernels: Callable[[str], Kernel]) -> Callable[[str], Kernel]:
    """Gives a kernel of the distribution's, where there is a QEMU to boot it."""
    if not shutil.which(QEMU):
        pytest.skip(f"{QEMU} is not installed")
    return kernels


@pytest.fixture(scope="session")
def matrix_labs(
    tmp_path_factory: pytest.TempPathFactory, copies: Callable[[str], Path],
    bootable: Callable[[str], Kernel], trees_workspace: Path,
) -> Callable[..., Invoke]:  # fmt: skip
    """Gives a command line with a tree of 6.1, and kernels to be booted."""

    def lab(*kernels: str) -> Invoke:
        for spec in kernels:
            bootable(spec)
        invoke = Invoke(tmp_path_factory.mktemp("matrix") / "workspace")
        outcome = invoke("setup", "--tree", copies("6.1"))
        assert outcome.code == 0, outcome.err
        Workspace(invoke.workspace).kernels.symlink_to(Workspace(trees_workspace).kernels)
        return invoke

    return lab


# ---- what can run here

# a network namespace of the test's own: its lo is nobody else's
PRIVATE = ("unshare", "--net")


def means_of(workspace: Workspace) -> Means:
    """What a bench or an ordeal may use: this machine's compilers, a workspace and its tree."""
    tree = partial(trees.find, workspace, None)
    return Means(workspace, Shell(), Toolchain.find, tree, lambda _: None)


@contextlib.contextmanager
def holder(script: str) -> Iterator[int]:
    """A network and mount namespace that a script has made ready; gives the process in it."""
    argv = ["unshare", "--net", "--mount", "sh", "-ec", f"{script}\necho; exec sleep infinity"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"\n"
            yield process.pid
        finally:
            process.kill()


def no_root() -> str:
    """Why tests that attach XDP programs can't run here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root"
    tried = subprocess.run(
        ["unshare", "--net", "true"], capture_output=True, text=True, check=False
    )
    return f"no network namespace can be made: {tried.stderr}" if tried.returncode else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what can't run here, and say why."""
    reason = no_root()
    for item in items:
        if reason and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=reason))
