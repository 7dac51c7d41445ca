"""What the harness needs of a machine, as data: each row a thing, why, and the cure.

xdplab.probes finds out what there is; xdplab.doctor puts the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdplab import probes
from xdplab.probes import Probe
from xdplab.version import Range

ALWAYS = Range(None, None)


@dataclass(frozen=True, slots=True)
class Need:
    """A thing that something here needs.

    The cure is one line for a shell, with {dev} for the interface; from "#" on it
    is for people alone.
    """

    section: str
    what: str
    probe: Probe  # is asked about `about`, or else about `what`
    needed: str
    why: str
    cure: str
    about: str = ""
    must: bool = True  # else the tutorial gets by without it
    fix: bool = False  # --fix may run the cure: it installs packages, or a reboot undoes it
    kernels: Range = ALWAYS  # the running kernels that it matters for


_TREE = "invoke build: the oldest that the tree takes"
_BOOT_IT = "invoke verify --on vm  # another kernel, in a virtual machine"
_OTHER_SHELL = "grep Cap /proc/self/status  # of a container, its --cap-add gives them"

TOOLS = (
    Need("tools", "for building", probes.group, "group build of scripts/packages",
         "invoke setup, build", "scripts/bootstrap build", about="build", fix=True),
    Need("tools", "for running", probes.group, "group run of scripts/packages",
         "invoke run, verify", "scripts/bootstrap run", about="run", fix=True),
    Need("tools", "for virtual machines", probes.group, "group vm of scripts/packages",
         "--on vm, invoke matrix", "scripts/bootstrap vm", about="vm", must=False, fix=True),
    Need("tools", "python", probes.python, "3.11", "the harness itself",
         "scripts/bootstrap build run"),
    Need("tools", ".venv", probes.python_packages, "of requirements.lock", "the harness itself",
         "scripts/bootstrap build run", must=False),
    Need("tools", "git", probes.git, "2.25", "invoke setup: sparse checkouts",
         "scripts/bootstrap build", must=False),
    Need("tools", "gcc", probes.tool, "", _TREE, "export INVOKE_GCC=gcc-13  # one that is newer"),
    Need("tools", "clang", probes.tool, "", f"{_TREE} for a kernel, the samples may do with less",
         "export INVOKE_CLANG=clang-19  # one that is newer", must=False),
    Need("tools", "clang and llc", probes.toolchain, "of one release",
         "invoke build: llc reads what clang writes",
         "scripts/bootstrap build  # and llvm-N beside clang-N", fix=True),
    *(Need("tools", name, probes.tool, "", _TREE, "scripts/bootstrap build")
      for name in ("make", "ld", "flex", "bison", "bc")),
    Need("tools", "pahole", probes.tool, "", "invoke kernel: BTF in the kernel that it builds",
         "sudo apt-get install pahole", must=False),
    Need("tools", "bpftool", probes.bpftool, "one that runs", "invoke status, tests",
         "scripts/bootstrap run  # on Ubuntu: sudo apt-get install linux-tools-$(uname -r)",
         must=False, fix=True),
    Need("tools", "QEMU", probes.emulator, "7.2", "--on vm, invoke matrix",
         "scripts/bootstrap vm", must=False),
    Need("tools", "KVM", probes.kvm, "a guest that boots with it",
         "--on vm: without it kernels boot in seconds more",
         "ls -l /dev/kvm  # in a virtual machine: its host has to pass it on, and do it well",
         must=False),
    Need("tools", "free space", probes.space, "3 GiB",
         "invoke setup: a whole tree and its package",
         "export INVOKE_WORKSPACE=/other/place", must=False),
)  # fmt: skip


def _option(name: str, why: str, *, must: bool = False) -> Need:
    cure = f"{_BOOT_IT}, or this one built with {name}=y"
    return Need("kernel", name, probes.option, "y or m", why, cure, must=must)


KERNEL = (
    Need("kernel", "configuration", probes.readable_config, "readable", "the checks of options",
         "sudo modprobe configs", must=False),
    _option("CONFIG_BPF_SYSCALL", "every command that loads a program", must=True),
    _option("CONFIG_NET_NS", "--on netns, which is invoke verify's usual place", must=True),
    _option("CONFIG_BPF_JIT", "speed: else programs are interpreted"),
    _option("CONFIG_BPF_EVENTS", "invoke build --trace: bpf_trace_printk()"),
    _option("CONFIG_VETH", "native XDP without a card for it"),
    _option("CONFIG_DEBUG_INFO_BTF", "invoke build --all-samples"),
    _option("CONFIG_XDP_SOCKETS", "samples of the tree that use AF_XDP"),
    _option("CONFIG_NET_CLS_BPF", "samples of the tree that filter with tc"),
    Need("kernel", "BTF", probes.btf, "of the running kernel",
         "invoke build --all-samples; maps that bpftool shows with names",
         f"{_BOOT_IT}, or this one built with CONFIG_DEBUG_INFO_BTF=y", must=False),
    Need("kernel", "vmlinux for all samples", probes.vmlinux_for_samples, "a kernel with BTF",
         "invoke build --all-samples: this tree's Makefile asks for VMLINUX_BTF",
         "make VMLINUX_BTF=/path/of/a/vmlinux M=samples/bpf  # in the tree, by hand",
         must=False),
    Need("kernel", "net.core.bpf_jit_enable", probes.sysctl, "1",
         "speed: else programs are interpreted", "sudo sysctl -w net.core.bpf_jit_enable=1",
         must=False),
    Need("kernel", "kernel.unprivileged_bpf_disabled", probes.sysctl, "1 or 2",
         "safety: with 0 every user may load programs; the harness needs no such thing",
         "sudo sysctl -w kernel.unprivileged_bpf_disabled=2", must=False),
    Need("kernel", "lockdown", probes.lockdown, "none or integrity",
         "the kernel half's log: confidentiality closes tracefs",
         "cat /sys/kernel/security/lockdown  # start it without lockdown=confidentiality",
         must=False),
    Need("kernel", "bpffs", probes.mount, "mounted", "bpftool: programs that are pinned",
         "sudo mount -t bpf bpf /sys/fs/bpf", about="bpf", must=False, fix=True),
    Need("kernel", "tracefs", probes.mount, "mounted", "the kernel half's log",
         "sudo mount -t tracefs tracefs /sys/kernel/tracing", about="tracefs", must=False,
         fix=True),
)  # fmt: skip


def _capability(name: str, why: str, *, kernels: Range = ALWAYS, must: bool = True) -> Need:
    return Need("rights", name, probes.capability, "root has it", why, _OTHER_SHELL, must=must,
                kernels=kernels)  # fmt: skip


_OWN_CAPABILITY = Range.parse("v5.8", "")  # a17b53c4a4b5
_LOCKED_MEMORY = Range.parse("", "v5.11")  # charged to RLIMIT_MEMLOCK before

RIGHTS = (
    Need("rights", "root", probes.root, "root or sudo", "every command that loads a program",
         "sudo --validate"),
    Need("rights", "user namespace", probes.user_namespace, "the machine's first",
         "loading programs: root of a rootless container is none",
         "invoke verify --on vm  # that needs no root"),
    _capability("CAP_BPF", "loading a program", kernels=_OWN_CAPABILITY),
    _capability("CAP_NET_ADMIN", "attaching it to an interface"),
    _capability("CAP_NET_RAW", "invoke send, verify: packets with another's address"),
    _capability("CAP_SYS_ADMIN", "--on netns; before v5.8 loading programs too"),
    _capability("CAP_PERFMON", "programs that read kernel memory; tracing", must=False,
                kernels=_OWN_CAPABILITY),
    _capability("CAP_SYS_RESOURCE", "raising RLIMIT_MEMLOCK", kernels=_LOCKED_MEMORY),
    Need("rights", "RLIMIT_MEMLOCK", probes.memlock, "unlimited, or to be raised",
         "maps and programs, which count as locked memory before v5.11",
         "ulimit -l unlimited", kernels=_LOCKED_MEMORY),
)  # fmt: skip

INTERFACE = (
    Need("interface", "driver", probes.interface, "any", "which modes it can have",
         "ip -details link show dev {dev}", must=False),
    Need("interface", "state", probes.up, "up", "packets to be seen",
         "sudo ip link set dev {dev} up", must=False),
    Need("interface", "XDP program", probes.free, "none",
         "invoke run: somebody else's program is never replaced",
         "invoke status; invoke detach --dev {dev}"),
    Need("interface", "carries", probes.spared, "nothing that would be missed",
         "invoke run: a filter that is wrong cuts it",
         "invoke run --on netns  # or --duration 10, with a second way in", must=False),
    Need("interface", "queues", probes.queues, "one to receive for each CPU",
         "speed: packets of one queue are filtered by one CPU",
         "sudo ethtool --set-channels {dev} combined $(nproc)", must=False),
    Need("interface", "native mode", probes.native, "where the driver has it",
         "speed; --mode auto takes generic instead", "invoke run --dev {dev} --mode skb",
         must=False),
    Need("interface", "generic mode", probes.generic, "to attach", "--mode auto and skb",
         "invoke verify --on vm"),
)  # fmt: skip

NEEDS = (*TOOLS, *KERNEL, *RIGHTS, *INTERFACE)
