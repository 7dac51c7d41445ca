"""Modules: which a kernel needs, in what order, and that they are its own."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import RELEASE, module

from xdplab.boot import Kernel, config, version_of
from xdplab.boot.modules import CARD, Module, available, builtin, closure, copy, needed
from xdplab.errors import ModulesUnfit, NoDriver, WithoutBpf

# as Debian's 6.1 has them
DRIVERS: Mapping[str, tuple[str, Sequence[str]]] = {
    "virtio": ("drivers/virtio/virtio.ko", ()),
    "virtio_ring": ("drivers/virtio/virtio_ring.ko", ()),
    "virtio_pci_modern_dev": ("drivers/virtio/virtio_pci_modern_dev.ko", ()),
    "virtio_pci": (
        "drivers/virtio/virtio_pci.ko", ("virtio_pci_modern_dev", "virtio", "virtio_ring"),
    ),
    "failover": ("net/core/failover.ko", ()),
    "net_failover": ("drivers/net/net-failover.ko", ("failover",)),
    "virtio_net": ("drivers/net/virtio_net.ko", ("virtio", "virtio_ring", "net_failover")),
    "e1000": ("drivers/net/ethernet/intel/e1000.ko", ()),
}  # fmt: skip
PACK: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def release_directory(
    directory: Path, *, without: Sequence[str] = (), built_in: Sequence[str] = (), suffix: str = ""
) -> Path:
    """A directory of modules, as a package has it."""
    for name, (file, depends) in DRIVERS.items():
        if name not in (*without, *built_in):
            path = directory / "kernel" / f"{file}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PACK[suffix](module(name, depends)))
    directory.mkdir(exist_ok=True)
    lines = [f"kernel/{DRIVERS[name][0]}\n" for name in built_in]
    (directory / "modules.builtin").write_text("".join(lines))
    return directory


def kernel(
    modules: Path | None = None, options: str | None = None, at: Path | None = None
) -> Kernel:
    file = None
    if options is not None and at:
        file = at / "config"
        file.write_text(options)
    return Kernel(RELEASE, version_of(RELEASE), Path("/nowhere/vmlinux"), modules, file)


def names(modules: Sequence[Module]) -> list[str]:
    return [module.name for module in modules]


# ---- the closure


@pytest.mark.parametrize("suffix", PACK)
def test_a_module_comes_after_what_it_depends_on(suffix: str, tmp_path: Path) -> None:
    found = closure(release_directory(tmp_path / "modules", suffix=suffix), CARD, RELEASE)
    assert sorted(names(found)) == sorted(set(DRIVERS) - {"e1000"})
    for place, one in enumerate(found):
        assert set(DRIVERS[one.name][1]) <= set(names(found[:place]))
        assert one.content() == module(one.name, DRIVERS[one.name][1])


def test_what_is_built_in_is_not_loaded(tmp_path: Path) -> None:
    directory = release_directory(
        tmp_path / "modules",
        built_in=("virtio", "virtio_ring", "net_failover"),
        without=["failover"],
    )
    assert sorted(names(closure(directory, CARD, RELEASE))) == [
        "virtio_net", "virtio_pci", "virtio_pci_modern_dev",
    ]  # fmt: skip
    assert builtin(directory) == ["virtio", "virtio_ring", "net_failover"]


def test_what_was_put_there_later_counts(tmp_path: Path) -> None:
    directory = release_directory(tmp_path / "modules")
    newer = directory / "updates/dkms/virtio_net.ko"
    newer.parent.mkdir(parents=True)
    newer.write_bytes(module("virtio_net"))
    assert available(directory)["virtio_net"].path == newer
    assert names(closure(directory, ["virtio_net"], RELEASE)) == ["virtio_net"]


@pytest.mark.parametrize("name", ["virtio_net", "failover"])
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    directory = release_directory(tmp_path / "modules", without=[name])
    with pytest.raises(NoDriver, match=f"Linux {RELEASE} has no {name}: .*{directory}"):
        closure(directory, CARD, RELEASE)


def test_the_modules_of_another_kernel_are_refused(tmp_path: Path) -> None:
    directory = release_directory(tmp_path / "modules")
    with pytest.raises(ModulesUnfit, match=f"for Linux {RELEASE}, not 6.1.0-10-test"):
        closure(directory, CARD, "6.1.0-10-test")


def test_modules_that_need_each_other_end(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.ko").write_bytes(module(name, [other]))
    assert sorted(names(closure(tmp_path, ["a"], RELEASE))) == ["a", "b"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([*PACK]), st.data())
def test_a_truncated_module_is_named(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    content = PACK[suffix](module("broken"))
    size = data.draw(st.integers(0, len(content) - 1))
    directory = tmp_path / f"all{suffix}"
    directory.mkdir(exist_ok=True)
    file = directory / f"broken.ko{suffix}"
    file.write_bytes(content[:size])
    with pytest.raises(ModulesUnfit) as refused:
        closure(directory, ["broken"], RELEASE)
    assert str(file) in refused.value.message


@pytest.mark.parametrize("suffix", PACK)
def test_only_what_is_wanted_is_copied(suffix: str, tmp_path: Path) -> None:
    directory = release_directory(tmp_path / "all", suffix=suffix, built_in=["virtio"])
    copy(directory, tmp_path / "some", [*CARD, "veth"], RELEASE)
    assert sorted(available(tmp_path / "some")) == sorted(set(DRIVERS) - {"e1000", "virtio"})
    ours, theirs = (
        names(closure(place, CARD, RELEASE)) for place in (tmp_path / "some", directory)
    )
    assert ours == theirs


# ---- what is known before a kernel is booted


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_NET=y\n", []),
        ("CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_NET=m\n", ["net_failover", "virtio_net"]),
        (None, ["virtio_pci", "net_failover", "virtio_net"]),
    ],
)
def test_a_configuration_says_what_is_built_in(
    options: str | None, wanted: list[str], tmp_path: Path
) -> None:
    directory = release_directory(tmp_path / "modules")
    found = names(needed(kernel(directory, options, tmp_path), CARD))
    assert [
        name for name in found if name in ("virtio_pci", "net_failover", "virtio_net")
    ] == wanted


@pytest.mark.parametrize("rest", ["", "# CONFIG_VIRTIO_NET is not set\n"])
@pytest.mark.parametrize("with_modules", [True, False])
def test_a_kernel_without_the_driver_is_refused(
    rest: str, with_modules: bool, tmp_path: Path
) -> None:
    directory = release_directory(tmp_path / "modules") if with_modules else None
    without = kernel(directory, f"CONFIG_VIRTIO_PCI=y\n{rest}", tmp_path)
    with pytest.raises(NoDriver, match=r"no virtio_net: .*/config has no CONFIG_VIRTIO_NET"):
        needed(without, CARD)


def test_a_driver_in_a_module_that_is_not_there_is_refused(tmp_path: Path) -> None:
    without = kernel(None, "CONFIG_VIRTIO_PCI=m\n", tmp_path)
    with pytest.raises(NoDriver, match="no modules are with it"):
        needed(without, CARD)


def test_where_nothing_is_known_nothing_is_said() -> None:
    assert needed(kernel(), CARD) == []


@pytest.mark.parametrize("options", ["", "CONFIG_BPF=y\n", "# CONFIG_BPF_SYSCALL is not set\n"])
def test_a_kernel_without_bpf_is_refused(options: str, tmp_path: Path) -> None:
    with pytest.raises(WithoutBpf, match=f"Linux {RELEASE} can't load BPF programs"):
        config.require_bpf(kernel(None, options, tmp_path))


def test_a_kernel_with_bpf_or_of_unknown_configuration_is_taken(tmp_path: Path) -> None:
    config.require_bpf(kernel(None, "CONFIG_BPF=y\nCONFIG_BPF_SYSCALL=y\n", tmp_path))
    config.require_bpf(kernel())


def test_a_configuration_may_be_compressed(tmp_path: Path) -> None:
    text = b'#\n# Linux/x86\n#\nCONFIG_HZ=250\nCONFIG_LSM="bpf,x=y"\n# CONFIG_XDP is not set\n'
    (tmp_path / "config").write_bytes(text)
    (tmp_path / "config.gz").write_bytes(gzip.compress(text))
    for name in ("config", "config.gz"):
        assert config.read(tmp_path / name) == {"CONFIG_HZ": "250", "CONFIG_LSM": '"bpf,x=y"'}
