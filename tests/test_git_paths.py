"""Trees out of git: which files, from real repositories, after all that can go wrong."""

import platform
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import git

from xdplab.errors import LabError, NotToBeHad, Unreachable
from xdplab.process import Shell
from xdplab.sources import git as source
from xdplab.version import KernelVersion
from xdplab.workspace import PROJECT

ARCH = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
V6_1 = KernelVersion.parse("v6.1")
TAGS = ("v5.18", "v5.19", "v6.0", "v6.1-rc8", "v6.1", "v6.1.1", "v6.2-rc1")

WANTED = (
    ".gitattributes",
    "Kbuild",
    "Kconfig",
    "Makefile",
    "arch/arm/crypto/Kconfig",
    f"arch/{ARCH}/Kconfig.debug",
    f"arch/{ARCH}/include/asm/a/b.h",
    f"arch/{ARCH}/include/asm/types.h",
    f"arch/{ARCH}/tools/a.sh",
    "drivers/net/Kconfig",
    "drivers/net/dsa/Kconfig.debug",
    "drivers/with space/Kconfig",
    "include/linux/if_link.h",
    "include/linux/types.h",
    "include/uapi/linux/a/b.h",
    "include/uapi/linux/if_link.h",
    "kernel/bounds.c",
    "samples/bpf/Makefile",
    "scripts/Makefile",
    "scripts/gdb/Kconfig",
    "scripts/kconfig/conf.c",
    "tools/lib/bpf/libbpf.c",
    "tools/testing/selftests/bpf/bpf_util.h",
)
UNWANTED = (
    "COPYING",
    "MAINTAINERS",
    "arch/sparc/Kconfig",
    "arch/sparc/include/asm/types.h",
    "drivers/Makefile",
    "drivers/include/linux/types.h",
    "drivers/net/Makefile",
    "drivers/net/NotKconfig",
    "drivers/samples/bpf/Makefile",
    "include/dt-bindings/clock/a.h",
    "include/linux/skbuff.h",
    "include/linux/usb/a.h",
    "kernel/fork.c",
    "samples/kprobes/Makefile",
    "scripts/coccinelle/api/a.cocci",
    "scripts/gdb/linux/a.py",
    "tools/testing/selftests/bpf/progs/a.h",
    "tools/testing/selftests/bpf/test_progs.c",
    "tools/testing/selftests/net/a.h",
)


def no_report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Nobody listens."""


def no_word(sentence: str) -> None:
    """Nobody listens here either."""


def commit(repository: Path, message: str, *tags: str) -> None:
    git(repository, "add", "--all")
    git(repository, "commit", "--message", message)
    for tag in tags:
        git(repository, "tag", "--annotate", "--message", tag, tag)


def kernel_head(tag: str) -> str:
    return f"VERSION = 6\nPATCHLEVEL = 1\nEXTRAVERSION = -{tag}\n"


@pytest.fixture(scope="module")
def plain_remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as `git init` makes it: its server knows no filters."""
    repository = tmp_path_factory.mktemp("remote") / "linux"
    repository.mkdir()
    git(repository, "init", "--initial-branch=master")
    for name in (*WANTED, *UNWANTED):
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"this is {name}\n")
    for tag in TAGS:
        (repository / "Makefile").write_text(kernel_head(tag))
        commit(repository, tag, tag)
    return repository


@pytest.fixture(scope="module")
def remote(plain_remote: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a server that knows filters, as those of kernel.org do."""
    repository = tmp_path_factory.mktemp("filtering") / "linux"
    git(plain_remote.parent, "clone", "--mirror", str(plain_remote), str(repository))
    git(repository, "config", "uploadpack.allowFilter", "true")
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    return repository


def fetch(remote: Path | str, path: Path, version: KernelVersion = V6_1) -> None:
    url = f"file://{remote}" if isinstance(remote, Path) else remote
    source.fetch(version, url, path, store_of(path), Shell(), no_report, no_word)


def store_of(path: Path) -> Path:
    """The repository that a test's tree has its objects in."""
    return path.with_name("store")


def files(checkout: Path) -> set[str]:
    return {
        str(path.relative_to(checkout))
        for path in checkout.rglob("*")
        if path.is_file() and path != checkout / ".git"
    }


def absent_objects(checkout: Path) -> set[str]:
    """The hashes of the objects that a partial clone could fetch, and hasn't."""
    listing = git(checkout, "rev-list", "--objects", "--missing=print", "HEAD")
    return set(re.findall(r"^\?(\w+)$", listing, re.MULTILINE))


def blobs(repository: Path, names: tuple[str, ...]) -> set[str]:
    return {git(repository, "rev-parse", f"v6.1:{name}").strip() for name in names}


def test_releases_with_a_third_number_are_in_the_stable_repository() -> None:
    assert source.default_remote(V6_1) == source.MAINLINE
    assert source.default_remote(KernelVersion.parse("6.1.50")) == source.STABLE


# ---- fetch


def test_a_fetched_tree_has_the_wanted_files_and_nothing_else(remote: Path, tmp_path: Path) -> None:
    fetch(remote, tmp_path / "tree")
    assert files(tmp_path / "tree") == set(WANTED)
    assert (tmp_path / "tree/Makefile").read_text() == kernel_head("v6.1")
    assert git(tmp_path / "tree", "status", "--porcelain") == ""
    assert git(tmp_path / "tree", "describe", "--exact-match").strip() == "v6.1"


def test_unwanted_contents_never_come_over_the_wire(remote: Path, tmp_path: Path) -> None:
    fetch(remote, tmp_path / "tree")
    absent = absent_objects(tmp_path / "tree")
    assert absent == blobs(remote, UNWANTED)
    assert not absent & blobs(remote, WANTED)


def test_no_history_comes_over_the_wire(remote: Path, tmp_path: Path) -> None:
    fetch(remote, tmp_path / "tree")
    assert git(tmp_path / "tree", "rev-list", "--count", "HEAD").strip() == "1"
    assert git(tmp_path / "tree", "tag").split() == ["v6.1"]


@pytest.mark.parametrize("tag", TAGS)
def test_each_tag_gives_its_own_tree(tag: str, remote: Path, tmp_path: Path) -> None:
    fetch(remote, tmp_path / "tree", KernelVersion.parse(tag))
    assert (tmp_path / "tree/Makefile").read_text() == kernel_head(tag)


def test_a_second_fetch_changes_nothing_and_needs_no_remote(remote: Path, tmp_path: Path) -> None:
    fetch(remote, tmp_path / "tree")
    before = {path: path.read_bytes() for path in (tmp_path / "tree").rglob("*.c")}
    fetch("file:///nowhere/at/all", tmp_path / "tree")
    assert {path: path.read_bytes() for path in (tmp_path / "tree").rglob("*.c")} == before


def test_a_damaged_checkout_is_mended(remote: Path, tmp_path: Path) -> None:
    fetch(remote, tmp_path / "tree")
    (tmp_path / "tree/Kbuild").unlink()
    (tmp_path / "tree/Kconfig").write_text("damaged")
    fetch(remote, tmp_path / "tree")
    assert files(tmp_path / "tree") == set(WANTED)
    assert git(tmp_path / "tree", "status", "--porcelain") == ""


def test_a_server_without_filters_will_do(plain_remote: Path, tmp_path: Path) -> None:
    fetch(plain_remote, tmp_path / "tree")
    assert files(tmp_path / "tree") == set(WANTED)


def test_a_plain_path_is_a_remote_too(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(remote.parent)
    fetch(remote.name, tmp_path / "tree")
    assert files(tmp_path / "tree") == set(WANTED)


def test_progress_is_told(remote: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []

    def report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        told.append((phase, done, total))

    source.fetch(
        V6_1, f"file://{remote}", tmp_path / "tree", tmp_path / "store", Shell(), report, no_word
    )
    phases = {phase.partition(":")[0] for phase, _, _ in told}
    count = len(WANTED)
    assert {"commit and trees", f"files 1 to {count} of {count}"} <= phases
    assert all(done <= total for _, done, total in told if total)


def test_commands_are_echoed(remote: Path, tmp_path: Path) -> None:
    echoed: list[str] = []
    source.fetch(
        V6_1,
        f"file://{remote}",
        tmp_path / "tree",
        tmp_path / "store",
        Shell(echoed.append),
        no_report,
        no_word,
    )
    assert [re.findall(r"&& git (?:-c \S+ )?(\S+)", line)[0] for line in echoed] == [
        "fetch", "fetch", "worktree", "read-tree", "update-index", "checkout-index",
    ]  # fmt: skip


def test_a_dry_run_fetches_nothing(tmp_path: Path) -> None:
    echoed: list[str] = []
    shell = Shell(echoed.append, dry=True)
    source.fetch(
        V6_1, "file:///nowhere", tmp_path / "tree", tmp_path / "store", shell, no_report, no_word
    )
    assert not (tmp_path / "tree").exists()
    assert len(echoed) == 1


# ---- a second version


def test_a_second_version_fetches_only_what_differs(remote: Path, tmp_path: Path) -> None:
    fetch(remote, tmp_path / "tree")
    echoed: list[str] = []
    listed = ("cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
    before = set(git(tmp_path / "store", *listed).split())
    source.fetch(
        KernelVersion.parse("v6.0"), f"file://{remote}", tmp_path / "other", tmp_path / "store",
        Shell(echoed.append), no_report, no_word,
    )  # fmt: skip
    new = set(git(tmp_path / "store", *listed).split()) - before
    kinds = [git(tmp_path / "store", "cat-file", "-t", one).strip() for one in new]
    assert sorted(kinds) == ["blob", "commit", "tag", "tree"]  # the Makefile is another
    assert files(tmp_path / "tree") == files(tmp_path / "other") == set(WANTED)
    assert (tmp_path / "tree/Makefile").read_text() == kernel_head("v6.1")
    assert (tmp_path / "other/Makefile").read_text() == kernel_head("v6.0")


def test_a_tree_that_was_renamed_is_still_known(remote: Path, tmp_path: Path) -> None:
    fetch(remote, tmp_path / "tree")
    moved = (tmp_path / "tree").rename(tmp_path / "moved")
    source.moved(moved)
    git(tmp_path / "store", "worktree", "prune", "--expire=now")
    assert git(moved, "status", "--porcelain") == ""
    assert str(moved) in git(tmp_path / "store", "worktree", "list")


# ---- what a build misses


@pytest.mark.parametrize(
    ("said", "come"),
    [
        ("a.c:1:10: fatal error: 'linux/skbuff.h' file not found", ["include/linux/skbuff.h"]),
        ("make[1]: *** No rule to make target 'kernel/fork.c', needed by 'x'.", ["kernel/fork.c"]),
        ("drivers/Kconfig:3: drivers/net/Makefile: No such file or directory",
         ["drivers/net/Makefile"]),
        ("scripts/gdb/linux/b.py: can't open file \"a.py\"", ["scripts/gdb/linux/a.py"]),
        ("a.c:1:10: error: expected ';'; see kernel/fork.c", []),
        ("a.c:1:10: fatal error: 'nowhere/at-all.h' file not found", []),
    ],
)  # fmt: skip
def test_what_a_build_misses_is_fetched_and_told(
    said: str, come: list[str], remote: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    fetch(remote, tree)
    echoed: list[str] = []
    assert source.fetch_missing(tree, [said], Shell(echoed.append), no_report) == come
    assert set(come) <= files(tree)
    assert any("not fetched with the tree" in line for line in echoed) == bool(come)
    assert git(tree, "status", "--porcelain") == ""
    assert source.fetch_missing(tree, [said], Shell(), no_report) == []


# ---- what can go wrong


@pytest.mark.parametrize(
    ("version", "nearest"),
    [("2.6.32", TAGS[:5]), ("6.0.1", TAGS[1:6]), ("6.1.9", TAGS[2:]), ("9.9", TAGS[2:])],
)
@pytest.mark.parametrize("server", ["remote", "plain_remote"])
def test_a_missing_tag_is_answered_with_the_nearest(
    server: str, version: str, nearest: tuple[str, ...], tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    with pytest.raises(NotToBeHad, match=f"has no v{version}; it has ") as missing:
        fetch(request.getfixturevalue(server), tmp_path / "tree", KernelVersion.parse(version))
    assert missing.value.message.endswith(f"it has {', '.join(nearest)}")


def test_tags_of_other_things_do_not_hide_a_missing_version(
    plain_remote: Path, tmp_path: Path
) -> None:
    git(tmp_path, "clone", "--mirror", str(plain_remote), "vendor")
    for tag in ("v6.0_vendor", "v6.1-vendor", "v1.0beta", "release-7"):
        git(tmp_path / "vendor", "tag", tag, "v6.1")
    with pytest.raises(NotToBeHad) as missing:
        fetch(tmp_path / "vendor", tmp_path / "tree", KernelVersion.parse("6.1.9"))
    offered = missing.value.message.rpartition("it has ")[2].split(", ")
    tags = git(tmp_path / "vendor", "tag").split()
    assert set(offered) <= set(tags)


def test_a_remote_without_any_tag_offers_nothing(tmp_path: Path) -> None:
    git(tmp_path, "init", "--bare", "empty")
    with pytest.raises(NotToBeHad, match="nothing of the kind"):
        fetch(tmp_path / "empty", tmp_path / "tree")


@pytest.mark.parametrize("remote", ["file:///nowhere/at/all", "/nowhere/at/all", "localhost:a/b"])
def test_a_remote_that_is_not_there_is_unreachable(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", "false")
    with pytest.raises(Unreachable) as unreachable:
        fetch(remote, tmp_path / "tree")
    assert remote in unreachable.value.message
    assert "--source distro" in unreachable.value.cure


@pytest.mark.parametrize("again", [False, True])
def test_a_remote_that_would_run_a_command_is_refused(
    again: bool, remote: Path, tmp_path: Path
) -> None:
    if again:
        with pytest.raises(NotToBeHad):
            fetch(remote, tmp_path / "tree", KernelVersion.parse("9.9"))
    made = tmp_path / "made"
    with pytest.raises(LabError, match="ext::sh -c"):
        fetch(f"ext::sh -c touch% {made}", tmp_path / "tree")
    assert not made.exists()


def test_an_option_is_no_remote(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for remote in (f"--upload-pack=touch {made}", f"--upload-pack=touch {made}; x:y"):
        with pytest.raises(LabError):
            fetch(remote, tmp_path / "tree")
    assert not made.exists()


# ---- tags


def test_tags_are_read_from_a_remote_without_fetching_it(remote: Path) -> None:
    echoed: list[str] = []
    found = source.tags(f"file://{remote}", Shell(echoed.append))
    assert sorted(version.tag for version in found) == sorted(TAGS)
    assert [" ls-remote " in command for command in echoed] == [True]


def test_only_tags_that_can_be_asked_for_count(plain_remote: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--mirror", str(plain_remote), "vendor")
    for tag in ("v6.1.0", "v06.1", "v6.1.1.1", "v6.1-vendor", "vendor/v6.3", "release-7"):
        git(tmp_path / "vendor", "tag", tag, "v6.1")
    git(tmp_path / "vendor", "branch", "v6.9", "v6.1")
    found = source.tags(str(tmp_path / "vendor"), Shell())
    assert sorted(version.tag for version in found) == sorted(TAGS)


def test_tags_are_read_in_a_dry_run_too(remote: Path) -> None:
    assert source.tags(f"file://{remote}", Shell(dry=True))


def test_a_remote_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(Unreachable, match="no answer"):
            source.tags(f"git://127.0.0.1:{port}/linux.git", Shell())


def test_a_remote_that_is_no_repository_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Unreachable) as unreachable:
        source.tags(str(tmp_path), Shell())
    assert str(tmp_path) in unreachable.value.message
    assert "\n" not in unreachable.value.message


def test_reading_tags_runs_no_command_of_the_remotes_choice(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for remote in (f"ext::sh -c touch% {made}", f"--upload-pack=touch {made}; x:y"):
        with pytest.raises(Unreachable):
            source.tags(remote, Shell())
    assert not made.exists()


# ---- interruptions

KILLED = """
import os, signal, sys
from pathlib import Path
from xdplab.process import Shell
from xdplab.sources.git import fetch
from xdplab.version import KernelVersion

def report(phase, done=0, total=0, note=""):
    if phase.startswith(sys.argv[3]):
        os.killpg(0, signal.SIGKILL)

def echo(command):
    if f" {sys.argv[3]} " in command:
        os.killpg(0, signal.SIGKILL)

tree = Path(sys.argv[2])
store = tree.with_name("store")
fetch(KernelVersion(6, 1), sys.argv[1], tree, store, Shell(echo), report, print)
"""


@pytest.mark.parametrize("moment", ["fetch", "commit and trees", "files", "checkout"])
def test_a_killed_fetch_is_gone_on_with(moment: str, remote: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, f"file://{remote}", tree, moment],
        cwd=PROJECT,
        start_new_session=True,
        check=False,
    )
    assert killed.returncode < 0
    fetch(remote, tree)
    assert files(tree) == set(WANTED)
    assert git(tree, "status", "--porcelain") == ""


# what git locks on the way of a fetch and a checkout
LOCKS = ("config", "HEAD", "shallow", "packed-refs", "refs/tags/v6.1")


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("whole", [False, True], ids=["begun", "whole"])
def test_locks_of_dead_processes_are_no_obstacle(
    name: str, whole: bool, remote: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    if whole:
        fetch(remote, tree)
    else:
        git(tmp_path, "init", "--bare", "store")
    lock = store_of(tree) / f"{name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    fetch(remote, tree)
    assert files(tree) == set(WANTED)
    assert not lock.exists()


def test_half_a_pack_is_thrown_away(remote: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "--bare", "store")
    wreck = tmp_path / "store/objects/pack/tmp_pack_wreck"
    wreck.parent.mkdir(parents=True, exist_ok=True)
    wreck.write_bytes(b"PACK")
    fetch(remote, tmp_path / "tree")
    assert not wreck.exists()


def test_what_has_arrived_is_not_fetched_again(remote: Path, tmp_path: Path) -> None:
    tree, packs = tmp_path / "tree", tmp_path / "store/objects/pack"
    fetch(remote, tree)
    shutil.rmtree(tree)
    before = set(packs.iterdir())
    fetch("file:///nowhere/at/all", tree)
    assert set(packs.iterdir()) == before
    assert files(tree) == set(WANTED)
