"""Files written whole or not at all, and locks that die with their holder."""

import contextlib
import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdplab.errors import Held, NoSpace, Wrecked
from xdplab.files import locked, read_json, require_space, write_json, write_whole
from xdplab.workspace import PROJECT

HOLD = """
import sys
from pathlib import Path
from xdplab.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLD, str(path), "an argument"]
    with subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


# ---- write_whole


def test_a_file_is_replaced_by_another_not_written_into(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with path.open("rb") as still_open:
        write_whole(path, b"after")
        assert still_open.read() == b"before"
    assert path.read_bytes() == b"after"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o755, 0o444])
def test_a_file_keeps_its_mode(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(bits)
    write_whole(path, b"new")
    assert mode(path) == bits


@pytest.mark.parametrize(("mask", "bits"), [(0o022, 0o644), (0o077, 0o600), (0, 0o666)])
def test_a_new_file_has_the_mode_that_the_umask_leaves(
    mask: int, bits: int, tmp_path: Path
) -> None:
    with umask(mask):
        write_whole(tmp_path / "file", b"")
        assert os.umask(mask) == mask
    assert mode(tmp_path / "file") == bits


def test_directories_that_are_missing_are_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "a/b/file", b"content")
    assert (tmp_path / "a/b/file").read_bytes() == b"content"


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    in_the_way = tmp_path / "directory"
    (in_the_way / "kept").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_whole(in_the_way, b"content")
    assert [*tmp_path.iterdir()] == [in_the_way]
    assert (in_the_way / "kept").is_dir()


def test_a_write_that_stops_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [path]


def test_a_write_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    killed = """
import os, signal, sys
from pathlib import Path
from xdplab.files import write_whole
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # when all is written
write_whole(Path(sys.argv[1]), b"after")
"""
    ended = subprocess.run([sys.executable, "-c", killed, path], cwd=PROJECT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [path]


def test_where_no_file_can_be_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / "file", os.open

    def by_name_alone(where: Path, flags: int, mode: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "as NFS says it", where)
        return opened(where, flags, mode)

    monkeypatch.setattr(os, "open", by_name_alone)
    for content in (b"before", b"after"):
        write_whole(path, content, 0o640)
        assert (path.read_bytes(), mode(path)) == (content, 0o640)
    assert [*tmp_path.iterdir()] == [path]


# ---- JSON


@given(value=json_values)
def test_json_is_read_back(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_is_for_people_too(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"a": [1]})
    assert (tmp_path / "file").read_text() == '{\n  "a": [\n    1\n  ]\n}\n'


WRECKS = [b"", b"{", b'{"a": 1', b"\xff\xfe\x00", b"{} {}", b"\0" * 64, b"[" * 10**5]


@pytest.mark.parametrize("wreck", WRECKS, ids=range(len(WRECKS)))
def test_a_wreck_is_not_taken_for_no_record(wreck: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_json(path) is None
    path.write_bytes(wreck)
    with pytest.raises(Wrecked, match=re.escape(str(path))):
        read_json(path)


def test_no_beginning_of_a_record_is_taken_for_the_record(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_json(path, {"version": 1, "files": ["a", "\u20ac"], "none": None})
    whole = path.read_bytes().rstrip()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(Wrecked):
            read_json(path)


# ---- space


def test_space_is_asked_for_where_the_directory_will_be(tmp_path: Path) -> None:
    missing = tmp_path / "not/there/yet"
    require_space(missing, 1)
    with pytest.raises(NoSpace, match="MiB are needed") as full:
        require_space(missing, 2**62)
    assert str(tmp_path) in full.value.message
    assert not missing.exists()


# ---- locks


def test_the_second_process_learns_who_the_first_is(tmp_path: Path) -> None:
    lock = tmp_path / "tree/lock"
    with holder(lock) as process, pytest.raises(Held) as held, locked(lock):
        pytest.fail("two processes hold the lock")
    assert f"process {process.pid} (" in held.value.message
    assert "an argument), since " in held.value.message
    assert str(lock.parent) in held.value.message


def test_a_lock_that_was_refused_still_names_its_holder(tmp_path: Path) -> None:
    with holder(tmp_path / "lock") as process:
        for _ in range(2):
            with pytest.raises(Held, match=f"process {process.pid} "), locked(tmp_path / "lock"):
                pytest.fail("two processes hold the lock")


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with holder(lock) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert f"process {process.pid} " in lock.read_text()
        with locked(lock):
            assert lock.read_text().startswith(f"process {os.getpid()} ")


def test_who_has_just_taken_a_lock_is_named_once_it_has_signed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("process 99999999 (a dead one), since 2019-03-01 12:00:00\n")
    with lock.open("a+") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        signing = threading.Timer(
            0.2, lambda: lock.write_text(f"process {os.getpid()} (me), since 2019-03-02 12:00:00\n")
        )
        signing.start()
        with pytest.raises(Held, match="03-02"), locked(lock):
            pytest.fail("two hold the lock")
        signing.join()


def test_a_lock_whose_file_is_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, flock = tmp_path / "tree/lock", fcntl.flock
    removals = iter([lock.parent])

    def after_a_removal(descriptor: int, how: int) -> None:
        for directory in removals:  # once, by who has cleaned, after the file was opened
            shutil.rmtree(directory)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", after_a_removal)
    with locked(lock):
        assert lock.read_text().startswith(f"process {os.getpid()} ")
        with pytest.raises(Held, match=f"process {os.getpid()} "), locked(lock):
            pytest.fail("two hold the lock")


def test_a_lock_is_free_after_its_end_and_after_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(ZeroDivisionError), locked(lock):
        raise ZeroDivisionError
    with locked(lock):
        pass
    assert lock.read_text() == ""


def test_a_dry_run_neither_takes_a_lock_nor_minds_one(tmp_path: Path) -> None:
    with locked(tmp_path / "a/lock", dry=True):
        pass
    assert not (tmp_path / "a").exists()
    with holder(tmp_path / "lock"), locked(tmp_path / "lock", dry=True):
        pass
