"""Every error a user can meet: it says what is wrong and what to do, and has its exit code."""

import errno
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xdplab import errors
from xdplab.errors import BuildFailed, CannotRun, InputError, LabError, NoSpace, SampleFailed

# a sample value for each type that errors are made of
VALUES: dict[str, Any] = {
    "str": "given",
    "str | None": "given",
    "object": "given",
    "int": 7,
    "int | None": 2**30,
    "float": 7.0,
    "Path": Path("/a/file"),
    "Iterable[Path]": [Path("/a/file"), Path("/another")],
    "Iterable[str]": ["first", "second"],
    "Sequence[str]": ["first", "second"],
    "Iterable[tuple[str, Iterable[str]]]": [("field", ["first", "second"])],
}
CODES = {SampleFailed: 1, InputError: 2, BuildFailed: 3, CannotRun: 69}


def concrete(kind: type[LabError] = LabError) -> Iterator[type[LabError]]:
    """The errors that are raised: those that no other is derived from."""
    kinds = kind.__subclasses__()
    for one in kinds:
        yield from concrete(one)
    if not kinds:
        yield kind


def made(kind: type[LabError]) -> LabError:
    """The error, out of sample values; those that may be left out are."""
    parameters = list(inspect.signature(kind).parameters.values())
    needed = [one for one in parameters if one.default is inspect.Parameter.empty]
    return kind(**{one.name: VALUES[one.annotation] for one in needed})


def full(kind: type[LabError]) -> LabError:
    """The error, out of sample values for all that it takes."""
    parameters = inspect.signature(kind).parameters.values()
    return kind(**{one.name: VALUES[one.annotation] for one in parameters})


ERRORS = pytest.mark.parametrize("kind", concrete_errors := [*concrete()], ids=lambda k: k.__name__)


@ERRORS
def test_an_error_has_words_a_cure_and_an_exit_code(kind: type[LabError]) -> None:
    for error in (made(kind), full(kind)):
        assert error.message.strip()
        assert error.cure.strip()
        assert str(error) == error.message
        assert error.exit_code in CODES.values()


@ERRORS
def test_an_error_is_somebodys_fault(kind: type[LabError]) -> None:
    faults = [fault for fault in CODES if issubclass(kind, fault)]
    assert [CODES[fault] for fault in faults] == [kind.exit_code]


@ERRORS
def test_what_an_error_is_given_is_told(kind: type[LabError]) -> None:
    error = full(kind)
    told = f"{error.message} {error.cure}"
    for parameter in inspect.signature(kind).parameters.values():
        words = re.findall(r"[a-z]{4,}|\d+", str(VALUES[parameter.annotation]))
        if parameter.name not in ("needed", "free"):  # these are told in MiB
            assert any(word in told for word in words)


@ERRORS
def test_an_error_is_explained_in_its_docstring(kind: type[LabError]) -> None:
    assert kind.__doc__
    assert kind.__doc__ != kind.__mro__[1].__doc__


@ERRORS
def test_a_tool_that_said_nothing_leaves_no_empty_cure(kind: type[LabError]) -> None:
    parameters = inspect.signature(kind).parameters
    if "said" in parameters:
        values = {one.name: VALUES[one.annotation] for one in parameters.values()}
        assert kind(**{**values, "said": " \n"}).cure.strip()


def test_all_errors_are_here() -> None:
    here = [one for _, one in inspect.getmembers(errors, inspect.isclass)]
    assert set(concrete_errors) <= set(here)


def test_a_full_disk_tells_how_full(tmp_path: Path) -> None:
    missing = tmp_path / "not/there"
    full = NoSpace.of(OSError(errno.ENOSPC, "No space left on device", str(missing)))
    assert str(tmp_path) in full.message
    assert "MiB are free" in full.message
    assert re.search(
        "5 MiB are needed, [0-9]+ MiB are free$", NoSpace.on(tmp_path, 5 * 2**20).message
    )


def test_a_quota_that_is_used_up_is_told_as_a_full_disk(tmp_path: Path) -> None:
    full = LabError.of(OSError(errno.EDQUOT, "Disk quota exceeded", str(tmp_path)))
    assert isinstance(full, NoSpace)
    assert full.exit_code == 69


def test_what_a_command_tells_of_a_full_disk_is_known() -> None:
    told = "Assembler messages:\nFatal error: can't create tools/lib/bpf/bpf.o: {}\nmake: Error 1"
    for why in (errno.EDQUOT, errno.ENOSPC):
        full = NoSpace.told(told.format(os.strerror(why)))
        assert full
        assert "bpf.o" in full.message
    assert not NoSpace.told(told.format(os.strerror(errno.EACCES)))


def test_a_file_that_another_command_has_removed_is_told_as_that(tmp_path: Path) -> None:
    gone = LabError.of(FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "gone")))
    assert gone.exit_code == 69
    assert f"{tmp_path}/gone is not there any more" in gone.message
    with pytest.raises(FileNotFoundError):  # a command that isn't installed is another fault
        LabError.of(FileNotFoundError(errno.ENOENT, "No such file", "gcc"))
