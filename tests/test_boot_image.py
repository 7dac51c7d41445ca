"""Images of kernels: small ones in each compression, damaged ones, and what is none."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import COMPRESSORS, RELEASE, bzimage, packed, vmlinux

from xdplab.boot.image import Image, read
from xdplab.errors import NotAnImage

KERNEL = vmlinux()
IMAGES = {
    "vmlinux": KERNEL,
    "xz": bzimage(packed(KERNEL, "xz")),
    "gzip": bzimage(packed(KERNEL, "gzip")),
}


def read_bytes(content: bytes, directory: Path) -> Image:
    file = directory / "image"
    file.write_bytes(content)
    return read(file)


def refusal(content: bytes, directory: Path) -> str:
    """What is said of a file that is no kernel, or not one for us."""
    with pytest.raises(NotAnImage) as refused:
        read_bytes(content, directory)
    said = refused.value
    assert said.message.startswith(f"{directory / 'image'} can't be booted: ")
    assert said.exit_code == 2
    return said.message.partition(": ")[2]


# ---- what is read


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_vmlinux_comes_out_as_it_was_packed(compressor: str, tmp_path: Path) -> None:
    image = read_bytes(bzimage(packed(KERNEL, compressor)), tmp_path)
    assert (image.release, image.remark) == (RELEASE, "")
    assert image.unpacked == KERNEL


def test_what_is_unpacked_may_be_of_many_blocks(tmp_path: Path) -> None:
    large = KERNEL + bytes(17 * 2**20)  # relocations follow the ELF file in a real one
    for compressor in ("lz4", "zstd"):
        image = read_bytes(bzimage(packed(large, compressor)), tmp_path)
        assert image.unpacked == large


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"\x89LZO\0\r\n\x1a\n" + bytes(99), "lzo can't be unpacked here"),
        (b"something new" + bytes(99), "how it is compressed is not known here"),
    ],
)
def test_what_nobody_can_unpack_here_boots_as_it_is(
    payload: bytes, why: str, tmp_path: Path
) -> None:
    image = read_bytes(bzimage(payload), tmp_path)
    assert (image.release, image.unpacked, image.remark) == (RELEASE, None, why)


def test_a_kernel_that_must_unpack_itself_does(tmp_path: Path) -> None:
    content = bzimage(packed(vmlinux(pvh=False, config="CONFIG_BPF_SYSCALL=y\n"), "xz"))
    image = read_bytes(content, tmp_path)
    assert image.unpacked is None
    assert "CONFIG_PVH" in image.remark
    assert image.config == b"CONFIG_BPF_SYSCALL=y\n"


def test_a_vmlinux_boots_as_it_is(tmp_path: Path) -> None:
    image = read_bytes(KERNEL, tmp_path)
    assert image == Image(tmp_path / "image", RELEASE, None, None)


def test_a_configuration_that_is_built_in_is_found(tmp_path: Path) -> None:
    config = "CONFIG_BPF=y\n# CONFIG_XDP_SOCKETS is not set\n"
    built = vmlinux(config=config)
    for content in (built, bzimage(packed(built, "gzip"))):
        assert read_bytes(content, tmp_path).config == config.encode()


def test_marks_without_a_configuration_between_them_are_other_bytes(tmp_path: Path) -> None:
    built = vmlinux(config="CONFIG_BPF=y\n").replace(b"IKCFG_ST\x1f\x8b", b"IKCFG_ST\0\0")
    assert read_bytes(built, tmp_path).config is None


# ---- what is refused


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "neither a bzImage nor an ELF vmlinux"),
        (b"#!/bin/sh\n", "neither a bzImage nor an ELF vmlinux"),
        (bytes(4096), "neither a bzImage nor an ELF vmlinux"),
        (b"MZ\0\0zimg".ljust(4096, b"\0"), "another architecture"),
        (bytes(56) + b"ARM\x64" + bytes(4096), "arm64"),
        (b"!<arch>\ndebian-binary   ", "a package or an archive"),
        (gzip.compress(KERNEL), "compressed as a whole, by gzip"),
        (b"070701" + bytes(200), "an initramfs"),
        (bzimage(b"", flags=0), "a 32-bit kernel"),
        (bzimage(b"", protocol=0x0204), "before v3.8"),
        (bzimage(b"", release=""), "doesn't say its release"),
        (vmlinux(machine="arm64"), "AArch64"),
        (vmlinux(pvh=False), "without a PVH entry"),
        (KERNEL.replace(b"Linux version", b"Other version"), "no kernel"),
    ],
)
def test_what_is_no_kernel_for_us_is_named(content: bytes, why: str, tmp_path: Path) -> None:
    assert why in refusal(content, tmp_path)


def test_a_vmlinux_that_qemu_cannot_start_has_a_cure(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(vmlinux(pvh=False))
    with pytest.raises(NotAnImage, match="PVH") as refused:
        read(tmp_path / "image")
    assert "arch/x86/boot/bzImage" in refused.value.cure


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(NotAnImage, match=why):
            read(path)


@pytest.mark.parametrize("name", IMAGES)
def test_a_truncated_image_says_how_much_is_left(name: str, tmp_path: Path) -> None:
    content = IMAGES[name]
    size = len(content)
    assert refusal(content[:-1], tmp_path) == f"it is truncated: {size - 1} bytes of {size}"


quick = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
)


@quick
@given(st.sampled_from([*IMAGES]), st.data())
def test_truncated_anywhere_it_is_refused(tmp_path: Path, name: str, data: st.DataObject) -> None:
    content = IMAGES[name]
    size = data.draw(st.integers(0, len(content) - 1))
    refusal(content[:size], tmp_path)


def places(name: str) -> st.SearchStrategy[int]:
    """Where a file may be damaged: anywhere, and often in its headers."""
    last = len(IMAGES[name]) - 1
    return st.integers(0, last) | st.integers(0, 0x260) | st.integers(last - 0x160, last)


@quick
@given(st.sampled_from([*IMAGES]), st.data())
def test_a_damaged_one_is_read_or_refused(tmp_path: Path, name: str, data: st.DataObject) -> None:
    damaged = bytearray(IMAGES[name])
    for at in data.draw(st.lists(places(name), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        image = read_bytes(bytes(damaged), tmp_path)
    except NotAnImage:
        return
    assert image.release


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_damaged_payload_is_not_unpacked(compressor: str, tmp_path: Path) -> None:
    payload = packed(KERNEL, compressor)
    for damaged in (
        payload[:40] + bytes(100) + payload[140:],
        payload[:100] + payload[-4:],
        payload[:-4] + struct.pack("<I", 5),
    ):
        assert "damaged" in refusal(bzimage(damaged), tmp_path)
