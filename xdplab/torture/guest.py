"""Promise 1 for virtual machines: each try is a boot."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from xdplab.bench.measure import Means
from xdplab.boot import kept, qemu
from xdplab.build import Build
from xdplab.errors import NotToBeHad
from xdplab.process import Shell
from xdplab.torture import Name, programs
from xdplab.torture.ends import ENDS
from xdplab.torture.exits import ANY, RUN, Command, Exits, Moments
from xdplab.torture.ground import invoke, made
from xdplab.torture.ordeal import Ordeal
from xdplab.torture.programs import IP, MINE, built, copied

PANICS = "panic_filter"
_BOOT: Moments = RUN | {
    "it boots": re.compile(r"^\$ .*qemu-system"),
    "it is made ready": re.compile(r"lo up"),
}
# in place of a user half; a machine whose root is no initramfs is nobody's to crash
_PANIC = """\
#!/bin/sh
echo the guest is about to panic
grep -q " / rootfs " /proc/mounts && echo c >/proc/sysrq-trigger
"""


@contextlib.contextmanager
def opened(means: Means) -> Iterator[Ordeal]:
    """Runs in a guest of the smallest kernel that is in the workspace.

    Raises MissingTools or QemuTooOld, and NotToBeHad if no kernel is there.
    """
    qemu.require(Shell())
    kernels = kept(means.workspace.kernels)
    if not kernels:
        cure = "invoke verify --on vm fetches one"
        raise NotToBeHad("kernel that boots", "the workspace", [], cure)
    kernel = min(kernels, key=lambda one: one.image.stat().st_size)
    with made(means, programs.NAMES) as ground:
        builds = built(means, ground, (MINE,))
        panics = copied(PANICS, means, ground)
        panics.program.write_text(_PANIC)
        ground.workspace.kernels.symlink_to(means.workspace.kernels)
        commands = list(_commands(builds[MINE], panics, kernel.release))
        yield Ordeal(Name.GUEST, 1, Exits(ground, commands, ENDS).once)


def _commands(mine: Build, panics: Build, release: str) -> Iterator[Command]:
    on_vm = ["--on=vm", f"--boot={release}", f"--ip={IP}"]
    sample, other = (f"--sample={one.facts['sources'][0]}" for one in (mine, panics))
    few = ["--interval=0.05", "--rounds=4"]
    yield Command("run on vm", invoke("run", sample, *on_vm, *few), _BOOT, seconds=6.0)
    card = invoke("run", sample, "--dev=eth0", *on_vm, *few)
    yield Command("run on a vm's card", card, _BOOT, seconds=6.0)
    yield Command("verify on vm", invoke("verify", sample, *on_vm), _BOOT, seconds=8.0)
    matrix = invoke("matrix", sample, f"--kernels={release}", "--modes=generic")
    yield Command("matrix", matrix, ANY, seconds=10.0)
    yield Command("a guest that panics", invoke("run", other, *on_vm, *few), _BOOT, seconds=6.0)
