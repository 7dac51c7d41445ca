"""The distribution's kernels: their packages are fetched, and what is needed of them is kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from xdplab.boot import Kernel, Source, altered, beside, image, kept, modules
from xdplab.errors import NotToBeHad
from xdplab.files import locked, require_space, write_whole
from xdplab.process import Shell
from xdplab.sources import Report, Tell, distro
from xdplab.sources.distro import Apt, Parts, is_cloud
from xdplab.version import KernelVersion, nearest
from xdplab.workspace import Workspace

_DRIVERS = (*modules.CARD, *modules.VETH)  # whose modules are kept
_KEPT = 100 * 2**20  # bytes: more than an unpacked vmlinux takes
_CURE = "name another (invoke kernels lists them), or build it from its tree: invoke kernel"
_SCRATCH = "fetching-"
_CLOUD = "-cloud"  # at the end of what people ask for


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for: a version, in the plain flavour or the cloud's, or one release."""

    version: KernelVersion
    cloud: bool
    release: str | None

    @classmethod
    def of(cls, spec: str) -> Wanted:
        """Read "6.1", "v6.12.117", "6.1-cloud", "6.1.0-50-amd64"; raises NotAVersion."""
        version = KernelVersion.parse(spec.removesuffix(_CLOUD))
        return cls(version, spec.endswith(_CLOUD), spec if version.suffix else None)

    def fits(self, release: str, version: KernelVersion | None) -> bool:
        """Whether a kernel is what was asked for."""
        if self.release:
            return release == self.release
        return bool(version and self.version.covers(version)) and self.cloud == is_cloud(release)

    def __str__(self) -> str:
        return self.release or f"{self.version.tag}{_CLOUD if self.cloud else ''}"


def obtain(
    wanted: Wanted, workspace: Workspace, shell: Shell, report: Report, tell: Tell
) -> Kernel | None:
    """The distribution's kernel: the one that is kept here, or else the newest on offer.

    Nobody is asked where one that fits is kept, and is as it was.  Gives none in a dry run
    that would fetch one.  `tell` hears of what was altered, of what was checked, and of
    suites that could not be had.  Raises
    NotToBeHad with the nearest on offer, Unreachable, NoSpace, Held, and
    MissingTools without apt.
    """
    kernel = _kept(wanted, workspace)
    changed = altered(kernel.image.parent) if kernel else []
    if kernel and not changed:
        return kernel
    if kernel:
        tell(f"{kernel.image.parent} isn't what was fetched, and comes anew: {', '.join(changed)}")
    if shell.dry:
        shell.echo(f"apt-get download linux-image-{wanted}")
        return None
    with locked(workspace.kernels / "lock"):
        kernel = _kept(wanted, workspace)  # another process may have fetched it meanwhile
        if kernel and not altered(kernel.image.parent):
            return kernel
        return _fetch(wanted, workspace, shell, report, tell)


def _kept(wanted: Wanted, workspace: Workspace) -> Kernel | None:
    fit = [
        kernel
        for kernel in kept(workspace.kernels)
        if kernel.source is Source.DISTRO and wanted.fits(kernel.release, kernel.version)
    ]
    return max(fit, key=lambda kernel: kernel.version or wanted.version, default=None)


def _fetch(
    wanted: Wanted, workspace: Workspace, shell: Shell, report: Report, tell: Tell
) -> Kernel:
    apt, chosen = _choose(wanted, workspace, shell, report, tell)
    parts = apt.parts(chosen)
    whole = workspace.kernels / chosen.release
    require_space(whole, parts.size + parts.installed + _KEPT)
    for leftover in workspace.kernels.glob(f"{_SCRATCH}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=workspace.kernels, prefix=_SCRATCH) as scratch:
        package, to = Path(scratch, "package"), Path(scratch, "kept")
        _unpack(parts, apt, package, shell, report)
        report(f"keeping what is needed of {chosen.release}")
        checked = apt.checked(chosen.offer)
        tell(checked)
        _keep(chosen, package, to, checked)
        shutil.rmtree(whole, ignore_errors=True)
        to.rename(whole)
    kernel = Kernel.load(whole)
    assert kernel  # noqa: S101  # it was kept there just now
    tell(f"fetched Linux {kernel.release} from {chosen.offer.suite} into {whole}")
    return kernel


def _choose(
    wanted: Wanted, workspace: Workspace, shell: Shell, report: Report, tell: Tell
) -> tuple[Apt, distro.ImagePackage]:
    """The newest that fits, and whom to ask for it; raises NotToBeHad."""
    images: list[distro.ImagePackage] = []
    for apt, offers in distro.ask(workspace.indexes, shell, report, tell):
        here = distro.images(offers)
        fit = [one for one in here if wanted.fits(one.release, one.offer.kernel)]
        if fit:
            return apt, fit[-1]
        images += here
    raise NotToBeHad(str(wanted), "the distribution", _nearest(wanted, images), _CURE)


def _nearest(wanted: Wanted, images: Iterable[distro.ImagePackage]) -> list[str]:
    """What could be asked for instead, of the same flavour."""
    cloud = is_cloud(wanted.release) if wanted.release else wanted.cloud
    others = {one.offer.kernel: one.release for one in images if is_cloud(one.release) == cloud}
    close = nearest(wanted.version, others)
    end = _CLOUD if cloud else ""
    return [others[one] if wanted.release else f"{one.tag}{end}" for one in close]


def _unpack(parts: Parts, apt: Apt, scratch: Path, shell: Shell, report: Report) -> None:
    """Fetch the packages, and unpack all of them into the same directory."""
    image = parts.offers[0]
    phase = f"downloading {image.package} {image.version} from {image.suite}"

    def tell_how_far() -> None:
        done = sum(file.stat().st_size for file in scratch.glob("*"))
        report(phase, done, parts.size, f"{done / 2**20:.1f} of {parts.size / 2**20:.1f} MiB")

    report(phase, 0, parts.size)
    for package in apt.download(parts.offers, scratch, tell_how_far):
        report(f"unpacking {package.name}")
        shell.run(["dpkg-deb", "--extract", package, scratch])
        package.unlink()


def _keep(chosen: distro.ImagePackage, package: Path, to: Path, checked: str) -> None:
    """Keep of what was unpacked the image, the configuration, and modules for our hardware."""
    release, offer = chosen.release, chosen.offer
    files = [*package.glob(f"boot/vmlinuz-{release}"), *package.glob("**/lib/modules/*/vmlinuz")]
    if not files:
        raise NotToBeHad(release, f"{offer.package} {offer.version}", [], _CURE)
    found = image.read(files[0])
    config, directory = beside.config(files[0], release), beside.modules(files[0], release)
    boots = to / ("vmlinux" if found.unpacked else "bzImage")
    kernel = Kernel(release, offer.kernel, boots, None, None, Source.DISTRO)
    write_whole(boots, found.unpacked or files[0].read_bytes())
    if config:
        kernel = replace(kernel, config=Path(shutil.copyfile(config, to / "config")))
    if directory:
        modules.copy(directory, to / "modules", _DRIVERS, release)
        kernel = replace(kernel, modules=to / "modules")
    named = {"package": offer.package, "package_version": offer.version, "suite": offer.suite}
    kernel.keep(to, **named, checked=checked)
