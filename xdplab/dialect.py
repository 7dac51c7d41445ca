"""How a tree's samples/bpf is written and built.

It is read from the tree and never guessed from its version: distribution and
vendor trees carry back-ports.  What may be found is a table of probes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from xdplab.errors import UnknownDialect
from xdplab.tree import MAKEFILE, SAMPLES, Tree


@dataclass(frozen=True, slots=True)
class Dialect:
    """The words that a tree uses, and what it does with them; PROBES explains each value."""

    programs: str  # the variable that lists the programs for user space
    objects: str  # what follows a program's name in the variable that lists its parts
    always: str  # the variable that lists what is always built: the BPF objects
    loader: str  # what can load an object file
    helpers: str  # what the kernel half includes for SEC() and the helpers
    libbpf: str  # where the samples' libbpf.a is built
    obj: str  # the directory that $(obj) names while the samples are built
    one_needs: str  # the make targets that one sample needs first
    all_need: str  # the make targets that all samples need first
    all_samples: str  # what builds all samples: "make" and this
    vmlinux: str  # the variable that names a kernel with BTF, if some samples need one

    @classmethod
    def of(cls, tree: Tree) -> Dialect:
        """Read the tree's dialect; raises UnknownDialect with what was looked for and found."""
        texts = {file: _text(tree.path / file) for file in {probe.file for probe in PROBES}}
        found: dict[str, str] = {}
        lacking = []
        for field in fields(cls):
            probes = [probe for probe in PROBES if probe.field == field.name]
            hit = next((probe for probe in probes if probe.hits(texts[probe.file])), None)
            if hit:
                found[field.name] = hit.value
            else:
                looked = [f"{probe.value} in {probe.file}" for probe in probes]
                files = dict.fromkeys(probe.file for probe in probes)
                seen = ", ".join(_has(file, texts[file]) for file in files)
                lacking.append((field.name, [*looked, f"but {seen}"]))
        if lacking:
            raise UnknownDialect(tree.path, lacking)
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Probe:
    """Where a value may be read, and what it means if it is there.

    The range of upstream versions is half-open, "" is an open end; it is for
    people, like the commit, and nothing looks at it.
    """

    field: str
    value: str
    file: str
    pattern: str  # "": the file is there
    since: str
    until: str
    commit: str  # upstream's, which made it so; "" where none is known for sure
    means: str

    def hits(self, text: str | None) -> bool:
        """Whether the text of its file has it; None: there is no such file."""
        return text is not None and re.search(self.pattern, text, re.MULTILINE) is not None


def assigns(variable: str) -> str:
    """A pattern for a line that assigns or extends a variable of make, itself a pattern.

    NAME-$(CONFIG_X) counts as NAME-y: that is what it is where it matters.
    """
    stem = variable.removesuffix("-y")
    chosen = r"-(?:y|\$[({]\w+[)}])" if stem != variable else ""
    return rf"^[ \t]*{stem}{chosen}[ \t]*(?P<how>\+|\?|:{{0,3}})="


_TOP, _SAMPLES = "Makefile", str(MAKEFILE)
_LIBBPF, _SELFTESTS = "tools/lib/bpf", "tools/testing/selftests/bpf"
_SHOWN = 6  # variables that are named to who looks for other ones: lists grow line by line
_EVERY_DIRECTORY = r"^%/:.*\bprepare\b"

# The first row that hits gives the field its value.
PROBES = (
    Probe(
        "programs", "tprogs-y", _SAMPLES, assigns("tprogs-y"), "v5.5", "", "1d97c6c2511f",
        "Programs for the target: samples/bpf has rules and flags of its own for them.",
    ),
    Probe(
        "programs", "hostprogs-y", _SAMPLES, assigns("hostprogs-y"), "", "v5.5", "",
        "Programs for the machine that builds, by kbuild's own rules, as in the post.",
    ),
    Probe(
        "programs", "hostprogs", _SAMPLES, assigns("hostprogs"), "v5.6", "", "5f2fb52fac15",
        "kbuild's new name of hostprogs-y: for vendors whose samples didn't go on to tprogs-y.",
    ),
    Probe(
        "objects", "-objs", _SAMPLES, assigns(r"[\w-]+-objs"), "", "", "",
        "NAME-objs lists what the program NAME is linked from.",
    ),
    Probe(
        "objects", "-objs", "scripts/Makefile.host", "-objs", "", "", "",
        "The same word, from kbuild's rules: every sample here is made of one file.",
    ),
    Probe(
        "always", "always-y", _SAMPLES, assigns("always-y"), "v5.6", "", "5f2fb52fac15",
        "What is built whenever the directory is.",
    ),
    Probe(
        "always", "always", _SAMPLES, assigns("always"), "", "v5.6", "",
        "What is built whenever the directory is, as in the post.",
    ),
    Probe(
        "loader", "bpf_load", f"{SAMPLES}/bpf_load.c", "", "", "v5.11", "",
        "The post's loader is there, and so is libbpf.",
    ),
    Probe(
        "loader", "libbpf", f"{_LIBBPF}/libbpf.c", "", "v5.11", "", "ceb5dea56543",
        "libbpf alone: a line that links bpf_load.o can't be built any more.",
    ),
    Probe(
        "helpers", "<bpf/bpf_helpers.h>", f"{_LIBBPF}/bpf_helpers.h", "", "v5.5", "",
        "e01a75c15969",
        "The helpers are a part of libbpf.",
    ),
    Probe(
        "helpers", '"bpf_helpers.h"', f"{_SELFTESTS}/bpf_helpers.h", "", "", "v5.5", "",
        "The helpers are the selftests', as in the post.",
    ),
    Probe(
        "libbpf", f"{SAMPLES}/libbpf", _SAMPLES, assigns("LIBBPF_OUTPUT"), "v5.16", "",
        "3f7a3318a7c6",
        "The samples build a libbpf of their own, headers included; late v5.15.y too.",
    ),
    Probe(
        "libbpf", _LIBBPF, _SAMPLES, "", "", "v5.16", "",
        "libbpf is built where its source is.",
    ),
    Probe(
        "obj", ".", _TOP, assigns("KBUILD_EXTMOD_OUTPUT"), "v6.13", "", "13b25489b6f8",
        "make works inside samples/bpf: compilers name files without a directory.",
    ),
    Probe(
        "obj", str(SAMPLES), _TOP, "", "", "v6.13", "",
        "make works in the top directory, and compilers name files from there.",
    ),
    Probe(
        "one_needs", "prepare0 scripts", _TOP, "", "", "", "",
        "Generated headers, and modpost; not prepare, which builds objtool too.",
    ),
    Probe(
        "all_need", "headers_install", _TOP, _EVERY_DIRECTORY, "", "v5.4", "",
        "The tree's own headers for user space; make samples/bpf/ does the rest.",
    ),
    Probe(
        "all_need", "headers_install modules_prepare", _TOP, "", "v5.4", "", "",
        "The tree's own headers for user space, and all that M= takes for granted.",
    ),
    Probe(
        "all_samples", f"{SAMPLES}/", _TOP, _EVERY_DIRECTORY, "", "v5.4", "",
        "As in the post: any directory's name is a target that make descends into.",
    ),
    Probe(
        "all_samples", f"M={SAMPLES}", _TOP, "", "v5.4", "", "394053f4a4b3",
        "make descends only from Makefile to Makefile, none of which leads to samples/bpf:"
        " make samples/bpf/ returns 0 and has done nothing.",
    ),
    Probe(
        "vmlinux", "VMLINUX_BTF", _SAMPLES, assigns("VMLINUX_BTF"), "v5.15", "", "384b6b3bbf0d",
        "Some samples are made for the types of one kernel; without it make stops.",
    ),
    Probe(
        "vmlinux", "", _SAMPLES, "", "", "v5.15", "",
        "No sample needs a built kernel.",
    ),
)  # fmt: skip


def values(field: str) -> list[str]:
    """All that a field can be."""
    return list(dict.fromkeys(probe.value for probe in PROBES if probe.field == field))


def _text(path: Path) -> str | None:
    """The text of a file, each continued line as one; None if there is no such file."""
    if not path.is_file():
        return None
    return re.sub(r"\\\r?\n", " ", path.read_text(errors="replace"))


def _has(file: str, text: str | None) -> str:
    """What is to be seen in a file instead of what was looked for."""
    if text is None:
        return f"there is no {file}"
    assigned = re.findall(r"^[ \t]*([\w$(){}-]+)[ \t]*(?:\+|\?|:{0,3})=", text, re.MULTILINE)
    most = [name for name, _ in Counter(assigned).most_common(_SHOWN)]
    return f"{file} assigns {', '.join(most) or 'nothing'}"
