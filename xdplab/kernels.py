"""What can be had here: kernel trees, by version and source, and kernels that boot."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from xdplab import patching
from xdplab.boot import Kernel, Source, config, kept, version_of
from xdplab.boot.beside import BOOT
from xdplab.build import Build
from xdplab.errors import MissingTools, Unreachable
from xdplab.process import Shell
from xdplab.sources import Report, distro, git
from xdplab.sources.distro import Offer
from xdplab.tree import Origin, Tree
from xdplab.trees import fetched, foreign
from xdplab.version import KernelVersion
from xdplab.workspace import Workspace

OLDEST = KernelVersion(4, 19)  # of the trees that the tutorial is for


class State(StrEnum):
    """How far a tree or a kernel is."""

    HERE = "here"  # in the workspace; a tree of the user's own, where it is
    RUNNING = "running"
    INSTALLED = "installed"
    TO_BE_HAD = "to be had"


@dataclass(frozen=True, slots=True)
class ListedTree:
    """A kernel tree: one that is here, a package, or a tag of a repository."""

    version: KernelVersion
    source: Origin
    path: Path | None = None
    offer: Offer | None = None
    remote: str | None = None
    current: bool = False
    prepared: bool = False  # set up: it can be built in
    patched: bool = False
    samples: tuple[str, ...] = ()  # that are built

    @property
    def state(self) -> State:
        """Whether it is here."""
        return State.HERE if self.path else State.TO_BE_HAD


@dataclass(frozen=True, slots=True)
class ListedKernel:
    """Something that boots; its release is what `uname -r` says of it."""

    release: str
    version: KernelVersion | None  # None: the release doesn't say
    state: State
    image: Path | None = None
    bpf: bool | None = None  # whether it has CONFIG_BPF_SYSCALL; None: nobody can read it here
    offer: Offer | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that can be had here, and who could not be asked."""

    trees: tuple[ListedTree, ...]
    kernels: tuple[ListedKernel, ...]
    unanswered: tuple[str, ...]


def take(
    workspace: Workspace, shell: Shell, report: Report, remote: str | None, *, offline: bool
) -> Inventory:
    """List the workspace's trees, the distribution's, a repository's, and what boots.

    `remote` None means the repositories that setup takes trees from.  Offline
    nobody is asked: the suites are as they were last.  Raises Wrecked.
    """
    unanswered: list[str] = []
    offers = _offers(workspace, shell, report, unanswered, offline=offline)
    remotes = [remote] if remote is not None else [git.STABLE, git.MAINLINE]
    tags = {} if offline else _tags(remotes, shell, report, unanswered)
    trees = [*here(workspace), *packages(offers), *tagged(tags)]
    kernels = bootable(offers, cached=_cached(workspace))
    return Inventory(tuple(trees), tuple(kernels), tuple(unanswered))


# ---- trees


def here(workspace: Workspace) -> list[ListedTree]:
    """The trees in the workspace, and the users' own that commands worked in."""
    current = workspace.current_tree()
    return [
        ListedTree(
            tree.version,
            tree.origin,
            path=tree.path,
            current=tree.path == current,
            prepared=tree.recall("prepared") is not None,
            patched=bool(patching.recorded(tree)),
            samples=_built(workspace, tree),
        )
        for tree in [*fetched(workspace), *foreign(workspace)]
    ]


def _built(workspace: Workspace, tree: Tree) -> tuple[str, ...]:
    directories = workspace.root.glob(f"builds/{tree.key}/*")
    return tuple(sorted(directory.name for directory in directories if Build.load(directory)))


def packages(offers: Iterable[Offer]) -> list[ListedTree]:
    """The distribution's trees: of each version the package that setup would take."""
    chosen: dict[KernelVersion, Offer] = {}
    for offer in distro.sources(offers):
        chosen.setdefault(replace(offer.kernel, suffix=""), offer)
    return [
        ListedTree(version, Origin.DISTRO, offer=chosen[version])
        for version in sorted(chosen, reverse=True)
    ]


def tagged(tags: Mapping[KernelVersion, str]) -> list[ListedTree]:
    """Of tags, with their remotes, each series' newest release, and candidates for the next."""
    newest: dict[str, KernelVersion] = {}
    for version in sorted(tags):
        if version >= OLDEST and not version.rc:
            newest[version.series] = version
    released = max(newest.values(), default=OLDEST)
    wanted = [*newest.values(), *(one for one in tags if one.rc and one > released)]
    return [
        ListedTree(version, Origin.GIT, remote=tags[version])
        for version in sorted(wanted, reverse=True)
    ]


def _offers(
    workspace: Workspace, shell: Shell, report: Report, unanswered: list[str], *, offline: bool
) -> list[Offer]:
    try:
        apts = distro.suites(workspace.indexes, shell)
    except MissingTools:
        return []  # another distribution, which has other packages
    if not offline:
        try:
            for apt in apts:
                report(f"asking {apt.what}")
                unanswered += apt.update()
        except Unreachable as unreachable:  # the others are on the same mirror
            unanswered.append(unreachable.message)
    return [offer for apt in apts for offer in apt.offers()]


def _tags(
    remotes: Sequence[str], shell: Shell, report: Report, unanswered: list[str]
) -> dict[KernelVersion, str]:
    """The remotes' tags; the last remote that has one is named."""
    tags: dict[KernelVersion, str] = {}
    for remote in remotes:
        report(f"asking {remote}")
        try:
            tags |= dict.fromkeys(git.tags(remote, shell), remote)
        except (Unreachable, MissingTools) as error:
            unanswered.append(error.message)
    return tags


# ---- kernels that boot


def bootable(
    offers: Iterable[Offer], boot: Path = BOOT, cached: Iterable[Kernel] = ()
) -> list[ListedKernel]:
    """The running kernel, those in /boot, those that are kept in the workspace, and on offer.

    The distribution offers the newest of each series.
    """
    running = platform.release()
    files = {path.name.removeprefix("vmlinuz-"): path for path in boot.glob("vmlinuz-*")}
    found = [
        ListedKernel(running, version_of(running), State.RUNNING, image=files.pop(running, None),
               bpf=_has_bpf(boot / f"config-{running}", config.RUNNING))
    ]  # fmt: skip
    installed = (
        ListedKernel(release, version_of(release), State.INSTALLED, image=image,
               bpf=_has_bpf(boot / f"config-{release}"))
        for release, image in files.items()
    )  # fmt: skip
    found += sorted(installed, key=_age, reverse=True)
    found += sorted(map(_listed, cached), key=_age, reverse=True)
    known = {kernel.release for kernel in found}
    return [*found, *(kernel for kernel in images(offers) if kernel.release not in known)]


def _cached(workspace: Workspace) -> list[Kernel]:
    """The kernels in the workspace, but for what was unpacked of the user's own files."""
    return [kernel for kernel in kept(workspace.kernels) if kernel.source is not Source.IMAGE]


def _listed(kernel: Kernel) -> ListedKernel:
    bpf = _has_bpf(kernel.config) if kernel.config else None
    return ListedKernel(kernel.release, kernel.version, State.HERE, image=kernel.image, bpf=bpf)


def images(offers: Iterable[Offer]) -> list[ListedKernel]:
    """The distribution's kernels: the newest of each series, for any machine and for virtual."""
    newest = {
        (image.offer.kernel.series, distro.is_cloud(image.release)): image
        for image in distro.images(offers)
    }
    kernels = (
        ListedKernel(image.release, image.offer.kernel, State.TO_BE_HAD, offer=image.offer)
        for image in newest.values()
    )
    return sorted(kernels, key=_age, reverse=True)


def _age(kernel: ListedKernel) -> KernelVersion:
    return kernel.version or KernelVersion(0, 0)


def _has_bpf(*configs: Path) -> bool | None:
    """Whether the first configuration that can be read has CONFIG_BPF_SYSCALL."""
    options = config.read_first(*configs)
    return None if options is None else options.get("CONFIG_BPF_SYSCALL") == "y"
