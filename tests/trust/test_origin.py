"""What is fetched is what was published: somebody changes it on its way, or later on the disk.

Tags are made and signed here, packages come from a mirror of the test's own, and what
a test changes it puts into the place where an attacker would.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused, make_fake_tree
from mirror import Mirror, become_debian, gpg, needs_apt, serve
from support import bzimage, git, gnupg_home, module, packed, vmlinux

from xdplab.boot import Kernel, Source, altered, choice
from xdplab.errors import AlteredKernel, BadDownload, NotATarball, NotToBeHad, Unreachable
from xdplab.files import read_json
from xdplab.process import Shell
from xdplab.sources import distro, integrity, tarball
from xdplab.sources import git as source
from xdplab.version import KernelVersion
from xdplab.workspace import Workspace


def no_report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Nobody listens."""


def flip(file: Path, at: int = -1) -> bytes:
    """Change one bit of a file, but neither its size nor its date; gives what it was."""
    was, status = file.read_bytes(), file.stat()
    changed = bytearray(was)
    changed[at] ^= 1
    file.write_bytes(changed)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return was


# ---- keys


class Keys:
    """A GnuPG home with one secret key."""

    def __init__(self, home: Path, user: str) -> None:
        self.home = home
        gpg(home, "--quick-generate-key", user, "ed25519", "sign", "never")
        listing = self.ask("--list-keys", "--with-colons").decode()
        self.fingerprint = re.findall(r"^fpr:+(\w+):", listing, re.MULTILINE)[0]

    def ask(self, *arguments: str | Path, given: bytes = b"") -> bytes:
        argv = ["gpg", "--homedir", self.home, "--batch", "--yes", *arguments]
        return subprocess.run(argv, input=given, capture_output=True, check=True).stdout

    def sign_tag(self, repository: Path, tag: str) -> None:
        key = f"user.signingkey={self.fingerprint}"
        program = f"gpg.program={repository.parent / 'gpg'}"
        (repository.parent / "gpg").write_text(
            f'#!/bin/sh\nexec gpg --homedir "{self.home}" --batch "$@"\n'
        )
        (repository.parent / "gpg").chmod(0o755)
        git(repository, "-c", key, "-c", program, "tag", "--sign", "--message", tag, tag)


@pytest.fixture(scope="module")
def keys() -> Iterator[dict[str, Keys]]:
    """Those of a maker of kernels, of two whom nobody takes for one, and of one who was robbed."""
    if not shutil.which("gpg"):
        pytest.skip("gpg is not installed")
    names = ("maker", "mallory", "stranger", "robbed")
    homes = [gnupg_home() for _ in names]
    try:
        yield {
            name: Keys(home.__enter__(), f"{name} <{name}@example.org>")
            for name, home in zip(names, homes, strict=True)
        }
    finally:
        for home in homes:
            home.__exit__(None, None, None)


@pytest.fixture
def keyring(keys: dict[str, Keys], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's keyring: all but the stranger's, and the robbed one's is revoked.

    mallory's key got there somehow, and calls itself what it likes; but it isn't among
    those that are known to sign releases.
    """
    with gnupg_home() as home:
        for name in ("maker", "mallory", "robbed"):
            exported = keys[name].ask("--export")
            subprocess.run(["gpg", "--homedir", home, "--batch", "--import"], input=exported,
                           capture_output=True, check=True)  # fmt: skip
        (certificate,) = keys["robbed"].home.glob("openpgp-revocs.d/*.rev")
        # a colon keeps it from being used by accident
        revoked = certificate.read_bytes().replace(b"\n:---", b"\n---")
        subprocess.run(["gpg", "--homedir", home, "--batch", "--import"], input=revoked,
                       capture_output=True, check=True)  # fmt: skip
        monkeypatch.setenv("GNUPGHOME", str(home))
        known = {keys["maker"].fingerprint: "maker", keys["robbed"].fingerprint: "robbed"}
        monkeypatch.setattr(integrity, "RELEASE_KEYS", known)
        yield home


# ---- tags


@pytest.fixture(scope="module")
def remote(keys: dict[str, Keys], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a tag of every kind."""
    repository = make_fake_tree(tmp_path_factory.mktemp("remote") / "linux")
    git(repository, "init", "--initial-branch=master")
    git(repository, "config", "uploadpack.allowFilter", "true")
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(repository, "add", "--all")
    git(repository, "commit", "--message", "a kernel")
    keys["maker"].sign_tag(repository, "v6.1")
    keys["mallory"].sign_tag(repository, "v6.2")
    keys["stranger"].sign_tag(repository, "v6.3")
    keys["robbed"].sign_tag(repository, "v6.4")
    git(repository, "tag", "v6.5")
    git(repository, "tag", "--annotate", "--message", "v6.6", "v6.6")
    # the maker's own words, and his signature, put to another use
    git(repository, "update-ref", "refs/tags/v6.7", "refs/tags/v6.1")
    changed = git(repository, "cat-file", "tag", "v6.1").replace("tag v6.1\n", "tag v6.8\n")
    (repository.parent / "changed").write_text(changed)
    git(repository, "commit", "--allow-empty", "--message", "a back door")
    made = git(repository, "hash-object", "-t", "tag", "-w", str(repository.parent / "changed"))
    git(repository, "update-ref", "refs/tags/v6.8", made.strip())
    return repository


Fetch = Callable[[str], str]


@pytest.fixture
def fetch(remote: Path, tmp_path: Path) -> Fetch:
    """Fetches a tag, always into the same workspace; gives what was checked."""

    def fetch(tag: str) -> str:
        told: list[str] = []
        version, url = KernelVersion.parse(tag), f"file://{remote}"
        checked = source.fetch(version, url, tmp_path / "tree", tmp_path / "store", Shell(),
                               no_report, told.append)  # fmt: skip
        assert told == [checked]
        return checked

    return fetch


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("v6.1", ["holds a good signature by maker <", "(a key of kernel.org's releases)"]),
        ("v6.2", ["holds a good signature by mallory <", "(no key of kernel.org's releases)"]),
        ("v6.3", ["was not checked: key ", " is not in your keyring; ", "gpg --locate-keys"]),
        ("v6.5", ["was not checked: it is a name for a commit, and signed by nobody"]),
        ("v6.6", ["was not checked: it is signed by nobody"]),
    ],
)
def test_what_is_known_of_a_tag_is_said(
    keyring: Path, fetch: Fetch, tag: str, words: list[str]
) -> None:
    checked = fetch(tag)
    assert checked.startswith(f"{tag} ")
    for word in words:
        assert word in checked


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ("v6.4", "v6.4 holds a signature by robbed <robbed@example.org>"),
        ("v6.7", "what it calls v6.7 is the tag v6.1"),
        ("v6.8", "v6.8 holds a bad signature by maker <maker@example.org>"),
    ],
)
def test_a_forged_tag_is_refused_and_forgotten(
    keyring: Path, fetch: Fetch, tmp_path: Path, tag: str, why: str
) -> None:
    for _ in range(2):  # nor is it believed the second time, since it is there
        with pytest.raises(BadDownload) as refused:
            fetch(tag)
        assert why in refused.value.message
        assert not (tmp_path / "tree").exists()
        assert not (tmp_path / "store/refs/tags").exists()
    fetch("v6.1")
    with pytest.raises(BadDownload):
        fetch(tag)
    assert "holds a good signature" in fetch("v6.1")


def test_a_tag_that_was_forged_comes_right_when_the_server_does(
    keyring: Path, keys: dict[str, Keys], remote: Path, fetch: Fetch
) -> None:
    git(remote, "update-ref", "refs/tags/v6.9", "refs/tags/v6.1")
    with pytest.raises(BadDownload):
        fetch("v6.9")
    git(remote, "tag", "--delete", "v6.9")
    with pytest.raises(NotToBeHad):
        fetch("v6.9")
    keys["maker"].sign_tag(remote, "v6.9")
    assert "holds a good signature by maker" in fetch("v6.9")
    git(remote, "tag", "--delete", "v6.9")


def test_looking_for_the_key_of_a_tag_makes_no_keyring(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GNUPGHOME", str(tmp_path / "home"))
    assert fetch("v6.1").startswith("v6.1 was not checked: you have no keyring; the keys of")
    assert not (tmp_path / "home").exists()


def test_a_blob_that_was_changed_on_its_way_is_none_of_the_tags(
    keyring: Path, remote: Path, tmp_path: Path
) -> None:
    """The tag has the commit's name, the commit the files': git looks at each that arrives."""
    bad = Path(shutil.copytree(remote, tmp_path / "bad"))
    git(bad, "repack", "-a", "-d")
    (pack,) = bad.glob(".git/objects/pack/*.pack")
    pack.chmod(0o644)
    flip(pack, pack.stat().st_size // 2)
    with pytest.raises(Unreachable):
        source.fetch(KernelVersion.parse("v6.1"), f"file://{bad}", tmp_path / "tree",
                     tmp_path / "store", Shell(), no_report, lambda _: None)  # fmt: skip
    assert not (tmp_path / "tree/Makefile").exists()


def test_the_record_is_kept_and_shown(invoke: Invoke, keyring: Path, remote: Path) -> None:
    """In the tree as long as it is there, in each build, and by each setup."""
    command = ("setup", "--kernel=v6.1", "--source=git", f"--remote=file://{remote}")
    first = invoke(*command)
    assert first.code == 0, first.err
    (line,) = (one for one in first.out.splitlines() if one.startswith("origin: "))
    assert "v6.1 holds a good signature by maker" in line
    assert line.removeprefix("origin: ") in first.err
    (tree,) = invoke.workspace.glob("trees/git-*")
    record = read_json(tree / ".xdplab/tree.json")
    assert record["checked"] == line.removeprefix("origin: ")
    assert invoke("build").code == 0
    (build,) = invoke.workspace.glob("builds/*/*/build.json")
    assert read_json(build)["checked"] == record["checked"]
    assert invoke("clean").code == 0
    assert invoke(*command).out == first.out


def test_of_a_tree_of_the_users_own_nothing_is_claimed(invoke: Invoke, fake_tree: Path) -> None:
    outcome = invoke("setup", "--tree", fake_tree)
    assert outcome.code == 0, outcome.err
    assert "origin: not checked: it is your own" in outcome.out.splitlines()


# ---- tarballs


def test_a_tarball_that_was_altered_where_it_is_kept(tmp_path: Path) -> None:
    """A download is looked at again each time that it is unpacked."""
    tree = make_fake_tree(tmp_path / "linux-6.1")
    site = tmp_path / "site"
    site.mkdir()
    subprocess.run(["tar", "-C", tree.parent, "-caf", site / "linux-6.1.tar.xz", tree.name],
                   check=True)  # fmt: skip
    digest = subprocess.run(["sha256sum", "linux-6.1.tar.xz"], cwd=site, check=True,
                            capture_output=True).stdout  # fmt: skip
    (site / "sha256sums.asc").write_bytes(digest)
    url, path, downloads = f"file://{site}/linux-6.1.tar.xz", tmp_path / "tree", tmp_path / "kept"

    def fetch() -> str:
        return tarball.fetch(url, path, downloads, Shell(), no_report, lambda _: None)

    assert fetch() == "linux-6.1.tar.xz: its SHA-256 is that of sha256sums.asc"
    (kept,) = downloads.glob("*/linux-6.1.tar.xz")
    flip(kept)
    shutil.rmtree(path)
    with pytest.raises(BadDownload, match="its SHA-256 is"):
        fetch()
    assert not path.exists()
    fetch()  # anew
    flip(site / "linux-6.1.tar.xz")
    with pytest.raises(NotATarball, match="its SHA-256 is"):
        tarball.fetch(str(site / "linux-6.1.tar.xz"), path, downloads, Shell(), no_report,
                      lambda _: None)  # fmt: skip


# ---- the distribution's packages


RELEASE, NUMBER = "6.1.0-9-amd64", "6.1.9-1"


def tree_package(mirror: Mirror, number: str) -> Path:
    series = KernelVersion.parse(number).series.removeprefix("v")
    name = f"linux-source-{series}"

    def fill(top: Path) -> None:
        tree = make_fake_tree(top.parent / name)
        (top / "usr/src").mkdir(parents=True)
        to = top / f"usr/src/{name}.tar.xz"
        subprocess.run(["tar", "-C", tree.parent, "-caf", to, name], check=True)

    return mirror.deb(name, number, fill)


def kernel_package(mirror: Mirror) -> Path:
    def fill(top: Path) -> None:
        files = {
            f"boot/vmlinuz-{RELEASE}": bzimage(packed(vmlinux(RELEASE), "xz"), RELEASE),
            f"boot/config-{RELEASE}": b"CONFIG_BPF_SYSCALL=y\nCONFIG_VETH=m\n",
            f"lib/modules/{RELEASE}/kernel/drivers/net/veth.ko": module("veth", release=RELEASE),
            f"lib/modules/{RELEASE}/modules.builtin": b"",
            f"lib/modules/{RELEASE}/modules.order": b"",
        }
        for name, content in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_bytes(content)

    return mirror.deb(f"linux-image-{RELEASE}", NUMBER, fill)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror whose one suite this machine's apt is configured for."""
    (tmp_path / "mirror").mkdir()
    with serve(tmp_path / "mirror") as made:
        made.add("bookworm", tree_package(made, NUMBER), kernel_package(made))
        made.add("bookworm-security")
        become_debian(made, tmp_path, monkeypatch)
        yield made


def in_release(mirror: Mirror) -> Path:
    return mirror.root / "debian/dists/bookworm/InRelease"


def take(workspace: Path, tell: Callable[[str], None] = lambda _: None) -> str:
    """Unpack the source package, whatever is there; gives what was checked."""
    place = Workspace(workspace)
    return distro.fetch(KernelVersion.parse("6.1"), workspace / "tree", place.downloads,
                        place.indexes, Shell(), no_report, tell)  # fmt: skip


@needs_apt
def test_a_package_is_the_distributions_by_its_signed_index(
    mirror: Mirror, workspace: Path
) -> None:
    assert take(workspace) == (
        f"linux-source-6.1 {NUMBER}: its SHA-256 is that of the index of bookworm, which is signed"
        f" (apt, with {mirror.root}/debian-archive-keyring.gpg)"
    )


@needs_apt
def test_a_package_that_was_altered_where_it_is_kept_comes_anew(
    mirror: Mirror, workspace: Path
) -> None:
    """apt alone would take it: its size is right."""
    take(workspace)
    (kept,) = workspace.glob("downloads/*.deb")
    whole = flip(kept, kept.stat().st_size // 2)
    take(workspace)
    assert kept.read_bytes() == whole
    assert (workspace / "tree/Kbuild").exists()


@needs_apt
def test_an_altered_package_is_not_taken_from_the_mirror_either(
    mirror: Mirror, workspace: Path
) -> None:
    (deb,) = mirror.root.glob("debian/pool/linux-source-*")
    flip(deb, deb.stat().st_size // 2)
    with pytest.raises(Unreachable):
        take(workspace)
    assert not (workspace / "tree").exists()


@needs_apt
@pytest.mark.parametrize("how", ["altered", "stranger", "unsigned", "another's"])
def test_a_suite_without_a_good_signature_is_left_out(
    mirror: Mirror, workspace: Path, tmp_path: Path, how: str
) -> None:
    """Also on a machine whose own apt was told to take whatever comes."""
    with (tmp_path / "machine.conf").open("a") as file:
        file.write(
            'APT::Get::AllowUnauthenticated "true";\nAcquire::AllowInsecureRepositories "true";\n'
        )
    deb = tree_package(mirror, "6.1.66-1")  # what an attacker would have us take
    signed = in_release(mirror).read_text()
    mirror.add("bookworm", deb, key="stranger" if how == "stranger" else "archive")
    new = in_release(mirror).read_text()
    signature = "-----BEGIN PGP SIGNATURE"
    if how == "altered":
        in_release(mirror).write_text(new.replace("Origin: Test", "Origin: Best"))
    elif how == "another's":  # an old signature, under a new list
        in_release(mirror).write_text(
            new.partition(signature)[0] + "".join(signed.partition(signature)[1:])
        )
    elif how == "unsigned":
        text = new.partition(signature)[0].partition("\n\n")[2]
        in_release(mirror).unlink()
        in_release(mirror).with_name("Release").write_text(text)
    told: list[str] = []
    with pytest.raises((Unreachable, NotToBeHad)):
        take(workspace, told.append)
    assert any(one.startswith("left out bookworm: ") for one in told), told
    assert not (workspace / "tree").exists()


@needs_apt
def test_an_older_list_does_not_take_a_newer_ones_place(mirror: Mirror, workspace: Path) -> None:
    """Its signature is good: somebody plays it back to have a fault that was mended since."""
    suite = in_release(mirror).parent
    mirror.add("bookworm", tree_package(mirror, NUMBER), age=3600)
    shutil.copytree(suite, suite.with_name("old"))
    mirror.add("bookworm", tree_package(mirror, "6.1.66-1"))
    assert "6.1.66-1" in take(workspace)
    shutil.rmtree(suite)
    suite.with_name("old").rename(suite)
    assert "6.1.66-1" in take(workspace)


# ---- kernels that are kept


def find(spec: str, workspace: Path, told: list[str]) -> Kernel:
    kernel = choice.find(spec, Workspace(workspace), Shell(), no_report, told.append)
    assert kernel
    return kernel


@needs_apt
@pytest.mark.parametrize("name", ["vmlinux", "config", "modules/veth.ko"])
def test_a_kernel_that_was_altered_where_it_is_kept_comes_anew(
    mirror: Mirror, workspace: Path, name: str
) -> None:
    told: list[str] = []
    kernel = find("6.1", workspace, told)
    directory = kernel.image.parent
    facts = read_json(directory / "kernel.json")
    assert facts["checked"] in told
    assert "which is signed (apt, with " in facts["checked"]
    (file,) = directory.rglob(Path(name).name)
    whole = flip(file)
    told.clear()
    assert find("6.1", workspace, told) == kernel
    where = str(file.relative_to(directory))
    assert told[0] == f"{directory} isn't what was fetched, and comes anew: {where}"
    assert (file.read_bytes(), altered(directory)) == (whole, [])
    told.clear()
    assert find("6.1", workspace, told) == kernel
    assert told == []


@needs_apt
@pytest.mark.parametrize("name", ["vmlinux", "modules/other.ko", "kernel.json"])
def test_an_altered_kernel_is_not_booted_where_no_other_is_to_be_had(
    mirror: Mirror, workspace: Path, name: str
) -> None:
    directory = find("6.1", workspace, []).image.parent
    if name == "kernel.json":  # nor one of which nothing is on record
        facts = read_json(directory / name)
        (directory / name).write_text(json.dumps(facts | {"sha256": {}}))
    elif name == "vmlinux":
        flip(directory / name)
    else:
        (directory / name).write_bytes(b"one more")
    shutil.rmtree(mirror.root / "debian")
    with pytest.raises(Unreachable):
        find("6.1", workspace, [])


def test_a_kernel_that_was_built_here_is_refused_when_it_was_altered(workspace: Path) -> None:
    directory = workspace / "kernels/linux-6.1"
    directory.mkdir(parents=True)
    (directory / "vmlinux").write_bytes(vmlinux("6.1.9"))
    (directory / "config").write_text("CONFIG_BPF_SYSCALL=y\n")
    version = KernelVersion.parse("6.1.9")
    kernel = Kernel("6.1.9", version, directory / "vmlinux", None, directory / "config",
                    Source.TREE)  # fmt: skip
    kernel.keep(directory)
    assert find("6.1-tree", workspace, []) == kernel
    flip(directory / "vmlinux")
    with pytest.raises(AlteredKernel, match=r"isn't what was built: changed is vmlinux"):
        find("6.1-tree", workspace, [])


def test_what_was_unpacked_of_the_users_image_is_unpacked_anew(
    workspace: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bzImage"
    config = "CONFIG_BPF_SYSCALL=y\n"
    file.write_bytes(bzimage(packed(vmlinux("6.1.9", config=config), "xz"), "6.1.9"))
    kernel = find(str(file), workspace, [])
    whole = flip(kernel.image)
    assert find(str(file), workspace, []) == kernel
    assert kernel.image.read_bytes() == whole


def test_a_refusal_is_one_error_with_a_cure(invoke: Invoke, keyring: Path, remote: Path) -> None:
    command = ("setup", "--kernel=v6.8", "--source=git", f"--remote=file://{remote}")
    assert_refused(invoke(*command), 69, "holds a bad signature by maker", "--remote")
    assert not list(invoke.workspace.glob("trees/*"))
