"""Whether a tarball is what its maker published: its SHA-256, and its OpenPGP signature.

kernel.org keeps `sha256sums.asc`, a clearsigned list, in each directory, and
`linux-X.tar.sign`, a detached signature of the uncompressed tar, beside each
release: https://www.kernel.org/signature.html.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from xdplab.errors import MissingTools, NotATarball
from xdplab.process import Argv, Finished, Shell

# What may lie beside a tarball; {name} is its own name, {tar} that of the uncompressed tar.
CHECKSUMS = ("sha256sums.asc", "{name}.sha256", "{name}.sha256sum")
SIGNATURES = ("{tar}.sign", "{name}.sign", "{name}.sig", "{name}.asc")

DECOMPRESSORS = {".xz": "xz", ".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}

# What gpg says of a signature: one of these for each (GnuPG's doc/DETAILS).  Who
# revokes a key that was stolen signs what is still good with another.
_GOOD = {
    "GOODSIG": "holds a good signature by {who}",
    "EXPSIG": "holds a good signature by {who}, which has expired",
    "EXPKEYSIG": "holds a good signature by {who}, whose key has expired",
}
_BAD = {
    "BADSIG": "holds a bad signature by {who}: it was made for something else",
    "REVKEYSIG": "holds a signature by {who}, whose key has been revoked",
}
_NO_KEY = "is not in your keyring"
_KEYS = (
    "the keys of kernel.org's releases:"
    " gpg --locate-keys torvalds@kernel.org gregkh@kernel.org autosigner@kernel.org"
)


def names(name: str, patterns: tuple[str, ...]) -> list[str]:
    """The names of CHECKSUMS or SIGNATURES for a tarball of this name."""
    path = Path(name)
    tar = path.stem if path.suffix in DECOMPRESSORS and path.stem.endswith(".tar") else name
    return list(dict.fromkeys(pattern.format(name=name, tar=tar) for pattern in patterns))


def check(tarball: Path, shell: Shell) -> str:
    """Hold a tarball against all checksums and signatures that lie beside it.

    Gives in a sentence what was checked, and what couldn't be and why.  Raises
    NotATarball if it is another than was published, MissingTools without what
    decompresses it.  Keys are those of the user's own keyring.
    """
    said = [
        *(_check_sum(tarball, listing, shell) for listing in _beside(tarball, CHECKSUMS)),
        *(_check_signature(tarball, one, shell) for one in _beside(tarball, SIGNATURES)),
    ]
    if not said:
        return "no checksum and no signature is beside it"
    return "; ".join([*said, *([_KEYS] if any(_NO_KEY in one for one in said) else [])])


def require_decompressor(tarball: Path) -> None:
    """Raise MissingTools without the tool that tar would call, and blame the tarball for."""
    tool = DECOMPRESSORS.get(tarball.suffix)
    if tool and not shutil.which(tool):
        raise MissingTools([tool], "build")


def _beside(tarball: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for name in names(tarball.name, patterns):
        path = tarball.with_name(name)
        if path.is_file():
            yield path


def _check_sum(tarball: Path, listing: Path, shell: Shell) -> str:
    text, signature = _signed_text(tarball, listing, shell)
    published = _sums(text, tarball.name)
    if not published:
        return f"{listing.name} doesn't name it{signature}"
    with tarball.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found not in published:
        said = " or ".join(sorted(published))
        why = f"its SHA-256 is {found}, and {listing.name} beside it says {said}"
        raise NotATarball(str(tarball), why)
    return f"its SHA-256 is that of {listing.name}{signature}"


def _sums(text: str, name: str) -> set[str]:
    """The SHA-256 of a file in a list of sha256sum(1)'s; a sum without a name is anybody's."""
    rows = re.findall(r"^([0-9a-f]{64})(?: [ *](.+?))?\s*$", text, re.MULTILINE | re.IGNORECASE)
    return {digest.lower() for digest, file in rows if not file or Path(file).name == name}


def _signed_text(tarball: Path, listing: Path, shell: Shell) -> tuple[str, str]:
    """A list's text, only the signed part of it if it is signed, and by whom, in brackets."""
    text = listing.read_text(errors="replace")
    if "-----BEGIN PGP SIGNED MESSAGE-----" not in text:
        return text, ""
    finished = _gpg(["--status-fd", "2", "--output", "-", "--verify", listing], shell)
    if not finished:
        return text, " (whose signature was not checked: gpg is not installed)"
    verdict = _verdict(finished.text("err"), tarball, listing)
    return finished.text("out"), f" (which {verdict})"


def _check_signature(tarball: Path, signature: Path, shell: Shell) -> str:
    options: Argv = ["--status-fd", "1", "--verify", signature]
    if signature.name.startswith(f"{tarball.name}."):
        finished = _gpg([*options, tarball], shell)
    else:
        finished = _gpg([*options, "-"], shell, of_uncompressed=tarball)
    if not finished:
        return f"{signature.name} was not checked: gpg is not installed"
    return f"{signature.name} {_verdict(finished.text('out'), tarball, signature)}"


def _gpg(options: Argv, shell: Shell, of_uncompressed: Path | None = None) -> Finished | None:
    """Run gpg, on a file's uncompressed content if one is given; None if there is no gpg."""
    if not shutil.which("gpg"):
        return None
    home = Path(os.environ.get("GNUPGHOME") or "~/.gnupg").expanduser()
    # with its options it would make the directory
    argv: Argv = ["gpg", "--batch", *([] if home.exists() else ["--no-options"]), *options]
    if of_uncompressed:
        require_decompressor(of_uncompressed)
        tool = DECOMPRESSORS[of_uncompressed.suffix]
        source = shlex.join([tool, "--decompress", "--stdout", str(of_uncompressed)])
        argv = ["sh", "-c", f"{source} | {shlex.join(map(str, argv))}"]
    return shell.ask(argv)


def _verdict(status: str, tarball: Path, signature: Path) -> str:
    """What gpg's status lines say of a signature; raises NotATarball if it is bad."""
    lines = re.findall(r"^\[GNUPG:\] (\w+) ?(\S*) ?(.*)", status, re.MULTILINE)
    words = [(word, f"{who}, {key}") for word, key, who in lines]
    for word, who in words:
        if word in _BAD:
            why = f"{signature.name} beside it {_BAD[word].format(who=who)}"
            raise NotATarball(str(tarball), why)
    for word, who in words:
        if word in _GOOD:
            return _GOOD[word].format(who=who)
    for word, key, _ in lines:
        if word == "NO_PUBKEY":
            return f"was not checked: key {key} {_NO_KEY}"
    return "was not checked: gpg can't read a signature in it"
