"""The distribution's kernels: chosen, fetched, and as little of them kept as is needed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import Invoke
from mirror import Mirror, become_debian, needs_apt, serve
from support import bzimage, module, packed, vmlinux

from xdplab.boot import Kernel, Source, choice, config, image, modules
from xdplab.boot.packaged import Wanted
from xdplab.errors import Held, NoSpace, NotAnImage, NotAVersion, NotToBeHad, Unreachable
from xdplab.files import locked
from xdplab.process import Shell
from xdplab.sources.distro import is_cloud
from xdplab.version import KernelVersion
from xdplab.workspace import Workspace

CONFIG = "CONFIG_BPF_SYSCALL=y\nCONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_NET=m\nCONFIG_VETH=m\n"


def no_report(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Nobody listens."""


# ---- what was asked for


@pytest.mark.parametrize(
    ("spec", "fits", "others"),
    [
        ("6.1", ["6.1.0-56-amd64 6.1.192"], ["6.1.0-56-cloud-amd64 6.1.192", "6.12-amd64 6.12.9"]),
        ("6.1-cloud", ["6.1.0-56-cloud-amd64 6.1.192"], ["6.1.0-56-amd64 6.1.192"]),
        ("v6.1.192", ["6.1.0-56-amd64 6.1.192"], ["6.1.0-55-amd64 6.1.190"]),
        ("6.1.0-50-amd64", ["6.1.0-50-amd64 6.1.176"], ["6.1.0-50-cloud-amd64 6.1.176"]),
        ("7.3", ["7.3.4+deb13-amd64 7.3.4"], ["7.3-amd64 7.3-rc7"]),
        ("7.3-rc7", ["7.3-amd64 7.3-rc7"], ["7.3.4+deb13-amd64 7.3.4"]),
        ("6.8-cloud", ["6.8.0-31-kvm 6.8"], ["6.8.0-31-generic 6.8"]),
    ],
)
def test_a_kernel_fits_what_was_asked_for(spec: str, fits: list[str], others: list[str]) -> None:
    wanted = Wanted.of(spec)
    for row in fits + others:
        release, number = row.split()
        assert wanted.fits(release, KernelVersion.parse(number)) == (row in fits), row


@pytest.mark.parametrize("spec", ["", "cloud", "-cloud", "amd64", "6", "latest"])
def test_what_says_no_version_is_refused(spec: str) -> None:
    with pytest.raises(NotAVersion):
        Wanted.of(spec)


# ---- packages in each of the layouts that there are


def put(top: Path, name: str, content: bytes) -> None:
    (top / name).parent.mkdir(parents=True, exist_ok=True)
    (top / name).write_bytes(content)


def modules_at(directory: str, release: str) -> Callable[[Path], None]:
    """The modules of a release, of which few are wanted."""

    def fill(top: Path) -> None:
        for name, depends in (
            ("virtio_net", ["net_failover"]), ("net_failover", ["failover"]), ("failover", []),
            ("veth", []), ("e1000", []), ("dummy", []),
        ):  # fmt: skip
            put(top, f"{directory}/{release}/kernel/drivers/{name}.ko",
                module(name, depends, release))  # fmt: skip
        put(top, f"{directory}/{release}/modules.builtin", b"kernel/drivers/virtio/virtio_pci.ko\n")
        put(top, f"{directory}/{release}/modules.order", b"")

    return fill


def whole(
    mirror: Mirror,
    release: str,
    number: str,
    content: bytes | None = None,
    where: str = "lib/modules",
) -> Path:
    """All in one package, as it is up to 6.17."""

    def fill(top: Path) -> None:
        image = content or bzimage(packed(vmlinux(release), "xz"), release)
        put(top, f"boot/vmlinuz-{release}", image)
        put(top, f"boot/config-{release}", CONFIG.encode())
        modules_at(where, release)(top)

    return mirror.deb(f"linux-image-{release}", number, fill)


def split(mirror: Mirror, release: str, number: str) -> list[Path]:
    """In four packages, as it is since 6.19."""
    home = f"usr/lib/modules/{release}"
    names = [f"linux-{part}-{release}" for part in ("base", "binary", "modules")]
    depends = ", ".join(["initramfs-tools | dracut", *(f"{name} (= {number})" for name in names)])

    def base(top: Path) -> None:
        put(top, f"{home}/config", CONFIG.encode())
        put(top, f"{home}/modules.builtin", b"kernel/drivers/virtio/virtio_pci.ko\n")

    def binary(top: Path) -> None:
        put(top, f"{home}/vmlinuz", bzimage(packed(vmlinux(release), "zstd"), release))

    def fill_modules(top: Path) -> None:
        modules_at("usr/lib/modules", release)(top)
        (top / home / "modules.builtin").unlink()

    fills = (base, binary, fill_modules)
    return [
        mirror.deb(f"linux-image-{release}", number, lambda _: None, depends),
        *(mirror.deb(name, number, fill) for name, fill in zip(names, fills, strict=True)),
    ]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    with serve(tmp_path_factory.mktemp("mirror")) as made:
        lzo = bzimage(b"\x89LZO" + bytes(200), "5.10.0-46-amd64")
        short = bzimage(packed(vmlinux("6.11.5-amd64"), "xz"), "6.11.5-amd64")[:-100]
        made.add(
            "bookworm",
            whole(made, "6.1.0-49-amd64", "6.1.174-1"),
            whole(made, "6.1.0-50-amd64", "6.1.176-1"),
            whole(made, "6.1.0-50-cloud-amd64", "6.1.176-1"),
        )
        made.add(
            "bookworm-security",
            whole(made, "6.1.0-56-amd64", "6.1.192-2"),
            made.deb(
                "linux-image-6.1-amd64", "6.1.192-2", lambda _: None, "linux-image-6.1.0-56-amd64"
            ),
            made.deb("linux-image-6.1.0-56-amd64-dbg", "6.1.192-2", lambda _: None),
        )
        made.add("bullseye", whole(made, "5.10.0-46-amd64", "5.10.262-1", lzo))
        cloud, home = "6.12.118+deb13-cloud-amd64", "usr/lib/modules"
        made.add("trixie", whole(made, cloud, "6.12.118-1", where=home),
                 whole(made, "6.11.5-amd64", "6.11.5-1", short))  # fmt: skip
        made.add("trixie-backports", split(made, "7.1.13+deb13-amd64", "7.1.13-1~bpo13+1")[0])
        made.add("forky", made.deb("linux-image-6.10.3-amd64", "6.10.3-1", lambda _: None,
                                   installed=2**40))  # fmt: skip
        made.add("sid", *split(made, "7.2.13+deb14-amd64", "7.2.13-1"))
        yield made


@pytest.fixture
def machine(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace on a Debian 12 whose apt is configured for the mirror."""
    become_debian(mirror, tmp_path, monkeypatch)
    return Workspace(tmp_path / "workspace")


def found(spec: str, workspace: Workspace, echoed: list[str] | None = None) -> Kernel:
    shell = Shell(echoed.append if echoed is not None else lambda _: None)
    kernel = choice.find(spec, workspace, shell, no_report, lambda _: None)
    assert kernel
    return kernel


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


DRIVERS = ("failover", "net_failover", "veth", "virtio_net")
KEPT = {
    *("config", "kernel.json", "modules/modules.builtin", "vmlinux"),
    *(f"modules/kernel/drivers/{name}.ko" for name in DRIVERS),
}


@needs_apt
@pytest.mark.parametrize(
    ("spec", "release", "version"),
    [
        ("6.1", "6.1.0-56-amd64", "6.1.192"),
        ("6.1-cloud", "6.1.0-50-cloud-amd64", "6.1.176"),
        ("v6.1.174", "6.1.0-49-amd64", "6.1.174"),
        ("6.1.0-50-amd64", "6.1.0-50-amd64", "6.1.176"),
        ("6.12-cloud", "6.12.118+deb13-cloud-amd64", "6.12.118"),
        ("7.2", "7.2.13+deb14-amd64", "7.2.13"),
    ],
)
def test_a_kernel_of_any_suite_is_fetched_once(
    machine: Workspace, spec: str, release: str, version: str
) -> None:
    kernel = found(spec, machine)
    assert (kernel.release, kernel.version) == (release, KernelVersion.parse(version))
    assert kernel.source is Source.DISTRO
    assert files(machine.kernels) == {"lock", *(f"{release}/{name}" for name in KEPT)}
    assert kernel.image.read_bytes() == vmlinux(release)
    assert kernel.config
    assert config.read(kernel.config)["CONFIG_VIRTIO_NET"] == "m"
    names = [one.name for one in modules.needed(kernel, (*modules.CARD, *modules.VETH))]
    assert names == ["failover", "net_failover", "virtio_net", "veth"]
    shutil.rmtree(machine.indexes)
    echoed: list[str] = []
    assert found(spec, machine, echoed) == kernel
    assert echoed == []


@needs_apt
def test_a_kernel_that_must_unpack_itself_is_kept_as_it_is(machine: Workspace) -> None:
    kernel = found("5.10", machine)
    assert kernel.image == machine.kernels / "5.10.0-46-amd64/bzImage"
    assert image.read(kernel.image).release == "5.10.0-46-amd64"


@needs_apt
def test_the_machines_own_suites_are_asked_first(machine: Workspace) -> None:
    echoed: list[str] = []
    found("6.1", machine, echoed)
    assert any("/apt/own/" in command for command in echoed)
    assert not any("/apt/others/" in command for command in echoed)


@needs_apt
def test_of_what_is_kept_the_newest_is_meant(machine: Workspace) -> None:
    for release in ("6.1.0-50-amd64", "6.1.0-49-amd64"):
        found(release, machine)
    assert found("6.1", machine).release == "6.1.0-50-amd64"


@needs_apt
@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("6.5", "v6.1.192, v6.10.3, v6.11.5, v7.2.13"),
        ("6.5-cloud", "it has v6.1.176-cloud, v6.12.118-cloud"),
        ("7.1", "v6.11.5, v7.2.13"),  # of which a part is gone
        ("6.1.0-99-cloud-amd64", "it has 6.1.0-50-cloud-amd64, 6.12.118+deb13-cloud-amd64"),
    ],
)
def test_the_nearest_are_named_for_one_that_is_not_there(
    machine: Workspace, spec: str, near: str
) -> None:
    with pytest.raises(NotToBeHad) as missing:
        found(spec, machine)
    assert f"the distribution has no {Wanted.of(spec)}; it has " in missing.value.message
    assert near in missing.value.message
    assert missing.value.exit_code == 69
    assert files(machine.kernels) == {"lock"}


@needs_apt
def test_a_metapackage_is_no_kernel(machine: Workspace) -> None:
    with pytest.raises(NotToBeHad, match=r"linux-image-6\.1-amd64 6\.1\.192-2 has no"):
        found("6.1-amd64", machine)
    assert files(machine.kernels) == {"lock"}


@needs_apt
def test_of_a_damaged_package_nothing_is_kept(machine: Workspace) -> None:
    with pytest.raises(NotAnImage, match="truncated"):
        found("6.11", machine)
    assert files(machine.kernels) == {"lock"}


@needs_apt
@pytest.mark.parametrize("when", ["asking", "downloading", "unpacking", "keeping"])
def test_interrupted_at_any_time_nothing_is_left_half_done(when: str, machine: Workspace) -> None:
    def interrupt(phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        if phase.startswith(when):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choice.find("7.2", machine, Shell(), interrupt, lambda _: None)
    assert files(machine.kernels) == {"lock"}


@needs_apt
def test_killed_at_any_moment_it_is_had_by_the_next(machine: Workspace) -> None:
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            with contextlib.suppress(BaseException):
                found("7.2", machine)
            os._exit(0)
        time.sleep(part * 2)  # where it is by then is chance
        for kill in (partial(os.killpg, child), partial(os.kill, child)):
            with contextlib.suppress(ProcessLookupError):
                kill(signal.SIGKILL)
        os.waitpid(child, 0)
    kernel = found("7.2", machine)
    assert kernel.image.exists()
    assert {path.name for path in machine.kernels.iterdir()} == {"lock", kernel.release}


@needs_apt
def test_what_was_left_half_done_is_done_again(machine: Workspace) -> None:
    put(machine.kernels, "fetching-1/package/linux-image.deb", b"half")
    put(machine.kernels, "6.1.0-56-amd64/vmlinux", b"half")
    kernel = found("6.1", machine)
    assert kernel.image.read_bytes() == vmlinux(kernel.release)
    assert {path.name for path in machine.kernels.iterdir()} == {"lock", kernel.release}


@needs_apt
def test_one_process_at_a_time_fetches(machine: Workspace) -> None:
    with locked(machine.kernels / "lock"), pytest.raises(Held):
        found("6.1", machine)
    kernel = found("6.1", machine)
    with locked(machine.kernels / "lock"):
        assert found("6.1", machine) == kernel  # for what is kept nobody has to wait


@needs_apt
def test_a_dry_run_fetches_nothing(machine: Workspace) -> None:
    echoed: list[str] = []
    shell = Shell(echoed.append, dry=True)
    assert choice.find("6.1-cloud", machine, shell, no_report, lambda _: None) is None
    assert echoed == ["apt-get download linux-image-v6.1-cloud"]
    assert not machine.root.exists()


@needs_apt
def test_without_the_mirror_what_is_kept_is_taken(machine: Workspace, tmp_path: Path) -> None:
    kernel = found("6.1", machine)
    (tmp_path / "sources.list").write_text("deb http://127.0.0.1:1/debian bookworm main\n")
    assert found("6.1", machine) == kernel
    with pytest.raises(Unreachable):
        found("6.12", machine)


@needs_apt
def test_a_kernel_too_large_for_the_disk_is_not_fetched(machine: Workspace) -> None:
    with pytest.raises(NoSpace, match="MiB are needed"):
        found("6.10", machine)
    assert files(machine.kernels) == {"lock"}


@needs_apt
def test_kernels_lists_what_is_kept_and_clean_removes_it(
    machine: Workspace, tmp_path: Path
) -> None:
    found("6.1-cloud", machine)
    invoke = Invoke(machine.root)
    outcome = invoke("kernels", "--offline")
    (line,) = [one for one in outcome.out.splitlines() if "6.1.0-50-cloud-amd64" in one]
    assert " here, with BPF " in line
    assert line.endswith(str(machine.kernels / "6.1.0-50-cloud-amd64/vmlinux"))
    assert invoke("clean", "--trees").code == 0
    assert not machine.root.exists()


# ---- the distribution's own


@pytest.mark.image
@pytest.mark.parametrize("spec", ["5.10-cloud", "6.1-cloud", "6.12-cloud", "7.2-cloud"])
def test_a_real_kernel_has_what_it_takes(spec: str, kernels: Callable[[str], Kernel]) -> None:
    kernel = kernels(spec)
    assert is_cloud(kernel.release)
    found = image.read(kernel.image)
    assert (found.release, found.unpacked) == (kernel.release, None)
    assert kernel.version
    assert kernel.version.series == spec.removesuffix("-cloud")
    config.require_bpf(kernel)
    loaded = modules.needed(kernel, (*modules.CARD, *modules.VETH))
    assert [one.name for one in loaded][-2:] == ["virtio_net", "veth"]
    for one in loaded:
        assert one.content().startswith(b"\x7fELF")
        assert one.info()["name"] == one.name
