"""What users give wrong, and what their machine lacks: one clear error, and nothing done."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import (
    NOBODY,
    PRIVATE,
    PROJECT,
    SYSTEM,
    Invoke,
    Outcome,
    assert_refused,
    copy_checkout,
    copy_pair,
    make_fake_tree,
    no_root,
    path_without,
    processes_in,
    snapshot,
    wait_until,
)

from xdplab.toolchain import installed

NOT_ADDRESSES = ("", "300.1.1.1", "::1", "localhost", " 1.2.3.4", "1.2.3", "1.2.3.4/8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Invoke:
    """The command line with a tree that is set up and the pair built in it."""
    directory = tmp_path_factory.mktemp("built")
    invoke = Invoke(directory / "workspace")
    assert invoke("setup", "--tree", make_fake_tree(directory / "linux")).code == 0
    outcome = invoke("build")
    assert outcome.code == 0, outcome.err
    return invoke


def refuse(invoke: Invoke, *arguments: str | Path) -> Outcome:
    """Run a command that must change nothing in the workspace, nor beside it."""
    before = snapshot(invoke.workspace.parent)
    outcome = invoke(*arguments)
    assert snapshot(invoke.workspace.parent) == before
    return outcome


# ---- options


@pytest.mark.parametrize(
    ("command", "ip"),
    [(command, ip) for command in ("run", "verify", "send") for ip in NOT_ADDRESSES
     if command != "send" or ":" not in ip],  # send takes IPv6 too
)  # fmt: skip
def test_ip_must_be_an_ipv4_address(built: Invoke, command: str, ip: str) -> None:
    assert_refused(refuse(built, command, f"--ip={ip}"), 2, repr(ip), "IPv4", "192.168.1.78")


def test_send_wants_an_address_to_send_to(built: Invoke) -> None:
    assert_refused(refuse(built, "send", "--to=localhost"), 2, "'localhost'", "IPv4")


@pytest.mark.parametrize("option", ["--ip", "--dev"])
def test_no_shell_reads_what_is_given(built: Invoke, tmp_path: Path, option: str) -> None:
    given = f"1.2.3.4;touch {tmp_path}/executed"
    assert_refused(refuse(built, "run", f"{option}={given}"), 2, repr(given))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("command", ["run", "detach"])
@pytest.mark.parametrize("dev", ["", "nope0"])
def test_dev_must_be_there(built: Invoke, command: str, dev: str) -> None:
    assert_refused(refuse(built, command, f"--dev={dev}"), 2, repr(dev), "lo")


@pytest.mark.parametrize(
    ("command", "option", "choices"),
    [
        ("run", "--mode", "auto, native, skb, hw"),
        ("run", "--on", "host, netns"),
        ("verify", "--on", "host, netns"),
        ("send", "--on", "host, netns"),
        ("setup", "--source", "auto, git, distro, tarball"),
    ],
)
@pytest.mark.parametrize("given", ["", "vmm", "Native"])
def test_a_choice_outside_the_list(
    built: Invoke, command: str, option: str, choices: str, given: str
) -> None:
    assert_refused(refuse(built, command, f"{option}={given}"), 2, option, repr(given), choices)


@pytest.mark.parametrize(
    ("command", "option"),
    [("run", "--interval"), ("run", "--rounds"), ("run", "--duration"), ("send", "--count")],
)
@pytest.mark.parametrize("given", ["", "two", "-1", "nan", "inf", "1e12"])
def test_a_number_that_is_none(built: Invoke, command: str, option: str, given: str) -> None:
    assert_refused(refuse(built, command, f"{option}={given}"), 2, option, repr(given))


@pytest.mark.parametrize(("command", "option"), [("run", "--rounds"), ("send", "--count")])
def test_half_a_round_and_half_a_packet(built: Invoke, command: str, option: str) -> None:
    assert_refused(refuse(built, command, f"{option}=1.5"), 2, option, "whole")


def test_an_interval_of_nothing(built: Invoke) -> None:
    assert_refused(refuse(built, "run", "--interval=0"), 2, "--interval", "0.001")


@pytest.mark.parametrize("command", ["setup", "patch", "build", "run", "verify"])
@pytest.mark.parametrize("kernel", ["", "banana", "6", "v6.1 --upload-pack=x y"])
def test_kernel_must_be_a_version(built: Invoke, command: str, kernel: str) -> None:
    assert_refused(refuse(built, command, f"--kernel={kernel}"), 2, repr(kernel), "v6.12")


# ---- trees


@pytest.mark.parametrize("command", ["patch", "build", "run", "verify"])
def test_without_a_tree_setup_is_named(invoke: Invoke, command: str) -> None:
    assert_refused(refuse(invoke, command), 2, "no kernel tree", "invoke setup")


@pytest.mark.parametrize("command", ["patch", "build", "run", "verify"])
def test_a_version_that_was_not_set_up(built: Invoke, command: str) -> None:
    outcome = refuse(built, command, "--kernel=4.19")
    assert_refused(outcome, 2, "v4.19", "invoke setup --kernel v4.19")


@pytest.mark.parametrize("command", ["run", "verify"])
def test_run_before_build(invoke: Invoke, fake_tree: Path, command: str) -> None:
    outcome = refuse(invoke, command, "--tree", fake_tree)
    assert_refused(outcome, 2, "not built", "invoke build")


@pytest.mark.parametrize("command", ["setup", "patch", "build", "run", "verify"])
def test_a_directory_that_is_no_tree(invoke: Invoke, command: str, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:\n")
    outcome = refuse(invoke, command, "--tree", tmp_path)
    assert_refused(outcome, 2, str(tmp_path), "samples/bpf/Makefile", "--tree")


@pytest.mark.parametrize("command", ["patch", "build"])
def test_a_makefile_that_speaks_no_dialect(invoke: Invoke, fake_tree: Path, command: str) -> None:
    (fake_tree / "samples/bpf/Makefile").write_text("obj-y += something.o\n")
    makefile = (fake_tree / "samples/bpf/Makefile").stat().st_mtime_ns
    outcome = invoke(command, "--tree", fake_tree)
    assert_refused(outcome, 2, "dialect", "tprogs-y", "hostprogs-y", "always-y", "dialect.py")
    assert (fake_tree / "samples/bpf/Makefile").stat().st_mtime_ns == makefile
    assert not list(fake_tree.glob("samples/bpf/xdp*"))


@pytest.mark.parametrize("command", ["setup", "patch", "build"])
def test_a_tree_whose_path_make_refuses(invoke: Invoke, tmp_path: Path, command: str) -> None:
    tree = make_fake_tree(tmp_path / "my linux")
    outcome = refuse(invoke, command, "--tree", tree)
    assert_refused(outcome, 2, "my linux", "spaces", "INVOKE_WORKSPACE")


@pytest.mark.parametrize("source", ["auto", "git", "distro", "tarball"])
def test_a_workspace_whose_path_make_refuses_before_anything_is_fetched(
    tmp_path: Path, source: str
) -> None:
    invoke = Invoke(tmp_path / "my workspace")
    outcome = refuse(invoke, "setup", "--source", source, "--remote=/nowhere")
    assert_refused(outcome, 2, "my workspace", "spaces", "INVOKE_WORKSPACE")
    assert not outcome.commands()


# ---- samples


@pytest.mark.parametrize("command", ["patch", "build", "run", "verify"])
@pytest.mark.parametrize("sample", ["nope", "", "../etc", "a-b", "x y", "$(rm x)", "größe"])
def test_a_sample_that_is_none(built: Invoke, command: str, sample: str) -> None:
    outcome = refuse(built, command, f"--sample={sample}")
    assert_refused(outcome, 2, repr(sample), "NAME_kern.c")


@pytest.mark.parametrize("command", ["patch", "build"])
def test_half_a_pair(built: Invoke, command: str, tmp_path: Path) -> None:
    kern, user = copy_pair(tmp_path / "pair")
    kern.unlink()
    outcome = refuse(built, command, "--sample", user)
    assert_refused(outcome, 2, "xdp_ip_filter_kern.c", "NAME_kern.c")


# ---- where the checkout is


def test_a_checkout_in_a_directory_with_a_space_works(
    tmp_path: Path, workspace: Path, fake_tree: Path
) -> None:
    invoke = Invoke(workspace, cwd=copy_checkout(tmp_path / "my checkout"))
    for command in (
        ["--list"],
        ["setup", "--tree", str(fake_tree)],
        ["patch"],
        ["build"],
        ["status"],
        ["patch", "--revert"],
    ):
        outcome = invoke(*command)
        assert outcome.code == 0, outcome.err
    assert list(workspace.glob("builds/*/xdp_ip_filter/build.json"))


# ---- what the machine lacks


@pytest.mark.parametrize("tool", ["clang", "bison"])
def test_a_missing_tool_is_named_before_anything_is_done(
    invoke: Invoke, fake_tree: Path, tmp_path: Path, tool: str
) -> None:
    path = path_without(tmp_path / "bin", tool, *installed(tool))
    for command in ("setup", "build"):
        outcome = invoke(command, "--tree", fake_tree, env={"PATH": path})
        assert_refused(outcome, 69, tool, "scripts/bootstrap build")
        assert not outcome.commands()


@pytest.mark.parametrize(
    ("tool", "source"), [("git", "git"), ("tar", "tarball"), ("apt-get", "distro")]
)
def test_a_source_without_its_tool(
    invoke: Invoke, fake_tree: Path, tmp_path: Path, tool: str, source: str
) -> None:
    tarball = tmp_path / "linux.tar.gz"
    subprocess.run(["tar", "caf", tarball, fake_tree.name], cwd=fake_tree.parent, check=True)
    env = {"PATH": path_without(tmp_path / "bin", tool)}
    outcome = invoke("setup", "--source", source, "--remote", tarball, env=env)
    assert_refused(outcome, 69, tool, "scripts/bootstrap build")


@pytest.mark.parametrize("sudo", ["absent", "not allowed"])
def test_all_but_running_works_without_root(nobody: Path, sudo: str) -> None:
    hidden = ["sudo"] if sudo == "absent" else []
    env = {"HOME": str(nobody), "PATH": path_without(nobody / "bin", *hidden, folders=SYSTEM)}
    if not hidden and not shutil.which("sudo"):
        pytest.skip("there is no sudo to refuse anything")
    invoke = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    for command in (["setup", "--tree", str(nobody / "linux")], ["build"], ["status"]):
        outcome = invoke(*command, env=env, under=NOBODY)
        assert outcome.code == 0, outcome.err
    for command in (["run", "--ip=127.0.0.9"], ["run", "--on=netns"], ["verify"], ["send"]):
        outcome = invoke(*command, env=env, under=NOBODY)
        assert_refused(outcome, 69, "needs root", "sudo")


def test_a_tree_that_a_user_may_only_read(nobody: Path) -> None:
    tree = make_fake_tree(nobody / "roots")
    invoke = Invoke(nobody / "workspace", cwd=nobody / "checkout")
    before = snapshot(tree)
    for command in ("setup", "patch", "build"):
        outcome = invoke(command, "--tree", tree, env={"HOME": str(nobody)}, under=NOBODY)
        assert_refused(outcome, 2, f"no permission for {tree}", "copy it")
    assert snapshot(tree) == before
    assert not invoke.workspace.exists()
    outcome = invoke("clean", env={"HOME": str(nobody)}, under=NOBODY)
    assert outcome.code == 0, outcome.err


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A place, and the prefix of commands that see a disk of 8 MB there, and list it after."""
    place = tmp_path / "small"
    place.mkdir()
    script = (
        'mount -t tmpfs -o size=8m none "$0" && { "$@"; code=$?; find "$0" -type f; exit $code; }'
    )
    under = ("unshare", "--mount", "sh", "-c", script, str(place))
    tried = subprocess.run([*under, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no disk can be mounted here: {tried.stderr}")
    return place, under


@pytest.mark.parametrize("source", ["distro", "tarball"])
def test_a_disk_too_small_for_a_tree(
    small_disk: tuple[Path, tuple[str, ...]], tmp_path: Path, source: str
) -> None:
    place, under = small_disk
    (tmp_path / "linux.tar.gz").touch()
    outcome = Invoke(place / "workspace")(
        "setup", f"--source={source}", f"--remote={tmp_path}/linux.tar.gz", under=under
    )
    assert_refused(outcome, 69, "not enough space", "invoke clean --trees", "INVOKE_WORKSPACE")
    assert [line for line in outcome.out.splitlines() if not line.endswith("/lock")] == []


def test_a_disk_too_small_for_a_build(
    small_disk: tuple[Path, tuple[str, ...]], fake_tree: Path
) -> None:
    place, under = small_disk
    outcome = Invoke(place)("build", "--tree", fake_tree, under=under)
    assert_refused(outcome, 69, "not enough space", "50 MiB", str(place))


@pytest.fixture
def full_disk(small_disk: tuple[Path, tuple[str, ...]]) -> tuple[Path, tuple[str, ...]]:
    """The same, with a large disk's free space and no room for another file."""
    place, _ = small_disk
    script = 'mount -t tmpfs -o size=1g,nr_inodes=4 none "$0" && exec "$@"'
    return place, ("unshare", "--mount", "sh", "-c", script, str(place))


def test_a_disk_that_gets_full_is_no_traceback(
    full_disk: tuple[Path, tuple[str, ...]], fake_tree: Path
) -> None:
    place, under = full_disk
    outcome = Invoke(place)("build", "--tree", fake_tree, under=under)
    assert_refused(outcome, 69, "not enough space", str(place), "INVOKE_WORKSPACE")


# ---- two at once


def test_a_tree_that_another_process_works_in_is_left_alone(
    invoke: Invoke, fake_tree: Path
) -> None:
    with invoke.start("setup", "--tree", fake_tree, env={"PAUSE": "sleep 60"}) as first:
        wait_until(lambda: "prepare0" in first.err and len(processes_in(fake_tree)) > 1)
        before = snapshot(fake_tree)
        for command in (["patch"], ["build"], ["setup"], ["patch", "--revert"]):
            outcome = invoke(*command, "--tree", fake_tree)
            assert_refused(outcome, 69, f"process {first.process.pid}", "setup", "wait for it")
        changed = {path for path, _ in snapshot(fake_tree).items() ^ before.items()}
        assert {Path(path).name for path in changed} <= {"prepare.log"}  # the first's make talks


# ---- --dry


DRY: list[tuple[list[str], str]] = [
    (["setup", "--kernel=v6.6", "--source=git"], "git clone"),
    (["setup", "--kernel=v6.6", "--source=tarball"], "curl"),
    (["setup", "--kernel=v6.6", "--source=distro"], "apt-get download linux-source-6.6"),
    (["patch"], ""),
    (["patch", "--show"], ""),
    (["patch", "--revert"], ""),
    (["build"], "make"),
    (["build", "--trace"], "make"),
    (["build", "--all-samples"], "modules_prepare"),
    (["run", "--on=netns"], "xdp_ip_filter -i"),
    (["run"], "xdp_ip_filter -i"),
    (["verify"], "xdp_ip_filter -i"),
    (["send", "--ip=127.0.0.9"], ""),
    (["status"], ""),
    (["detach"], ""),
    (["clean"], "rm -r"),
    (["clean", "--trees"], "rm -r"),
]


@pytest.mark.parametrize(("command", "word"), DRY, ids=[" ".join(command) for command, _ in DRY])
def test_dry_changes_nothing(built: Invoke, command: list[str], word: str) -> None:
    if "--source=distro" in command and not shutil.which("apt-get"):
        pytest.skip("no apt here")
    before = snapshot(built.workspace.parent)
    outcome = built("--dry", *command, under=() if no_root() else PRIVATE)
    assert outcome.code == 0, outcome.err
    assert snapshot(built.workspace.parent) == before
    assert any(word in line for line in outcome.commands() or [""])
    assert "got past" not in outcome.out  # what `send` says of packets


def test_dry_of_a_fresh_tree_shows_each_call_of_make(invoke: Invoke, fake_tree: Path) -> None:
    before = snapshot(fake_tree)
    outcome = invoke("--dry", "build", "--tree", fake_tree)
    assert outcome.code == 0, outcome.err
    assert snapshot(fake_tree) == before
    assert not invoke.workspace.exists()
    for word in ("allnoconfig", "prepare0 scripts", "M=samples/bpf"):
        assert any(word in line for line in outcome.commands())


@pytest.mark.parametrize(
    ("rule", "needed", "way"),
    [
        ("%/: prepare scripts\n", "headers_install", "samples/bpf/"),  # up to v5.3
        ("", "headers_install modules_prepare", "M=samples/bpf"),
    ],
)
def test_all_samples_are_built_in_the_trees_own_way(
    rule: str, needed: str, way: str, invoke: Invoke, fake_tree: Path
) -> None:
    with (fake_tree / "Makefile").open("a") as makefile:
        makefile.write(rule)
    outcome = invoke("--dry", "build", "--all-samples", "--tree", fake_tree)
    assert outcome.code == 0, outcome.err
    made = [command.partition(" make -j")[2].rstrip(")") for command in outcome.commands()]
    assert [words.split()[1:] for words in made][-2:] == [needed.split(), [way]]


def test_nothing_of_the_checkout_changes_by_using_it(built: Invoke) -> None:
    status = ["git", "status", "--porcelain"]
    before = subprocess.run(status, cwd=PROJECT, capture_output=True, check=True).stdout
    assert built("build").code == 0
    after = subprocess.run(status, cwd=PROJECT, capture_output=True, check=True).stdout
    assert after == before
