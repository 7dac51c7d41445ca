"""One version out of a git repository: no history, and only the files that a build reads.

First the commit with its trees (`--depth=1 --filter=blob:none`), then the blobs
of the wanted paths in a few batches, then the checkout.  What an exchange brought
isn't fetched again after an interruption; git keeps nothing of one that broke
off.  See git-sparse-checkout(1), and partial-clone in git's technical
documentation.
"""

from __future__ import annotations

import itertools
import os
import platform
import re
import shlex
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xdplab.errors import CommandFailed, MissingTools, NotToBeHad, Unreachable
from xdplab.process import Shell, pasteable
from xdplab.sources import Report, Tell
from xdplab.version import KernelVersion, nearest

if TYPE_CHECKING:
    from git import RemoteProgress, Repo

# The post clones Linus Torvalds's repository; releases with a third number are
# only in the stable one.
MAINLINE = "https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git"
STABLE = "https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git"

# What configuring, `make prepare0 scripts` and one sample read, in every tree
# from v4.19 on.  A path that ends in "/" is a directory, "**/" means anywhere,
# "!" takes away again; {arch} is the machine's name in arch/.
PATHS = (
    "Makefile",
    "Kbuild",
    "Kconfig",
    ".gitattributes",
    ".gitignore",
    "**/Kconfig*",
    "arch/{arch}/Makefile*",
    "arch/{arch}/Kbuild",
    "arch/{arch}/include/",
    "arch/{arch}/configs/",
    "arch/{arch}/entry/syscalls/",
    "arch/{arch}/tools/",
    "arch/{arch}/kernel/asm-offsets*",
    "arch/{arch}/kernel/Makefile",
    "arch/{arch}/lib/x86-opcode-map.txt",
    "include/",
    # devices' headers, which no XDP program and no header that it includes asks for
    *(f"!include/{name}/" for name in ("drm", "dt-bindings", "media", "rdma", "scsi", "soc")),
    *(f"!include/{name}/" for name in ("sound", "trace/events", "video", "xen")),
    *(f"!include/linux/{name}/" for name in ("mfd", "mlx5", "platform_data", "usb")),
    *(f"!include/uapi/{name}/" for name in ("drm", "rdma", "sound")),
    "kernel/bounds.c",
    "kernel/time/timeconst.*",
    "kernel/configs/",
    "lib/vdso/Makefile",
    "samples/Makefile",
    "samples/bpf/",
    "scripts/",
    "!scripts/coccinelle/",
    "!scripts/gdb/",
    "security/selinux/include/",
    "tools/arch/{arch}/",
    "tools/build/",
    "tools/include/",
    "tools/lib/",
    *(f"!tools/lib/{name}/" for name in ("lockdep", "perf", "thermal", "traceevent")),
    "tools/perf/perf-sys.h",
    "tools/scripts/",
    "tools/testing/selftests/bpf/*.h",
    "usr/include/",
)
_CURE = "try again, name another with --remote, or take the distribution's: --source distro"

_ARCH = {"x86_64": "x86", "i686": "x86", "aarch64": "arm64", "ppc64le": "powerpc", "s390x": "s390"}

_PATIENCE = 120.0  # seconds without a word of git's, whose remote is gone then
_ANSWER = 20.0  # seconds for a list of tags

_BATCH = 2000  # files: what is lost at worst when the remote hangs up

_ENV = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_TAG = re.compile(r"\trefs/tags/(v\d+\.\d+(?:\.\d+)?(?:-rc\d+)?)$", re.ASCII)


def default_remote(version: KernelVersion) -> str:
    """The repository at kernel.org that has this version."""
    return STABLE if version.patch else MAINLINE


def fetch(
    version: KernelVersion, remote: str, path: Path, shell: Shell, report: Report, tell: Tell
) -> None:
    """Make `path` a sparse checkout of the version's tag.

    `tell` hears of a server that sent more than it was asked for.  Raises
    Unreachable, and NotToBeHad with the nearest tags if there is no such tag.
    Can be interrupted at any moment and called again.
    """
    if not shutil.which("git"):
        raise MissingTools(["git"], "build")
    import git

    if shell.dry:
        shell.echo(pasteable(["git", "clone", "--depth=1", "--filter=blob:none", "--sparse",
                              f"--branch={version.tag}", remote, path]))  # fmt: skip
        return
    _forget_dead_processes(path / ".git")
    repo = git.Repo.init(path)
    try:
        _set_up(repo, remote)
        if not _has(repo, version.tag):
            _fetch_commit(repo, version, remote, shell, report, tell)
        _fetch_blobs(repo, version.tag, remote, shell, report)
        _check_out(repo, version.tag, remote, shell, report)
    except (Unreachable, NotToBeHad):
        if not _has(repo, version.tag):
            shutil.rmtree(path)  # nothing has arrived that could be gone on with
        raise
    except git.GitCommandError as error:
        code = error.status if isinstance(error.status, int) else -1
        raise CommandFailed(pasteable(error.command), code, str(error.stderr)) from error
    finally:
        repo.close()


def _forget_dead_processes(git_dir: Path) -> None:
    """Remove what a killed git left; the caller holds the lock of this directory."""
    for pattern in ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*"):
        for left in git_dir.glob(pattern):
            left.unlink()


def _set_up(repo: Repo, remote: str) -> None:
    """What `git clone --filter --sparse` writes into the configuration."""
    from git.exc import UnsafeProtocolError

    try:
        if "origin" in repo.remotes:
            repo.remotes.origin.set_url(_url(remote))
        else:
            repo.create_remote("origin", _url(remote))
    except UnsafeProtocolError as error:
        raise Unreachable(remote, "it would run a command here", "name another") from error
    with repo.config_writer() as config:
        config.set_value("core", "repositoryformatversion", 1)
        config.set_value("extensions", "partialClone", "origin")
        config.set_value('remote "origin"', "promisor", "true")
        config.set_value('remote "origin"', "partialclonefilter", "blob:none")
        config.set_value("core", "sparseCheckout", "true")
        config.set_value("advice", "detachedHead", "false")
        config.set_value("gc", "auto", 0)
    patterns = Path(repo.git_dir) / "info" / "sparse-checkout"
    patterns.write_text("".join(f"{_sparse_pattern(row)}\n" for row in _paths()))


def _url(remote: str) -> str:
    """The remote as git takes it from any directory."""
    return remote if ":" in remote else str(Path(remote).absolute())


def _has(repo: Repo, tag: str) -> bool:
    return any(reference.path == f"refs/tags/{tag}" for reference in repo.tags)


def _fetch_commit(
    repo: Repo, version: KernelVersion, remote: str, shell: Shell, report: Report, tell: Tell
) -> None:
    reference = f"refs/tags/{version.tag}"
    exchange = ["fetch", "--progress", "--depth=1", "--no-tags", "--filter=blob:none"]
    exchange += ["origin", f"{reference}:{reference}"]
    try:
        said = _run(repo, exchange, shell, report, "commit and trees")
        if any("filtering not recognized by server" in line for line in said):
            tell(
                f"{remote} knows no partial clones: it sent all files, not only what a build reads"
            )
    except _GitFailed as error:
        if "couldn't find remote ref" in error.said:
            close = [one.tag for one in nearest(version, tags(remote, shell))]
            raise NotToBeHad(version.tag, remote, close) from error
        raise Unreachable(remote, error.said, _CURE) from error


def tags(remote: str, shell: Shell) -> list[KernelVersion]:
    """The versions that a repository has tags of; raises Unreachable.

    Tags of other things than kernels, and of forks' own versions, are left out.
    """
    argv = ["git", "ls-remote", "--tags", "--refs", "--", _url(remote)]
    # it only reads: in a dry run too
    with Shell(shell.echo).start(argv, env=_ENV) as running:
        running.end_input()
        try:
            lines = list(running.lines(_ANSWER))
        except TimeoutError:
            raise Unreachable(remote, f"no answer for {_ANSWER:.0f} seconds", _CURE) from None
        if running.wait():
            said = _complaint([line.text for line in lines if line.stream == "err"])
            raise Unreachable(remote, said or "git gives no reason", _CURE)
    found = (_TAG.search(line.text) for line in lines)
    versions = ((tag[1], KernelVersion.parse(tag[1])) for tag in found if tag)
    return [version for name, version in versions if version.tag == name]


def _fetch_blobs(repo: Repo, tag: str, remote: str, shell: Shell, report: Report) -> None:
    """Fetch the wanted files' contents, batch by batch, with progress.

    A checkout would fetch them too, but shows no progress over a pipe.  git
    asks for none of a batch that is there already.
    """
    wanted = read_by_builds()
    listing = repo.git.ls_tree("-r", "-z", tag).split("\0")
    entries = (line.split("\t", 1) for line in listing if line)
    blobs = sorted({entry.split()[2] for entry, name in entries if wanted.fullmatch(name)})
    for first in range(0, len(blobs), _BATCH):
        some = blobs[first : first + _BATCH]
        batch = Path(repo.git_dir) / f"wanted-from-{first + 1}"
        batch.write_text("".join(f"{blob}\n" for blob in some))
        what = f"files {first + 1} to {first + len(some)} of {len(blobs)}"
        _go_on(repo, ["-c", "fetch.negotiationAlgorithm=noop", "fetch", "--progress", "--no-tags",
                      "--no-write-fetch-head", "--recurse-submodules=no", "--filter=blob:none",
                      "--stdin", "origin"], remote, shell, report, what, batch)  # fmt: skip


def _check_out(repo: Repo, tag: str, remote: str, shell: Shell, report: Report) -> None:
    checkout = ["checkout", "--progress", "--force", "--detach", tag]
    _go_on(repo, checkout, remote, shell, report, "checkout")


def _go_on(
    repo: Repo, arguments: Sequence[str], remote: str, shell: Shell, report: Report, what: str,
    given: Path | None = None,
) -> None:  # fmt: skip
    """Run git once the commit is there; raises Unreachable."""
    try:
        _run(repo, arguments, shell, report, what, given)
    except _GitFailed as error:
        raise Unreachable(remote, error.said, "do it again: what has arrived is kept") from error


# ---- git through GitPython


class _GitFailed(Exception):
    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


def _run(
    repo: Repo,
    arguments: Sequence[str],
    shell: Shell,
    report: Report,
    what: str,
    given: Path | None = None,
) -> list[str]:
    """Run git, tell of its progress; gives all that it said.

    Raises _GitFailed with its words on what went wrong, also after _PATIENCE.
    """
    import git
    from git.cmd import handle_process_output

    argv = ["git", *arguments]
    directory = Path(repo.working_dir)
    redirection = f" < {shlex.quote(str(given))}" if given else ""
    shell.echo(pasteable(argv, directory) + redirection)
    follow = _progress(what, report).new_message_handler()
    said: list[str] = []
    last = time.monotonic()

    def hear(line: str) -> None:
        nonlocal last
        last = time.monotonic()
        said.append(line.rstrip())
        follow(line)

    def wait_for(reading: threading.Thread) -> None:
        while reading.is_alive():
            reading.join(1.0)
            if time.monotonic() - last > _PATIENCE:
                raise _GitFailed(f"nothing came for {_PATIENCE:.0f} seconds")

    with (given or Path(os.devnull)).open("rb") as stdin:
        process = repo.git.execute(
            argv,
            as_process=True,
            istream=stdin,
            env=_ENV,
            universal_newlines=True,  # git draws its progress with carriage returns
        )
        try:
            reading = threading.Thread(
                target=handle_process_output, args=(process, hear, hear, None, False), daemon=True
            )
            reading.start()
            wait_for(reading)
            process.wait()
        except git.GitCommandError as error:
            raise _GitFailed(_complaint(said) or f"git ended with {error.status}") from error
        except BaseException:
            process.terminate()
            raise
    return said


def _complaint(said: Sequence[str]) -> str:
    """What git says went wrong: from the first fault to the end of the paragraph."""
    faults = itertools.dropwhile(lambda line: not line.startswith(("error:", "fatal:")), said)
    return "; ".join(itertools.takewhile(bool, faults))


def _progress(what: str, report: Report) -> RemoteProgress:
    from git import RemoteProgress

    names = {
        RemoteProgress.COUNTING: "counting",
        RemoteProgress.COMPRESSING: "compressing",
        RemoteProgress.RECEIVING: "receiving",
        RemoteProgress.RESOLVING: "resolving deltas",
        RemoteProgress.CHECKING_OUT: "writing files",
        RemoteProgress.FINDING_SOURCES: "finding",
    }

    class Progress(RemoteProgress):
        """GitPython's reader of git's progress lines, told to our listener."""

        def update(
            self,
            op_code: int,
            cur_count: str | float,
            max_count: str | float | None = None,
            message: str = "",
        ) -> None:
            phase = names.get(op_code & self.OP_MASK, "")
            report(f"{what}: {phase}", int(cur_count), int(max_count or 0), message)

    return Progress()


# ---- the wanted paths, as git and as we match them


def _paths() -> list[str]:
    arch = _ARCH.get(platform.machine(), platform.machine())
    return [row.format(arch=arch) for row in PATHS]


def read_by_builds() -> re.Pattern[str]:
    """What the names of the files that a build reads match, from the tree's top."""
    return re.compile(_regex())


def _sparse_pattern(row: str) -> str:
    """A row as a line of .git/info/sparse-checkout: gitignore's language, upside down."""
    sign, path = ("!", row[1:]) if row.startswith("!") else ("", row)
    return sign + (path.removeprefix("**/") if path.startswith("**/") else f"/{path}")


def _regex() -> str:
    def one(row: str) -> str:
        anywhere, path = ("(?:.*/)?", row[3:]) if row.startswith("**/") else ("", row)
        text = re.escape(path).replace(r"\*", "[^/]*")
        # to git a name without "/" at its end may be a directory's as well
        return anywhere + text + (".*" if path.endswith("/") else "(?:/.*)?")

    rows = _paths()
    files = "|".join(one(row) for row in rows if not row.endswith("/"))
    wanted = "|".join(one(row) for row in rows if row.endswith("/") and row[0] != "!")
    unwanted = "|".join(one(row[1:]) for row in rows if row[0] == "!")
    # git looks at the file's own name first: a directory takes away no "**/Kconfig*"
    return f"(?:{files})|(?!(?:{unwanted})$)(?:{wanted})"
