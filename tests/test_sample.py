"""Samples: found by name and by path, or refused with the reason."""

from pathlib import Path

import pytest

from xdplab.errors import NotASample
from xdplab.sample import COMPAT, LOADER, OURS, Sample, known
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


def test_a_pair_without_its_kernel_half_is_none(pair: Sample) -> None:
    pair.kern.unlink()
    with pytest.raises(NotASample) as refused:
        Sample.find(str(pair.user))
    assert refused.value.message.endswith(f"there is no mine_kern.c in {pair.kern.parent}")


def test_without_its_user_half_a_pair_has_the_generic_one(pair: Sample) -> None:
    pair.user.unlink()
    found = Sample.find(str(pair.kern))
    assert found.user == LOADER
    assert found.in_tree(LOADER) == Path("mine_user.c")
    assert found.headers == OURS[::-1]
    with pytest.raises(NotASample, match=r"no mine_user\.c"):
        Sample.find(str(pair.user))


def test_a_directory_with_one_pair_is_enough(pair: Sample) -> None:
    directory = pair.kern.parent
    assert Sample.find(str(directory)) == pair
    (directory / "other_kern.c").touch()
    with pytest.raises(NotASample, match=r"mine_kern\.c, other_kern\.c"):
        Sample.find(str(directory))
    with pytest.raises(NotASample, match=r"there is no NAME_kern\.c"):
        Sample.find(f"{directory}/..")


def test_a_name_is_looked_for_where_one_is(pair: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair.kern.parent)
    assert Sample.find("mine") == pair
    below = Path("below")
    (below / "mine").mkdir(parents=True)
    for half in (pair.kern, pair.user):
        half.rename(below / "mine" / half.name)
    monkeypatch.chdir(below)
    assert Sample.find("mine").kern == Path.cwd() / "mine/mine_kern.c"
    assert Path("mine/mine_kern.c").absolute() in known()
    Path("mine_kern.c").touch()
    with pytest.raises(NotASample, match="there are two of that name") as refused:
        Sample.find("mine")
    assert f"{Path.cwd()} and in {Path.cwd() / 'mine'}" in refused.value.message


def test_an_unknown_name_is_answered_with_where_it_was_looked_for() -> None:
    with pytest.raises(NotASample) as refused:
        Sample.find("nowhere")
    assert "there is no nowhere_kern.c in" in refused.value.message
    for place in (Path.cwd(), Path.cwd() / "nowhere", PROJECT, PROJECT / "samples"):
        assert str(place) in refused.value.message


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ('while ((opt = getopt(argc, argv, "i:d:m:t:n:eh")) != -1) {', "idmtne"),
        ('const char *optstr = "d:FS";\nopt = getopt(argc, argv, optstr)', "d"),
        ('getopt_long(argc, argv,\n\t"en:i::", long_options, NULL)', "ne"),
        ('getopt(argc, argv, "idmtne:")', ""),  # of other kinds: they mean something else
        ("getopt(argc, argv, optstr)", ""),
        ("int main(void) { return 0; }", ""),
    ],
)
def test_the_options_that_a_user_half_takes_are_read_from_it(
    text: str, taken: str, pair: Sample
) -> None:
    pair.user.write_text(text)
    assert pair.options == taken


def test_the_generic_user_half_takes_all_but_an_address() -> None:
    assert Sample.find("xdp_ip_filter").options == "idmtne"
    generic = Sample("any", COMPAT, LOADER)
    assert (generic.options, generic.announces) == ("dmtne", True)


def test_the_object_has_the_name_that_the_user_half_opens() -> None:
    sample = Sample.find("xdp_ip_filter")
    assert f'"{sample.object}"' in sample.user.read_text()


def test_what_goes_into_the_tree_is_there(pair: Sample) -> None:
    assert pair.sources == (pair.kern, pair.user, COMPAT)
    assert all(source.is_file() for source in pair.sources)
    assert Sample.find("xdp_ip_filter").headers == OURS[::-1]


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
