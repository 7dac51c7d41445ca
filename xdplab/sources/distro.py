"""A tree out of the distribution's linux-source package, through apt.

apt is asked in a directory of our own, so that no root is needed and the
machine's own apt configuration isn't touched; the mirror is the machine's, and
apt checks the signatures as ever.
"""

from __future__ import annotations

import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from xdplab.errors import CommandFailed, MissingTools, NotToBeHad, Unreachable
from xdplab.files import require_space, write_whole
from xdplab.process import Shell
from xdplab.sources import Report
from xdplab.sources.tarball import unpack
from xdplab.version import KernelVersion

# Suites other than the machine's own that have a source package, and the
# keyring that signs them.  Every suite but sid has a security suite beside it.
SUITES = {
    "debian": {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"},
    "ubuntu": {"5.4": "focal", "5.15": "jammy", "6.8": "noble"},
}
_PACKAGE = re.compile(r"linux-source-(\d+\.\d+)(?:\.0)?")


@dataclass(frozen=True, slots=True)
class Suite:
    """A line of sources.list."""

    uri: str
    name: str
    component: str

    def line(self, keyring: Path) -> str:
        """The line; without the distribution's own keyring apt uses those it trusts."""
        signed = f" [signed-by={keyring}]" if keyring.exists() else ""
        return f"deb{signed} {self.uri} {self.name} {self.component}\n"


@dataclass(frozen=True, slots=True)
class Apt:
    """apt in a directory of our own, with suites of our choice."""

    root: Path
    suites: tuple[Suite, ...]
    shell: Shell

    @property
    def _env(self) -> dict[str, str]:
        return {"APT_CONFIG": str(self.root / "apt.conf")}

    def _configure(self) -> None:
        """Write the directory's own sources.list and apt.conf(5)."""
        for directory in ("lists/partial", "cache/archives/partial"):
            (self.root / directory).mkdir(parents=True, exist_ok=True)
        keyring = Path(f"/usr/share/keyrings/{_distribution()}-archive-keyring.gpg")
        sources = "".join(suite.line(keyring) for suite in self.suites)
        write_whole(self.root / "sources.list", sources.encode())
        settings = {
            "Dir::Etc::SourceList": self.root / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": self.root / "lists",
            "Dir::Cache": self.root / "cache",
            "Acquire::Languages": "none",
            # apt's own user can't write here; and nothing that it fetches is run
            "APT::Sandbox::User": "root",
        }
        text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
        write_whole(self.root / "apt.conf", text.encode())

    def update(self) -> None:
        """Fetch the suites' indexes; raises Unreachable."""
        self._configure()
        finished = self.shell.ask(["apt-get", "update", "--error-on=any"], env=self._env)
        if finished.code:
            raise Unreachable(
                "the distribution's mirror", finished.text("err"), "see /etc/apt and the network"
            )

    def source_packages(self) -> dict[str, str]:
        """The linux-source packages on offer, by kernel series: {"6.1": "linux-source-6.1"}."""
        listing = self.shell.ask(["apt-cache", "pkgnames", "linux-source-"], env=self._env)
        names = listing.text().split()
        found = ((_PACKAGE.fullmatch(name), name) for name in sorted(names))
        return {match[1]: name for match, name in found if match}

    def version_of(self, package: str) -> KernelVersion:
        """The kernel version of a package, out of its own: "6.1.192-2"."""
        shown = self.shell.ask(["apt-cache", "show", "--no-all-versions", package], env=self._env)
        found = re.search(r"^Version: (?:\d+:)?(\S+)", shown.text(), re.MULTILINE)
        return KernelVersion.parse(found[1] if found else "")

    def download(self, package: str, into: Path) -> Path:
        """Fetch a package, its hash checked against the signed index; raises Unreachable."""
        into.mkdir(parents=True, exist_ok=True)
        try:
            self.shell.run(["apt-get", "download", package], cwd=into, env=self._env)
        except CommandFailed as error:
            raise Unreachable(package, error.cure, "try again") from error
        return max(into.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)


def _distribution() -> str:
    release = platform.freedesktop_os_release()
    kin = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    return next((name for name in kin if name in SUITES), kin[0])


def _own_suites(shell: Shell) -> list[Suite]:
    """The distribution's suites that the machine's apt is configured for."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    finished = shell.ask(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
         "Created-By: Packages"]
    )  # fmt: skip
    rows = {tuple(line.split("|")) for line in finished.text().splitlines()}
    suites = [Suite(*row) for row in sorted(rows) if len(row) == 3]
    own = [suite for suite in suites if suite.name.partition("-")[0] == codename]
    return own or suites


def _foreign_suites(own: list[Suite], codename: str) -> list[Suite]:
    """The same mirrors' suites of another release."""
    return [
        Suite(one.uri, one.name.replace(one.name.partition("-")[0], codename, 1), one.component)
        for one in own
        if one.component == "main" and not one.name.endswith(("-updates", "-backports"))
    ]


def fetch(
    version: KernelVersion, path: Path, downloads: Path, shell: Shell, report: Report
) -> None:
    """Unpack the distribution's source package of the version's series into `path`.

    The distribution decides on the third number.  Raises NotToBeHad with the
    series on offer, Unreachable, MissingTools without apt.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise MissingTools(["apt-get"], "build (or, without apt: --source git, tarball, or --tree)")
    require_space(path, 2500 * 2**20)
    own = _own_suites(shell)
    codename = SUITES.get(_distribution(), {}).get(version.series)
    offered: set[str] = set()
    choices = [own, _foreign_suites(own, codename)] if codename else [own]
    for suites in choices:
        report(f"asking {', '.join(sorted({suite.name for suite in suites}))}")
        apt = Apt(downloads.parent / "apt", tuple(suites), shell)
        if shell.dry:
            shell.echo(f"apt-get download linux-source-{version.series}")
            return
        apt.update()
        packages = apt.source_packages()
        offered |= packages.keys()
        if version.series in packages:
            break
    else:
        raise NotToBeHad(version.series, "the distribution", sorted(offered, key=_by_number))
    _require_number(version, apt, packages[version.series])
    report(f"downloading {packages[version.series]}")
    package = apt.download(packages[version.series], downloads)
    report(f"unpacking {package.name}")
    scratch = path.with_name(f"{path.name}.package")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        shell.run(["dpkg-deb", "--extract", package, scratch])
        (tarball,) = scratch.glob("usr/src/linux-source-*.tar.*")
        unpack(tarball, path, shell)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_number(version: KernelVersion, apt: Apt, package: str) -> None:
    """Raise NotToBeHad if another release of the series than the package's was asked for."""
    offered = apt.version_of(package)
    if (version.patch or version.rc) and version != offered:
        raise NotToBeHad(version.tag, "the distribution", [offered.tag])


def _by_number(series: str) -> KernelVersion:
    return KernelVersion.parse(series)
