"""What is handed on is what the commit says, byte for byte; what it is made of is on record."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PROJECT, Invoke, Outcome, assert_refused, waiting_lock
from support import git

LOCKS = sorted(PROJECT.glob("requirements*.lock"))
_PIN = re.compile(
    r"^([\w.-]+)==(\S+) (?:; .+)?\\((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+)$", re.MULTILINE
)


def pinned(lock: Path) -> dict[str, str]:
    """The packages that a lock has with hashes, and their versions."""
    return {name: version for name, version, _ in _PIN.findall(f"{lock.read_text()}\n")}


# ---- the locks


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_each_requirement_is_pinned_with_hashes(lock: Path) -> None:
    named = [line for line in lock.read_text().splitlines() if line[:1] not in ("", " ", "#")]
    assert len(pinned(lock)) == len(named) > (0 if "fuzz" in lock.stem else 10)


def test_nothing_else_is_installed_by_the_scripts() -> None:
    """Each pip install is of a lock, and takes nothing without its hash."""
    for script in ("scripts/bootstrap", "scripts/lock", "scripts/test", "xdplab/supply.py"):
        text = (PROJECT / script).read_text().replace("\\\n", " ")
        for command in re.findall(r"pip\W.{0,20}\binstall\b(?:.*\n?.*)", text):
            assert "require-hashes" in command, (script, command)


# ---- the archives


def checkout(to: Path, umask: int = 0o022) -> Path:
    """The project as a repository of its own, with all that isn't ignored in its one commit."""
    if not (PROJECT / ".git").exists():
        pytest.skip("this is an unpacked archive: nothing says what belongs to it")
    if not importlib.util.find_spec("hatchling"):
        pytest.skip("hatchling is not installed: scripts/bootstrap")
    names = git(PROJECT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    before = os.umask(umask)
    try:
        for name in filter(None, names):
            if (PROJECT / name).is_file() and name != ".venv":
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                (to / name).write_bytes((PROJECT / name).read_bytes())
                executable = 0o111 if os.access(PROJECT / name, os.X_OK) else 0
                (to / name).chmod((0o666 | executable) & ~umask)
        git(to, "init", "--initial-branch=main")
        git(to, "add", "--all")
        then = {
            "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z",
            "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z",
        }
        with pytest.MonkeyPatch.context() as patched:
            for name, value in then.items():
                patched.setenv(name, value)
            git(to, "commit", "--message", "all of it")
    finally:
        os.umask(before)
    return to


def packed(sources: Path, workspace: Path, to: Path, **env: str) -> dict[str, bytes]:
    """The archives that `invoke dist` makes in a directory, by their names."""
    outcome = Invoke(workspace, sources)("dist", "--dir", to, env=env)
    assert outcome.code == 0, outcome.err
    found = {file.name: file.read_bytes() for file in to.iterdir()}
    assert [line.split()[1] for line in outcome.out.splitlines()] == [
        str(to / one) for one in sorted(found)
    ]
    return found


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A checkout, and what was packed of it."""
    top = tmp_path_factory.mktemp("dist")
    sources = checkout(top / "checkout")
    return sources, packed(sources, top / "workspace", top / "out")


def test_the_same_commit_is_the_same_bytes(
    archives: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    """Elsewhere, by another user's mask, in another zone, from files of another time."""
    _, first = archives
    other = checkout(tmp_path / "some" / "where else", umask=0o077)
    for path in other.rglob("*"):
        if ".git" not in path.parts:
            os.utime(path, (10**9, 10**9))
    (other / "notes.txt").write_text("not committed\n")
    (other / "README.md").write_text("edited\n")
    shutil.copy2(other / "xdplab/errors.py", other / "xdplab/left_over.py")
    second = packed(other, tmp_path / "workspace", tmp_path / "out", TZ="Asia/Tokyo", LC_ALL="C",
                    PYTHONHASHSEED="7")  # fmt: skip
    assert {Path(name).suffix for name in first} == {".gz", ".whl"}
    assert second == first


def written(made: dict[str, bytes], ending: str, directory: Path) -> Path:
    """The one archive with that ending, as a file."""
    (name,) = (one for one in made if one.endswith(ending))
    (directory / name).write_bytes(made[name])
    return directory / name


def test_the_source_archive_has_all_that_is_committed(
    archives: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    sources, made = archives
    archive = written(made, ".tar.gz", tmp_path)
    top = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        members = {one.name: one for one in tar.getmembers() if one.isfile()}
    committed = git(sources, "ls-files").splitlines()
    assert members.keys() == {f"{top}/{one}" for one in [*committed, "PKG-INFO"]}
    for one in committed:
        assert bool(members[f"{top}/{one}"].mode & 0o100) == os.access(sources / one, os.X_OK), one
    assert {(one.uid, one.gid, one.uname, one.gname) for one in members.values()} == {
        (0, 0, "", "")
    }
    assert {one.mtime for one in members.values()} == {1767323045}  # the commit's date


def test_the_wheel_has_the_whole_library(
    archives: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    """What isn't Python too: the guest's tools, what builds read."""
    sources, made = archives
    with zipfile.ZipFile(written(made, ".whl", tmp_path)) as wheel:
        inside = {one for one in wheel.namelist() if ".dist-info/" not in one}
    assert inside == set(git(sources, "ls-files", "xdplab").splitlines())


def test_the_source_archive_makes_itself_again(
    archives: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    _, made = archives
    archive = written(made, ".tar.gz", tmp_path)
    subprocess.run(["tar", "-C", tmp_path, "-xf", archive], check=True)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    (unpacked / "PKG-INFO").unlink()
    workspace, out = tmp_path / "workspace", tmp_path / "out"
    assert packed(unpacked, workspace, out, SOURCE_DATE_EPOCH="1767323045") == made
    assert_refused(
        Invoke(workspace, unpacked)("dist"), 2, "no git repository", "SOURCE_DATE_EPOCH="
    )
    assert not (unpacked / "dist").exists()


def test_a_dry_run_packs_nothing(archives: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    sources, _ = archives
    outcome = Invoke(tmp_path / "workspace", sources)("--dry", "dist", "--dir", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "hatchling build" in outcome.err
    assert not list(tmp_path.iterdir())


# ---- the bill of materials


@pytest.fixture(scope="module")
def release(trees_workspace: Path) -> Callable[..., dict[str, object]]:
    """Makes a bill of materials; its tools are fetched once for all test runs."""

    def make(to: Path, **env: str) -> dict[str, object]:
        with waiting_lock(trees_workspace / "tests.lock"):
            outcome = Invoke(trees_workspace)("sbom", "--output", to, env=env, timeout=900)
        if outcome.code == 69 and "package index" in outcome.err:
            pytest.skip(f"cyclonedx-bom can't be had here: {outcome.err}")
        assert outcome.code == 0, outcome.err
        bill: dict[str, object] = json.loads(to.read_text())
        return bill

    return make


def test_the_bill_has_each_locked_package_and_its_hashes(
    release: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    bill = release(tmp_path / "one.json", SOURCE_DATE_EPOCH="1767323045")
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert "serialNumber" not in bill  # it would be another each time
    lock = PROJECT / "requirements.lock"
    text = json.dumps(bill["components"])
    parts = {one["name"]: one for one in json.loads(text)}
    assert {name: one["version"] for name, one in parts.items()} == pinned(lock)
    for name, one in parts.items():
        assert one["purl"] == f"pkg:pypi/{name}@{one['version']}"
    for digest in re.findall(r"--hash=sha256:([0-9a-f]{64})", lock.read_text()):
        assert f'"content": "{digest}"' in text
    assert release(tmp_path / "two.json", SOURCE_DATE_EPOCH="1767323045", TZ="Asia/Tokyo") == bill
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


# ---- the audit


@contextmanager
def known(answers: dict[str, list[dict[str, object]]]) -> Iterator[tuple[str, list[str]]]:
    """A service that speaks as OSV's does (https://google.github.io/osv.dev/post-v1-query/).

    It knows of these packages; gives its address, and the packages that it was asked about.
    """
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(f"{question['package']['name']} {question['version']}")
            found = answers.get(question["package"]["name"])
            answer = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the terminal for the tests."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query", asked
        server.shutdown()


def audited(workspace: Path, url: str) -> Outcome:
    env = {"PIP_AUDIT_VULNERABILITY_SERVICE": "osv", "PIP_AUDIT_OSV_URL": url}
    env |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with waiting_lock(workspace / "tests.lock"):
        outcome = Invoke(workspace)("audit", env=env, timeout=900)
    if outcome.code == 69 and "package index" in outcome.err:
        pytest.skip(f"pip-audit can't be had here: {outcome.err}")
    return outcome


def test_all_that_is_locked_is_asked_about(trees_workspace: Path) -> None:
    with known({}) as (url, asked):
        outcome = audited(trees_workspace, url)
    assert outcome.code == 0, outcome.err
    lock = pinned(PROJECT / "requirements.lock")
    assert sorted(asked) == sorted(f"{name} {version}" for name, version in lock.items())
    assert f"nothing is known against any of {len(lock)} packages" in outcome.err


def test_what_is_known_fails_the_audit(trees_workspace: Path) -> None:
    version = pinned(PROJECT / "requirements.lock")["jinja2"]
    weakness: dict[str, object] = {
        "id": "PYSEC-0000-1", "summary": "a test's", "details": "a test's", "aliases": [],
        "affected": [{"package": {"name": "jinja2", "ecosystem": "PyPI"}, "versions": [version],
                      "ranges": [{"type": "ECOSYSTEM", "events": [
                          {"introduced": "0"}, {"fixed": "99.1"}]}]}],
    }  # fmt: skip
    with known({"jinja2": [weakness]}) as (url, _):
        outcome = audited(trees_workspace, url)
    said = f"jinja2 {version}: PYSEC-0000-1 (fixed in 99.1)"
    assert_refused(outcome, 1, said, "scripts/lock --upgrade")


def test_an_audit_that_can_ask_nobody_is_none(trees_workspace: Path) -> None:
    outcome = audited(trees_workspace, "http://127.0.0.1:1/v1/query")
    assert_refused(outcome, 69, "skipped, nothing was audited: ", "PIP_AUDIT_OSV_URL")
