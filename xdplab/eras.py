"""What changed for the post's program since v4.19, as data, and the page that shows it.

Nothing here is asked when a tree is built: there it is read from the tree
(xdplab.dialect) or tested by the preprocessor (xdp_compat.h).  This is what people
who port a program by hand need to know, in the order in which it happened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from xdplab import TUTORIAL
from xdplab.dialect import PROBES, Dialect
from xdplab.files import write_whole
from xdplab.patching import SERIES, read_series
from xdplab.survey import Proof, recorded
from xdplab.templates import render
from xdplab.verify import Outcome
from xdplab.version import KernelVersion, Range
from xdplab.workspace import PROJECT

PAGE = PROJECT / "docs" / "kernels.md"


@dataclass(frozen=True, slots=True)
class Era:
    """A stretch of versions in which the post's program is written in one way."""

    title: str
    versions: Range
    example: str  # the version whose words are shown


ERAS = (
    Era("As in the post", Range.parse("v4.19", "v5.5"), "v5.0"),
    Era("New words, the old loader", Range.parse("v5.5", "v5.11"), "v5.10"),
    Era("libbpf alone", Range.parse("v5.11", "v5.15"), "v5.14"),
    Era("Samples that ask for a vmlinux", Range.parse("v5.15", "v6.0"), "v5.19"),
    Era("libbpf 1", Range.parse("v6.0", "v6.13"), "v6.12"),
    Era("make moves into the directory", Range.parse("v6.13", ""), "v7.2"),
)


@dataclass(frozen=True, slots=True)
class Shift:
    """Something upstream changed, what that does to the post's program, and our answer to it."""

    since: str
    commit: str  # upstream's; "" where it was many
    what: str
    post: str
    here: str


SHIFTS = (
    Shift(
        "v5.0", "", "libbpf takes an object that doesn't name its kernel version",
        "Nothing: its loader never asked. With libbpf, v4.19 says `doesn't provide kernel"
        " version`.",
        "`BPF_KERNEL_VERSION` in xdp_compat.h names it, for all.",
    ),
    Shift(
        "v5.0", "", "a failed clang is hidden by the pipe into llc",
        "make returns 0 and keeps an object of 400 bytes with nothing in it.",
        "`-o pipefail`, and a look into the ELF file.",
    ),
    Shift(
        "v5.3", "abd29c931459", "maps described by BTF, in the section `.maps`",
        "Nothing yet: both ways work up to v5.19.",
        "`BPF_MAP()` in xdp_compat.h is the new way where `__uint` is there, else the post's.",
    ),
    Shift(
        "v5.3", "458bf2f224f0", "generic XDP runs later, for stacked devices too",
        "Cloned packets, most of TCP on `lo`, pass unseen from here to v5.6.",
        "ICMP is what `verify` sends; [readings](readings.md) tells of the rest.",
    ),
    Shift(
        "v5.4", "394053f4a4b3", "single targets of make follow the Makefiles",
        "`make samples/bpf/` returns 0 and has done nothing.",
        "`make M=samples/bpf`.",
    ),
    Shift(
        "v5.5", "1d97c6c2511f", "samples/bpf builds its programs by rules of its own: `tprogs-y`",
        "`hostprogs-y` is a list that nobody builds as samples: no libbpf is linked.",
        "The variable is read from the tree.",
    ),
    Shift(
        "v5.5", "e01a75c15969", "`bpf_helpers.h` moves into libbpf",
        "`fatal error: 'bpf_helpers.h' file not found`.",
        "`__has_include` in xdp_compat.h.",
    ),
    Shift(
        "v5.6", "5f2fb52fac15", "`always` is called `always-y`, `hostprogs-y` `hostprogs`",
        "The object is not built, without a word.",
        "The variable is read from the tree.",
    ),
    Shift(
        "v5.9", "aa8d3a716b59", "bpf_link for XDP",
        "Nothing, but its program stays attached after `kill -9`; a link's would not.",
        "A link where the running kernel has it, a watchdog elsewhere.",
    ),
    Shift(
        "v5.11", "ceb5dea56543", "`bpf_load.c` is removed",
        "`No rule to make target 'samples/bpf/bpf_load.c'`.",
        "The user half loads through libbpf in every tree.",
    ),
    Shift(
        "v5.11", "", "BPF memory is charged to the cgroup, no longer to RLIMIT_MEMLOCK",
        "It gives up where the limit can't be raised, without need.",
        "Tried, and told only if loading fails too.",
    ),
    Shift(
        "v5.15", "384b6b3bbf0d", "samples generate a vmlinux.h",
        "Building all samples stops: `Cannot find a vmlinux for VMLINUX_BTF`.",
        "One pair needs none; `--all-samples` gives the running kernel's.",
    ),
    Shift(
        "v5.16", "3f7a3318a7c6", "the samples' libbpf is built in samples/bpf/libbpf",
        "Nothing; v5.15.y has it too, from somewhere after v5.15.16 on.",
        "Read from the tree; `invoke clean` takes it out wherever it is.",
    ),
    Shift(
        "v5.18", "c359821ac65b", "`bpf_xdp_attach()`",
        "A warning that `bpf_set_link_xdp_fd()` is deprecated.",
        "LIBBPF_MAJOR_VERSION decides in xdp_compat.h.",
    ),
    Shift(
        "v6.0", "53e6af3a761c", "libbpf 1.0 removes what was deprecated",
        "`implicit declaration of function 'bpf_set_link_xdp_fd'`.",
        "`bpf_xdp_attach()`.",
    ),
    Shift(
        "v6.0", "bd054102a8c7", "libbpf 1.0 refuses maps in the section `maps`",
        "`legacy map definitions in 'maps' section are not supported by libbpf v1.0+`.",
        "`BPF_MAP()`.",
    ),
    Shift(
        "v6.0", "450b167fb9be", "libbpf 1.0 guesses a program's type from known sections only",
        "`missing BPF prog type, check ELF section name 'xdp_ip_filter'`.",
        "The user half says BPF_PROG_TYPE_XDP, so the section keeps the post's name.",
    ),
    Shift(
        "v6.1", "dc567045f159", "`struct bpf_map_def` leaves bpf_helpers.h",
        "`variable has incomplete type 'struct bpf_map_def'`.",
        "`BPF_MAP()`.",
    ),
    Shift(
        "v6.13", "13b25489b6f8", "make with M= works inside the directory",
        "`samples/bpf/NAME` is no target any more, and errors name files without a directory.",
        "`$(obj)/NAME`; errors are shown at your own file, whichever way they come.",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a piece of the C pair is written in some versions."""

    half: str  # kern or user
    versions: Range
    code: str


SPELLINGS = (
    Spelling("kern", Range.parse("", "v5.5"), '#include "bpf_helpers.h"'),
    Spelling("kern", Range.parse("v5.5", ""), "#include <bpf/bpf_helpers.h>"),
    Spelling(
        "kern", Range.parse("", "v5.3"),
        'struct bpf_map_def SEC("maps") ip_map = {\n'
        "\t.type = BPF_MAP_TYPE_HASH,\n\t.key_size = sizeof(__u32),\n"
        "\t.value_size = sizeof(__u32),\n\t.max_entries = 1,\n};",
    ),
    Spelling(
        "kern", Range.parse("v5.3", ""),
        "struct {\n\t__uint(type, BPF_MAP_TYPE_HASH);\n\t__uint(max_entries, 1);\n"
        '\t__type(key, __u32);\n\t__type(value, __u32);\n} ip_map SEC(".maps");',
    ),
    Spelling(
        "user", Range.parse("", "v5.11"),
        'load_bpf_file("xdp_ip_filter_kern.o"); /* or through libbpf, as below from v5.11 on */',
    ),
    Spelling(
        "user", Range.parse("v5.11", ""),
        'obj = bpf_object__open("xdp_ip_filter_kern.o");\n'
        "bpf_object__for_each_program(prog, obj)\n"
        "\tbpf_program__set_type(prog, BPF_PROG_TYPE_XDP);\nbpf_object__load(obj);",
    ),
    Spelling("user", Range.parse("", "v6.0"), "bpf_set_link_xdp_fd(ifindex, prog_fd, flags);"),
    Spelling("user", Range.parse("v6.0", ""), "bpf_xdp_attach(ifindex, prog_fd, flags, NULL);"),
)  # fmt: skip


def mainline(version: KernelVersion) -> Dialect:
    """The dialect that upstream's tree of a version has, by the dates of the probes."""
    found: dict[str, str] = {}
    for probe in PROBES:
        if version in Range.parse(probe.since, probe.until):
            found.setdefault(probe.field, probe.value)
    return Dialect(**found)


# ---- the page


@dataclass(frozen=True, slots=True)
class Section:
    """An era as the page shows it."""

    era: Era
    shifts: list[Shift]
    makefile: str
    spellings: list[Spelling]
    proofs: list[Proof]


def write_page(*, dry: bool = False) -> list[str]:
    """Write docs/kernels.md if that changes it; gives what was written."""
    text = page(recorded()).encode()
    if PAGE.exists() and PAGE.read_bytes() == text:
        return []
    if not dry:
        write_whole(PAGE, text)
    return [f"wrote {PAGE}"]


def page(proofs: Sequence[Proof]) -> str:
    """docs/kernels.md, from the tables here, the probes, the series, and what was proved."""
    usual = usual_compilers(proofs)
    return render(
        "kernels.md.j2",
        sections=[_section(era, [p for p in proofs if _compilers(p) == usual]) for era in ERAS],
        usual=usual,
        kernels=sorted({proof.kernel for proof in proofs if proof.kernel}),
        probes=[(probe, Range.parse(probe.since, probe.until)) for probe in PROBES],
        series=read_series(SERIES),
        compilers=compilers_table(proofs),
    )


def _section(era: Era, proofs: Iterable[Proof]) -> Section:
    example = KernelVersion.parse(era.example)
    return Section(
        era,
        [shift for shift in SHIFTS if KernelVersion.parse(shift.since) in era.versions],
        render("samples_bpf_Makefile.j2", dialect=mainline(example), sample=TUTORIAL, others=[]),
        [spelling for spelling in SPELLINGS if example in spelling.versions],
        [proof for proof in proofs if _upstream(proof) in era.versions],
    )


def _upstream(proof: Proof) -> KernelVersion:
    """The release whose changes the tree has: a candidate's came before its first."""
    return replace(KernelVersion.parse(proof.version), rc=0)


def short(compiler: str) -> str:
    """A compiler's name and release, of what it says of itself: "gcc 12", "clang 14"."""
    said = re.sub(r"\(.*?\)", "", compiler)  # a distribution puts its own number there
    number = re.search(r"(\d+)\.\d+\.\d+", said)
    return f"{'clang' if 'clang' in said else 'gcc'} {number[1] if number else '?'}"


def _compilers(proof: Proof) -> tuple[str, str]:
    return short(proof.gcc), short(proof.clang)


def usual_compilers(proofs: Sequence[Proof]) -> tuple[str, str]:
    """The two compilers that most proofs were made with."""
    pairs = [_compilers(proof) for proof in proofs]
    return max(sorted(set(pairs)), key=pairs.count, default=("gcc", "clang"))


def compilers_table(proofs: Iterable[Proof]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What builds with what: the compilers' names, and a row of outcomes for each tree.

    The halves of a pair are compiled apart: what passed with any compiler of the
    other kind passed.  Trees that only the usual two were tried on have no row.
    """
    rows: dict[str, dict[str, Proof]] = {}
    for proof in proofs:
        row = rows.setdefault(f"{proof.version} {proof.source}", {})
        for name in _compilers(proof):
            if name not in row or proof.outcome is Outcome.PASSED:
                row[name] = proof
    several = {tree: row for tree, row in rows.items() if len(row) > 2}
    names = sorted({name for row in several.values() for name in row}, key=_by_kind)
    return names, [
        (tree, [_cell(row.get(name)) for name in names]) for tree, row in several.items()
    ]


def _by_kind(name: str) -> tuple[bool, int]:
    kind, number = name.split()
    return kind != "gcc", int(number)


def _cell(proof: Proof | None) -> str:
    if not proof:
        return ""
    return "yes" if proof.outcome is Outcome.PASSED else f"{proof.outcome}: {proof.reason}"
