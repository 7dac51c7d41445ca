"""Versions out of a git repository: no history, and only the files that a build reads.

All versions of a remote share one bare repository, and each is a worktree of it: what
one has already, the next doesn't fetch again.  First comes the commit with its trees
(`--depth=1 --filter=blob:none`), then the blobs of the wanted files at once, then these
files are written, and the others marked as not there (skip-worktree).  What an exchange
brought isn't fetched again after an interruption; git keeps nothing of one that broke
off.  See git-worktree(1), git-update-index(1), and partial-clone in git's technical
documentation.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shlex
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xdplab.errors import (
    BadDownload,
    CommandFailed,
    MissingTools,
    NoSpace,
    NotToBeHad,
    Unreachable,
)
from xdplab.files import locked
from xdplab.process import Shell, pasteable
from xdplab.sources import Report, Tell, integrity, wanted
from xdplab.version import KernelVersion, nearest

if TYPE_CHECKING:
    from git import RemoteProgress, Repo

# The post clones Linus Torvalds's repository; releases with a third number are
# only in the stable one.
MAINLINE = "https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git"
STABLE = "https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git"

_CURE = "try again, name another with --remote, or take the distribution's: --source distro"

_PATIENCE = 120.0  # seconds without a word of git's, whose remote is gone then
_ANSWER = 20.0  # seconds for a list of tags

_BATCH = 10_000  # files: what is lost at worst when the remote hangs up

_ENV = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_TAG = re.compile(r"\trefs/tags/(v\d+\.\d+(?:\.\d+)?(?:-rc\d+)?)$", re.ASCII)


def default_remote(version: KernelVersion) -> str:
    """The repository at kernel.org that has this version."""
    return STABLE if version.patch else MAINLINE


def fetch(
    version: KernelVersion, remote: str, path: Path, store: Path, shell: Shell, report: Report,
    tell: Tell,
) -> str:  # fmt: skip
    """Make `path` a sparse checkout of the version's tag, anew; its objects are in `store`.

    `store` is a repository of this remote alone, made if need be.  Gives what was checked
    of the tag: git checks by their names that all objects are those that it means.  `tell`
    hears that too, and of a server that sent more than it was asked for.  Raises
    Unreachable, BadDownload of a forged tag, NotToBeHad with the nearest tags if there
    is no such tag, NoSpace, and Held if another process fetches from the remote.  Can be
    interrupted at any moment and called again.
    """
    if not shutil.which("git"):
        raise MissingTools(["git"], "build")
    import git

    if shell.dry:
        shell.echo(pasteable(["git", "clone", "--depth=1", "--filter=blob:none", "--sparse",
                              f"--branch={version.tag}", remote, path]))  # fmt: skip
        return ""
    with locked(store / "lock"):
        _forget_dead_processes(store)
        try:
            return _fetch(version, remote, path, store, shell, report, tell)
        except git.GitCommandError as error:
            if full := NoSpace.told(str(error.stderr)):
                raise full from error
            code = error.status if isinstance(error.status, int) else -1
            raise CommandFailed(pasteable(error.command), code, str(error.stderr)) from error


def _fetch(
    version: KernelVersion, remote: str, path: Path, store: Path, shell: Shell, report: Report,
    tell: Tell,
) -> str:  # fmt: skip
    import git

    with git.Repo.init(store, bare=True) as repo:
        try:
            _set_up(repo, remote)
            if not _has(repo, version.tag):
                _fetch_commit(repo, version, remote, shell, report, tell)
            checked = _check(repo, version.tag, remote, shell)
            tell(checked)
            files = _files(repo, version.tag)
            names = wanted.chosen(files)
            _fetch_blobs(repo, (files[name] for name in names), remote, shell, report)
            _check_out(repo, version.tag, path, files, names, remote, shell, report)
        except (Unreachable, NotToBeHad, BadDownload):
            if not repo.tags:
                shutil.rmtree(store)  # nothing has arrived that could be gone on with
            raise
    return checked


def label(remote: str) -> str:
    """A directory name for the remote's repository; another's differs."""
    readable = re.sub(r"[^\w.-]+", "-", _url(remote).partition("://")[2] or remote)[-60:]
    return f"{readable.strip('-')}-{hashlib.sha256(_url(remote).encode()).hexdigest()[:8]}"


def moved(path: Path) -> None:
    """Let the repository know where a worktree is since it was renamed.

    The file is described in gitrepository-layout(5); `git worktree repair` came late.
    """
    git_dir = Path((path / ".git").read_text().removeprefix("gitdir:").strip())
    (git_dir / "gitdir").write_text(f"{path / '.git'}\n")


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


def _check(repo: Repo, tag: str, remote: str, shell: Shell) -> str:
    """What was checked of a tag; one that is forged is forgotten, and BadDownload raised."""
    try:
        return integrity.check_tag(Path(repo.git_dir), tag, remote, shell)
    except BadDownload:
        repo.delete_tag(repo.tags[tag])
        raise


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


def _files(repo: Repo, tag: str) -> dict[str, str]:
    """The names of a version's files, and the blob of each."""
    listing = repo.git.ls_tree("-r", "-z", tag).split("\0")
    entries = (line.split("\t", 1) for line in listing if line)
    return {name: entry.split()[2] for entry, name in entries if " blob " in entry}


def _fetch_blobs(
    repo: Repo, blobs: Iterable[str], remote: str, shell: Shell, report: Report
) -> None:
    """Fetch those of the files' contents that aren't there, at once, with progress.

    A checkout would fetch them too, but shows no progress over a pipe.
    """
    # a question about an object that isn't there would fetch it, by itself
    there = repo.git.cat_file("--batch-all-objects", "--unordered", "--batch-check=%(objectname)")
    lacking = sorted(set(blobs) - set(there.split()))
    for first in range(0, len(lacking), _BATCH):
        some = lacking[first : first + _BATCH]
        what = f"files {first + 1} to {first + len(some)} of {len(lacking)}"
        _go_on(repo, ["-c", "fetch.negotiationAlgorithm=noop", "fetch", "--progress", "--no-tags",
                      "--no-write-fetch-head", "--recurse-submodules=no", "--filter=blob:none",
                      "--stdin", "origin"], remote, shell, report, what, some, "\n")  # fmt: skip


def _check_out(
    repo: Repo, tag: str, path: Path, files: Collection[str], names: Collection[str],
    remote: str, shell: Shell, report: Report,
) -> None:  # fmt: skip
    """Make the worktree anew, with these of the version's files.

    Not by patterns: git would hold every file against every one of them.
    """
    import git

    shutil.rmtree(path, ignore_errors=True)
    # --force: one of that name may have been begun, and registered
    add = ["worktree", "add", "--force", "--force", "--detach", "--no-checkout", str(path), tag]
    _go_on(repo, add, remote, shell, report, "checkout")
    with git.Repo(path) as tree:
        _go_on(tree, ["read-tree", tag], remote, shell, report, "checkout")
        others = sorted(set(files).difference(names))
        _mark(tree, "--skip-worktree", others, remote, shell, report)
        _write(tree, names, remote, shell, report)


def _mark(
    tree: Repo, how: str, names: Sequence[str], remote: str, shell: Shell, report: Report
) -> None:
    update = ["update-index", how, "-z", "--stdin"]
    _go_on(tree, update, remote, shell, report, "checkout", names)


def _write(tree: Repo, names: Collection[str], remote: str, shell: Shell, report: Report) -> None:
    """Write files whose blobs are there, and have git's own commands keep to them."""
    patterns = Path(tree.git_dir) / "info" / "sparse-checkout"
    patterns.parent.mkdir(exist_ok=True)
    with patterns.open("a") as file:
        file.writelines(f"/{name}\n" for name in sorted(names))
    checkout = ["checkout-index", "--force", "--index", "-z", "--stdin"]
    _go_on(tree, checkout, remote, shell, report, "checkout", sorted(names))


# ---- what nobody foresaw

_LACKS = re.compile(
    r"no such file|not found|can(?:'|no)t open|no rule to make target", re.IGNORECASE
)


def fetch_missing(path: Path, said: Iterable[str], shell: Shell, report: Report) -> list[str]:
    """Fetch what a build missed in a sparse checkout, and what is beside it; gives its names.

    `said` is what make and compilers said; nothing is done if they name no file that the
    version has and the checkout hasn't.  Raises Unreachable.
    """
    import git

    with git.Repo(path) as tree:
        # entries are "S 100644 BLOB 0<tab>NAME": S, not there by skip-worktree
        entries = tree.git.ls_files("-t", "--stage", "-z").split("\0")
        absent = {
            name: entry.split()[2]
            for entry, _, name in (line.partition("\t") for line in entries)
            if entry.startswith("S ") and wanted.concerns_here(name)
        }
        missed = _missed(path, said, absent)
        if not missed:
            return []
        directories = {name.rpartition("/")[0] for name in missed} - {""}
        names = [
            name for name in absent if name in missed or name.rpartition("/")[0] in directories
        ]
        shell.echo(f"# not fetched with the tree: {', '.join(missed)}; coming, with"
                   f" {len(names) - len(missed)} files beside")  # fmt: skip
        remote = tree.remotes.origin.url
        _fetch_blobs(tree, (absent[name] for name in names), remote, shell, report)
        _mark(tree, "--no-skip-worktree", names, remote, shell, report)
        _write(tree, names, remote, shell, report)
    return missed


def _missed(path: Path, said: Iterable[str], absent: Collection[str]) -> list[str]:
    """The absent files that are named where something is said to lack.

    By a name from the tree's top, or from where another file of the same line is; an
    included header's by the end of its name.
    """
    missed = set()
    for line in said:
        if not _LACKS.search(line):
            continue
        words = re.findall(r"[\w./+-]*\w", line.replace(f"{path}/", ""))
        places = {"", *(word.rpartition("/")[0] for word in words)}
        named = {
            os.path.normpath(f"{place}/{word}").lstrip("/") for place in places for word in words
        }
        missed |= named.intersection(absent)
        ends = tuple(f"/{word}" for word in words if "/" in word)
        missed |= {name for name in absent if name.endswith(ends)}
    return sorted(missed)


def _go_on(
    repo: Repo, arguments: Sequence[str], remote: str, shell: Shell, report: Report, what: str,
    given: Iterable[str] = (), end: str = "\0",
) -> None:  # fmt: skip
    """Run git once the commit is there, with these lines to read; raises Unreachable."""
    try:
        _run(repo, arguments, shell, report, what, "".join(f"{line}{end}" for line in given))
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
    given: str = "",
) -> list[str]:
    """Run git, with `given` to read, tell of its progress; gives all that it said.

    Raises _GitFailed with its words on what went wrong, also after _PATIENCE.
    """
    import git
    from git.cmd import handle_process_output

    argv = ["git", *arguments]
    stdin = Path(repo.git_dir) / "given" if given else Path(os.devnull)
    if given:
        stdin.write_text(given, errors="surrogateescape")
    redirection = f" < {shlex.quote(str(stdin))}" if given else ""
    shell.echo(pasteable(argv, Path(repo.working_dir)) + redirection)
    report(what)
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

    with stdin.open("rb") as opened:
        process = repo.git.execute(
            argv,
            as_process=True,
            istream=opened,
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
            if full := NoSpace.told("\n".join(said)):
                raise full from error
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
