"""Samples: found by name and by path, or refused with the reason."""

from pathlib import Path

import pytest

from xdplab.errors import NotASample
from xdplab.sample import COMPAT, Sample
from xdplab.workspace import PROJECT


@pytest.fixture
def pair(tmp_path: Path) -> Sample:
    """A pair of somebody's own."""
    for half in ("kern", "user"):
        (tmp_path / f"mine_{half}.c").touch()
    return Sample("mine", tmp_path / "mine_kern.c", tmp_path / "mine_user.c")


def test_the_tutorials_pair_is_found_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = Sample.find("xdp_ip_filter")
    assert sample.kern == PROJECT / "xdp_ip_filter_kern.c"
    assert sample.user == PROJECT / "xdp_ip_filter_user.c"


@pytest.mark.parametrize("half", ["mine_kern.c", "mine_user.c", "mine", "mine_kern", "mine.c"])
def test_a_path_names_either_half_or_neither(half: str, pair: Sample) -> None:
    assert Sample.find(str(pair.kern.with_name(half))) == pair


@pytest.mark.parametrize("half", ["mine_kern.c", "./mine_user.c", "../{}/mine"])
def test_a_path_may_be_relative(half: str, pair: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair.kern.parent)
    found = Sample.find(half.format(pair.kern.parent.name))
    assert found.name == "mine"
    assert found.kern.is_absolute()
    assert found.kern.samefile(pair.kern)


@pytest.mark.parametrize(
    "given", ["", "no-dash", "two words", "$(shell true)", "9lives", "x.o", "caf\u00e9", "a:b"]
)
def test_a_name_that_make_would_misread_is_refused(given: str) -> None:
    with pytest.raises(NotASample, match="letters, digits"):
        Sample.find(given)


@pytest.mark.parametrize("missing", ["mine_kern.c", "mine_user.c"])
def test_half_a_pair_is_answered_with_what_is_missing(missing: str, pair: Sample) -> None:
    (pair.kern.parent / missing).unlink()
    with pytest.raises(NotASample) as refused:
        Sample.find(str(pair.kern))
    assert refused.value.message.endswith(f"there is no {missing} in {pair.kern.parent}")


def test_an_unknown_name_is_answered_with_where_it_was_looked_for() -> None:
    with pytest.raises(NotASample) as refused:
        Sample.find("nowhere")
    assert "no nowhere_kern.c and no nowhere_user.c" in refused.value.message
    assert f"{PROJECT} or {PROJECT / 'samples'}" in refused.value.message


def test_the_object_has_the_name_that_the_user_half_opens() -> None:
    sample = Sample.find("xdp_ip_filter")
    assert f'"{sample.object}"' in sample.user.read_text()


def test_what_goes_into_the_tree_is_there(pair: Sample) -> None:
    assert pair.sources == (pair.kern, pair.user, COMPAT)
    assert all(source.is_file() for source in pair.sources)


def included(sample: Sample) -> list[str]:
    """The names of what goes along, from where the halves lie; xdp_compat.h apart."""
    assert sample.sources == (sample.kern, sample.user, *sample.headers)
    assert sample.headers[-1] == COMPAT
    return [str(sample.in_tree(one)) for one in sample.headers[:-1]]


def test_what_the_halves_include_goes_along_wherever_it_says_so(pair: Sample) -> None:
    place = pair.kern.parent
    (place / "more").mkdir()
    pair.kern.write_text(
        '  #  include\t"shared.h"\n#include <linux/bpf.h>\n#include "bpf_util.h"\n'
    )
    pair.user.write_text('#include "more/user.h"\n/* "not.h" */\n')
    (place / "shared.h").write_text('#include "deep.h"\n#include "mine_kern.c"\n')
    (place / "deep.h").write_text('#include "shared.h"\n#include "../outside.h"\n')
    (place / "more/user.h").write_text('#include "beside.h"\n#include "../deep.h"\n')
    for name in ("more/beside.h", "not.h", "../outside.h"):
        (place / name).touch()
    assert included(pair) == ["deep.h", "more/beside.h", "more/user.h", "shared.h"]


def test_ones_own_xdp_compat_h_comes_before_the_harnesss(pair: Sample) -> None:
    pair.kern.write_text('#include "xdp_compat.h"\n')
    assert pair.headers == (COMPAT,)
    own = pair.kern.with_name(COMPAT.name)
    own.touch()
    assert pair.headers == (own,)
