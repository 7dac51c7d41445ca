"""--sandbox: what a tree's makefiles can't do, whatever is in them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Invoke, assert_refused, path_without, snapshot
from test_again import laid

NAME = "xdp_ip_filter"


def no_sandbox() -> str:
    """Why none can be made here; empty if one can."""
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed"
    argv = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stderr


boxed = pytest.mark.skipif(bool(no_sandbox()), reason=no_sandbox() or "-")


@pytest.fixture
def outside() -> Iterator[Path]:
    """A home directory, with something in it, where nothing is hidden but what is a home."""
    home = Path(tempfile.mkdtemp(dir="/var/tmp"))
    (home / "secret").write_text("a key\n")
    yield home
    shutil.rmtree(home)


def spoil(tree: Path, *lines: str, target: str = "prepare0") -> None:
    """Have a target of the small tree's do something more; what fails there doesn't end it."""
    makefile = tree / "Makefile"
    text = makefile.read_text()
    rule = f"{target}: scripts\n"
    assert rule in text
    makefile.write_text(text.replace(rule, rule + "".join(f"> -{line}\n" for line in lines)))


def told(tree: Path, name: str) -> str:
    """What the makefile wrote of what it found."""
    return (tree / name).read_text().strip()


@boxed
def test_a_build_in_it_is_a_build(invoke: Invoke, fake_tree: Path) -> None:
    assert invoke("setup", "--sandbox", "--tree", fake_tree).code == 0
    outcome = invoke("build", "--sandbox")
    assert outcome.code == 0, outcome.err
    made = [line for line in outcome.commands() if "bwrap" in line]
    assert made
    assert not any("make" in line and "bwrap" not in line for line in outcome.commands())
    (build,) = invoke.workspace.glob(f"builds/*/{NAME}")
    assert (build / NAME).exists()


@boxed
def test_what_was_heard_of_make_is_told_again_in_it_too(tmp_path: Path) -> None:
    desk = replace(laid(tmp_path), sandboxed=True)
    desk.build()
    assert desk.ran == "make"
    for name, before, after, ran in (
        ("mine_kern.c", "MINE + TREE", "MINE + 70", "clang"),
        ("mine_user.c", "return TREE", "return 70", "gcc"),
    ):
        desk.edit(name, before, after)
        desk.build()
        assert desk.ran == ran
        assert all(" && LC_ALL=C.UTF-8 bwrap --unshare-all " in line for line in desk.said)
    assert desk.build().unchanged
    assert desk.said == []


@boxed
def test_nothing_but_the_tree_can_be_written_to(
    invoke: Invoke, fake_tree: Path, outside: Path, tmp_path: Path
) -> None:
    lies = tmp_path / "elsewhere"
    lies.mkdir()
    place = Path(tempfile.mkdtemp(dir="/var/tmp"))  # one that is to be seen in there
    try:
        place.chmod(0o777)
        spoil(
            fake_tree,
            f"echo x > {outside}/secret; echo $$? > written-home",
            f"echo x > {lies}/new; echo $$? > written-tmp",
            f"echo x > {place}/new; echo $$? > written-var",
            "echo x > /etc/xdplab-was-here; echo $$? > written-etc",
            f"rm -rf {place}; rm -rf {lies}; echo $$? > removed",
            "mount -o remount,rw / ; echo $$? > remounted",
            "echo x > inside",
        )
        env = {"HOME": str(outside)}
        assert invoke("setup", "--sandbox", "--tree", fake_tree, env=env).code == 0
        assert (outside / "secret").read_text() == "a key\n"
        assert list(lies.iterdir()) == list(place.iterdir()) == []
        assert not Path("/etc/xdplab-was-here").exists()
        for name in ("written-home", "written-var", "written-etc", "remounted"):
            assert told(fake_tree, name) != "0", name
        assert told(fake_tree, "inside") == "x"
    finally:
        shutil.rmtree(place)


@boxed
def test_keys_and_sockets_of_the_user_are_not_there(
    invoke: Invoke, fake_tree: Path, outside: Path
) -> None:
    """A read-only file system stops nobody from calling what listens at a UNIX socket in it."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(outside / "agent"))
        listening.listen()
        spoil(
            fake_tree,
            f"cat {outside}/secret > read; ls -A {outside} /run > listed",
            f"test -e {outside}/agent; echo $$? > reached",
        )
        env = {"HOME": str(outside)}
        assert invoke("setup", "--sandbox", "--tree", fake_tree, env=env).code == 0
    assert told(fake_tree, "read") == ""
    assert told(fake_tree, "reached") != "0"
    assert "secret" not in told(fake_tree, "listed")


@boxed
def test_there_is_no_network(invoke: Invoke, fake_tree: Path) -> None:
    heard: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0)
        call = f"bash -c 'echo x > /dev/tcp/127.0.0.1/{port}'; echo $$? > called"
        spoil(fake_tree, call, "cat /proc/net/dev > devices")
        assert invoke("setup", "--sandbox", "--tree", fake_tree).code == 0
        with pytest.raises(BlockingIOError):
            heard.append(server.accept())
    assert told(fake_tree, "called") != "0"
    assert heard == []
    devices = told(fake_tree, "devices").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


@boxed
def test_no_process_outside_can_be_seen_and_none_outlives_it(
    invoke: Invoke, fake_tree: Path
) -> None:
    spoil(
        fake_tree,
        "ls -d /proc/[0-9]* | wc -l > processes",
        "(setsid sleep 1000 & echo $$! > started)",
        "grep -c . /proc/self/status > /dev/null; grep CapEff /proc/self/status > rights",
    )
    assert invoke("setup", "--sandbox", "--tree", fake_tree).code == 0
    assert int(told(fake_tree, "processes")) < 20
    assert int(told(fake_tree, "rights").split()[1], 16) == 0
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\x001000" in text(path)]
    assert [path for path in left if (path.parent / "cwd").resolve() == fake_tree] == []


def text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@boxed
def test_gits_configuration_is_out_of_reach(invoke: Invoke, fake_tree: Path) -> None:
    """The harness calls git in the tree, outside: it would do what is written there."""
    subprocess.run(["git", "init", "--quiet", fake_tree], check=True)
    before = (fake_tree / ".git/config").read_bytes()
    spoil(fake_tree, "echo '[core] fsmonitor = touch /tmp/x' >> .git/config; mv .git git")
    assert invoke("setup", "--sandbox", "--tree", fake_tree).code == 0
    assert (fake_tree / ".git/config").read_bytes() == before
    assert not (fake_tree / "git").exists()


@boxed
@pytest.mark.parametrize(
    "link",
    [
        "samples/bpf/xdp_ip_filter_kern.c",
        ".xdplab/tree.json",
        ".xdplab/xdp_ip_filter_kern.o.d",
        "samples/bpf",
    ],
)
def test_no_link_has_the_harness_write_elsewhere(
    invoke: Invoke, fake_tree: Path, outside: Path, link: str
) -> None:
    spoil(fake_tree, f"rm -rf {link}; ln -sf {outside}/secret {link}")
    before = snapshot(outside)
    outcome = invoke("setup", "--sandbox", "--tree", fake_tree)
    assert_refused(outcome, 3, str(fake_tree / link), str(outside / "secret"))
    again = invoke("build", "--sandbox", "--tree", fake_tree)
    assert again.code != 0
    assert "Traceback" not in again.err
    assert snapshot(outside) == before


@boxed
def test_the_setting_is_for_all_commands(invoke: Invoke, fake_tree: Path) -> None:
    env = {"INVOKE_SANDBOX": "1"}
    spoil(fake_tree, "cat /proc/net/dev > devices")
    assert invoke("setup", "--tree", fake_tree, env=env).code == 0
    assert told(fake_tree, "devices").count(":") == 1
    made = [line for line in invoke("build", env=env).commands() if "xdp_ip_filter_kern.o" in line]
    assert made
    assert all("bwrap" in line for line in made)


def test_without_bubblewrap(invoke: Invoke, fake_tree: Path, tmp_path: Path) -> None:
    env = {"PATH": path_without(tmp_path / "bin", "bwrap")}
    outcome = invoke("build", "--sandbox", "--tree", fake_tree, env=env)
    assert_refused(outcome, 69, "bwrap", "scripts/bootstrap build")


def test_where_the_kernel_allows_none(invoke: Invoke, fake_tree: Path, tmp_path: Path) -> None:
    path = path_without(tmp_path / "bin", "bwrap")
    fake = tmp_path / "bin/bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2; exit 1\n")
    fake.chmod(0o755)
    before = snapshot(fake_tree)
    outcome = invoke("setup", "--sandbox", "--tree", fake_tree, env={"PATH": path})
    assert_refused(outcome, 69, "setting up uid map: Permission denied", "namespaces")
    assert snapshot(fake_tree) == before
