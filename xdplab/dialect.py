"""How a tree's samples/bpf is written.

It is read from the tree and never guessed from its version: distribution and
vendor trees carry back-ports.  What may be found is a table of probes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from xdplab.errors import UnknownDialect
from xdplab.tree import MAKEFILE, Tree


@dataclass(frozen=True, slots=True)
class Dialect:
    """The words that a tree uses; each is explained where it is probed for."""

    programs: str
    always: str
    loader: str
    helpers: str

    @classmethod
    def of(cls, tree: Tree) -> Dialect:
        """Read the tree's dialect; raises UnknownDialect with what was looked for."""
        found = {
            field.name: next((p.value for p in _probes(field.name) if p.hits(tree.path)), None)
            for field in fields(cls)
        }
        lacking = [
            (name, [f"{p.value} in {p.file}" for p in _probes(name)])
            for name, value in found.items()
            if value is None
        ]
        if lacking:
            raise UnknownDialect(tree.path, lacking)
        return cls(**{name: value for name, value in found.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Probe:
    """Where a word may be, and what it means if it is there."""

    field: str
    value: str
    file: str
    pattern: str  # "": the file is there
    since: str  # for people: nothing looks at it

    def hits(self, tree: Path) -> bool:
        """Whether the tree has it."""
        path = tree / self.file
        if not path.is_file():
            return False
        return re.search(self.pattern, path.read_text(errors="replace"), re.MULTILINE) is not None


_MAKEFILE = str(MAKEFILE)

# The first row that hits gives the field its value.  Patterns are anchored:
# "tprogs-y" is also the end of "hostprogs-y".
PROBES = (
    # the variable that lists the programs for user space
    Probe("programs", "tprogs-y", _MAKEFILE, r"^tprogs-y\s*[:+]?=", "v5.5"),
    Probe("programs", "hostprogs-y", _MAKEFILE, r"^hostprogs-y\s*[:+]?=", "v4.19 and before"),
    Probe("programs", "hostprogs", _MAKEFILE, r"^hostprogs\s*[:+]?=", "in trees between the two"),
    # the variable that lists what is always built: the BPF objects
    Probe("always", "always-y", _MAKEFILE, r"^always-y\s*[:+]?=", "v5.6"),
    Probe("always", "always", _MAKEFILE, r"^always\s*[:+]?=", "v4.19 and before"),
    # what loads the object file: the post's loader was removed in v5.11 by
    # ceb5dea56543 ("samples: bpf: Remove bpf_load loader completely")
    Probe("loader", "bpf_load", "samples/bpf/bpf_load.c", "", "v4.19 and before"),
    Probe("loader", "libbpf", "tools/lib/bpf/libbpf.c", "", "v4.19; the only one since v5.11"),
    # what the kernel half includes for SEC() and the helpers
    Probe("helpers", "<bpf/bpf_helpers.h>", "tools/lib/bpf/bpf_helpers.h", "", "v5.5"),
    Probe(
        "helpers",
        '"bpf_helpers.h"',
        "tools/testing/selftests/bpf/bpf_helpers.h",
        "",
        "v4.19 and before",
    ),
)


def _probes(field: str) -> list[Probe]:
    return [probe for probe in PROBES if probe.field == field]
