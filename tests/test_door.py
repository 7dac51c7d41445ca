"""The door of a guest: what another terminal asks for is done, and nobody can block it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import wait_until

from xdplab.errors import SessionLost
from xdplab.testbed.door import Deeds, Door, knock, short_name

DEEDS: Deeds = {"add": lambda one, other: {"sum": one + other}, "stop": lambda: None}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory whose name is longer than that of a socket may be."""
    place = tmp_path / ("long" * 40)
    place.mkdir()
    return place


@contextlib.contextmanager
def answered(place: Path) -> Iterator[Door]:
    """A door behind which somebody looks again and again who is there."""
    ended = threading.Event()
    with Door.opened(place, DEEDS) as door:

        def look() -> None:
            while not ended.wait(0.01):
                door.answer()

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield door
        finally:
            ended.set()
            looking.join()


def call(place: Path) -> socket.socket:
    with short_name(place) as short:
        calling = socket.socket(socket.AF_UNIX)
        calling.connect(f"{short}/door.sock")
    return calling


def test_what_is_asked_for_is_done(place: Path) -> None:
    with answered(place):
        assert knock(place, "add", 2, 3) == {"sum": 5}
        assert knock(place, "stop") is None
    assert list(place.iterdir()) == []


def test_nobody_is_there(place: Path) -> None:
    with pytest.raises(SessionLost, match="the virtual machine ended unexpectedly"):
        knock(place, "stop")


@pytest.mark.parametrize("said", [b"", b"{", b"[]\n", b'["dance"]\n', b'["add"]\n', b"\xff\n"])
def test_who_is_rude_gets_no_answer_and_hinders_nobody(place: Path, said: bytes) -> None:
    with answered(place):
        with call(place) as calling:
            calling.sendall(said)
            calling.shutdown(socket.SHUT_WR)
            assert calling.recv(100) == b""
        assert knock(place, "add", 1, 1) == {"sum": 2}


def test_who_says_nothing_is_not_waited_for_long(place: Path) -> None:
    with answered(place), call(place) as silent:
        assert knock(place, "add", 1, 1) == {"sum": 2}
        wait_until(lambda: silent.recv(100) == b"")


def test_looking_when_nobody_is_there_takes_no_time_nor_fails_behind_blocks_nobody(
    place: Path,
) -> None:
    with Door.opened(place, DEEDS) as door:
        door.answer()  # nobody is there
