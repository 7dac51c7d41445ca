"""Which kernel is meant: one of the distribution's, one in /boot, a file, or one built here."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

from xdplab.boot import (
    Kernel,
    Source,
    altered,
    beside,
    config,
    image,
    kept,
    packaged,
    recorded,
    require_unaltered,
    version_of,
)
from xdplab.errors import NotAnImage, NotAVersion, NotToBeHad
from xdplab.files import locked, require_space, write_whole
from xdplab.process import Shell
from xdplab.sources import Report, Tell
from xdplab.version import KernelVersion
from xdplab.workspace import Workspace

_TREE = "-tree"  # at the end of what was built here


def find(
    spec: str, workspace: Workspace, shell: Shell, report: Report, tell: Tell
) -> Kernel | None:
    """The kernel that is meant, fetched if need be.

    `spec` is a series or a version of the distribution's ("6.1", "v6.12.117"), with
    "-cloud" at its end the smaller kernel for virtual machines; a release
    ("6.1.0-50-amd64"), of /boot or the distribution's; with "-tree" at its end what
    `invoke kernel` built from a tree of that version; or the path of a bzImage, a
    vmlinux, or a directory with one.  Gives none in a dry run that would fetch
    one.  `tell` hears what was done.  Raises NotAVersion, NotAnImage, WithoutBpf,
    NotToBeHad, and what packaged.obtain and of_trees raise.
    """
    kernel = _find(spec, workspace, shell, report, tell)
    if kernel:
        config.require_bpf(kernel)
    return kernel


def _find(
    spec: str, workspace: Workspace, shell: Shell, report: Report, tell: Tell
) -> Kernel | None:
    if "/" in spec:
        return of_file(Path(spec), workspace, shell, tell)
    if spec.endswith(_TREE):
        return of_trees(KernelVersion.parse(spec.removesuffix(_TREE)), workspace)
    try:
        wanted = packaged.Wanted.of(spec)
    except NotAVersion:
        if not Path(spec).exists():
            raise
        return of_file(Path(spec), workspace, shell, tell)
    installed = beside.BOOT / f"vmlinuz-{wanted.release}"
    if wanted.release and installed.exists():
        return of_file(installed, workspace, shell, tell)
    return packaged.obtain(wanted, workspace, shell, report, tell)


def of_trees(version: KernelVersion, workspace: Workspace) -> Kernel:
    """The newest of that version that was built from a tree.

    Raises NotToBeHad, and AlteredKernel if it isn't what was built.
    """
    here = [kernel for kernel in kept(workspace.kernels) if kernel.source is Source.TREE]
    built = {kernel.version: kernel for kernel in here if kernel.version}
    fit = [one for one in built if version.covers(one)]
    if not fit:
        cure = f"invoke kernel --kernel {version.tag} builds it, once invoke setup has the tree"
        offered = [f"{one.tag}{_TREE}" for one in sorted(built)]
        raise NotToBeHad(f"{version.tag}{_TREE}", "the workspace", offered, cure)
    return require_unaltered(built[max(fit)])


def of_file(path: Path, workspace: Workspace, shell: Shell, tell: Tell) -> Kernel:
    """The kernel in a file, or in a directory, of the user's.

    What is unpacked of it is kept in the workspace until either is another.
    Raises NotAnImage, NoSpace, Held.
    """
    file = _file(path)
    directory = workspace.kernels / f"image-{hashlib.sha256(bytes(file)).hexdigest()[:8]}"
    with locked(workspace.root / "locks" / directory.name / "lock", dry=shell.dry):
        kernel = _remembered(file, directory)
        if not kernel:
            kernel = _read(file, directory, tell, dry=shell.dry)
    return replace(
        kernel,
        modules=beside.modules(file, kernel.release),
        config=kernel.config or beside.config(file, kernel.release),
    )


def _file(path: Path) -> Path:
    path = path.expanduser().resolve()
    if path.is_file():
        return path
    if not path.exists():
        raise NotAnImage(path, "there is no such file")
    if not path.is_dir():
        raise NotAnImage(path, "it is a device or a pipe")
    file = beside.image_in(path)
    if not file:
        raise NotAnImage(path, "it is a directory without a bzImage or a vmlinux")
    return file


def _identity(file: Path) -> dict[str, object]:
    """What tells a file from what was there before."""
    status = file.stat()
    return {"file": str(file), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _remembered(file: Path, directory: Path) -> Kernel | None:
    facts = recorded(directory)
    same = facts and _identity(file).items() <= facts.items()
    return Kernel.load(directory) if same and not altered(directory) else None


def _read(file: Path, directory: Path, tell: Tell, *, dry: bool) -> Kernel:
    """Read an image, and keep in the directory what was packed in it."""
    found = image.read(file)
    if found.remark:
        tell(f"{file} has to unpack itself when it boots: {found.remark}")
    kernel = Kernel(found.release, version_of(found.release), file, None, None)
    if dry:
        return kernel
    shutil.rmtree(directory, ignore_errors=True)
    if found.unpacked:
        require_space(directory, len(found.unpacked))
        kernel = replace(kernel, image=directory / "vmlinux")
        write_whole(kernel.image, found.unpacked)
    if found.config:
        kernel = replace(kernel, config=directory / "config")
        write_whole(directory / "config", found.config)
    kernel.keep(directory, **_identity(file))
    return kernel
