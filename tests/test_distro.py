"""The distribution's suites as a source: what they offer, and trees out of real packages."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import make_fake_tree
from mirror import Mirror, become_debian, needs_apt, serve

from xdplab import setup
from xdplab.errors import Held, NotToBeHad, Unreachable
from xdplab.files import locked
from xdplab.kernels import images, packages
from xdplab.process import Shell
from xdplab.sources import distro
from xdplab.sources.distro import (
    Offer,
    Suite,
    choose,
    other_suites,
    own_suites,
    read_faults,
    read_policy,
    read_unmet,
)
from xdplab.toolchain import Toolchain
from xdplab.tree import Origin, Tree
from xdplab.trees import find
from xdplab.version import KernelVersion
from xdplab.workspace import Workspace

BOOKWORM = ("bookworm", "bookworm-updates", "bookworm-security")


def no_report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Nobody listens."""


def version(text: str) -> KernelVersion:
    return KernelVersion.parse(text)


def offer(package: str, number: str, suite: str = "bookworm") -> Offer:
    return Offer(version(number), package, number, suite)


# ---- what apt says

POLICY = """\
linux-source-6.12:
  Installed: (none)
  Candidate: 6.12.117-1~deb12u1
  Version table:
     6.12.117-1 500
        500 http://mirror.example/debian trixie/main amd64 Packages
        500 http://mirror.example/debian-security trixie-security/main amd64 Packages
     6.12.95-1~bpo12+1 100
        100 http://mirror.example/debian bookworm-backports/main amd64 Packages
linux-source-7.3:
  Installed: 7.3.4-1~bpo13+1
  Candidate: 7.3.4-1~bpo13+1
  Version table:
 *** 7.3.4-1~bpo13+1 100
        100 http://mirror.example/debian trixie-backports/main amd64 Packages
        100 /var/lib/dpkg/status
     7.3~rc7-1~exp1 -1
         -1 http://mirror.example/debian experimental/main amd64 Packages
linux-image-6.8.0-31-generic:
  Installed: (none)
  Candidate: 1:6.8.0-31.31
  Version table:
     1:6.8.0-31.31 500 (phased 50%)
        500 http://mirror.example/ubuntu noble-updates/main amd64 Packages
linux-image-local:
  Installed: mine
  Candidate: mine
  Version table:
 *** mine 100
        100 /var/lib/dpkg/status
     mine 500
        500 http://mirror.example/debian sid/main amd64 Packages
"""


def test_policy_is_read_package_by_package_and_suite_by_suite() -> None:
    rows = [(str(o.kernel), o.package, o.version, o.suite) for o in read_policy(POLICY)]
    name = "linux-source-6.12"
    assert rows == [
        ("6.12.117-1", name, "6.12.117-1", "trixie"),
        ("6.12.117-1", name, "6.12.117-1", "trixie-security"),
        ("6.12.95-1~bpo12+1", name, "6.12.95-1~bpo12+1", "bookworm-backports"),
        ("7.3.4-1~bpo13+1", "linux-source-7.3", "7.3.4-1~bpo13+1", "trixie-backports"),
        ("7.3-rc7-1~exp1", "linux-source-7.3", "7.3~rc7-1~exp1", "experimental"),
        ("6.8-31.31", "linux-image-6.8.0-31-generic", "1:6.8.0-31.31", "noble-updates"),
    ]


def test_nothing_on_offer_is_read_as_nothing() -> None:
    assert read_policy("") == []
    assert read_policy("N: Unable to locate package linux-image-*\n") == []


UPDATE = """\
Ign:1 http://127.0.0.1:1/debian trixie-backports InRelease
Get:3 http://mirror.example/debian trixie-updates InRelease [47.3 kB]
Ign:4 http://mirror.example/debian sid-updates InRelease
Err:6 http://mirror.example/debian sid-updates Release
  404  Not Found [IP: 192.0.2.80 80]
Err:5 http://mirror.example/debian experimental InRelease
  The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 1
Err:7 http://192.0.2.1/debian bookworm Release
  Cannot initiate the connection to 192.0.2.1:80. - connect (101: Network is unreachable)
Err:8 http://mirror.example/debian sid/main amd64 Packages
  404  Not Found [IP: 192.0.2.80 80]
Err:9 file:/mirror/debian buster Release
  File not found - /mirror/debian/dists/buster/Release (2: No such file or directory)
Reading package lists...
"""


def test_a_suite_that_is_not_there_is_told_from_one_that_cannot_be_had() -> None:
    mirror = "http://mirror.example/debian"
    faults = read_faults(UPDATE)
    assert {place for place, why in faults.items() if not why} == {
        (mirror, "sid-updates"), ("file:/mirror/debian", "buster"),
    }  # fmt: skip
    assert "NO_PUBKEY" in faults[mirror, "experimental"]
    assert "Network is unreachable" in faults["http://192.0.2.1/debian", "bookworm"]
    assert faults[mirror, "sid"].startswith("404")  # the mirror is at odds with itself
    assert len(faults) == 5


UNMET = """\
Package linux-image-6.16.3+deb13-amd64 version 6.16.3-1~bpo13+1 has an unmet dep:
 Suggests: linux-doc-6.16
Package linux-image-6.19.14+deb13-amd64 version 6.19.14-1~bpo13+1 has an unmet dep:
 Depends: linux-base-6.19.14+deb13-amd64 (= 6.19.14-1~bpo13+1)
 Depends: linux-modules-6.19.14+deb13-amd64 (= 6.19.14-1~bpo13+1)
 Suggests: linux-doc-6.19
Package linux-image-7.2.6+deb13-amd64 version 7.2.6-1~bpo13+1 has an unmet dep:
 Depends: initramfs-tools (>= 0.120+deb8u2)
Package linux-image-7.1.13+deb13-amd64 version 7.1.13-1~bpo13+1 has an unmet dep:
 Depends: linux-base-7.1.13+deb13-amd64
"""


def test_an_image_whose_parts_are_gone_is_told_from_one_that_could_not_be_installed() -> None:
    assert read_unmet(UNMET) == {
        ("linux-image-6.19.14+deb13-amd64", "6.19.14-1~bpo13+1"),
        ("linux-image-7.1.13+deb13-amd64", "7.1.13-1~bpo13+1"),
    }
    assert read_unmet("") == set()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("6.12", "6.12.117-1"),
        ("v6.12.95", "6.12.95-1~bpo12+1"),
        ("7.3", "7.3.4-1~bpo13+1"),
        ("7.3-rc7", "7.3~rc7-1~exp1"),
        ("7.3-rc6", None),
        ("6.12.96", None),
        ("6.8", None),  # an image is no source
        ("6.1", None),
    ],
)
def test_a_number_means_that_release_and_a_series_its_newest(
    wanted: str, expected: str | None
) -> None:
    chosen = choose(version(wanted), read_policy(POLICY))
    assert (chosen and chosen.version) == expected


def test_a_series_of_candidates_alone_is_no_release() -> None:
    offers = [offer("linux-source-7.3", "7.3~rc6-1"), offer("linux-source-7.3", "7.3~rc7-1")]
    assert choose(version("7.3"), offers) is None
    assert choose(version("7.3-rc6"), offers) == offers[0]


def test_packages_of_other_kinds_are_no_sources() -> None:
    names = ("linux-source", "linux-source-6.1-rt", "linux-headers-6.1", "linux-image-6.1-amd64")
    assert choose(version("6.1"), [offer(name, "6.1.9-1") for name in names]) is None
    assert choose(version("6.8"), [offer("linux-source-6.8.0", "6.8.0-31.31")]) is not None


@pytest.mark.parametrize("wanted", [tree.version.tag for tree in packages(read_policy(POLICY))])
def test_each_listed_tree_can_be_asked_for_by_its_number(wanted: str) -> None:
    chosen = choose(version(wanted), read_policy(POLICY))
    assert chosen in [tree.offer for tree in packages(read_policy(POLICY))]


IMAGES = (
    ("linux-image-6.1.0-55-amd64", "6.1.192-1"),
    ("linux-image-6.1.0-56-amd64", "6.1.192-2"),
    ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"),
    ("linux-image-6.1.0-56-rt-amd64", "6.1.192-2"),
    ("linux-image-6.1.0-56-amd64-dbg", "6.1.192-2"),
    ("linux-image-6.1.0-56-amd64-unsigned", "6.1.192-2"),
    ("linux-image-6.12-amd64", "6.12.117-1"),  # a metapackage
    ("linux-image-6.12.117+deb12-amd64", "6.12.117-1"),
    ("linux-image-7.3-amd64", "7.3~rc7-1~exp1"),  # none
    ("linux-image-amd64", "7.3~rc7-1~exp1"),
    ("linux-image-amd64-signed-template", "6.1.192-2"),
    ("linux-image-6.8.0-31-generic", "6.8.0-31.31"),
    ("linux-image-6.8.0-31-lowlatency", "6.8.0-31.31"),
    ("linux-image-unsigned-6.8.0-31-generic", "6.8.0-31.31"),
)


@pytest.mark.parametrize("order", [IMAGES, IMAGES[::-1]])
def test_of_each_series_and_flavour_the_newest_image_is_listed(
    order: Sequence[tuple[str, str]],
) -> None:
    # apt names a package's own newest version first, packages in any order
    listed = [kernel.release for kernel in images(offer(*one) for one in order)]
    assert sorted(listed) == [
        "6.1.0-56-amd64",
        "6.1.0-56-cloud-amd64",
        "6.12.117+deb12-amd64",
        "6.8.0-31-generic",
        "7.3-amd64",
    ]


# ---- the suites


LISTING = """\
'http://mirror.example/debian/dists/bookworm/InRelease' mirror.example_bookworm_InRelease 0 
'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' a 0 
'http://mirror.example/debian/dists/bookworm/main/binary-all/Packages.xz' b 0 
'http://mirror.example/debian/dists/bookworm/contrib/binary-amd64/Packages.xz' c 0 
'http://mirror.example/debian/dists/bookworm-updates/main/binary-amd64/Packages.xz' d 0 
'http://security.example/it/dists/bookworm-security/main/binary-amd64/Packages.xz' e 0 
'https://else.example/apt/dists/nodistro/main/binary-amd64/Packages.xz' f 0 
'https://flat.example/apt/Packages.xz' g 0 
"""  # noqa: W291

MIRROR, SECURITY = "http://mirror.example/debian", "http://security.example/it"


def test_the_machines_own_suites_are_those_of_its_distribution() -> None:
    assert own_suites(LISTING, "debian", "bookworm") == [
        Suite(MIRROR, "bookworm", "contrib"),
        Suite(MIRROR, "bookworm", "main"),
        Suite(MIRROR, "bookworm-updates", "main"),
        Suite(SECURITY, "bookworm-security", "main"),
    ]


@pytest.mark.parametrize("name", ["stable", "testing", "sid", "duke"])
def test_a_suite_may_be_named_otherwise(name: str) -> None:
    listing = LISTING.replace("bookworm", name)
    assert {suite.release for suite in own_suites(listing, "debian", "duke")} == {name}


def test_a_distribution_that_nobody_knows_has_its_own_suites() -> None:
    (suite,) = own_suites("'http://x.example/y/dists/rolling/main/binary-amd64/Packages' a 0 ",
                          "unknown", "")  # fmt: skip
    assert suite == Suite("http://x.example/y", "rolling", "main")
    assert other_suites([suite], "unknown") == []


def test_all_other_suites_are_on_the_machines_own_mirrors() -> None:
    others = other_suites(own_suites(LISTING, "debian", "bookworm"), "debian")
    names = [suite.name for suite in others]
    assert {"bullseye", "trixie", "trixie-backports", "bookworm-backports", "sid"} < set(names)
    assert not set(names) & set(BOOKWORM)
    assert len(names) == len(set(names))
    for suite in others:
        expected = SECURITY if suite.name.endswith("-security") else MIRROR
        assert (suite.uri, suite.component) == (expected, "main")


def test_without_a_security_mirror_it_is_beside_the_other() -> None:
    for uri, beside in ((MIRROR, f"{MIRROR}-security"), ("http://a.example/x", None)):
        others = other_suites([Suite(uri, "sid", "main")], "debian")
        assert {suite.uri for suite in others if suite.name == "trixie-security"} == {beside or uri}


def test_a_strangers_repository_is_no_mirror() -> None:
    stranger = Suite("http://a.stranger.example/debian", "bookworm", "main")
    own = [stranger, *own_suites(LISTING, "debian", "bookworm")]
    assert stranger.uri not in {suite.uri for suite in other_suites(own, "debian")}


def test_no_suite_has_no_others() -> None:
    assert other_suites([], "debian") == []


# ---- real packages, from a mirror of the test's own


def source(mirror: Mirror, number: str) -> Path:
    """A source package with a fake tree in it."""
    package = f"linux-source-{version(number).series}"

    def fill(top: Path) -> None:
        tree = make_fake_tree(top.parent / package)
        say_version(tree, version(number))
        (top / "usr/src").mkdir(parents=True)
        tarball = top / f"usr/src/{package}.tar.xz"
        subprocess.run(["tar", "caf", tarball, package], cwd=top.parent, check=True)

    return mirror.deb(package, number, fill)


def say_version(tree: Path, wanted: KernelVersion) -> None:
    makefile = tree / "Makefile"
    text = makefile.read_text()
    numbers = (wanted.major, wanted.minor, wanted.patch, f"-rc{wanted.rc}" if wanted.rc else "")
    names = ("VERSION", "PATCHLEVEL", "SUBLEVEL", "EXTRAVERSION")
    head = "".join(f"{name} = {number}\n" for name, number in zip(names, numbers, strict=True))
    makefile.write_text(head + text)  # the first assignment counts


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    """Suites of several releases, one of them signed by a key that nobody knows."""
    suites = {
        "bookworm": ("6.1.170-3", "6.1.176-1"),
        "bookworm-security": ("6.1.192-2",),
        "bookworm-backports": ("6.12.95-1~bpo12+1",),
        "trixie": ("6.12.107-1", "6.12.117-1"),
        "trixie-backports": ("7.2.9-1~bpo13+1", "7.3.4-1~bpo13+1"),
        "experimental": ("7.3~rc7-1~exp1",),
    }
    with serve(tmp_path_factory.mktemp("mirror")) as made:
        for suite, numbers in suites.items():
            made.add(suite, *(source(made, number) for number in numbers))
        made.add("forky", source(made, "7.9.9-1"), key="stranger")
        yield made


@pytest.fixture
def machine(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian 12 whose apt is configured for the mirror; gives the sources.list."""
    return become_debian(mirror, tmp_path, monkeypatch)


def obtain(wanted: setup.Wanted, workspace: Workspace, shell: Shell) -> Tree | None:
    tools = Toolchain.find()
    return setup.obtain(wanted, workspace, tools, shell, no_report, lambda _: None, lambda _: None)


def set_up(workspace: Workspace, kernel: str, echoed: list[str] | None = None) -> Tree:
    wanted = setup.Wanted.of(kernel, "", setup.Source.DISTRO, None, None)
    shell = Shell(echoed.append if echoed is not None else lambda _: None)
    tree = obtain(wanted, workspace, shell)
    assert tree
    return tree


@needs_apt
@pytest.mark.parametrize(
    ("kernel", "expected", "name"),
    [
        ("6.1", "6.1.192", "distro-6.1"),
        ("6.1.170", "6.1.170", "distro-v6.1.170"),
        ("6.12", "6.12.117", "distro-6.12"),
        ("v6.12.95", "6.12.95", "distro-v6.12.95"),
        ("7.3", "7.3.4", "distro-7.3"),
        ("7.3-rc7", "7.3-rc7", "distro-v7.3-rc7"),
    ],
)
def test_a_tree_of_any_suite_is_set_up(
    machine: Path, tmp_path: Path, kernel: str, expected: str, name: str
) -> None:
    tree = set_up(Workspace(tmp_path / "workspace"), kernel)
    assert (str(tree.version), tree.origin, tree.path.name) == (expected, Origin.DISTRO, name)


@needs_apt
def test_the_machines_own_suites_are_enough_for_their_kernels(
    machine: Path, tmp_path: Path
) -> None:
    echoed: list[str] = []
    set_up(Workspace(tmp_path / "workspace"), "6.1", echoed)
    assert any("/apt/own/" in command for command in echoed)
    assert not any("/apt/others/" in command for command in echoed)


@needs_apt
def test_a_candidate_and_its_release_live_side_by_side(machine: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    candidate = set_up(workspace, "7.3-rc7")
    release = set_up(workspace, "7.3")
    assert (str(candidate.version), str(release.version)) == ("7.3-rc7", "7.3.4")
    assert set_up(workspace, "7.3-rc7") == candidate
    assert find(workspace, "7.3") == release


@needs_apt
@pytest.mark.parametrize("kernel", ["6.99", "7.3-rc9", "6.1.171", "7.9"])
def test_the_nearest_are_named_for_one_that_is_not_there(
    machine: Path, tmp_path: Path, kernel: str
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    with pytest.raises(NotToBeHad) as missing:
        set_up(workspace, kernel)
    near = {
        "6.99": "v6.12.107, v6.12.117, v7.2.9, v7.3-rc7, v7.3.4",
        "7.3-rc9": "v6.12.117, v7.2.9, v7.3-rc7, v7.3.4",
        "6.1.171": "v6.1.170, v6.1.176, v6.1.192",
        "7.9": "v6.12.107, v6.12.117, v7.2.9, v7.3-rc7, v7.3.4",  # what a stranger signed is none
    }
    assert f"the distribution has no {version(kernel).tag}; it has " in missing.value.message
    assert near[kernel] in missing.value.message
    assert list(workspace.trees.glob("*")) == []


@needs_apt
def test_what_a_stranger_signed_is_left_out_and_said(machine: Path, tmp_path: Path) -> None:
    _, others = distro.suites(tmp_path / "apt", Shell())
    (said,) = others.update()
    assert said.startswith("forky: ")
    assert "NO_PUBKEY" in said or "sign" in said
    suites = {one.suite for one in others.offers()}
    assert suites == {"bookworm-backports", "trixie", "trixie-backports", "experimental"}


@needs_apt
def test_a_package_that_is_not_what_the_index_says_is_refused(
    machine: Path, mirror: Mirror, tmp_path: Path
) -> None:
    deb = mirror.root / "debian/pool/linux-source-7.2_7.2.9-1~bpo13+1_all.deb"
    whole = deb.read_bytes()
    deb.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(Unreachable, match=r"linux-source-7\.2"):
            set_up(Workspace(tmp_path / "workspace"), "7.2")
    finally:
        deb.write_bytes(whole)


@needs_apt
def test_the_machines_own_apt_is_not_touched(machine: Path, tmp_path: Path) -> None:
    before = machine.read_text()
    set_up(Workspace(tmp_path / "workspace"), "6.12")
    assert machine.read_text() == before
    assert not (tmp_path / "lists").exists()


@needs_apt
def test_a_retired_release_of_ones_own_does_not_hide_the_others(
    machine: Path, tmp_path: Path
) -> None:
    machine.write_text(machine.read_text().replace("bookworm", "buster"))
    assert str(set_up(Workspace(tmp_path / "workspace"), "6.12").version) == "6.12.117"


@needs_apt
def test_a_mirror_that_is_not_there_is_unreachable(machine: Path, tmp_path: Path) -> None:
    machine.write_text("deb http://127.0.0.1:1/debian bookworm main\n")
    with pytest.raises(Unreachable, match="the distribution's mirror can't be reached: bookworm: "):
        set_up(Workspace(tmp_path / "workspace"), "6.1")


@needs_apt
def test_one_process_at_a_time_asks(machine: Path, tmp_path: Path) -> None:
    own, others = distro.suites(tmp_path / "apt", Shell())
    with locked(own.root / "lock"):
        with pytest.raises(Held):
            own.update()
        others.update()
    own.update()


@needs_apt
def test_what_stops_apt_itself_is_said(machine: Path, tmp_path: Path) -> None:
    (own, *_) = distro.suites(tmp_path / "apt", Shell())
    (own.root / "lists/partial").mkdir(parents=True)
    (own.root / "lists/lock").mkdir()
    with pytest.raises(Unreachable, match="lock"):
        own.update()


@needs_apt
def test_what_was_on_offer_is_known_when_the_mirror_is_gone(machine: Path, tmp_path: Path) -> None:
    for apt in distro.suites(tmp_path / "apt", Shell()):
        apt.update()
    machine.write_text("deb http://127.0.0.1:1/debian bookworm main\n")
    offers = [one for apt in distro.suites(tmp_path / "apt", Shell()) for one in apt.offers()]
    assert choose(version("7.3-rc7"), offers)


@needs_apt
def test_a_dry_run_asks_nobody_and_writes_nothing(machine: Path, tmp_path: Path) -> None:
    echoed: list[str] = []
    workspace = Workspace(tmp_path / "workspace")
    wanted = setup.Wanted.of("6.12", "", setup.Source.DISTRO, None, None)
    shell = Shell(echoed.append, dry=True)
    assert not obtain(wanted, workspace, shell)
    assert "apt-get download linux-source-6.12" in echoed
    assert not workspace.root.exists()
