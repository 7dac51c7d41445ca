"""A tree out of a tarball: a file, or one to be downloaded; checked before it is unpacked."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from xdplab.errors import BadDownload, CommandFailed, NoSpace, NotATarball, Unreachable
from xdplab.files import locked, require_space
from xdplab.process import Argv, Finished, Line, Shell
from xdplab.sources import Report, Tell, integrity
from xdplab.tree import STATE
from xdplab.version import KernelVersion

_RELEASES = "https://cdn.kernel.org/pub/linux/kernel"
_CANDIDATES = "https://git.kernel.org/torvalds/t"  # release candidates, made of the tag

_PATIENCE = "60"  # seconds in which a server must send something, or is gone

# curl's exit codes, of curl(1)
_ABSENT = (22, 37, 78)  # no such file: HTTP's 400 and above, file://, FTP
_CANT_GO_ON = (31, 33, 36)  # the server, or the protocol, begins at the beginning only
_CANT_WRITE = 23
_IS_ILL = re.compile(r"error: 5\d\d")  # the server, in its 22


def default_url(version: KernelVersion) -> str:
    """Where kernel.org keeps the version."""
    if version.rc:
        return f"{_CANDIDATES}/linux-{version.tag[1:]}.tar.gz"
    return f"{_RELEASES}/v{version.major}.x/linux-{version.tag[1:]}.tar.xz"


def is_called_like_one(place: str) -> bool:
    """Whether a path or a URL has a tarball's name: linux-6.1.tar.xz, linux.tgz."""
    return re.search(r"\.(tar(\.\w+)?|tgz|txz|tbz2?)$", place) is not None


def label(place: str) -> str:
    """A directory name for the tarball at `place`; another's, or a changed file's, differs."""
    identity = place
    if "://" not in place:
        file = _file(place)
        status = file.stat() if file.exists() else None
        identity = f"{file} {status and (status.st_size, status.st_mtime_ns)}"
    readable = re.sub(r"[^\w.+-]", "-", _name(place))
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _file(place: str) -> Path:
    return Path(place).expanduser().absolute()


def _name(place: str) -> str:
    """The file's name at the end of a path or a URL, fit to be one; raises NotATarball."""
    if "://" not in place:
        return Path(place).name
    try:
        path = unquote(urlsplit(place).path)
    except ValueError as error:
        raise NotATarball(place, f"it is no URL: {error}") from error
    name = re.sub(r"[\x00-\x1f]", "-", Path(path).name)[-100:]
    return name if name.strip(".") else "tarball"


def fetch(place: str, path: Path, downloads: Path, shell: Shell, report: Report, tell: Tell) -> str:
    """Unpack the tarball at `place`, a file or a URL, into `path`, once it passed the checks.

    Gives what was checked, which `tell` hears first.  A download that was interrupted
    goes on where it stopped, a bad one is removed.  Raises NotATarball of a file,
    BadDownload and Unreachable of a URL, NoSpace.
    """
    require_space(path, 2000 * 2**20)
    if "://" not in place:
        file = _file(place)
        if not file.is_file():
            raise NotATarball(place, "there is no such file")
        return _unpack_checked(file, path, shell, report, tell)
    directory = downloads / label(place)
    with locked(directory / "lock", dry=shell.dry):
        try:
            tarball = _download(place, directory, shell, report)
            return _unpack_checked(tarball, path, shell, report, tell)
        except NotATarball as error:
            if not shell.dry:
                shutil.rmtree(directory)
            raise BadDownload(place, error.why) from error


def _unpack_checked(tarball: Path, path: Path, shell: Shell, report: Report, tell: Tell) -> str:
    checked = ""
    if tarball.exists():  # it isn't in a dry run
        report(f"checking {tarball.name}")
        checked = f"{tarball.name}: {integrity.check(tarball, shell)}"
        tell(checked)
    report(f"unpacking {tarball.name}")
    if shell.dry:
        shell.echo(f"tar --extract --file {tarball}")
    else:
        unpack(tarball, path, shell)
    return checked


# ---- downloads


def _download(url: str, directory: Path, shell: Shell, report: Report) -> Path:
    """Download a tarball, and the checksums and the signature that are kept beside it."""
    whole = directory / _name(url)
    if not whole.exists():
        finished = _get(url, whole, shell, report)
        if finished.code:
            raise _failed(url, directory, finished)
    for patterns in (integrity.CHECKSUMS, integrity.SIGNATURES):
        _get_first(url, directory, integrity.names(whole.name, patterns), shell, report)
    return whole


def _get_first(
    url: str, directory: Path, names: Sequence[str], shell: Shell, report: Report
) -> None:
    """Download the first of these files that the server has beside a URL, if any."""
    if any((directory / name).exists() for name in names):
        return
    for name in names:
        beside = _beside(url, name)
        finished = _get(beside, directory / name, shell, report)
        if not finished.code:
            return
        if not _is_absent(finished):
            raise _failed(beside, directory, finished)


def _beside(url: str, name: str) -> str:
    parts = urlsplit(url)
    path = f"{parts.path.rpartition('/')[0]}/{quote(name)}"
    return urlunsplit(parts._replace(path=path, query="", fragment=""))


def _get(url: str, whole: Path, shell: Shell, report: Report) -> Finished:
    """Download a file, going on with what has arrived of it; gives how curl ended."""
    partial = whole.with_name(f"{whole.name}.partial")
    finished = _curl(url, partial, shell, report)
    if finished.code in _CANT_GO_ON and partial.exists():
        partial.unlink()
        finished = _curl(url, partial, shell, report)
    if not finished.code and not shell.dry:
        partial.touch()  # curl makes none if nothing comes
        partial.rename(whole)
    return finished


def _curl(url: str, partial: Path, shell: Shell, report: Report) -> Finished:
    phase = f"downloading {_name(url)}"
    total = 0

    def hear(line: Line) -> None:
        """Learn from the headers how much it is: what is left, and in all."""
        nonlocal total
        header = re.match(r"content-(?:length: *|range: *bytes .*/)(\d+)", line.text, re.IGNORECASE)
        if header and int(header[1]) > total:
            total = int(header[1])
            require_space(partial, total - _size(partial))

    def tell_how_far() -> None:
        done = _size(partial)
        of_all = f" of {total / 2**20:.1f}" if total else ""
        report(phase, done, total, f"{done / 2**20:.1f}{of_all} MiB")

    report(phase)
    argv: Argv = [
        *("curl", "--fail", "--location", "--globoff", "--silent", "--show-error"),
        *("--connect-timeout", _PATIENCE, "--speed-time", _PATIENCE, "--speed-limit", "1"),
        *("--dump-header", "-", "--continue-at", "-", "--output"), partial, "--", url,
    ]  # fmt: skip
    return shell.run(argv, on_line=hear, idle=tell_how_far, check=False)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_absent(finished: Finished) -> bool:
    return finished.code in _ABSENT and not _IS_ILL.search(finished.text("err"))


def _failed(url: str, directory: Path, finished: Finished) -> Unreachable | NoSpace:
    """The error for what curl came back with."""
    if finished.code == _CANT_WRITE:
        return NoSpace.on(directory)
    cure = "do it again: what has arrived is kept; or name another place with --remote"
    if _is_absent(finished):
        cure = "check the address and the version, or name another place with --remote"
    return Unreachable(url, finished.text("err"), cure)


# ---- unpacking


def unpack(tarball: Path, path: Path, shell: Shell) -> None:
    """Make `path` the one directory that the tarball has at its top.

    Raises NotATarball, NoSpace, MissingTools.
    """
    scratch = path.with_name(f"{path.name}.unpacking")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        _untar(tarball, scratch, shell)
        tops = list(scratch.iterdir())
        if len(tops) != 1 or not tops[0].is_dir() or tops[0].is_symlink():
            raise NotATarball(str(tarball), "it doesn't have exactly one directory at its top")
        shutil.rmtree(path, ignore_errors=True)
        tops[0].rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _untar(tarball: Path, scratch: Path, shell: Shell) -> None:
    """Run tar, which lets nothing out of the directory; without the state of another's harness."""
    integrity.require_decompressor(tarball)
    argv: Argv = [
        *("tar", "--extract", "--no-same-owner", f"--exclude=*/{STATE}"),
        *("--file", tarball, "--directory", scratch),
    ]
    try:
        shell.run(argv, env={"LC_ALL": "C.UTF-8"})
    except CommandFailed as error:
        if full := NoSpace.told(error.cure):
            raise full from error
        raise NotATarball(str(tarball), error.cure.splitlines()[0]) from error
