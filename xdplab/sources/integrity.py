"""Whether a tarball or a tag is what its maker published: its SHA-256, its OpenPGP signature.

kernel.org keeps `sha256sums.asc`, a clearsigned list, in each directory, and
`linux-X.tar.sign`, a detached signature of the uncompressed tar, beside each
release: https://www.kernel.org/signature.html.  Tags are signed themselves, and with
them, by its name, the commit, and all files of it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from xdplab.errors import BadDownload, MissingTools, NotATarball
from xdplab.files import sha256
from xdplab.process import Argv, Finished, Shell

# What may lie beside a tarball; {name} is its own name, {tar} that of the uncompressed tar.
CHECKSUMS = ("sha256sums.asc", "{name}.sha256", "{name}.sha256sum")
SIGNATURES = ("{tar}.sign", "{name}.sign", "{name}.sig", "{name}.asc")

DECOMPRESSORS = {".xz": "xz", ".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}

# Who signs releases, by the fingerprints that https://www.kernel.org/signature.html has.
# Any key can get into a keyring; these are the kernel's.
RELEASE_KEYS = {
    "ABAF11C65A2970B130ABE3C479BE3E4300411886": "Linus Torvalds",
    "647F28654894E3BD457199BE38DBBDC86092693E": "Greg Kroah-Hartman",
    "E27E5D8A3403A2EF66873BBCDEA66FF797772CDC": "Sasha Levin",
    "AC2B29BD34A6AFDDB3F68F35E7BFC8EC95861109": "Ben Hutchings",
    "B8868C80BA62A1FFFAF5FDA9632D3A06589DA6B1": "the autosigner of checksums",
}

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
    " gpg --locate-keys torvalds@kernel.org gregkh@kernel.org sashal@kernel.org"
    " autosigner@kernel.org"
)
_HEADER = re.compile(r"^(\w+) (\S+)$", re.MULTILINE)  # of a tag, in git-mktag(1)


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
        return "not checked: no checksum and no signature is beside it"
    return _with_cure("; ".join(said))


def check_tag(store: Path, tag: str, remote: str, shell: Shell) -> str:
    """Hold a tag that was fetched into a bare repository against its signature.

    Gives in a sentence what was checked, or why it couldn't be.  Raises BadDownload if
    it is another tag that was given this name, if its signature is bad, or was made with
    a key that has been revoked.  Keys are those of the user's own keyring.
    """
    reference, look = f"refs/tags/{tag}", Shell()
    if look.ask(["git", "cat-file", "-t", reference], cwd=store).text() != "tag":
        return f"{tag} was not checked: it is a name for a commit, and signed by nobody"
    text = look.ask(["git", "cat-file", "tag", reference], cwd=store).text()
    header = dict(_HEADER.findall(text.partition("\n\n")[0]))
    if header.get("tag") != tag:
        raise BadDownload(remote, f"what it calls {tag} is the tag {header.get('tag')}")
    if "-----BEGIN " not in text:
        return f"{tag} was not checked: it is signed by nobody"
    if not shutil.which("gpg") or not _home().exists():
        why = "you have no keyring" if shutil.which("gpg") else "gpg is not installed"
        return _with_cure(f"{tag} was not checked: {why}")
    verifying = shell.ask(["git", "verify-tag", "--raw", reference], cwd=store)
    refused, words = _verdict(verifying.text("err"))
    if refused:
        raise BadDownload(remote, f"{tag} {words}")
    return _with_cure(f"{tag} {words}")


def _with_cure(said: str) -> str:
    """What was said, and where the keys are to be had that were missing."""
    return f"{said}; {_KEYS}" if _NO_KEY in said or "no keyring" in said else said


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
    found = sha256(tarball)
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
    verdict = _of_tarball(finished.text("err"), tarball, listing)
    return finished.text("out"), f" (which {verdict})"


def _check_signature(tarball: Path, signature: Path, shell: Shell) -> str:
    options: Argv = ["--status-fd", "1", "--verify", signature]
    if signature.name.startswith(f"{tarball.name}."):
        finished = _gpg([*options, tarball], shell)
    else:
        finished = _gpg([*options, "-"], shell, of_uncompressed=tarball)
    if not finished:
        return f"{signature.name} was not checked: gpg is not installed"
    return f"{signature.name} {_of_tarball(finished.text('out'), tarball, signature)}"


def _gpg(options: Argv, shell: Shell, of_uncompressed: Path | None = None) -> Finished | None:
    """Run gpg, on a file's uncompressed content if one is given; None if there is no gpg."""
    if not shutil.which("gpg"):
        return None
    # with its options it would make the directory
    argv: Argv = ["gpg", "--batch", *([] if _home().exists() else ["--no-options"]), *options]
    if of_uncompressed:
        require_decompressor(of_uncompressed)
        tool = DECOMPRESSORS[of_uncompressed.suffix]
        source = shlex.join([tool, "--decompress", "--stdout", str(of_uncompressed)])
        argv = ["sh", "-c", f"{source} | {shlex.join(map(str, argv))}"]
    return shell.ask(argv)


def _home() -> Path:
    """Where the user's keyring is."""
    return Path(os.environ.get("GNUPGHOME") or "~/.gnupg").expanduser()


def _of_tarball(status: str, tarball: Path, signature: Path) -> str:
    """The verdict on a signature beside a tarball; raises NotATarball if it is bad."""
    refused, words = _verdict(status)
    if refused:
        raise NotATarball(str(tarball), f"{signature.name} beside it {words}")
    return words


def _verdict(status: str) -> tuple[bool, str]:
    """What gpg's status lines say of a signature: whether it is to be refused, and words."""
    lines = re.findall(r"^\[GNUPG:\] (\w+) ?(\S*) ?(.*)", status, re.MULTILINE)
    for word, key, who in lines:
        if word in _BAD:
            return True, _BAD[word].format(who=f"{who}, {key}")
    # the last field of VALIDSIG is the primary key's fingerprint
    made_with = {rest.split()[-1] for word, _, rest in lines if word == "VALIDSIG"}
    known = "a key" if made_with and made_with <= RELEASE_KEYS.keys() else "no key"
    for word, key, who in lines:
        if word in _GOOD:
            whose = f"{who}, {key} ({known} of kernel.org's releases)"
            return False, _GOOD[word].format(who=whose)
    for word, key, _ in lines:
        if word == "NO_PUBKEY":
            return False, f"was not checked: key {key} {_NO_KEY}"
    return False, "was not checked: gpg can't read a signature in it"
