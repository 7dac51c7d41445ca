"""Tarballs: downloads that break off, checksums and signatures, what tar must not do."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import re
import shutil
import socketserver
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import (
    Invoke,
    Outcome,
    assert_refused,
    contents,
    make_fake_tree,
    path_without,
    wait_until,
)
from support import gnupg_home

from xdplab.errors import BadDownload, LabError, MissingTools, NoSpace, NotATarball, Unreachable
from xdplab.process import Shell
from xdplab.setup import Source, Wanted
from xdplab.sources import Report, integrity
from xdplab.sources import tarball as source
from xdplab.tree import STATE
from xdplab.version import KernelVersion

NAME = "linux-6.1.tar.xz"


# ---- a server that can be told to misbehave


@dataclass
class Site:
    """What a server has, how it behaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    length: bool = True  # whether it says beforehand how much will come
    claim: int | None = None  # how much it says
    cut: int | None = None  # it hangs up after so many bytes
    hold: int | None = None  # it waits after so many bytes
    error: int = 404  # for what it hasn't got
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def url(self, name: str = NAME) -> str:
        return f"{self.address}/pub/{name}"

    def put(self, name: str, content: bytes) -> str:
        self.files[f"/pub/{name}"] = content
        return self.url(name)

    def times(self, name: str = NAME) -> list[str | None]:
        """The ranges in which a file was asked for, in order; None: all of it."""
        return [asked for path, asked in self.asked if path == f"/pub/{name}"]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            site.asked.append((self.path, asked))
            if self.path not in site.files:
                self.send_error(site.error)
                return
            whole = site.files[self.path]
            start = int(re.findall(r"\d+", asked)[0]) if asked and site.ranges else 0
            if start and start >= len(whole):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            if site.length:
                self.send_header("Content-Length", str(site.claim or len(whole) - start))
            self.end_headers()
            rest = whole[start:][: site.cut]
            if site.hold:
                self.wfile.write(rest[: site.hold])
                site.over.wait()
                rest = rest[site.hold :]
            with contextlib.suppress(OSError):  # whoever asked is gone
                self.wfile.write(rest)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site.address = f"http://127.0.0.1:{server.server_port}"
        yield site
        site.over.set()
        server.shutdown()


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """Serves one file by FTP (RFC 959, 2428, 3659): gives its address."""
    content = b""

    class Handler(socketserver.StreamRequestHandler):
        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

        def handle(self) -> None:
            start = 0
            data: socketserver.TCPServer | None = None
            self.say("220 ready")
            for line in self.rfile:
                word, _, rest = line.decode().strip().partition(" ")
                ours = rest == NAME
                if word == "EPSV":
                    data = socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler)
                    self.say(f"229 extended passive (|||{data.server_address[1]}|)")
                elif word == "SIZE":
                    self.say(f"213 {len(content)}" if ours else "550 no such file")
                elif word == "REST":
                    start = int(rest)
                    self.say("350 from there")
                elif word == "RETR" and data and ours:
                    self.say("150 here it comes")
                    connection, _ = data.get_request()
                    connection.sendall(content[start:])
                    connection.close()
                    data.server_close()
                    self.say("226 done")
                elif word == "RETR":
                    self.say("550 no such file")
                else:
                    replies = {"USER": "230 hello", "PWD": '257 "/"', "QUIT": "221 bye"}
                    self.say(replies.get(word, "200 well"))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def serve(served: bytes) -> str:
            nonlocal content
            content = served
            return f"ftp://127.0.0.1:{server.server_address[1]}/{NAME}"

        yield serve
        server.shutdown()


# ---- tarballs


def pack(to: Path, tree: Path) -> Path:
    subprocess.run(["tar", "caf", to, tree.name], cwd=tree.parent, check=True)
    return to


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small kernel's tarball, alone in its directory, with a file that xz can't make small."""
    directory = tmp_path_factory.mktemp("packed")
    tree = make_fake_tree(directory / "linux-6.1")
    (tree / "noise").write_bytes(b"".join(hashlib.sha512(bytes([i])).digest() for i in range(250)))
    (directory / "alone").mkdir()
    return pack(directory / "alone" / NAME, tree)


@pytest.fixture
def tarball(packed: Path, tmp_path: Path) -> Path:
    """The same in a directory of the test's own, where other files can be put beside it."""
    (tmp_path / "here").mkdir()
    return Path(shutil.copy(packed, tmp_path / "here"))


@dataclass(frozen=True, slots=True)
class Got:
    """What the source made, told, and ran."""

    tree: Path
    told: list[str]
    echoed: list[str]


def no_report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Nobody listens."""


@pytest.fixture
def get(tmp_path: Path) -> Callable[..., Got]:
    """Fetches a tarball, always into the same workspace."""

    def fetch(place: str | Path, report: Report = no_report, *, dry: bool = False) -> Got:
        got = Got(tmp_path / "ws/trees/linux", [], [])
        shell = Shell(got.echoed.append, dry=dry)
        downloads = tmp_path / "ws/downloads"
        source.fetch(str(place), got.tree, downloads, shell, report, got.told.append)
        return got

    return fetch


Get = Callable[..., Got]


def refused(get: Get, place: str | Path, kind: type[LabError]) -> LabError:
    """Fetch what can't be had; no tree may come of it, nor what was unpacked so far."""
    with pytest.raises(kind) as error:
        get(place)
    assert type(error.value) is kind
    return error.value


def downloaded(tmp_path: Path) -> dict[str, str]:
    files = contents(tmp_path / "ws/downloads")
    return {Path(name).name: digest for name, digest in files.items() if "lock" not in name}


def trees(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "ws").glob("trees/*")]


# ---- downloads


def begin(tmp_path: Path, url: str, arrived: bytes) -> None:
    """Leave what a killed download of a URL leaves."""
    partial = tmp_path / "ws/downloads" / source.label(url) / f"{NAME}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(arrived)


def test_where_kernel_org_keeps_a_version() -> None:
    url = {tag: source.default_url(KernelVersion.parse(tag)) for tag in ("5.0", "6.1.9", "7.2-rc3")}
    assert url["5.0"] == "https://cdn.kernel.org/pub/linux/kernel/v5.x/linux-5.0.tar.xz"
    assert url["6.1.9"] == "https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.1.9.tar.xz"
    assert url["7.2-rc3"] == "https://git.kernel.org/torvalds/t/linux-7.2-rc3.tar.gz"


def test_a_download_goes_on_where_the_server_hung_up(
    site: Site, packed: Path, get: Get, tmp_path: Path
) -> None:
    site.cut = 5000
    url = site.put(NAME, packed.read_bytes())
    for arrived in (5000, 10000):
        error = refused(get, url, Unreachable)
        assert url in error.message
        assert "what has arrived is kept" in error.cure
        (partial,) = tmp_path.glob(f"ws/downloads/*/{NAME}.partial")
        assert partial.read_bytes() == packed.read_bytes()[:arrived]
    site.cut = None
    assert (get(url).tree / "Kbuild").exists()
    assert site.times() == [None, "bytes=5000-", "bytes=10000-"]


def test_a_server_without_ranges_is_asked_for_all_of_it_again(
    site: Site, packed: Path, get: Get
) -> None:
    site.ranges, site.cut = False, 5000
    url = site.put(NAME, packed.read_bytes())
    refused(get, url, Unreachable)
    site.cut = None
    assert (get(url).tree / "Kbuild").exists()
    assert site.times() == [None, "bytes=5000-", None]


def test_a_download_that_only_lacks_its_name_is_not_begun_anew(
    site: Site, packed: Path, get: Get, tmp_path: Path
) -> None:
    url = site.put(NAME, packed.read_bytes())
    begin(tmp_path, url, packed.read_bytes())
    assert (get(url).tree / "Kbuild").exists()
    assert site.times() == [f"bytes={packed.stat().st_size}-"]


def test_a_server_that_hangs_up_without_having_said_how_much_it_is(
    site: Site, packed: Path, get: Get, tmp_path: Path
) -> None:
    site.length, site.cut = False, 5000
    url = site.put(NAME, packed.read_bytes())
    error = refused(get, url, BadDownload)
    assert "Unexpected end of input" in error.message
    assert (trees(tmp_path), downloaded(tmp_path)) == ([], {})
    site.cut = None
    assert (get(url).tree / "Kbuild").exists()


@pytest.mark.parametrize("code", [403, 404, 500, 503])
def test_a_server_that_has_no_such_file(site: Site, get: Get, tmp_path: Path, code: int) -> None:
    site.error = code
    error = refused(get, site.url(), Unreachable)
    assert site.url() in error.message
    assert str(code) in error.message
    assert ("do it again" if code >= 500 else "check the address") in error.cure
    assert (trees(tmp_path), downloaded(tmp_path)) == ([], {})


def test_a_server_that_is_not_there(get: Get) -> None:
    error = refused(get, "http://127.0.0.1:1/linux.tar.xz", Unreachable)
    assert "127.0.0.1" in error.message


def test_a_server_that_never_answers_is_given_up(
    site: Site, packed: Path, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_PATIENCE", "1")
    site.hold = 5000
    error = refused(get, site.put(NAME, packed.read_bytes()), Unreachable)
    assert "what has arrived is kept" in error.cure


@pytest.mark.parametrize("sent", [b"", b"<!DOCTYPE html>\n<title>Sign in</title>\n"])
def test_a_server_that_sends_something_else(
    site: Site, get: Get, tmp_path: Path, sent: bytes
) -> None:
    error = refused(get, url := site.put(NAME, sent), BadDownload)
    assert url in error.message
    assert (trees(tmp_path), downloaded(tmp_path)) == ([], {})


def test_a_file_larger_than_the_disk_is_not_begun(
    site: Site, packed: Path, get: Get, tmp_path: Path
) -> None:
    site.claim = 2**60
    error = refused(get, site.put(NAME, packed.read_bytes()), NoSpace)
    # of which the first bytes may have come with the headers
    needed = re.search(r"(\d+) MiB are needed", error.message)
    assert needed
    assert int(needed[1]) in (2**40, 2**40 - 1)


def test_a_file_url(packed: Path, get: Get) -> None:
    assert (get(f"file://{packed}").tree / "Kbuild").exists()
    refused(get, f"file://{packed}.absent", Unreachable)


@pytest.mark.parametrize("end", ["", "..", "%2e%2e", "a%00b", "a%2Fb", "a?b=c", "a" * 300])
def test_a_url_that_ends_in_no_fit_name(site: Site, packed: Path, get: Get, end: str) -> None:
    url = site.put(end, packed.read_bytes())
    site.files["/"] = packed.read_bytes()  # where curl ends with ".."
    assert (get(url).tree / "Kbuild").exists()


def test_what_is_no_url(invoke: Invoke) -> None:
    outcome = invoke("setup", "--source=tarball", "--remote=http://[::1/linux.tar.xz")
    assert_refused(outcome, 2, "http://[::1/linux.tar.xz", "it is no URL")
    assert not outcome.commands()


def test_an_ftp_url(ftp: Callable[[bytes], str], packed: Path, get: Get, tmp_path: Path) -> None:
    url = ftp(packed.read_bytes())
    assert (get(url).tree / "Kbuild").exists()
    refused(get, url.replace(NAME, "absent.tar.xz"), Unreachable)


def test_an_ftp_download_goes_on_too(
    ftp: Callable[[bytes], str], packed: Path, get: Get, tmp_path: Path
) -> None:
    url = ftp(packed.read_bytes())
    begin(tmp_path, url, packed.read_bytes()[:5000])
    assert (get(url).tree / "Kbuild").exists()


def test_files_of_one_name_from_two_places_are_two(
    site: Site, packed: Path, get: Get, tmp_path: Path
) -> None:
    get(site.put(NAME, packed.read_bytes()))
    other = make_fake_tree(tmp_path / "other")
    (other / "Kbuild").write_text("# the other\n")
    site.files["/other/" + NAME] = pack(tmp_path / NAME, other).read_bytes()
    got = get(f"{site.address}/other/{NAME}")
    assert (got.tree / "Kbuild").read_text() == "# the other\n"


def test_how_far_a_download_is_is_told_while_it_runs(site: Site, packed: Path, get: Get) -> None:
    site.hold = 5000
    told = []

    def report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        told.append((phase, done, total, note))
        if done:
            site.over.set()  # the server waits with the rest until it was told

    get(site.put(NAME, packed.read_bytes()), report)
    phase, done, total, note = next(news for news in told if news[1])
    assert phase == f"downloading {NAME}"
    assert done <= 5000  # curl keeps some of it back
    assert total == packed.stat().st_size
    assert note == "0.0 of 0.0 MiB"


def test_ctrl_c_in_a_download(site: Site, packed: Path, invoke: Invoke) -> None:
    site.hold = 5000
    command = ("setup", "--source=tarball", "--remote", site.put(NAME, packed.read_bytes()))
    with invoke.start(*command) as background:
        wait_until(lambda: [*map(source._size, invoke.workspace.glob("downloads/*/*.partial"))])
        assert background.interrupt().code == 130
    (arrived,) = map(source._size, invoke.workspace.glob("downloads/*/*.partial"))
    site.hold = None
    outcome = invoke(*command)
    assert outcome.code == 0, outcome.err
    assert site.times() == [None, f"bytes={arrived}-" if arrived else None]


def test_a_dry_run_downloads_nothing(get: Get, site: Site, tmp_path: Path) -> None:
    got = get(site.url(), dry=True)
    assert [re.findall(r"/([\w.-]+)$", command)[0] for command in got.echoed] == [
        NAME, "sha256sums.asc", "linux-6.1.tar.sign", NAME,
    ]  # fmt: skip
    assert not site.asked
    assert not (tmp_path / "ws").exists()


# ---- checksums


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("beside", ["sha256sums.asc", f"{NAME}.sha256", f"{NAME}.sha256sum"])
@pytest.mark.parametrize(
    "row",
    ["{sum}  linux-6.1.tar.xz", "{sum} *linux-6.1.tar.xz\r", "{sum}  ../made/linux-6.1.tar.xz",
     "{SUM}  linux-6.1.tar.xz", "{sum}"],
)  # fmt: skip
def test_a_checksum_that_fits(tarball: Path, get: Get, beside: str, row: str) -> None:
    digest = sha256(tarball)
    listing = f"{'0' * 64}  linux-6.0.tar.xz\n{row.format(sum=digest, SUM=digest.upper())}\n"
    tarball.with_name(beside).write_text(listing)
    got = get(tarball)
    assert got.told == [f"{NAME}: its SHA-256 is that of {beside}"]
    assert (got.tree / "Kbuild").exists()


@pytest.mark.parametrize("beside", ["sha256sums.asc", f"{NAME}.sha256", f"{NAME}.sha256sum"])
def test_a_checksum_that_does_not_fit(tarball: Path, get: Get, tmp_path: Path, beside: str) -> None:
    tarball.with_name(beside).write_text(f"{'5' * 64}  {NAME}\n")
    before = contents(tarball.parent)
    error = refused(get, tarball, NotATarball)
    for word in (str(tarball), sha256(tarball), "5" * 64, f"{beside} beside it"):
        assert word in error.message
    assert (trees(tmp_path), contents(tarball.parent)) == ([], before)


def test_one_wrong_checksum_of_two_is_enough(tarball: Path, get: Get) -> None:
    tarball.with_name("sha256sums.asc").write_text(f"{sha256(tarball)}  {NAME}\n")
    tarball.with_name(f"{NAME}.sha256").write_text(f"{'5' * 64}\n")
    refused(get, tarball, NotATarball)


def test_a_list_of_other_files_checks_nothing(tarball: Path, get: Get) -> None:
    tarball.with_name("sha256sums.asc").write_text(f"{'5' * 64}  an-{NAME}\n")
    assert get(tarball).told == [f"{NAME}: sha256sums.asc doesn't name it"]


def test_a_tarball_alone_is_said_to_be_unchecked(tarball: Path, get: Get) -> None:
    assert get(tarball).told == [f"{NAME}: not checked: no checksum and no signature is beside it"]


def test_a_download_that_is_not_what_was_published(
    site: Site, packed: Path, get: Get, tmp_path: Path
) -> None:
    good = packed.read_bytes()
    url = site.put(NAME, good[:5000] + b"?" + good[5001:])
    site.put("sha256sums.asc", f"{sha256(packed)}  {NAME}\n".encode())
    error = refused(get, url, BadDownload)
    for word in (url, "sha256sums.asc", sha256(packed)):
        assert word in error.message
    assert (trees(tmp_path), downloaded(tmp_path)) == ([], {})
    site.put(NAME, good)
    assert get(url).told == [f"{NAME}: its SHA-256 is that of sha256sums.asc"]


def test_half_an_old_file_and_half_a_new_one_are_found_out(
    site: Site, packed: Path, get: Get, tmp_path: Path
) -> None:
    url = site.put(NAME, packed.read_bytes())
    site.put("sha256sums.asc", f"{sha256(packed)}  {NAME}\n".encode())
    begin(tmp_path, url, b"old" * 1000)
    refused(get, url, BadDownload)
    assert (get(url).tree / "Kbuild").exists()


def test_a_server_that_is_ill_is_not_taken_for_one_without_checksums(
    site: Site, packed: Path, get: Get, tmp_path: Path
) -> None:
    site.error = 503
    url = site.put(NAME, packed.read_bytes())
    error = refused(get, url, Unreachable)
    assert site.url("sha256sums.asc") in error.message
    assert trees(tmp_path) == []
    site.error = 404
    get(url)
    assert len(site.times()) == 1


# ---- signatures


@dataclass(frozen=True, slots=True)
class Keys:
    """A GnuPG home directory."""

    home: Path

    def gpg(self, *arguments: str | Path, given: bytes = b"") -> bytes:
        return subprocess.run(
            ["gpg", "--homedir", self.home, "--batch", "--yes", *arguments],
            input=given, capture_output=True, check=True,
        ).stdout  # fmt: skip

    def make(self, user: str, *options: str) -> None:
        new = ("--quick-generate-key", user, "ed25519", "sign")
        self.gpg("--passphrase", "", *options, *new, "1d" if options else "never")

    def sign(self, content: bytes, *options: str) -> bytes:
        """A detached signature."""
        return self.gpg(*options, "--detach-sign", given=content)

    def clearsign(self, text: str) -> bytes:
        return self.gpg("--clearsign", given=text.encode())


@pytest.fixture(scope="session")
def homes() -> Iterator[Callable[[], Keys]]:
    """Gives empty GnuPG homes."""
    if not shutil.which("gpg"):
        pytest.skip("gpg is not installed")
    with contextlib.ExitStack() as stack:
        yield lambda: Keys(stack.enter_context(gnupg_home()))


@pytest.fixture(scope="session")
def maker(homes: Callable[[], Keys]) -> Keys:
    """Who signs kernels."""
    keys = homes()
    keys.make("A Maker <maker@example.org>")
    return keys


@pytest.fixture
def keyring(homes: Callable[[], Keys], maker: Keys, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """The user's own keyring, which has the maker's key."""
    keys = homes()
    keys.gpg("--import", given=maker.gpg("--export"))
    monkeypatch.setenv("GNUPGHOME", str(keys.home))
    return keys


def uncompressed(tarball: Path) -> bytes:
    return subprocess.run(["xz", "-dc", tarball], capture_output=True, check=True).stdout


SIGNED = "linux-6.1.tar.sign"
GOOD = "holds a good signature by A Maker <maker@example.org>, "


def test_a_signature_of_the_uncompressed_tar(
    tarball: Path, get: Get, maker: Keys, keyring: Keys
) -> None:
    tarball.with_name(SIGNED).write_bytes(maker.sign(uncompressed(tarball)))
    got = get(tarball)
    (told,) = got.told
    assert told.startswith(f"{NAME}: {SIGNED} {GOOD}")
    assert (got.tree / "Kbuild").exists()
    (pasted,) = (command for command in got.echoed if "--verify" in command)
    assert subprocess.run(["sh", "-c", pasted], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("suffix", ["gz", "bz2", "zst"])
def test_a_signature_of_a_tar_compressed_otherwise(
    tarball: Path, get: Get, maker: Keys, keyring: Keys, suffix: str
) -> None:
    tool = integrity.DECOMPRESSORS[f".{suffix}"]
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    content = uncompressed(tarball)
    tarball.with_name(SIGNED).write_bytes(maker.sign(content))
    other = tarball.with_name(f"linux-6.1.tar.{suffix}")
    other.write_bytes(subprocess.run([tool], input=content, capture_output=True, check=True).stdout)
    assert GOOD in get(other).told[0]


@pytest.mark.parametrize("ending", ["sign", "sig", "asc"])
def test_a_signature_of_the_file_itself(
    tarball: Path, get: Get, maker: Keys, keyring: Keys, ending: str
) -> None:
    tarball.with_name(f"{NAME}.{ending}").write_bytes(maker.sign(tarball.read_bytes()))
    assert get(tarball).told[0].startswith(f"{NAME}: {NAME}.{ending} {GOOD}")


@pytest.mark.parametrize("signed", [SIGNED, f"{NAME}.sig"])
def test_a_signature_of_something_else_refuses(
    tarball: Path, get: Get, maker: Keys, keyring: Keys, tmp_path: Path, signed: str
) -> None:
    tarball.with_name(signed).write_bytes(maker.sign(b"something else"))
    before = contents(tarball.parent)
    error = refused(get, tarball, NotATarball)
    assert f"{signed} beside it holds a bad signature by A Maker" in error.message
    assert (trees(tmp_path), contents(tarball.parent)) == ([], before)


def test_a_key_that_is_missing_is_named_with_how_to_get_it(
    tarball: Path, get: Get, maker: Keys, homes: Callable[[], Keys], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = homes().home
    monkeypatch.setenv("GNUPGHOME", str(empty))
    tarball.with_name(SIGNED).write_bytes(maker.sign(uncompressed(tarball)))
    got = get(tarball)
    listing = maker.gpg("--list-keys", "--with-colons").decode()
    (key,) = re.findall(r"^pub:(?:[^:]*:){3}(\w+):", listing, re.MULTILINE)
    assert f"{SIGNED} was not checked: key {key} is not in your keyring; " in got.told[0]
    assert "gpg --locate-keys torvalds@kernel.org gregkh@kernel.org" in got.told[0]
    assert (got.tree / "Kbuild").exists()


def test_looking_for_a_key_makes_no_keyring(
    tarball: Path, get: Get, maker: Keys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GNUPGHOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    tarball.with_name(SIGNED).write_bytes(maker.sign(uncompressed(tarball)))
    assert "is not in your keyring" in get(tarball).told[0]
    assert not list((tmp_path / "home").iterdir())


def test_without_gpg_the_checksum_is_checked_all_the_same(
    tarball: Path, get: Get, maker: Keys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listing = maker.clearsign(f"{sha256(tarball)}  {NAME}\n")
    tarball.with_name("sha256sums.asc").write_bytes(listing)
    tarball.with_name(SIGNED).write_bytes(maker.sign(b"whatever"))
    monkeypatch.setenv("PATH", path_without(tmp_path / "bin", "gpg"))
    assert get(tarball).told == [
        f"{NAME}: its SHA-256 is that of sha256sums.asc (whose signature was not checked:"
        f" gpg is not installed); {SIGNED} was not checked: gpg is not installed"
    ]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>\n"])
def test_a_file_that_only_has_a_signatures_name(
    tarball: Path, get: Get, keyring: Keys, content: bytes
) -> None:
    tarball.with_name(SIGNED).write_bytes(content)
    assert get(tarball).told == [
        f"{NAME}: {SIGNED} was not checked: gpg can't read a signature in it"
    ]


def test_a_key_that_has_expired(
    tarball: Path, get: Get, homes: Callable[[], Keys], keyring: Keys
) -> None:
    then = ("--faked-system-time", "20200101T000000")
    old = homes()
    old.make("Old Maker <old@example.org>", *then)
    keyring.gpg("--import", given=old.gpg("--export"))
    tarball.with_name(SIGNED).write_bytes(old.sign(uncompressed(tarball), *then))
    told = get(tarball).told[0]
    assert "holds a good signature by Old Maker" in told
    assert told.endswith("whose key has expired")


def test_a_key_that_was_revoked_refuses(
    tarball: Path, get: Get, homes: Callable[[], Keys], keyring: Keys
) -> None:
    robbed = homes()
    robbed.make("Robbed Maker <robbed@example.org>")
    tarball.with_name(SIGNED).write_bytes(robbed.sign(uncompressed(tarball)))
    keyring.gpg("--import", given=robbed.gpg("--export"))
    assert "holds a good signature by Robbed Maker" in get(tarball).told[0]
    (certificate,) = robbed.home.glob("openpgp-revocs.d/*.rev")
    # a colon keeps it from being used by accident
    keyring.gpg("--import", given=certificate.read_bytes().replace(b"\n:---", b"\n---"))
    error = refused(get, tarball, NotATarball)
    assert "has been revoked" in error.message


def test_a_signed_list(tarball: Path, get: Get, maker: Keys, keyring: Keys) -> None:
    listing = maker.clearsign(f"{sha256(tarball)}  {NAME}\n")
    tarball.with_name("sha256sums.asc").write_bytes(listing)
    (told,) = get(tarball).told
    assert told.startswith(f"{NAME}: its SHA-256 is that of sha256sums.asc (which {GOOD}")


def test_a_signed_list_that_somebody_changed(
    tarball: Path, get: Get, maker: Keys, keyring: Keys
) -> None:
    listing = maker.clearsign(f"{'5' * 64}  {NAME}\n")
    changed = listing.replace(b"5" * 64, sha256(tarball).encode())
    tarball.with_name("sha256sums.asc").write_bytes(changed)
    error = refused(get, tarball, NotATarball)
    assert "sha256sums.asc beside it holds a bad signature by A Maker" in error.message


def test_what_stands_around_the_signed_text_counts_for_nothing(
    tarball: Path, get: Get, maker: Keys, keyring: Keys
) -> None:
    forged = f"{sha256(tarball)}  {NAME}\n".encode()
    listing = maker.clearsign(f"{'5' * 64}  {NAME}\n")
    tarball.with_name("sha256sums.asc").write_bytes(forged + listing + forged)
    error = refused(get, tarball, NotATarball)
    assert "5" * 64 in error.message


def test_a_download_with_all_that_kernel_org_keeps_beside_it(
    site: Site, packed: Path, get: Get, maker: Keys, keyring: Keys
) -> None:
    url = site.put(NAME, packed.read_bytes())
    site.put("sha256sums.asc", maker.clearsign(f"{sha256(packed)}  {NAME}\n"))
    site.put(SIGNED, maker.sign(uncompressed(packed)))
    (told,) = get(url).told
    assert told.count(GOOD) == 2
    assert [path for path, _ in site.asked] == [
        f"/pub/{NAME}", "/pub/sha256sums.asc", f"/pub/{SIGNED}",
    ]  # fmt: skip


def test_what_was_checked_is_told_once(
    tarball: Path, invoke: Invoke, maker: Keys, keyring: Keys
) -> None:
    tarball.with_name(SIGNED).write_bytes(maker.sign(uncompressed(tarball)))
    command = ("setup", "--source=tarball", "--remote", tarball)
    dry = invoke("--dry", *command)
    assert dry.code == 0, dry.err
    assert not invoke.workspace.exists()
    first = invoke(*command)
    assert first.code == 0, first.err
    for outcome in (dry, first):
        assert outcome.err.count(GOOD) == 1
    assert invoke(*command) == Outcome(0, first.out, "")


# ---- what is in it


def pack_members(to: Path, *members: tuple[str, str]) -> Path:
    """A tarball of files, or of a symbolic link where the content is "-> TARGET"."""
    with tarfile.open(to, "w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content.startswith("-> "):
                member.type, member.linkname = tarfile.SYMTYPE, content[3:]
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content.encode()))
    return to


@pytest.mark.parametrize(
    "way_out", ["{outside}/escaped", "linux/../../../../escaped", "../escaped"]
)
def test_nothing_gets_out_of_a_tarball(get: Get, tmp_path: Path, way_out: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    name = way_out.format(outside=outside)
    tarball = pack_members(tmp_path / "l.tar.gz", ("linux/Kbuild", ""), (name, "escaped"))
    with contextlib.suppress(NotATarball):
        get(tarball)
    escaped = [path for path in tmp_path.rglob("escaped") if "linux" not in path.parts]
    assert escaped == []


def test_nothing_gets_out_through_a_link(get: Get, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tarball = pack_members(
        tmp_path / "l.tar.gz", ("linux/way", f"-> {outside}"), ("linux/way/escaped", "")
    )
    with contextlib.suppress(NotATarball):
        get(tarball)
    assert list(outside.iterdir()) == []


def test_a_link_at_the_top_is_no_tree(get: Get, tmp_path: Path) -> None:
    theirs = make_fake_tree(tmp_path / "theirs")
    before = contents(theirs)
    error = refused(
        get, pack_members(tmp_path / "l.tar.gz", ("linux", f"-> {theirs}")), NotATarball
    )
    assert "one directory at its top" in error.message
    assert (trees(tmp_path), contents(theirs)) == ([], before)


def test_what_a_harness_remembered_of_a_tree_is_not_believed(
    invoke: Invoke, fake_tree: Path, tmp_path: Path
) -> None:
    assert invoke("setup", "--tree", fake_tree).code == 0
    assert (fake_tree / STATE).exists()
    tarball = pack(tmp_path / "linux.tar.gz", fake_tree)
    (fake_tree / ".config").unlink()
    outcome = invoke("setup", "--source=tarball", "--remote", tarball)
    assert outcome.code == 0, outcome.err
    assert "from tarball" in outcome.out
    assert "configured it" in outcome.err


def test_a_tarball_whose_path_has_spaces(invoke: Invoke, fake_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "my files").mkdir()
    tarball = pack(tmp_path / "my files/linux of mine.tar.xz", fake_tree)
    outcome = invoke("setup", "--source=tarball", "--remote", tarball)
    assert outcome.code == 0, outcome.err
    assert invoke("build").code == 0


def test_tarballs_of_one_name_are_two(invoke: Invoke, tmp_path: Path) -> None:
    for name, version in (("old", "6.1"), ("new", "6.2")):
        tree = make_fake_tree(tmp_path / name / "linux")
        makefile = tree / "Makefile"
        makefile.write_text(
            makefile.read_text().replace("PATCHLEVEL = 1", f"PATCHLEVEL = {version[2:]}")
        )
        tarball = pack(tmp_path / name / "linux.tar.xz", tree)
        outcome = invoke("setup", "--source=tarball", "--remote", tarball)
        assert f"Linux {version}, from tarball" in outcome.out


def test_a_tarball_that_was_made_anew_is_another(
    invoke: Invoke, fake_tree: Path, tmp_path: Path
) -> None:
    command = ("setup", "--source=tarball", "--remote", pack(tmp_path / "l.tar.xz", fake_tree))
    assert "Linux 6.1, from tarball" in invoke(*command).out
    makefile = fake_tree / "Makefile"
    makefile.write_text(makefile.read_text().replace("PATCHLEVEL = 1", "PATCHLEVEL = 12"))
    pack(tmp_path / "l.tar.xz", fake_tree)
    assert "Linux 6.12, from tarball" in invoke(*command).out


def test_a_download_that_is_no_kernel(
    invoke: Invoke, site: Site, fake_tree: Path, tmp_path: Path
) -> None:
    shutil.rmtree(fake_tree / "samples")
    url = site.put(NAME, pack(tmp_path / NAME, fake_tree).read_bytes())
    outcome = invoke("setup", "--source=tarball", "--remote", url)
    assert_refused(outcome, 2, url, "no samples/bpf/Makefile", "--remote")
    assert not list(invoke.workspace.glob("trees/*"))


def test_a_download_of_another_version(invoke: Invoke, site: Site, packed: Path) -> None:
    url = site.put(NAME, packed.read_bytes())
    outcome = invoke("setup", "--kernel=6.1.7", "--source=tarball", "--remote", url)
    assert_refused(outcome, 69, url, "has no v6.1.7; it has 6.1", "--kernel")
    assert not list(invoke.workspace.glob("trees/*"))


def test_a_tarball_whose_decompressor_is_missing(
    tarball: Path, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path_without(tmp_path / "bin", "xz"))
    error = refused(get, tarball, MissingTools)
    assert "xz" in error.message


# ---- where it goes


def on_disk(place: Path, options: str) -> tuple[str, ...]:
    """The prefix of commands that see another disk at a place."""
    script = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    under = ("unshare", "--mount", "sh", "-c", script, str(place))
    tried = subprocess.run([*under, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no disk can be mounted here: {tried.stderr}")
    return under


def test_a_workspace_that_is_read_only(tarball: Path, tmp_path: Path) -> None:
    (place := tmp_path / "disk").mkdir()
    invoke = Invoke(place / "workspace")
    command = ("setup", "--source=tarball", "--remote", tarball)
    outcome = invoke(*command, under=on_disk(place, "ro,size=3g"))
    assert_refused(outcome, 2, "no permission", str(place), "INVOKE_WORKSPACE")


def test_a_disk_that_gets_full_is_not_the_tarballs_fault(tarball: Path, tmp_path: Path) -> None:
    (place := tmp_path / "disk").mkdir()
    before = contents(tarball.parent)
    command = ("setup", "--source=tarball", "--remote", tarball)
    outcome = Invoke(place)(*command, under=on_disk(place, "size=3g,nr_inodes=15"))
    assert_refused(outcome, 69, "not enough space", str(place), "INVOKE_WORKSPACE")
    assert contents(tarball.parent) == before


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        ("linux-6.1.tar.xz", Source.TARBALL),
        ("https://example.org/linux-6.1.tar.gz", Source.TARBALL),
        ("/some/linux.tgz", Source.TARBALL),
        ("linux.tar", Source.TARBALL),
        ("https://example.org/linux.git", Source.AUTO),
        ("/srv/linux.tar.xz/linux", Source.AUTO),
    ],
)
def test_a_remote_with_a_tarballs_name_is_one(remote: str, expected: Source) -> None:
    assert Wanted.of("6.1", "", Source.AUTO, None, remote).source is expected
    assert Wanted.of("6.1", "", Source.GIT, None, remote).source is Source.GIT
