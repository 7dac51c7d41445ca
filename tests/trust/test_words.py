"""What users type is a word to all that is run, whatever is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Invoke, copy_pair, make_fake_tree

# every way in which a shell would run something of it
HOSTILE = """a'b"c;touch MARK&$(touch MARK)`touch MARK`|touch MARK\ntouch MARK #"""
# and git, ssh and tar, if it were an option to them
OPTIONS = (
    "--upload-pack=touch MARK",
    "-oProxyCommand=touch MARK",
    "ext::sh -c touch% MARK",
    "ssh://-oProxyCommand=touch% MARK/x",
    "--to-command=touch MARK",
)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there once something was run."""
    return tmp_path / "mark"


@pytest.mark.parametrize(
    "command",
    [
        ("setup", "--tree={}"),
        ("setup", "--kernel={}"),
        ("setup", "--source=git", "--remote={}"),
        ("setup", "--source=tarball", "--remote={}"),
        ("setup", "--source=tarball", "--remote={}.tar.xz"),
        ("build", "--sample={}"),
        ("build", "--sample={}/x_kern.c"),
        ("build", "--gcc={}"),
        ("build", "--clang={}"),
        ("patch", "--sample={}"),
        ("new", "{}"),
        ("kernel", "--config={}"),
        ("run", "--dev={}"),
        ("run", "--ip={}"),
        ("verify", "--on=vm", "--boot={}"),
        ("matrix", "--kernels={}"),
        ("matrix", "--compilers={}"),
        ("send", "--dev={}"),
        ("send", "--pcap={}", "--dev=lo"),
        ("detach", "--dev={}"),
        ("doctor", "--dev={}"),
        ("plot", "--run={}"),
        ("explain", "--file={}"),
        ("filter.load", "{}"),
        ("lab", "--join={}"),
        ("completion", "bash", "--line=invoke run --dev={}"),
    ],
    ids=" ".join,
)
def test_it_is_never_run(
    invoke: Invoke, fake_tree: Path, mark: Path, command: tuple[str, ...]
) -> None:
    assert invoke("setup", "--tree", fake_tree).code == 0
    options = OPTIONS if "--remote" in " ".join(command) else ()
    for words in (HOSTILE, *options):
        given = words.replace("MARK", str(mark))
        outcome = invoke(*(word.format(given) for word in command))
        assert "Traceback" not in outcome.err
        assert not mark.exists(), given
        assert outcome.code or command[0] == "completion", outcome.out


def test_places_may_be_called_like_that(tmp_path: Path, mark: Path) -> None:
    """But for what kbuild can't have: a tree's path has no space, colon or newline."""
    odd = "a'b\"c;$(touch${IFS}mark)`touch${IFS}mark`&|"
    place = tmp_path / odd
    place.mkdir()
    tree = make_fake_tree(place / "linux")
    (tmp_path / HOSTILE.replace("MARK", "mark")).mkdir()
    pair = tmp_path / HOSTILE.replace("MARK", "mark") / "pair"
    kern, _ = copy_pair(pair)
    invoke = Invoke(place / "workspace")
    for command in (
        ("setup", "--tree", tree),
        ("patch", "--sample", kern),
        ("build", "--sample", kern),
        ("editor", "--sample", kern),
        ("patch", "--revert"),
        ("clean",),
    ):
        outcome = invoke(*command)
        assert "Traceback" not in outcome.err
        assert outcome.code in ((0, 3) if command[0] == "editor" else (0,)), outcome.err
    assert list(tmp_path.rglob("mark")) == []
