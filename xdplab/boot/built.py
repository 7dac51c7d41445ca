"""A kernel built from a tree: small, made for the virtual machine, of the tree's own sources.

A tree that samples are built in has a configuration in it, and make would refuse
to build a kernel elsewhere from it; and a kernel's configuration would cost the
samples theirs.  So the sources are taken once more, as hard links, and the kernel
is built beside them: nothing is written into the tree.
"""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from xdplab import damage, footprint, kbuild, patching
from xdplab.boot import Kernel, Source, config, require_unaltered, version_of
from xdplab.errors import CannotBoot, NotAConfig
from xdplab.files import locked, require_space, write_whole
from xdplab.process import Finished, Line, OnLine, Shell
from xdplab.sources import Report
from xdplab.toolchain import Toolchain
from xdplab.tree import STATE, Tree
from xdplab.workspace import PROJECT, Workspace

FRAGMENT = PROJECT / "templates" / "vm.config"

# Without these nothing can be run in the virtual machine, or nothing be seen of it.
NEEDED = {
    "CONFIG_64BIT": "programs are of 64 bits",
    "CONFIG_SERIAL_8250_CONSOLE": "the kernel's log",
    "CONFIG_BLK_DEV_INITRD": "the root file system",
    "CONFIG_BINFMT_ELF": "programs",
    "CONFIG_BINFMT_SCRIPT": "the first program is a script",
    "CONFIG_PROC_FS": "/proc",
    "CONFIG_SYSFS": "/sys",
    "CONFIG_DEVTMPFS": "/dev",
    "CONFIG_INET": "the packets",
    "CONFIG_BPF_SYSCALL": "the sample",
    "CONFIG_VIRTIO_PCI": "the network card",
    "CONFIG_VIRTIO_NET": "the network card",
}

# Where upstream has an option that older trees can't have.
SINCE = {"CONFIG_PVH": "v5.0"}

# pahole makes BTF of DWARF; without it many trees fail when all else is done.  Of
# BTF with a kind of type in it that the kernel doesn't know the kernel says that it
# is malformed, and loads no program: ENUM64 is the last that pahole writes unasked.
OF_BTF = ("CONFIG_DEBUG_INFO_DWARF4", "CONFIG_DEBUG_INFO", "CONFIG_DEBUG_INFO_BTF")
_KINDS, _LAST_KIND = Path("include/uapi/linux/btf.h"), "BTF_KIND_ENUM64"

_SPACE = 600 * 2**20  # for what make makes
_SPACE_FOR_BTF = 2000 * 2**20  # DWARF is large
_SPACE_FOR_COPY = 1500 * 2**20  # of the sources, on another disk than the tree's

# What QEMU starts, by whether it can start a vmlinux as it is.
_VMLINUX, _BZIMAGE = Path("vmlinux"), Path("arch/x86/boot/bzImage")

# What make calls a tree "not clean" for, and won't build elsewhere from it.
_IN_TREE = (".config", "include/config", "arch/x86/include/generated")

_COMPILES = re.compile(r"  (?:HOST)?(?:CC|AS) ")  # kbuild's short words for it
_DEFINED = re.compile(r"^\s*(?:menu)?config\s+(\w+)", re.MULTILINE | re.ASCII)
_OPTION = re.compile(
    r"(?P<name>CONFIG_\w+)=(?P<value>\S.*)|# (?P<off>CONFIG_\w+) is not set|#.*|", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel that was built, and what was asked for and isn't in it, with the reasons."""

    kernel: Kernel
    dropped: Mapping[str, str]
    seconds: float
    log: Path


def of(tree_key: str, workspace: Workspace) -> Kernel | None:
    """The kernel that was last built from the tree of that key, if there is one.

    Raises AlteredKernel if it isn't what was built.
    """
    kernel = Kernel.load(_kept(tree_key, workspace))
    return require_unaltered(kernel) if kernel else None


def build(
    tree: Tree, tools: Toolchain, workspace: Workspace, shell: Shell, report: Report,
    on_line: OnLine, tell: Callable[[str], None], *, own: Path | None = None,
    mend: bool = False,
) -> Built | None:  # fmt: skip
    """Build the tree's kernel, as far as it isn't built yet; make decides what is stale.

    `own` is a file with kernel options of the user's own, on top of those of
    the machine.  Gives nothing in a dry run.  Raises NotAConfig, Damaged, what
    patching and kbuild raise, CannotBoot, NoSpace, and Held.
    """
    no_btf = _why_no_btf(tree)
    asked = _asked(own, btf=not no_btf)
    damage.require_whole(tree, shell, mend=mend)
    place = workspace.build(tree.key, "vm-kernel")
    started = time.monotonic()
    with locked(place / "lock", dry=shell.dry):
        if not shell.dry:
            _require_space(tree, place, asked)
        report("taking the tree's sources")
        with workspace.locked(tree, dry=shell.dry):
            _take_sources(tree, place, shell, tell, mend=mend)
        log = place / "kernel.log"
        if not shell.dry:
            log.unlink(missing_ok=True)
        make = partial(
            kbuild.make, replace(tree, path=place / "source"), tools=tools, shell=shell,
            on_line=counted(on_line, report), log=log, writes=[place],
        )  # fmt: skip
        report("configuring")
        got = _configure(place, asked, make, dry=shell.dry)
        dropped = _dropped(place / "source", asked, got)
        dropped |= {"CONFIG_DEBUG_INFO_BTF": no_btf} if no_btf else {}
        for option, why in dropped.items():
            tell(f"without {option}: {why}")
        _require_bootable(tree, got, dropped)
        image = _VMLINUX if got.get("CONFIG_PVH") == "y" else _BZIMAGE
        report("compiling")
        make([f"O={place / 'build'}", image.name])
        if shell.dry:
            return None
        seconds = time.monotonic() - started
        facts = {"tree": str(tree.path), "compiler": tools.gcc, "options": asked,
                 "dropped": dropped, "seconds": round(seconds, 3), "log": str(log)}  # fmt: skip
        kernel = _keep(place / "build", image, _kept(tree.key, workspace), shell, facts)
        return Built(kernel, dropped, seconds, log)


def counted(on_line: OnLine, report: Report) -> OnLine:
    """Hear the lines of make, and report how far it is with each hundred files it compiled."""
    numbers = itertools.count(1)

    def hear(line: Line) -> None:
        on_line(line)
        if _COMPILES.match(line.text) and (number := next(numbers)) % 100 == 0:
            report(f"compiling: {number} files so far")

    return hear


def _kept(tree_key: str, workspace: Workspace) -> Path:
    return workspace.kernels / tree_key


# ---- what is asked for


def _asked(own: Path | None, *, btf: bool) -> dict[str, str]:
    """The options of the machine, and those of the user's, which come last."""
    asked = options(FRAGMENT)
    if not btf:
        asked = {name: value for name, value in asked.items() if name not in OF_BTF}
    return asked | options(own) if own else asked


def _why_no_btf(tree: Tree) -> str:
    """Why BTF isn't asked for; empty if it is."""
    if not shutil.which("pahole"):
        return "pahole, which makes it, is not installed"
    kinds = tree.path / _KINDS
    if not kinds.is_file() or _LAST_KIND not in kinds.read_text(errors="replace"):
        return "the kernel could not read what today's pahole writes"
    return ""


def options(path: Path) -> dict[str, str]:
    """The options of a file, "n" for those that are not to be set; raises NotAConfig."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise NotAConfig(path, str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise NotAConfig(path, "it is no text") from error
    asked = {}
    for number, line in enumerate(lines, 1):
        found = _OPTION.fullmatch(line.strip())
        if not found:
            raise NotAConfig(path, f"line {number} is no option: {line.strip()!r}")
        if found["name"] or found["off"]:
            asked[found["name"] or found["off"]] = found["value"] or "n"
    return asked


def _require_space(tree: Tree, place: Path, asked: Mapping[str, str]) -> None:
    needed = _SPACE_FOR_BTF if "CONFIG_DEBUG_INFO_BTF" in asked else _SPACE
    if tree.path.stat().st_dev != place.stat().st_dev:
        needed += _SPACE_FOR_COPY
    if not (place / "build" / "vmlinux").exists():
        require_space(place, needed)


# ---- the sources


def _take_sources(
    tree: Tree, place: Path, shell: Shell, tell: Callable[[str], None], *, mend: bool
) -> None:
    """Bring `source` up to what the tree has now, but for what was made in it.

    A file is a hard link to the tree's, or on another disk a copy: it may be
    unlinked, but never be written to.
    """
    if mend:
        damage.mend(tree, shell, tell)
    patching.apply(tree, patching.plan_series(tree), dry=shell.dry)
    kbuild.complete(tree, shell)
    made = place / "not-sources"
    if not shell.dry:
        names = [str(STATE), ".git", *footprint.made(tree)]
        write_whole(made, "".join(f"/{name}\n" for name in names).encode())
    shell.run(
        ["rsync", "--archive", "--delete", "--delete-excluded", f"--exclude-from={made}",
         f"--link-dest={tree.path}", f"{tree.path}/", f"{place / 'source'}/"]
    )  # fmt: skip


# ---- what it has got


def _configure(
    place: Path, asked: Mapping[str, str], make: Callable[[Sequence[str]], Finished], *, dry: bool
) -> dict[str, str]:
    """Configure the kernel; gives the options that are set."""
    if any((place / "source" / name).exists() for name in _IN_TREE):
        make(["mrproper"])  # somebody built in the tree; what goes are links to it
    wanted = place / "asked.config"
    if not dry:
        write_whole(wanted, "".join(f"{name}={value}\n" for name, value in asked.items()).encode())
    make([f"O={place / 'build'}", f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"])
    return dict(asked) if dry else config.read(place / "build" / ".config")


def _dropped(sources: Path, asked: Mapping[str, str], got: Mapping[str, str]) -> dict[str, str]:
    """What was asked for and isn't so, and why not."""
    dropped = {name: value for name, value in asked.items() if got.get(name, "n") != value}
    offered = _offered(sources) if dropped else frozenset()
    return {name: _why(name, got.get(name, "n"), offered) for name in dropped}


def _why(option: str, got: str, offered: Set[str]) -> str:
    if option not in offered:
        since = f"; upstream has it since {SINCE[option]}" if option in SINCE else ""
        return f"the tree has no such option{since}"
    return "what it depends on is not set" if got == "n" else f"other options make it {got}"


def _offered(sources: Path) -> frozenset[str]:
    """The options that the tree's Kconfig files tell of."""
    texts = (path.read_text(errors="replace") for path in sources.rglob("Kconfig*"))
    return frozenset(f"CONFIG_{name}" for text in texts for name in _DEFINED.findall(text))


def _require_bootable(tree: Tree, got: Mapping[str, str], dropped: Mapping[str, str]) -> None:
    lacking = [
        f"{option} ({use}): {dropped.get(option, 'it was not asked for')}"
        for option, use in NEEDED.items()
        if got.get(option) != "y"
    ]
    if lacking:
        raise CannotBoot(tree.path, lacking)


# ---- the result


def _keep(
    build: Path, image: Path, directory: Path, shell: Shell, facts: Mapping[str, object]
) -> Kernel:
    """Copy the image without debug information, and the configuration; kernel.json comes last."""
    directory.mkdir(parents=True, exist_ok=True)
    kept, partial_copy = directory / image.name, directory / f".{image.name}.new"
    if image == _VMLINUX:
        shell.run(["objcopy", "--strip-debug", build / image, partial_copy])
    else:
        shutil.copy2(build / image, partial_copy)
    partial_copy.replace(kept)
    write_whole(directory / "config", (build / ".config").read_bytes())
    release = (build / "include/config/kernel.release").read_text().strip()
    kernel = Kernel(release, version_of(release), kept, None, directory / "config", Source.TREE)
    kernel.keep(directory, **facts)
    return kernel
