"""Which kernel is meant: a file of the user's, with what lies beside it, or one in /boot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import RELEASE, bzimage, module, packed, vmlinux

from xdplab.boot import SCHEMA, Kernel, Source, beside, choice, kept, modules, version_of
from xdplab.errors import ModulesUnfit, NotAnImage, NotAVersion, NotToBeHad, WithoutBpf
from xdplab.files import read_json, write_json
from xdplab.process import Shell
from xdplab.workspace import Workspace

BPF = "CONFIG_BPF_SYSCALL=y\n"
KERNEL = vmlinux()
PACKED = bzimage(packed(KERNEL, "xz"))


def no_report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Nobody listens."""


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def put_modules(directory: Path, release: str = RELEASE) -> Path:
    put(directory / "modules.builtin", "")
    put(directory / "kernel/virtio_net.ko", module("virtio_net", (), release))
    return directory


@pytest.fixture
def found(workspace: Path) -> Finder:
    return Finder(Workspace(workspace))


class Finder:
    """Finds kernels, and hears what is told."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.told: list[str] = []

    def __call__(self, spec: str | Path, *, dry: bool = False) -> Kernel:
        shell = Shell(dry=dry)
        kernel = choice.find(str(spec), self.workspace, shell, no_report, self.told.append)
        assert kernel
        return kernel


# ---- files


def test_what_is_packed_is_kept_until_the_file_is_another(found: Finder, tmp_path: Path) -> None:
    file = put(tmp_path / "here/bzImage", PACKED)
    kernel = found(file)
    assert (kernel.release, kernel.source) == (RELEASE, Source.IMAGE)
    assert kernel.image.is_relative_to(found.workspace.kernels)
    assert kernel.image.read_bytes() == KERNEL
    before = kernel.image.stat()
    assert found(file) == kernel
    assert kernel.image.stat() == before
    other = vmlinux("6.1.0-10-test")
    put(file, bzimage(packed(other, "gzip"), "6.1.0-10-test"))
    again = found(file)
    assert (again.release, again.image) == ("6.1.0-10-test", kernel.image)
    assert again.image.read_bytes() == other
    assert len(list(found.workspace.kernels.iterdir())) == 1


def test_two_files_of_one_release_are_two_kernels(found: Finder, tmp_path: Path) -> None:
    files = [put(tmp_path / name / "bzImage", PACKED) for name in ("one", "two")]
    assert len({found(file).image for file in files}) == 2


def test_what_boots_directly_is_left_where_it_is(found: Finder, tmp_path: Path) -> None:
    file = put(tmp_path / "vmlinux", KERNEL)
    assert found(file).image == file
    assert found(file).image == file


def test_what_cannot_be_unpacked_boots_as_it_is_and_that_is_said(
    found: Finder, tmp_path: Path
) -> None:
    file = put(tmp_path / "bzImage", bzimage(b"\x89LZO" + bytes(200)))
    assert found(file).image == file
    assert found.told == [f"{file} has to unpack itself when it boots: lzo can't be unpacked here"]


def test_a_dry_run_writes_nothing(found: Finder, tmp_path: Path) -> None:
    file = put(tmp_path / "bzImage", PACKED)
    assert found(file, dry=True).image == file
    assert not found.workspace.root.exists()


def test_a_file_needs_no_slash_if_it_is_no_version(
    found: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path / "bzImage", PACKED)
    monkeypatch.chdir(tmp_path)
    assert found("bzImage").release == RELEASE
    assert found("./bzImage").release == RELEASE
    file.unlink()
    with pytest.raises(NotAVersion):
        found("bzImage")
    with pytest.raises(NotAnImage, match="no such file"):
        found("./bzImage")


def test_a_directory_without_an_image_is_refused(found: Finder, tmp_path: Path) -> None:
    with pytest.raises(NotAnImage, match="a directory without a bzImage"):
        found(tmp_path)


def test_a_pipe_is_not_waited_for(found: Finder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(NotAnImage, match="a device or a pipe"):
            found(path)


def test_a_wrecked_copy_is_made_anew(found: Finder, tmp_path: Path) -> None:
    file = put(tmp_path / "bzImage", PACKED)
    kernel = found(file)
    kernel.image.unlink()
    assert found(file).image.read_bytes() == KERNEL


# ---- what lies beside them


@pytest.mark.parametrize(
    ("image", "directory", "config"),
    [
        ("boot/vmlinuz-" + RELEASE, "lib/modules/" + RELEASE, "boot/config-" + RELEASE),
        ("boot/vmlinuz-" + RELEASE, "usr/lib/modules/" + RELEASE, "boot/config-" + RELEASE),
        (
            f"lib/modules/{RELEASE}/vmlinuz",
            "lib/modules/" + RELEASE,
            f"lib/modules/{RELEASE}/config",
        ),
        ("bzImage", "modules", "config"),
        ("bzImage", "lib/modules/" + RELEASE, ".config"),
        ("bzImage", "modules/lib/modules/" + RELEASE, "config"),
        ("arch/x86/boot/bzImage", ".", ".config"),
    ],
)
def test_what_belongs_to_a_kernel_is_found(
    image: str, directory: str, config: str, found: Finder, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    file = put(top / image, PACKED)
    kernel = found(file)
    assert (kernel.modules, kernel.config) == (None, None)
    put_modules(top / directory)
    put(top / config, BPF)
    kernel = found(file)
    assert (kernel.modules, kernel.config) == ((top / directory).resolve(), top / config)
    assert [one.name for one in modules.closure(top / directory, ["virtio_net"], RELEASE)] == [
        "virtio_net"
    ]


@pytest.mark.parametrize("image", ["bzImage", "vmlinuz", "vmlinux", "arch/x86/boot/bzImage"])
def test_a_directory_stands_for_the_image_in_it(image: str, found: Finder, tmp_path: Path) -> None:
    put(tmp_path / image, KERNEL if image == "vmlinux" else PACKED)
    assert found(tmp_path) == found(tmp_path / image)


def test_the_modules_of_another_build_are_refused(found: Finder, tmp_path: Path) -> None:
    file = put(tmp_path / "bzImage", PACKED)
    put(tmp_path / "config", BPF + "CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_NET=m\n")
    put_modules(tmp_path / "modules", "6.1.0-10-test")
    with pytest.raises(ModulesUnfit, match=f"built for Linux 6.1.0-10-test, not {RELEASE}"):
        modules.needed(found(file), modules.CARD)


@pytest.mark.parametrize("built_in", [True, False])
def test_a_kernel_without_bpf_is_refused(built_in: bool, found: Finder, tmp_path: Path) -> None:
    options = "CONFIG_BPF=y\n# CONFIG_BPF_SYSCALL is not set\n"
    content = vmlinux(config=options) if built_in else KERNEL
    file = put(tmp_path / "bzImage", bzimage(packed(content, "gzip")))
    put(tmp_path / "config", BPF if built_in else options)  # what is in the image counts
    for _ in range(2):
        with pytest.raises(WithoutBpf, match=f"Linux {RELEASE} can't load BPF programs"):
            found(file)


# ---- /boot


def test_a_release_is_first_that_of_the_machine(
    found: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "BOOT", tmp_path / "boot")
    put(tmp_path / f"boot/vmlinuz-{RELEASE}", PACKED)
    config = put(tmp_path / f"boot/config-{RELEASE}", BPF)
    kernel = found(RELEASE)
    assert (kernel.release, kernel.config, kernel.source) == (RELEASE, config, Source.IMAGE)


# ---- kernel.json


def kernel_in(directory: Path, files: Sequence[str] = ("vmlinux", "modules", "config")) -> Kernel:
    """A kernel whose files are in a directory, noted there."""
    for name in files:
        put(directory / name / "x" if name == "modules" else directory / name, "")
    image, *others = (
        directory / name if name in files else None for name in ("vmlinux", "modules", "config")
    )
    assert image
    kernel = Kernel(RELEASE, version_of(RELEASE), image, others[0], others[1], Source.TREE)
    kernel.keep(directory, tree="/somewhere")
    return kernel


@pytest.mark.parametrize(
    "files", [("vmlinux",), ("vmlinux", "config"), ("vmlinux", "modules", "config")]
)
def test_a_kernel_is_kept_and_loaded_and_may_move(files: Sequence[str], tmp_path: Path) -> None:
    kernel = kernel_in(tmp_path / "one", files)
    assert Kernel.load(tmp_path / "one") == kernel
    (tmp_path / "one").rename(tmp_path / "two")
    (moved,) = kept(tmp_path)
    assert moved.image == tmp_path / "two/vmlinux"
    assert Kernel.load(tmp_path / "one") is None


@pytest.mark.parametrize("gone", ["vmlinux", "modules", "config", "kernel.json"])
def test_a_kernel_of_which_something_is_gone_is_none(gone: str, tmp_path: Path) -> None:
    kernel_in(tmp_path / "one")
    path = tmp_path / "one" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert kept(tmp_path) == []


def test_a_kernel_of_another_schema_is_none(tmp_path: Path) -> None:
    kernel_in(tmp_path / "one")
    file = tmp_path / "one/kernel.json"
    write_json(file, read_json(file) | {"schema": SCHEMA + 1})
    assert kept(tmp_path) == []


# ---- built from trees


def test_a_trees_own_kernel_is_meant_by_its_version(found: Finder) -> None:
    for number in ("4.19.13", "6.1.9", "6.1.10"):
        directory = found.workspace.kernels / f"linux-{number}"
        image = put(directory / "vmlinux", KERNEL)
        Kernel(number, version_of(number), image, None, None, Source.TREE).keep(directory)
    assert found("4.19-tree").release == "4.19.13"
    assert found("v6.1-tree").release == "6.1.10"
    assert found("6.1.9-tree").release == "6.1.9"
    with pytest.raises(NotToBeHad, match=r"v5\.0-tree; it has v4\.19\.13-tree, v6\.1\.9-tree"):
        found("5.0-tree")
    with pytest.raises(NotAVersion):
        found("six-tree")
