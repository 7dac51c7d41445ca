"""A tree out of a tarball: a file, or one to be downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

from xdplab.errors import CommandFailed, NotATarball, Unreachable
from xdplab.files import require_space
from xdplab.process import Shell
from xdplab.sources import Report
from xdplab.version import KernelVersion

_KERNEL_ORG = "https://cdn.kernel.org/pub/linux/kernel"


def default_url(version: KernelVersion) -> str:
    """Where kernel.org keeps the release (release candidates are only in git)."""
    return f"{_KERNEL_ORG}/v{version.major}.x/linux-{version.tag[1:]}.tar.xz"


def fetch(place: str, path: Path, downloads: Path, shell: Shell, report: Report) -> None:
    """Unpack the tarball at `place`, a file or a URL, into `path`.

    A download that was interrupted goes on where it stopped.  Raises
    NotATarball, Unreachable.
    """
    if "://" not in place:
        tarball = Path(place).expanduser().absolute()
        if not tarball.is_file():
            raise NotATarball(place, "there is no such file")
    else:
        tarball = _download(place, downloads, shell, report)
    require_space(path, 2000 * 2**20)
    report(f"unpacking {tarball.name}")
    if shell.dry:
        shell.echo(f"tar --extract --file {tarball}")
        return
    try:
        unpack(tarball, path, shell)
    except CommandFailed as error:
        raise NotATarball(str(tarball), error.cure.splitlines()[0]) from error


def _download(url: str, downloads: Path, shell: Shell, report: Report) -> Path:
    name = url.rstrip("/").rpartition("/")[2]
    whole = downloads / name
    if whole.exists():
        return whole
    report(f"downloading {name}")
    if not shell.dry:
        downloads.mkdir(parents=True, exist_ok=True)
    partial = whole.with_name(f"{name}.partial")
    try:
        shell.run(["curl", "--fail", "--location", "--silent", "--show-error",
                   "--continue-at", "-", "--output", partial, "--", url])  # fmt: skip
    except CommandFailed as error:
        raise Unreachable(url, error.cure, "check the address, or give a file") from error
    if not shell.dry:
        partial.rename(whole)
    return whole


def unpack(tarball: Path, path: Path, shell: Shell) -> None:
    """Make `path` the one directory that the tarball has at its top."""
    scratch = path.with_name(f"{path.name}.unpacking")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        shell.run(
            ["tar", "--extract", "--no-same-owner", "--file", tarball, "--directory", scratch]
        )
        tops = list(scratch.iterdir())
        if len(tops) != 1 or not tops[0].is_dir():
            raise NotATarball(str(tarball), "it doesn't have exactly one directory at its top")
        shutil.rmtree(path, ignore_errors=True)
        tops[0].rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
