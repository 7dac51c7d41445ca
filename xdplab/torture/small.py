"""A kernel tree that is built in a second, and a pair for it.

Its rules are of the names and the kind that kbuild's are; its files that patches of the
series change are as those patches want them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xdplab import patching
from xdplab.damage import EVERY_TREE
from xdplab.process import Shell

VERSION = "5.10"
PAIR = "mine"
_RULES = r"""
.RECIPEPREFIX = >
.SECONDARY:
obj := $(M)
Q := $(if $(V),,@)
LIBBPF := tools/lib/bpf/libbpf.a
all: $(always-y)
allnoconfig:
> @cp .xdplab/config .config
prepare0:
> @mkdir -p include/generated
> @touch include/generated/asm-offsets.h
scripts:
$(LIBBPF): tools/lib/bpf/$(SOURCE).c
> $(Q)gcc $(KCFLAGS) -c -o tools/lib/bpf/$(SOURCE).o $<
> @echo 'tools/lib/bpf/$(SOURCE).o: $(SOURCE).c \' > tools/lib/bpf/.$(SOURCE).o.cmd
> $(Q)ar rcs $@ tools/lib/bpf/$(SOURCE).o
$(obj)/%_kern.o: $(obj)/%_kern.c
> @echo "  CLANG-bpf " $@
> $(Q)$(or $(CLANG),clang) -Iinclude \
>       --target=bpf -O2 -emit-llvm -c $< -o - | \
>       llc -march=bpf -filetype=obj -o $@
$(obj)/%_user.o: $(obj)/%_user.c
> $(Q)gcc -Wp,-MMD,$(obj)/.$(notdir $@).d -Iinclude $(KCFLAGS) -c -o $@ $<
$(obj)/%: $(obj)/%_user.o $(LIBBPF)
> $(Q)gcc -o $@ $< $(LIBBPF)
.PHONY: all allnoconfig prepare0 scripts
"""
SAMPLES = """\
tprogs-y := sockex1
sockex1-objs := sockex1_user.o
always-y := $(tprogs-y)
always-y += sockex1_kern.o
"""


def makefile(version: str, library: str) -> str:
    """The top Makefile of a version, "5.10"; `library` names the one source of libbpf."""
    major, minor = version.split(".")
    named = f"VERSION = {major}\nPATCHLEVEL = {minor}\nSUBLEVEL = 0\nEXTRAVERSION =\n"
    return f"\n{named}\nSOURCE := {library}\n{_RULES}"


_FILES = {
    **dict.fromkeys(EVERY_TREE, ""),
    "Makefile": makefile(VERSION, "bpf"),  # libbpf.c is as a patch wants it, and no C
    "Kbuild": "",
    "scripts/Makefile": "",
    "tools/lib/bpf/bpf.c": "int number;\n",
    "tools/lib/bpf/bpf_helpers.h": "",
    "samples/bpf/Makefile": SAMPLES,
}
_PAIR = {
    f"{PAIR}_kern.c": """\
#define SECTION(name) __attribute__((section(name), used))
SECTION("xdp") int program(void *packet) { return 2; }
char _license[] SECTION("license") = "GPL";
""",
    f"{PAIR}_user.c": """\
#include "xdp_compat.h"
int main(void) { return 0; }
""",
    "xdp_compat.h": "",
}


def tree(directory: Path) -> Path:
    """Write the tree; gives its directory."""
    write(directory, _before_patches() | _FILES)
    return directory


def pair(directory: Path) -> Path:
    """Write the pair; gives the file of its kernel half."""
    write(directory, _PAIR)
    return directory / f"{PAIR}_kern.c"


def repository(directory: Path, shell: Shell) -> str:
    """The tree in a git repository that gives parts of itself away; gives its address."""
    tree(directory)
    me = ["-c", "user.name=torture", "-c", "user.email=torture@localhost"]
    for words in (
        ["init", "--quiet"],
        ["config", "uploadpack.allowFilter", "true"],
        ["config", "uploadpack.allowAnySHA1InWant", "true"],
        ["add", "--all"],
        [*me, "commit", "--quiet", "--message", f"Linux {VERSION}"],
        ["tag", f"v{VERSION}"],
    ):
        shell.run(["git", *words], cwd=directory)
    return directory.as_uri()


def write(directory: Path, files: Mapping[str, str]) -> None:
    """Write texts to files below a directory, by their names."""
    for name, text in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def _before_patches() -> dict[str, str]:
    """What the patches of the series expect of the files that they change."""
    from unidiff.patch import PatchSet

    texts: dict[str, str] = {}
    for entry in patching.read_series():
        for file in PatchSet.from_filename(str(entry.patch)):
            hunks = ("".join(line.value for line in hunk.source_lines()) for hunk in file)
            texts[file.path] = texts.get(file.path, "") + "".join(hunks)
    return texts
