"""A mirror of a distribution on loopback, with packages that tests make, and signed suites."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from pathlib import Path

import pytest
from support import gnupg_home

from xdplab.sources import distro

GPG = shutil.which("gpg") and shutil.which("dpkg-deb") and shutil.which("apt-get")
needs_apt = pytest.mark.skipif(not GPG, reason="needs apt, dpkg-deb and gpg")


@dataclass(frozen=True, slots=True)
class Mirror:
    """A directory that a web server on loopback shows, with suites in it."""

    root: Path
    url: str
    home: Path  # gpg's

    def add(self, suite: str, *debs: Path, key: str = "archive", age: float = 0) -> None:
        """Make a suite of packages, signed; `age`: so many seconds ago."""
        arch = subprocess.run(
            ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
        ).stdout.strip()
        index = Path(f"main/binary-{arch}/Packages")
        directory = self.root / "debian" / "dists" / suite
        (directory / index).parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(self._stanza(deb) for deb in debs)
        (directory / index).write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        release = directory / "Release"
        release.write_text(
            f"Origin: Test\nSuite: {suite}\nCodename: {suite}\nArchitectures: {arch}\n"
            f"Components: main\nDate: {formatdate(time.time() - age, usegmt=True)}\n"
            f"SHA256:\n {digest} {len(text)} {index}\n"
        )
        gpg(self.home, "--local-user", key, "--output", str(directory / "InRelease"),
            "--clearsign", str(release))  # fmt: skip
        release.unlink()

    def deb(
        self, package: str, number: str, fill: Callable[[Path], None], depends: str = "",
        installed: int = 64,
    ) -> Path:  # fmt: skip
        """Make a package of the files that `fill` puts below a directory; it may lie in KiB."""
        deb = self.root / "debian/pool" / f"{package}_{number}_all.deb"
        if not deb.exists():
            with tempfile.TemporaryDirectory() as scratch:
                top = Path(scratch, "package")
                (top / "DEBIAN").mkdir(parents=True)
                (top / "DEBIAN/control").write_text(
                    f"Package: {package}\nVersion: {number}\nArchitecture: all\n"
                    + (f"Depends: {depends}\n" if depends else "")
                    + f"Installed-Size: {installed}\n"
                    "Maintainer: A Test <test@example.org>\nDescription: made by a test\n"
                )
                fill(top)
                deb.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["dpkg-deb", "--root-owner-group", "--build", top, deb],
                               check=True, capture_output=True)  # fmt: skip
        return deb

    def _stanza(self, deb: Path) -> str:
        fields = subprocess.run(["dpkg-deb", "--field", deb], check=True, capture_output=True)
        content = deb.read_bytes()
        return (
            f"{fields.stdout.decode()}Filename: {deb.relative_to(self.root / 'debian')}\n"
            f"Size: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
        )


def gpg(home: Path, *arguments: str) -> None:
    subprocess.run(["gpg", "--homedir", home, "--batch", "--yes", "--passphrase", "", *arguments],
                   check=True, capture_output=True)  # fmt: skip


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Keep the terminal for the tests."""


@contextlib.contextmanager
def serve(root: Path) -> Iterator[Mirror]:
    """A mirror without suites, and with two keys: one of the archive's, one that nobody knows."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(QuietHandler, directory=str(root))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with gnupg_home() as home:
        made = Mirror(root, f"http://127.0.0.1:{server.server_port}", home)
        for key in ("archive", "stranger"):
            gpg(made.home, "--quick-generate-key", key, "ed25519", "sign", "never")
        gpg(made.home, "--output", str(root / "debian-archive-keyring.gpg"), "--export", "archive")
        yield made
    server.shutdown()
    server.server_close()


def become_debian(mirror: Mirror, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this be a Debian 12 whose apt is configured for the mirror; gives the sources.list."""
    sources = directory / "sources.list"
    sources.write_text(
        "".join(
            f"deb {mirror.url}/debian {suite} main\n" for suite in ("bookworm", "bookworm-security")
        )
    )
    (directory / "machine.conf").write_text(
        f'Dir::Etc::SourceList "{sources}";\nDir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{directory}/lists";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(directory / "machine.conf"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distro, "_KEYRINGS", mirror.root)
    release = {"ID": "debian", "VERSION_CODENAME": "bookworm"}
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    return sources
