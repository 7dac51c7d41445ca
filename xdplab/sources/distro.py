"""A tree out of the distribution's linux-source package, through apt.

apt is asked in a directory of our own, so that no root is needed and the
machine's own apt configuration isn't touched; the mirror is the machine's.  apt
checks the signature of each suite's list, by that the lists of packages, and by
those the packages: also on a machine that was told not to.
"""

from __future__ import annotations

import contextlib
import platform
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xdplab.errors import CommandFailed, MissingTools, NotAVersion, NotToBeHad, Unreachable
from xdplab.files import locked, require_space, sha256, write_whole
from xdplab.process import Shell
from xdplab.sources import Report, Tell
from xdplab.sources.tarball import unpack
from xdplab.version import KernelVersion, nearest

# The releases of each distribution, the oldest first, as the package
# distro-info-data lists them, and the endings of the suites that each can have.
# Which of these there are just now the mirror knows.
RELEASES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "debian": {
        "bullseye": ("", "-updates", "-security"),
        "bookworm": ("", "-updates", "-security", "-backports"),
        "trixie": ("", "-updates", "-security", "-backports"),
        "forky": ("", "-updates", "-security", "-backports"),
        "sid": ("",),
        "experimental": ("",),
    },
    "ubuntu": {
        "focal": ("", "-updates", "-security"),
        "jammy": ("", "-updates", "-security"),
        "noble": ("", "-updates", "-security"),
        "questing": ("", "-updates", "-security"),
        "resolute": ("", "-updates", "-security"),
    },
}
# Names that go from release to release.
_ALIASES = ("oldoldstable", "oldstable", "stable", "testing", "unstable", "devel")

_KEYRINGS = Path("/usr/share/keyrings")
_ENV = {"LC_ALL": "C.UTF-8"}  # of apt, whose words are read

SOURCE = re.compile(r"linux-source-\d+\.\d+(?:\.0)?")
# A kernel for any machine ("6.1.0-47-amd64", Ubuntu's "-generic") or for virtual
# ones ("cloud-amd64", "kvm"); not those for real time, with debugging symbols, or
# unsigned.
IMAGE = re.compile(
    r"linux-image-(?P<release>(?P<abi>\d[^-]*(?:-\d[^-]*)?)"
    r"-(?P<flavour>(?:cloud-)?[a-z]+\d\w*|generic|kvm))"
)

# A field of what apt-cache(8) shows of a package that is one line.
_FIELD = re.compile(r"^([\w-]+): (.*)$", re.MULTILINE)

# What apt-get(8) lists with --print-uris, and how it tells of what it couldn't fetch.
_INDEX = re.compile(r"^'(\S+)/dists/(\S+)/([^/\s]+)/binary-[^/\s]+/Packages", re.MULTILINE)
_FAULT = re.compile(r"^Err:\d+ (\S+) (\S+?)(?:/\S+ \S+)? (\S+)\n +(.*)", re.MULTILINE)
_UNSIGNED = re.compile(r"^E: The repository '(\S+) (\S+) Release' is not signed", re.MULTILINE)
_NO_SUCH_SUITE = re.compile(r"Release: (?:404|File not found)")

# What apt-cache(8) shows of a package: its name, each version, and where that is.
_QUESTIONS = {"policy": ("linux-source-*", "linux-image-*"), "unmet": ("linux-image-*",)}
_POLICY = re.compile(
    r"(?P<package>\S+):|(?: {5}| [*]{3} )(?P<version>\S+) -?\d+.*"
    r"| {6,}-?\d+ \S+ (?P<suite>\S+)/\S+ \S+ Packages"
)
_UNMET = re.compile(r"^Package linux-image-(\S+) version (\S+) .*\n((?: .*\n?)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Offer:
    """A package that a suite has."""

    kernel: KernelVersion
    package: str
    version: str  # the package's own: "6.12.95-1~bpo12+1"
    suite: str

    @property
    def file(self) -> str:
        """What its file is called, for any architecture, as a pattern."""
        return f"{self.package}_{self.version.replace(':', '%3a')}_*.deb"


@dataclass(frozen=True, slots=True)
class ImagePackage:
    """A package with a kernel that boots."""

    release: str  # what `uname -r` says when it runs
    offer: Offer


@dataclass(frozen=True, slots=True)
class Parts:
    """The packages that one is split into, and the bytes that they take, packed and unpacked."""

    offers: tuple[Offer, ...]
    size: int
    installed: int


@dataclass(frozen=True, slots=True)
class Suite:
    """A line of sources.list."""

    uri: str
    name: str
    component: str

    @property
    def release(self) -> str:
        """The release that it belongs to."""
        return self.name.partition("-")[0]

    def line(self, options: str) -> str:
        """The line, as sources.list(5) has it."""
        return f"deb [{options}] {self.uri} {self.name} {self.component}\n"


@dataclass(frozen=True, slots=True)
class Apt:
    """apt in a directory of our own, asked for suites of our choice."""

    root: Path
    what: str  # whose suites they are
    suites: tuple[Suite, ...]
    shell: Shell

    @property
    def _configuration(self) -> Path:
        return self.root / "apt.conf"

    def _argv(self, command: str, *arguments: str) -> list[str]:
        # what is named so is read last, and counts: the machine's own files are read before
        return [command, f"--config-file={self._configuration}", *arguments]

    @property
    def _keyring(self) -> Path | None:
        """The distribution's keys; None: apt uses those that it trusts anyway."""
        keyring = _KEYRINGS / f"{_distribution()}-archive-keyring.gpg"
        return keyring if keyring.exists() else None

    def _configure(self) -> None:
        """Write the directory's own sources.list and apt.conf(5)."""
        for directory in ("lists/partial", "cache/archives/partial"):
            (self.root / directory).mkdir(parents=True, exist_ok=True)
        options = f"arch={self.shell.ask(['dpkg', '--print-architecture']).text()}"
        if self._keyring:
            options += f" signed-by={self._keyring}"
        sources = "".join(suite.line(options) for suite in self.suites)
        write_whole(self.root / "sources.list", sources.encode())
        settings = {
            "Dir::Etc::SourceList": self.root / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self.root / "lists",
            "Dir::Cache": self.root / "cache",
            # images for containers turn this off, and then each question takes seconds
            "Dir::Cache::pkgcache": self.root / "pkgcache.bin",
            # nothing is taken that nobody known has signed
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::AllowWeakRepositories": "false",
            "Acquire::AllowDowngradeToInsecureRepositories": "false",
            "Acquire::GzipIndexes": "true",
            "Acquire::Languages": "none",
            "Acquire::http::Timeout": "10",
            "Acquire::https::Timeout": "10",
            # apt's own user can't write here; and nothing that it fetches is run
            "APT::Sandbox::User": "root",
        }
        text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
        write_whole(self._configuration, text.encode())

    def update(self) -> list[str]:
        """Fetch the suites' indexes; gives which suites could not be had, and why.

        One that the mirror hasn't got is no fault.  One that nobody known here
        has signed apt doesn't take.  Raises Unreachable if none can be had, Held.
        """
        # a silent mirror is waited for once for each suite, not four times
        argv = self._argv("apt-get", "-o", "Acquire::Retries=0", "update", "--quiet")
        with locked(self.root / "lock", dry=self.shell.dry):
            if not self.shell.dry:
                self._configure()
            finished = self.shell.run(argv, env=_ENV, check=False)
        faults = read_faults(finished.text("out", "err"))
        said = [f"{name}: {why}" for (_, name), why in faults.items() if why]
        if finished.code and not faults:  # it didn't come to asking
            raise _no_mirror(finished.text("err"))
        if said and faults.keys() >= {(suite.uri, suite.name) for suite in self.suites}:
            raise _no_mirror(said[0])
        return said

    def offers(self) -> list[Offer]:
        """The kernel packages, sources and images, as of the last update.

        Images whose other parts are gone from the suite are left out.
        """
        if not self._configuration.exists():
            return []
        said = {}
        for question, patterns in _QUESTIONS.items():
            argv = self._argv("apt-cache", question, *patterns)
            said[question] = self.shell.ask(argv, env=_ENV).text()
        lacking = read_unmet(said["unmet"])
        offers = read_policy(said["policy"])
        return [one for one in offers if (one.package, one.version) not in lacking]

    def parts(self, image: ImagePackage) -> Parts:
        """An image's package, and those of the same release that it depends on.

        Ubuntu's have their modules in a package of their own, as have Debian's from
        6.19 on, with the image itself in a third and the configuration in a fourth.
        """
        shown = self._show([image.offer])
        needed = shown[0].get("Depends", "")
        names = re.findall(rf"[^\s,|]+-{re.escape(image.release)}(?![^\s,])", needed)
        others = [replace(image.offer, package=name) for name in names]
        shown += self._show(others) if others else []
        return Parts(
            (image.offer, *others),
            sum(int(fields.get("Size", 0)) for fields in shown),
            sum(int(fields.get("Installed-Size", 0)) * 2**10 for fields in shown),
        )

    def _show(self, offers: Iterable[Offer]) -> list[dict[str, str]]:
        """The fields of packages; deb-control(5) has their names."""
        argv = self._argv("apt-cache", "show", *(f"{one.package}={one.version}" for one in offers))
        text = self.shell.ask(argv, env=_ENV).text().strip()
        return [dict(_FIELD.findall(paragraph)) for paragraph in text.split("\n\n")]

    def download(
        self, offers: Sequence[Offer], into: Path, idle: Callable[[], None] = lambda: None
    ) -> list[Path]:
        """Fetch packages, their hashes checked against the signed index; raises Unreachable."""
        into.mkdir(parents=True, exist_ok=True)
        self._drop_altered(offers, into)
        wanted = [f"{one.package}={one.version}" for one in offers]
        try:
            argv = self._argv("apt-get", "download", *wanted)
            self.shell.run(argv, cwd=into, env=_ENV, idle=idle)
        except CommandFailed as error:
            raise Unreachable(offers[0].package, error.cure, "try again") from error
        return [next(into.glob(one.file)) for one in offers]

    def _drop_altered(self, offers: Sequence[Offer], into: Path) -> None:
        """Remove what is there of packages, and isn't what the signed index says.

        apt itself only looks at the size of what it needn't fetch.
        """
        there = [(file, one) for one in offers for file in into.glob(one.file)]
        if not there:
            return
        shown = self._show([one for _, one in there])
        published = {(one["Package"], one["Version"]): one.get("SHA256") for one in shown}
        for file, one in there:
            if sha256(file) != published.get((one.package, one.version)):
                file.unlink()

    def checked(self, offer: Offer) -> str:
        """How apt knows that a package is the distribution's."""
        keys = self._keyring or "keys that this machine's apt trusts"
        return (
            f"{offer.package} {offer.version}: its SHA-256 is that of the index of {offer.suite},"
            f" which is signed (apt, with {keys})"
        )


def _no_mirror(said: str) -> Unreachable:
    return Unreachable("the distribution's mirror", said, "see /etc/apt and the network")


def read_faults(text: str) -> dict[tuple[str, str], str]:
    """Why `apt-get update` couldn't have a suite, by its URI and name; "" if it isn't there."""
    faults = {
        (uri, suite): "" if _NO_SUCH_SUITE.match(f"{file}: {why}") else why
        for uri, suite, file, why in _FAULT.findall(text)
    }
    return faults | dict.fromkeys(_UNSIGNED.findall(text), "nobody has signed it")


def read_policy(text: str) -> list[Offer]:
    """What `apt-cache policy` says, as offers: of a package the newest version first."""
    found = []
    package = version = ""
    for row in filter(None, map(_POLICY.fullmatch, text.splitlines())):
        package, version = row["package"] or package, row["version"] or version
        if row["suite"]:
            with contextlib.suppress(NotAVersion):  # a metapackage may be numbered as it likes
                kernel = KernelVersion.parse(version.rpartition(":")[2])
                found.append(Offer(kernel, package, version, row["suite"]))
    return found


def read_unmet(text: str) -> set[tuple[str, str]]:
    """The images, by package and version, that `apt-cache unmet` says lack a part of theirs."""
    return {
        (f"linux-image-{release}", version)
        for release, version, lacks in _UNMET.findall(text)
        if re.search(rf"^ Depends: \S+-{re.escape(release)}(?!\S)", lacks, re.MULTILINE)
    }


def choose(version: KernelVersion, offers: Iterable[Offer]) -> Offer | None:
    """The source package that a version means; of several that fit the newest, then the first."""
    fit = (one for one in sources(offers) if version.covers(one.kernel))
    return max(fit, key=lambda one: one.kernel, default=None)


def sources(offers: Iterable[Offer]) -> list[Offer]:
    """Those that are kernel sources."""
    return [one for one in offers if SOURCE.fullmatch(one.package)]


def images(offers: Iterable[Offer]) -> list[ImagePackage]:
    """Those that are kernels for any machine, or for virtual ones, the oldest first."""
    named = [(IMAGE.fullmatch(offer.package), offer) for offer in offers]
    # apt names a package's newest version first
    found = [(name, offer) for name, offer in reversed(named) if name]
    # of one version that was packaged twice the later has the higher number in its
    # name; and a metapackage, linux-image-6.12-amd64, has fewer numbers
    found.sort(key=lambda pair: (pair[1].kernel, [*map(int, re.findall(r"\d+", pair[0]["abi"]))]))
    return [ImagePackage(name["release"], offer) for name, offer in found]


def is_cloud(release: str) -> bool:
    """Whether it is of the flavour for virtual machines, which has fewer drivers."""
    return "-cloud-" in release or release.endswith("-kvm")


# ---- the distribution's suites


def _distribution() -> str:
    release = platform.freedesktop_os_release()
    kin = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    return next((name for name in kin if name in RELEASES), kin[0])


def own_suites(listing: str, distribution: str, codename: str) -> list[Suite]:
    """The distribution's suites among those of the machine's apt.

    `listing` is what `apt-get update --print-uris` prints, which is the same
    whether apt has been asked for anything before or not.
    """
    suites = [Suite(*row) for row in sorted(set(_INDEX.findall(listing)))]
    known = {*RELEASES.get(distribution, {}), *_ALIASES, codename}
    return [suite for suite in suites if suite.release in known] or suites


def other_suites(own: Sequence[Suite], distribution: str) -> list[Suite]:
    """The distribution's suites that the machine's apt isn't configured for, on its mirrors."""
    if not own:
        return []
    # somebody else's repository may name its suite after a release, but has no more of them
    mirror = Counter(suite.uri for suite in own).most_common(1)[0][0]
    security = [suite.uri for suite in own if suite.name.endswith("-security")]
    beside = re.sub(r"/debian$", "/debian-security", mirror)  # Ubuntu has all in one place
    names = {suite.name for suite in own}
    return [
        Suite((security or [beside])[0] if kind == "-security" else mirror, release + kind, "main")
        for release, kinds in RELEASES.get(distribution, {}).items()
        for kind in kinds
        if release + kind not in names
    ]


def suites(directory: Path, shell: Shell) -> list[Apt]:
    """Gives apt for the machine's own suites, and for the distribution's others.

    Each keeps its indexes below `directory`.  Raises MissingTools without apt.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise MissingTools(["apt-get"], "build (or, without apt: --source git, tarball, or --tree)")
    distribution = _distribution()
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    listing = shell.ask(["apt-get", "update", "--print-uris"]).text()
    own = own_suites(listing, distribution, codename)
    others = other_suites(own, distribution)
    asked = [
        Apt(directory / "own", "this machine's suites", tuple(own), shell),
        Apt(directory / "others", "the distribution's other suites", tuple(others), shell),
    ]
    return [apt for apt in asked if apt.suites]


def ask(
    directory: Path, shell: Shell, report: Report, tell: Tell
) -> Iterator[tuple[Apt, list[Offer]]]:
    """Ask for what there is, the machine's own suites first, which is quick.

    `tell` hears of suites that could not be had.  Raises Unreachable, MissingTools
    without apt.
    """
    for apt in suites(directory, shell):
        report(f"asking {apt.what}")
        for fault in apt.update():
            tell(f"left out {fault}")
        yield apt, apt.offers()


def fetch(
    version: KernelVersion, path: Path, downloads: Path, indexes: Path, shell: Shell,
    report: Report, tell: Tell,
) -> str:  # fmt: skip
    """Unpack the distribution's source package of a version into `path`.

    A series means its newest release: of the machine's own suites, where they
    have one.  Gives what was checked, which `tell` hears too, and of suites that could
    not be had.  Raises NotToBeHad
    with the nearest on offer, Unreachable, MissingTools without apt.
    """
    require_space(path, 2500 * 2**20)
    if shell.dry:
        shell.echo(f"apt-get download linux-source-{version.series}")
        return ""
    offers: list[Offer] = []
    for apt, had in ask(indexes, shell, report, tell):  # noqa: B007
        offers += had
        chosen = choose(version, had)
        if chosen:
            break
    else:
        close = nearest(version, (one.kernel for one in sources(offers)))
        raise NotToBeHad(version.tag, "the distribution", [one.tag for one in close])
    report(f"downloading {chosen.package} {chosen.version} from {chosen.suite}")
    (package,) = apt.download([chosen], downloads)
    checked = apt.checked(chosen)
    tell(checked)
    report(f"unpacking {package.name}")
    _unpack(package, path, shell)
    return checked


def _unpack(package: Path, path: Path, shell: Shell) -> None:
    """Make `path` the tree in the tarball in the package."""
    scratch = path.with_name(f"{path.name}.package")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        shell.run(["dpkg-deb", "--extract", package, scratch])
        (tarball,) = scratch.glob("usr/src/linux-source-*.tar.*")
        unpack(tarball, path, shell)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
