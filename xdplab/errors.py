"""Every error a user can meet, once: its words, its cure, its exit code.

The exit codes tell two failures apart that must never be confused: the sample
did wrong (1), or this machine could not run it (69, EX_UNAVAILABLE of
sysexits.h).  2 is the caller's input, 3 a build that failed.
"""

from __future__ import annotations

import errno
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar


class LabError(Exception):
    """A foreseeable fault: what is wrong, and what the user can do about it."""

    exit_code: ClassVar[int]

    def __init__(self, message: str, cure: str, said: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure
        self.said = said  # by others: a compiler, libbpf, the kernel; see xdplab.explain

    @staticmethod
    def of(error: LabError | OSError) -> LabError:
        """The fault that a user meets; raises what is none of those foreseen here."""
        if isinstance(error, LabError):
            return error
        place = Path(error.filename or Path.cwd())
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            return Denied(place)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            while not place.exists():
                place = place.parent
            return NoSpace.on(place)
        if isinstance(error, FileNotFoundError) and place.is_absolute():
            return Vanished(place)  # what a user names is looked for before it is used
        raise error


class SampleFailed(LabError):
    """The sample was run, and did not do what it should."""

    exit_code = 1


class InputError(LabError):
    """What the user gave can't be used."""

    exit_code = 2


class BuildFailed(LabError):
    """The tree or the pair did not compile."""

    exit_code = 3


class CannotRun(LabError):
    """This machine can't do it, or not now; the sample is not to blame."""

    exit_code = 69


# ---- input


class NotAnAddress(InputError):
    """`--ip` is no IPv4 address."""

    def __init__(self, given: str) -> None:
        super().__init__(
            f"{given!r} is not an IPv4 address",
            "give four numbers from 0 to 255, for example --ip 192.168.1.78",
        )


class TakesNoAddress(InputError):
    """`--ip` is given for a program that can't be told an address."""

    def __init__(self, sample: str) -> None:
        super().__init__(
            f"{sample} takes no address: its user half has no option -i",
            'leave --ip out; or have the user half take one: getopt(argc, argv, "i:...")',
        )


class NotAChoice(InputError):
    """An option that takes one of a few words got another."""

    def __init__(self, option: str, given: object, choices: Iterable[str]) -> None:
        super().__init__(
            f"{option} can't be {str(given)!r}", f"{option} takes one of: {', '.join(choices)}"
        )


class NotANumber(InputError):
    """An option that takes a number got something else."""

    def __init__(self, option: str, given: object, expected: str) -> None:
        super().__init__(f"{option} can't be {str(given)!r}", f"{option} takes {expected}")


class NotAVersion(InputError):
    """No kernel version can be read from this."""

    def __init__(self, given: str) -> None:
        super().__init__(
            f"{given!r} is not a kernel version", "write it like v6.12, 6.1.50 or v7.2-rc3"
        )


class NoSuchInterface(InputError):
    """The network interface isn't there."""

    def __init__(self, dev: str, present: Iterable[str]) -> None:
        super().__init__(
            f"there is no network interface {dev!r} here",
            f"--dev takes one of: {', '.join(present)}",
        )


class NoDevice(InputError):
    """Frames are to be sent, and nobody said into which interface of the machine."""

    def __init__(self, present: Iterable[str]) -> None:
        super().__init__(
            "frames are sent into an interface, and none is named",
            f"--dev takes one of: {', '.join(present)}; one that is nobody else's has invoke lab",
        )


class InterfaceDown(InputError):
    """The network interface is there, and off."""

    def __init__(self, dev: str) -> None:
        super().__init__(f"{dev} is down", f"sudo ip link set dev {dev} up")


class NotAnIpAddress(InputError):
    """An address that is of neither version of IP."""

    def __init__(self, given: str) -> None:
        super().__init__(
            f"{given!r} is neither an IPv4 nor an IPv6 address",
            "give one such as 192.168.1.78 or 2001:db8::78",
        )


class MixedFamilies(InputError):
    """A packet can't be from an IPv4 address to an IPv6 one, nor the other way round."""

    def __init__(self, source: str, target: str) -> None:
        super().__init__(
            f"no packet is from {source} to {target}: one is IPv4, the other IPv6",
            "name both ends, of one kind: --ip is the source, --to the destination",
        )


class NoTarget(InputError):
    """Frames are to be made, and nobody said whom they are for."""

    def __init__(self) -> None:
        super().__init__("nobody is named to send to", "name an address: --to 10.0.1.1")


class NotACapture(InputError):
    """`--pcap` names no file with Ethernet frames that can be sent."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} can't be sent: {why}",
            "name a pcap or pcapng file of an Ethernet interface, as tcpdump -w makes it",
        )


class InterfaceTaken(InputError):
    """An XDP program is attached there already, and is not replaced."""

    def __init__(self, dev: str, program: int, mode: str, holder: str = "") -> None:
        owner = f"{mode} mode, {holder}".removesuffix(", ")
        super().__init__(
            f"{dev} has an XDP program already: id {program}, {owner}",
            f"invoke status; invoke detach --dev {dev}",
        )


class ModeRefused(InputError):
    """The interface's driver hasn't got the demanded mode."""

    def __init__(self, dev: str, mode: str, reason: str, said: str = "") -> None:
        super().__init__(
            f"{dev} has no {mode} XDP: {reason}",
            "leave the choice to --mode auto, or take --mode skb",
            said,
        )


class NativeHindered(InputError):
    """Native mode is demanded of an interface in a state in which its driver refuses it."""

    def __init__(self, dev: str, reasons: Iterable[str], cures: Iterable[str]) -> None:
        why = "; ".join(reasons)
        super().__init__(
            f"{dev} can't have native XDP as it is: {why}",
            "\n".join([*dict.fromkeys(cures), "or leave the choice to --mode auto"]),
            why,
        )


class NotOurs(InputError):
    """A program that this harness did not attach is not detached by it."""

    def __init__(self, dev: str, program: int, mode_word: str) -> None:
        super().__init__(
            f"the XDP program on {dev}, id {program}, was not attached by this harness",
            f"if you are sure: sudo ip link set dev {dev} {mode_word} off",
        )


class NothingRuns(InputError):
    """A command for a running filter finds none."""

    def __init__(self, where: str) -> None:
        super().__init__(f"no filter runs on {where}", f"start one: invoke run --on {where}")


class NotBegun(InputError):
    """exercise: there is no pair to be checked yet."""

    def __init__(self, exercise: str) -> None:
        super().__init__(
            f"there is no pair of the exercise {exercise} yet",
            f"invoke exercise {exercise} tells what is asked, and makes it",
        )


class LogsNothing(InputError):
    """The log is to be read of a kernel half that was built without any."""

    def __init__(self, sample: str, cure: str) -> None:
        super().__init__(f"{sample} as it is built logs nothing", cure)


class NotAFrame(InputError):
    """A text that describes no frame."""

    def __init__(self, why: str) -> None:
        super().__init__(
            why, "write it as scapy does: Ether() / IP(src='192.0.2.1') / UDP(); see docs/cases.md"
        )


class BadCases(InputError):
    """A file of packet cases that can't be used."""

    def __init__(self, file: str, case: str, why: str) -> None:
        where = f"{file}, case {case!r}" if case else file
        super().__init__(f"{where}: {why}", "docs/cases.md tells how a case is written")


class NoCases(InputError):
    """cases: the sample has none."""

    def __init__(self, sample: str) -> None:
        super().__init__(
            f"{sample} has no packet cases: there is no {sample}_cases.toml beside it",
            "docs/cases.md tells how to write one",
        )


class FrameRefused(InputError):
    """The kernel doesn't run a program on something that is no frame to it."""

    least: ClassVar[int] = 14  # bytes: ETH_HLEN of linux/if_ether.h

    def __init__(self, number: int, length: int, said: str) -> None:
        fault = "short" if length < self.least else "long"
        super().__init__(
            f"frame {number}, of {length} bytes, is too {fault} for the kernel to run: {said}",
            f"it takes frames from the {self.least} bytes of an Ethernet header to some 3500 bytes,"
            " since v5.18 to some 70000",
            said,
        )
        self.number = number


class NoTree(InputError):
    """A command needs a tree, and none was set up."""

    def __init__(self, wanted: str | None = None) -> None:
        if wanted:
            super().__init__(f"no tree of {wanted} is set up", f"invoke setup --kernel {wanted}")
        else:
            super().__init__("no kernel tree is set up yet", "invoke setup")


class Denied(InputError):
    """A file or directory of the user's can't be read or written."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"no permission for {path}",
            "a tree must be yours to be built in: copy it, or name another with --tree; and so"
            " must the workspace: INVOKE_WORKSPACE=/some/path",
        )


class SomebodyElses(InputError):
    """Root is to work in a tree that belongs to another user."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(
            f"{path} is {owner}'s: files that root makes in it, {owner} can't remove",
            f"run this as {owner}: only the filter itself is run as root, and the harness asks"
            " sudo for that; or copy the tree",
        )


class NoSandbox(CannotRun):
    """bubblewrap is there, and the kernel doesn't let it make a sandbox."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"no sandbox can be made here: {said.strip()}",
            "it takes user namespaces, which some distributions keep from ordinary users:"
            " see sysctl user.max_user_namespaces kernel.unprivileged_userns_clone"
            " kernel.apparmor_restrict_unprivileged_userns; a container may forbid them too",
        )


class BuildsAsRoot(InputError):
    """Root is to run a tree's make and what it calls, and wasn't told to."""

    def __init__(self) -> None:
        super().__init__(
            "this would run a kernel tree's make, and all that its makefiles call, as root",
            "run this as an ordinary user: only the filter itself is run as root, and the"
            " harness asks sudo for that; where root is all there is, as in a container:"
            " INVOKE_AS_ROOT=1, or as_root: true in invoke.yaml",
        )


class Unfinished(InputError):
    """A git operation is under way in the tree."""

    def __init__(self, path: Path, operation: str) -> None:
        super().__init__(
            f"{path} is in the middle of a git {operation}",
            f"finish it: git {operation} --continue; or give it up: git {operation} --abort",
        )


class Damaged(InputError):
    """A tree whose files aren't as they were released.

    `hurt` tells what can be mended, `git_cures` what git has against it;
    `missing` are files that aren't there, `tracked` those of them that git has.
    """

    def __init__(
        self,
        path: Path,
        tag: str,
        hurt: Iterable[str],
        git_cures: Iterable[str],
        missing: Iterable[str],
        tracked: Iterable[str],
    ) -> None:
        hurt, missing, tracked = list(hurt), list(missing), list(tracked)
        cures = []
        if tracked:
            cures.append(shlex.join(["git", "-C", str(path), "checkout", "HEAD", "--", *tracked]))
        if set(missing) - set(tracked):
            cures.append(
                "copy what is missing from the same release, or get the whole tree anew:"
                f" invoke setup --kernel {tag}"
            )
        if hurt:
            rest = "the rest" if missing else "it"
            cures.append(f"the same command with --mend mends {rest}, until invoke patch --revert")
        cures += [f"or by git: {cure}" for cure in git_cures]
        lacks = [f"it has no {', no '.join(missing)}"] if missing else []
        super().__init__(
            f"{path}, {tag}, is damaged: {'; '.join([*hurt, *lacks])}", "\n".join(cures)
        )


class NotBuiltYet(InputError):
    """A command needs a build, and the pair wasn't built in that tree."""

    def __init__(self, sample: str, version: str, options: Iterable[str]) -> None:
        super().__init__(
            f"{sample} is not built yet for {version}", shlex.join(["invoke", "build", *options])
        )


class NotAKernelTree(InputError):
    """A directory that should be kernel sources isn't."""

    def __init__(self, path: Path, missing: Iterable[str]) -> None:
        super().__init__(
            f"{path} is not a kernel tree with BPF samples: it has no {', no '.join(missing)}",
            "name the top directory of a kernel tree with --tree, or get one: invoke setup",
        )
        self.missing = missing


class UnknownDialect(InputError):
    """samples/bpf is written in a way that no probe knows."""

    def __init__(self, path: Path, lacking: Iterable[tuple[str, Iterable[str]]]) -> None:
        looked = "; ".join(f"{field}: looked for {', '.join(what)}" for field, what in lacking)
        super().__init__(
            f"{path} speaks no dialect known here: {looked}",
            "if this tree's samples/bpf/Makefile does build samples, its words belong into the"
            " table in xdplab/dialect.py",
        )


class PathUnfit(InputError):
    """kbuild refuses spaces and colons in its directory's name."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"kernel trees can't be built under {str(path)!r}: make refuses spaces and colons"
            " in their path",
            "put the tree, or the workspace, elsewhere: INVOKE_WORKSPACE=/some/plain/path",
        )


class NotASample(InputError):
    """No C pair of this name or at this place."""

    def __init__(self, given: str, why: str) -> None:
        super().__init__(
            f"{given!r} is no sample: {why}",
            "a sample is a pair NAME_kern.c and NAME_user.c, at the top level, in samples/, or"
            " at the path that you name",
        )


class AlreadyThere(InputError):
    """new: files that would be written are there."""

    def __init__(self, files: Iterable[Path]) -> None:
        super().__init__(
            f"already there, and not overwritten: {', '.join(map(str, files))}",
            "choose another name, or another directory with --dir",
        )


class CannotMake(InputError):
    """new: the directory can't be made, or not be written to."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"no pair can be made in {path}: {why}", "--dir takes a directory of your own"
        )


class FileInTheWay(InputError):
    """The tree has a file of the user's where the sample's would go."""

    def __init__(self, path: Path, ours: Path) -> None:
        super().__init__(
            f"{path} is there already, and is not what the harness put there",
            f"give {ours} another name, or move it away; a pair in the tree is named with --sample",
        )


class NotOurCommands(InputError):
    """A compile_commands.json of the user's is where ours would go."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is there already, and is not what the harness wrote",
            "move it away, or remove it if nothing else needs it",
        )


class NotACompiler(InputError):
    """`--gcc` or `--clang` names no command that is one."""

    def __init__(self, given: str, kind: str, present: Iterable[str]) -> None:
        super().__init__(
            f"{given!r} is no {kind} that can be run here",
            f"--{kind} takes one of: {', '.join(present)}, or another's path",
        )


class NotATarball(InputError):
    """A tarball that can't be read as a kernel's, or isn't the one that was published."""

    def __init__(self, given: str, why: str) -> None:
        super().__init__(
            f"{given} can't be used as a kernel tarball: {why}",
            "get it anew, or name another linux-*.tar.xz (or .gz, .bz2, .zst):"
            " --source tarball --remote FILE-OR-URL",
        )
        self.why = why


class NoKernelInIt(InputError):
    """What a source gave is no kernel tree."""

    def __init__(self, source: str, missing: Iterable[str]) -> None:
        super().__init__(
            f"{source} is not a kernel tree with BPF samples: it has no {', no '.join(missing)}",
            "name another with --remote, or leave the choice to invoke setup --kernel VERSION",
        )


class NotAnImage(InputError):
    """A file that should be a kernel can't be booted."""

    def __init__(self, path: Path, why: str, cure: str = "") -> None:
        super().__init__(
            f"{path} can't be booted: {why}",
            cure or "name a bzImage or a vmlinux for x86_64, or a kernel of the distribution: 6.1",
        )


class WithoutBpf(InputError):
    """The kernel was built without the bpf system call: no sample can run on it."""

    def __init__(self, release: str, config: Path) -> None:
        super().__init__(
            f"Linux {release} can't load BPF programs: {config} has no CONFIG_BPF_SYSCALL=y",
            "name a kernel that has it, such as the distribution's, or build it with that option",
        )


class NoDriver(InputError):
    """The kernel lacks a driver that the virtual machine's hardware needs."""

    def __init__(self, release: str, driver: str, why: str) -> None:
        super().__init__(
            f"Linux {release} has no {driver}: {why}",
            "name a kernel that has it, such as the distribution's; or one with the directory of"
            " its modules: as `modules` beside it, or as lib/modules/RELEASE",
        )


class ModulesUnfit(InputError):
    """Modules that are not this kernel's, or no modules at all."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"the module {path} can't be loaded: {why}",
            "put the modules of the kernel's own build beside it, as `modules`"
            " (make modules_install INSTALL_MOD_PATH=...)",
        )


class CannotBoot(InputError):
    """A tree that gives no kernel for the virtual machine: options that it can't do without."""

    def __init__(self, path: Path, lacking: Iterable[str]) -> None:
        super().__init__(
            f"a kernel of {path} would be of no use in the virtual machine: it lacks"
            f" {'; '.join(lacking)}",
            "see what the tree's Kconfig says of that, or name another tree with --tree; an option"
            " of your own, in the file of --config, may turn it off",
        )


class NotAConfig(InputError):
    """`--config` names no file of kernel options."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} can't be used as kernel configuration: {why}",
            "write a line for each option, as in a .config: CONFIG_KASAN=y, or CONFIG_VETH=n",
        )


class NotACluster(InputError):
    """`--cluster` is no address that a Dask scheduler can have."""

    def __init__(self, given: str, why: str) -> None:
        super().__init__(
            f"--cluster can't be {given!r}: {why}",
            "give the address that the scheduler prints, tcp://HOST:8786; or tls://HOST:8786, with"
            " certificates (see docs/cluster.md)",
        )


class NotTogether(InputError):
    """Options of which only one can be had."""

    def __init__(self, given: Iterable[str]) -> None:
        options = list(given)
        super().__init__(
            f"{' and '.join(options)} can't be had together",
            "leave out all but one",
        )


class NoPort(InputError):
    """`--prometheus` names a port that can't be listened on."""

    def __init__(self, port: int, why: str) -> None:
        super().__init__(
            f"port {port} can't be listened on: {why}",
            "--prometheus takes a free port from 1024 to 65535, 0 for any that is free, or a file",
        )


class NotWritable(InputError):
    """A file that was named to be written can't be, or must not."""

    def __init__(self, option: str, path: Path, why: str) -> None:
        super().__init__(
            f"{path} can't be written: {why}",
            f"{option} takes a file in a directory that is there and that you can write to",
        )


class BadRules(InputError):
    """Rules of a filter that can't be used: each with its line and the reason."""

    def __init__(self, source: str, faults: Iterable[str]) -> None:
        all_, shown = list(faults), 8
        more = [f"and {len(all_) - shown} more"] if len(all_) > shown else []
        super().__init__(
            f"{source or 'a rule'} can't be used, and nothing was changed: {all_[0]}",
            "\n".join(
                [*all_[1:shown], *more, "a rule is an address or a prefix: 192.0.2.7, 10.0.0.0/8,"
                 " 2001:db8::/32; in a file one a line, behind src, dst or src,dst if need be"]
            ),
        )  # fmt: skip


class RuleRefused(InputError):
    """A rule that is there already is to be added, or one that isn't is to be removed."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why}; nothing was changed", "invoke filter.list shows the rules that are there"
        )


class TooManyRules(InputError):
    """More rules than the filter was made for."""

    def __init__(self, given: int, there: int, most: int) -> None:
        have = f" and has {there:,}" if there else ""
        super().__init__(
            f"{given:,} rules are too many: the filter takes {most:,}{have}",
            f"load it with room for them: invoke filter.load --max-rules {given + there}",
        )


class NothingLoaded(InputError):
    """A command for a filter that is loaded finds none."""

    def __init__(self) -> None:
        super().__init__("no filter is loaded", "load one: invoke filter.load --dev eth0")


class AlreadyLoaded(InputError):
    """A second filter is to be loaded."""

    def __init__(self, said: str) -> None:
        super().__init__(
            said,
            "invoke filter.add and filter.remove change it while it runs; invoke filter.unload"
            " ends it",
        )


class LockedOut(InputError):
    """A filter would cut those by whom this machine is reached."""

    def __init__(self, cut: Iterable[str], cures: Iterable[str]) -> None:
        super().__init__(f"this would cut {'; '.join(cut)}", "\n".join(cures))


class NoCommitDate(InputError):
    """An archive is to be made of sources without history: it would carry the date of today."""

    def __init__(self, checkout: Path, variable: str) -> None:
        super().__init__(
            f"{checkout} is no git repository: nothing says which date its archive is to have",
            f"give it: {variable}=$(date +%s) invoke dist; for the same bytes that of the commit",
        )


class MayLockOut(InputError):
    """A native program is to go where this machine is reached by, and nobody has agreed."""

    def __init__(self, risk: str, limit: str) -> None:
        by_itself = f" or, to have it end by itself, {limit}" if limit else ""
        super().__init__(
            f"{risk}, and a native program may take its link down",
            f"if that may be: --yes{by_itself}; --mode skb leaves the driver alone; a network of"
            " its own is nobody's way in (invoke run --on netns, or --on vm)",
        )


class NotReadings(InputError):
    """A file that should hold a run's readings doesn't."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} holds no readings that can be drawn: {why}",
            "--run takes a run's name or directory, or a file that invoke run --json or --csv"
            " has written, with two readings or more",
        )


class NoReadings(InputError):
    """plot: no run has left any readings."""

    def __init__(self, wanted: str | None, present: Iterable[str]) -> None:
        which = f"no run {wanted!r} has" if wanted else "no run has"
        known = ", ".join(present)
        super().__init__(
            f"{which} left readings to draw",
            f"--run takes a file, or one of: {known}" if known else "make one: invoke run",
        )


class NotATerminal(InputError):
    """Something that asks or is typed into, and nobody is there to answer."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(f"{what} needs a terminal, and its standard input is none", cure)


class NoCommand(InputError):
    """`--command` is none that can be run."""

    def __init__(self, given: str, why: str) -> None:
        super().__init__(
            f"--command can't be {given!r}: {why}",
            "it takes a command and its arguments; for a shell's own words name the shell:"
            " --command \"sh -c 'ping -c 1 10.0.1.1 && ip route'\"",
        )


class NoShell(InputError):
    """The user's shell can't be run."""

    def __init__(self, given: str) -> None:
        super().__init__(
            f"there is no shell {given!r}",
            "name one: SHELL=/bin/bash invoke lab; or give a command with --command",
        )


class NoLab(InputError):
    """A lab is to be joined, and none is there."""

    def __init__(self) -> None:
        super().__init__(
            "there is no lab to be joined", "make one, in another terminal: invoke lab"
        )


class CannotRevert(InputError):
    """Somebody edited the very lines that are to be taken back."""

    def __init__(self, path: Path, line: int, why: str) -> None:
        super().__init__(
            f"{path}:{line} was edited since it was patched; nothing was reverted",
            f"take back your edit of that line first; it was put there for: {why}",
        )


class PatchDoesNotApply(InputError):
    """A patch of the series fits neither forwards nor backwards."""

    def __init__(self, patch: Path, tree: Path, reason: str) -> None:
        super().__init__(
            f"{patch.name} does not apply to {tree}: {reason}",
            "if the tree has it in another form, narrow its range in patches/series",
        )


class BadSeries(InputError):
    """A line of patches/series can't be read."""

    def __init__(self, path: Path, line: int, text: str, why: str) -> None:
        super().__init__(
            f"{path}:{line}: {why}: {text!r}",
            "a line is: FILE SINCE UNTIL REASON, with '-' for an open end",
        )


# ---- build


class LeadsOut(BuildFailed):
    """A link in the tree, where the harness reads and writes, to a place outside of it."""

    def __init__(self, link: Path, target: Path) -> None:
        super().__init__(
            f"{link} leads out of the tree, to {target}: nothing is read or written there",
            "a makefile, or whoever made the tree, put it there; look at what the tree is, and"
            " remove the link",
        )


class MakeFailed(BuildFailed):
    """make, or a compiler under it, returned an error."""

    def __init__(self, what: str, log: Path, said: str) -> None:
        super().__init__(
            f"{what} failed; the compiler's words are above", f"whole log: {log}", said
        )


class TreeFails(BuildFailed):
    """make failed for a file of the tree, not for the pair."""

    def __init__(self, what: str, fault: str, cure: str, log: Path) -> None:
        super().__init__(f"{what} failed: {fault}", f"{cure}\nwhole log: {log}")


class NotBuilt(BuildFailed):
    """make, or what it was heard to run, returned 0 and yet did not build what was asked.

    kbuild's pipe of clang into llc hides clang's exit code from v5.0 on, and a
    program list in the wrong variable is silently ignored.
    """

    def __init__(self, path: Path, why: str, log: Path, by: str = "make") -> None:
        super().__init__(f"{by} returned 0, but {path} {why}", f"whole log: {log}")


class UnfitKernelHalf(BuildFailed):
    """A kernel half that compiles, and still is no program that could be attached."""

    def __init__(self, path: Path, why: str, cure: str) -> None:
        super().__init__(f"{path} can't be run: {why}", cure)


class CompilerGaveUp(BuildFailed):
    """matrix: the pair did not compile; the compiler's first word for it, and all of them."""

    def __init__(self, said: str, context: Iterable[str], log: str) -> None:
        super().__init__(said.strip(), "\n".join([*context, log]))


# ---- this machine, now


class MissingTools(CannotRun):
    """Programs that the build needs aren't installed."""

    def __init__(self, tools: Iterable[str], group: str) -> None:
        super().__init__(f"not found on PATH: {', '.join(tools)}", f"scripts/bootstrap {group}")


class NotALog(InputError):
    """A file that should hold what was printed can't be read."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path} can't be read: {why}", "name a file, or give the text on standard input"
        )


class NothingKnown(InputError):
    """explain: a text without a message that is known."""

    def __init__(self) -> None:
        super().__init__(
            "nothing in it is known here",
            "give it all that was printed, the first error too: the lines that follow an error"
            " are often about something else; a new one belongs into templates/explanations.toml",
        )


class UnlikeTools(CannotRun):
    """clang and the LLVM tools that read its output are of different releases."""

    def __init__(self, clang: str, number: str, llc: str, other: str) -> None:
        super().__init__(
            f"{clang} is LLVM {number or 'of no known release'}, but {llc} is {other or 'not'}:"
            " neither reads what the other writes",
            f"install llvm-{number}, or choose a clang whose release is whole with --clang",
        )


class NeedsRoot(CannotRun):
    """Neither root nor sudo."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} needs root: {why}", "run as root, or where sudo lets you")


class Changeable(CannotRun):
    """Root is to run a file in whose place somebody else could put another."""

    def __init__(self, file: Path, place: Path) -> None:
        super().__init__(
            f"root doesn't run {file}: others could put something else there, as {place} isn't"
            " yours and root's alone",
            f"ls -ld {shlex.quote(str(place))} says whose it is; work in a place of your own,"
            " INVOKE_WORKSPACE=/some/path, or chmod go-w what is yours",
        )


class NotPermitted(CannotRun):
    """Root, but the kernel says no: a container, lockdown, a missing capability."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"this kernel doesn't let BPF be used here: {said}",
            "XDP needs CAP_BPF and CAP_NET_ADMIN (CAP_SYS_ADMIN before v5.8) in the machine's"
            " first user namespace; containers usually lack them",
        )


class Unfit(CannotRun):
    """doctor: something that is needed isn't there."""

    def __init__(self, missing: Iterable[str], cures: Iterable[str]) -> None:
        which = list(missing)
        super().__init__(
            f"this machine lacks what is needed: {', '.join(which)}",
            "\n".join(dict.fromkeys(cures)),
        )


class NotLaidOut(CannotRun):
    """The lab's network can't be made."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"the lab can't be made: {said.strip()}",
            "it takes network namespaces and veth pairs, and CAP_SYS_ADMIN and CAP_NET_ADMIN to"
            " make them, which containers usually lack",
        )


class NoTracing(CannotRun):
    """What BPF programs log can't be read: no tracefs, or not for us."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"the kernel's log of BPF programs can't be read: {said.strip() or 'no word why'}",
            "tracefs must be there: sudo mount -t tracefs tracefs /sys/kernel/tracing\n"
            "in a container that needs CAP_SYS_ADMIN; or follow it in a virtual machine:"
            " invoke run --on vm --trace",
        )


class NoBpffs(CannotRun):
    """The kernel's file system for BPF objects isn't mounted where the filter keeps its maps."""

    def __init__(self, place: Path) -> None:
        super().__init__(
            f"no bpf file system is mounted on {place}: the filter keeps its maps there",
            f"invoke doctor --fix mounts it, and so does: sudo mount -t bpf bpf {place}",
        )


class NoSpace(CannotRun):
    """A disk or a quota is full, or would be."""

    _SAID = re.compile("No space left on device|Disk quota exceeded")  # by strerror(3)

    def __init__(self, what: str) -> None:
        super().__init__(
            f"not enough space {what}",
            "make room (invoke clean --trees removes fetched trees), or put the workspace on"
            " another disk: INVOKE_WORKSPACE=/other/place",
        )

    @classmethod
    def on(cls, path: Path, needed: int | None = None) -> NoSpace:
        """On the disk of a path that is there, where so many bytes are needed."""
        free = f"{shutil.disk_usage(path).free // 2**20} MiB are free"
        if needed is None:
            return cls(f"on the disk of {path}, or in a quota of its: {free}")
        return cls(f"on the disk of {path}: {needed // 2**20} MiB are needed, {free}")

    @classmethod
    def told(cls, said: str) -> NoSpace | None:
        """What a command that failed tells of it, if it failed for that."""
        found = next(filter(cls._SAID.search, said.splitlines()), None)
        return cls(f"for what was run: {found.strip()}") if found else None


class Held(CannotRun):
    """Another process is at work on the same thing."""

    def __init__(self, what: Path, holder: str) -> None:
        super().__init__(f"{what} is being worked on by {holder}", "wait for it, or end it")


class Vanished(CannotRun):
    """A file of the harness's own that was there a moment ago."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is not there any more",
            "another command has removed it meanwhile, invoke clean perhaps; the same command"
            " again tells what has to be made anew",
        )


class Wrecked(CannotRun):
    """A record of the harness's own that somebody or something damaged."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is damaged: it is no JSON",
            "remove it: what it remembered is then forgotten, and has to be taken back by hand",
        )


class Unreachable(CannotRun):
    """A remote that can't be had, with what it or the network said."""

    def __init__(self, what: str, said: str, cure: str) -> None:
        super().__init__(f"{what} can't be reached: {said}", cure)


class BadDownload(CannotRun):
    """What a server sent isn't what was published, or no tarball at all."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"what came from {url} can't be used: {why}",
            "it was removed: the same command fetches it anew; --remote names another place",
        )


class AlteredKernel(CannotRun):
    """Somebody, or a disk, has changed a kernel since it was built here."""

    def __init__(self, directory: Path, changed: Iterable[str]) -> None:
        super().__init__(
            f"the kernel in {directory} isn't what was built: changed is {', '.join(changed)}",
            "invoke kernel puts it there anew; if nobody of yours has done that, find out who has",
        )


class NotToBeHad(CannotRun):
    """The source answers, but hasn't got this version."""

    def __init__(self, version: str, source: str, offered: Iterable[str], cure: str = "") -> None:
        has = ", ".join(offered) or "nothing of the kind"
        super().__init__(
            f"{source} has no {version}; it has {has}",
            cure or "name another with --kernel, or another --source",
        )


class CommandFailed(CannotRun):
    """A tool outside kbuild (git, apt, tar, ip) failed."""

    def __init__(self, command: str, code: int, said: str) -> None:
        super().__init__(
            f"this failed with exit code {code}: {command}",
            said.strip() or "it said nothing; run it by hand to see more",
            said,
        )


class SessionLost(CannotRun):
    """A process that must be there for a run to mean something went away."""

    def __init__(self, what: str, said: str) -> None:
        super().__init__(f"{what} ended unexpectedly", said.strip() or "it said nothing")


class NotAllTried(CannotRun):
    """matrix: nothing failed, but of some cells nothing can be said."""

    def __init__(self, untried: Iterable[str], cure: str) -> None:
        which = list(untried)
        super().__init__(f"{len(which)} could not be tried: {'; '.join(which)}", cure)


class StepNotTried(CannotRun):
    """tutorial --yes: a step can't be taken on this machine."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"step {step} of the tutorial can't be taken here; why is told above",
            f"then go on from there: invoke tutorial --yes --from {step}",
        )


class NotAudited(CannotRun):
    """audit: who knows of vulnerabilities can't be asked."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"skipped, nothing was audited: {why}",
            "where pypi.org can't be reached, name a mirror of OSV's:"
            " PIP_AUDIT_VULNERABILITY_SERVICE=osv PIP_AUDIT_OSV_URL=https://HOST/v1/query",
        )


# ---- virtual machines


def _how_it_ended(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


class QemuTooOld(CannotRun):
    """A QEMU that can't do what the harness needs."""

    def __init__(self, found: str, needed: str) -> None:
        super().__init__(
            f"QEMU {needed} or newer is needed, and this is: {found or 'no QEMU'}",
            "install a newer one (a distribution's backports may have it), or run without a"
            " virtual machine: --on netns",
        )


class NoBoot(CannotRun):
    """A kernel that doesn't get as far as its first command."""

    def __init__(self, image: Path, why: str, last: str) -> None:
        super().__init__(f"{image} doesn't boot: {why}", last)


class GuestLost(CannotRun):
    """QEMU is gone, and no panic of the guest's is the cause."""

    def __init__(self, code: int, said: Iterable[str], last: str) -> None:
        super().__init__(f"QEMU {_how_it_ended(code)} in the midst of it", "\n".join([*said, last]))


class GuestHangs(CannotRun):
    """The guest doesn't answer any more."""

    def __init__(self, command: str, seconds: float, last: str) -> None:
        super().__init__(
            f"the guest hangs: no answer to {command!r} for {seconds:.0f} seconds", last
        )


class GuestPanic(SampleFailed):
    """The guest's kernel gave up while the sample ran in it."""

    def __init__(self, panic: str, last: str) -> None:
        super().__init__(f"the kernel panicked: {panic}", last)


class KernelSplat(SampleFailed):
    """The guest's kernel reported trouble of its own: a warning, an oops, a bug."""

    def __init__(self, reports: Sequence[str], log: Path) -> None:
        more = f" (and {len(reports) - 1} more)" if len(reports) > 1 else ""
        super().__init__(f"the kernel reported: {reports[0]}{more}", f"its whole log: {log}")


# ---- clusters


class NoDask(CannotRun):
    """Dask's library is an extra, and isn't installed."""

    def __init__(self) -> None:
        super().__init__(
            "a cluster needs Dask's library, distributed, which isn't installed",
            "scripts/bootstrap cluster",
        )


class NoWorkers(CannotRun):
    """A Dask scheduler that has nobody to do anything."""

    def __init__(self, address: str) -> None:
        super().__init__(
            f"the cluster at {address} has no worker",
            "start one, on each of its machines, in a checkout of this library:"
            f" .venv/bin/python -m dask worker {address} (see docs/cluster.md)",
        )


class UnfitWorkers(CannotRun):
    """Workers that can't do what is asked of them: each with the reason."""

    def __init__(self, workers: Iterable[str]) -> None:
        which = list(workers)
        super().__init__(
            f"workers of the cluster can't be used: {'; '.join(which)}",
            "on their machines: the same checkout as here, scripts/bootstrap vm cluster, and the"
            " worker started anew (see docs/cluster.md)",
        )


class WorkerLost(CannotRun):
    """Whoever had a cell is gone, and nobody is left to try it once more."""

    def __init__(self, workers: Iterable[str], said: str) -> None:
        tried = " and ".join(workers) or "no worker"
        super().__init__(
            f"the cluster lost it: {tried} had it, and gave no result",
            f"Dask says: {said}\nwhat workers print tells more, and so does their machine's log"
            " (dmesg: out of memory?)",
        )


# ---- the sample


class DidNotAttach(SampleFailed):
    """The binary ended before its program was on the interface."""

    def __init__(self, dev: str, code: int, shown: str, said: str) -> None:
        super().__init__(
            f"the sample did not attach to {dev}, exit code {code}",
            shown.strip() or "it said nothing",
            said,
        )


class StillAttached(SampleFailed):
    """The binary is gone, its program is not."""

    def __init__(self, dev: str, program: int) -> None:
        super().__init__(f"program {program} is still on {dev}", f"invoke detach --dev {dev}")


class EndedBadly(SampleFailed):
    """The binary attached, and later ended with an error."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(
            f"the sample {_how_it_ended(code)}", said.strip() or "it said nothing", said
        )


class ClaimsFailed(SampleFailed):
    """verify: at least one claim did not hold."""

    def __init__(self, failed: Iterable[str], log: Path) -> None:
        super().__init__(f"not as claimed: {'; '.join(failed)}", f"what it printed: {log}")


class KnownVulnerable(SampleFailed):
    """audit: something is known against packages that are locked."""

    def __init__(self, found: Iterable[str]) -> None:
        super().__init__(
            f"vulnerable, as is known: {'; '.join(found)}",
            "scripts/lock --upgrade takes the newest that fit pyproject.toml",
        )


class NotSolved(SampleFailed):
    """exercise: something of what was looked at is not as asked."""

    def __init__(self, exercise: str, wrong: int, file: Path) -> None:
        super().__init__(
            f"the exercise {exercise} isn't solved yet: {wrong} wrong, each with the reason above",
            f"edit {file}, or its other half, and check again; invoke exercise {exercise} --hint"
            " helps",
        )


class FramesAstray(SampleFailed):
    """bench: a filter didn't drop all that was sent to it, and only that."""

    def __init__(self, dev: str, sent: int, dropped: int) -> None:
        super().__init__(
            f"{sent:,} frames were sent to {dev}, and {dropped:,} were dropped",
            "nothing can be said of a filter that lets through what it should drop; did anybody"
            " else send, or change its rules?",
        )


class OtherVerdict(SampleFailed):
    """bench: a program didn't make of a frame what it was to be timed for."""

    def __init__(self, wanted: str, returned: str) -> None:
        super().__init__(
            f"its verdict was {returned}, where {wanted} was to be timed",
            "nothing can be said of a program that leaves early; were its rules changed?",
        )


class NotMeasured(SampleFailed):
    """bench: a way failed while it was measured."""

    def __init__(self, failed: Iterable[str]) -> None:
        super().__init__(
            f"could not be measured: {'; '.join(failed)}",
            "what it says is the cause; the rest was measured, and is kept",
        )


class Broken(SampleFailed):
    """torture: a promise did not hold."""

    def __init__(self, found: Sequence[str], again: Sequence[str]) -> None:
        super().__init__(
            f"{len(found)} times a promise did not hold: {'; '.join(dict.fromkeys(found))}",
            "\n".join(["each has its seed, which tries it again first:", *again[:5]]),
        )


class NotAllPassed(SampleFailed):
    """survey and matrix: something was tried and failed."""

    def __init__(self, failed: Iterable[str], cure: str) -> None:
        which = list(failed)
        super().__init__(f"{len(which)} failed: {'; '.join(which)}", cure)


class StepFailed(SampleFailed):
    """tutorial --yes: a step was taken, and its check did not hold."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"step {step} of the tutorial failed; what was found is told above",
            f"take it alone: invoke tutorial --step {step}",
        )
