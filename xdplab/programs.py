"""What the kernel knows of XDP programs: asked through bpftool(8), as root.

Their ids on interfaces are free for all to see (netlink.py); names, counts and
maps are not.
"""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdplab import netlink
from xdplab.errors import MissingTools
from xdplab.netlink import Attached
from xdplab.process import Shell, find

STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
_MOST = 1024  # entries of a map that is dumped
_SHOWN = 8  # entries of a map that are given
_WHY = "reading what XDP programs the kernel has"
# names of maps and fields whose numbers are IPv4 addresses, as they lie in memory
_ADDRESS = re.compile(r"(^|_)([sd]?addr|ip|ipv4)(_|$)")


@dataclass(frozen=True, slots=True)
class Map:
    """A map of a program's, and what is in it."""

    id: int
    name: str
    type: str
    size: int  # entries that it can have
    entries: tuple[tuple[Any, Any], ...]  # the first keys and values; a per-CPU value by CPU
    count: int | None  # entries that it has; None: it was too large to be read, or refused


@dataclass(frozen=True, slots=True)
class Loaded:
    """An XDP program that the kernel has, attached or not."""

    id: int
    name: str
    tag: str
    loaded_at: float  # seconds since the epoch
    uid: int | None  # who loaded it
    runs: int | None  # since statistics were switched on; None while they are off
    nanoseconds: int | None  # that these took in all
    link: int | None  # the id of the bpf_link that holds it on an interface, if one does
    processes: tuple[str, ...] | None  # that hold it; None where bpftool can't tell
    maps: tuple[Map, ...]


def loaded(shell: Shell) -> list[Loaded]:
    """Every XDP program in this kernel, the oldest first.

    Raises MissingTools, and NeedsRoot or CommandFailed if it can't be asked.
    """
    bpftool = find("bpftool")
    if not bpftool:
        raise MissingTools(["bpftool"], "run")

    def ask(*words: str | int, check: bool = True) -> Any:
        argv = shell.as_root([bpftool, "--json", *map(str, words)], _WHY)
        # also in a dry run: it only reads
        said = Shell(shell.echo).run(argv, check=check).text("out")
        return json.loads(said or "[]")

    programs = [one for one in ask("prog", "show") if one["type"] == "xdp"]
    if not programs:
        return []
    links = {one["prog_id"]: one["id"] for one in ask("link", "show") if one["type"] == "xdp"}
    maps = {one["id"]: one for one in ask("map", "show")}

    def dump(number: int) -> Any:
        entries = ask("map", "dump", "id", number, check=False)
        return entries if isinstance(entries, list) else None  # it may be gone by now

    return [
        Loaded(
            one["id"],
            one.get("name", ""),
            one["tag"],
            float(one["loaded_at"]),
            one.get("uid"),
            one.get("run_cnt"),
            one.get("run_time_ns"),
            links.get(one["id"]),
            _processes(one.get("pids")),
            tuple(_map(maps[each], dump) for each in sorted(one.get("map_ids", []))
                  if each in maps),
        )
        for one in programs
    ]  # fmt: skip


def _processes(found: Iterable[Mapping[str, Any]] | None) -> tuple[str, ...] | None:
    return None if found is None else tuple(f"{one['comm']} ({one['pid']})" for one in found)


def _map(fields: Mapping[str, Any], dump: Callable[[int], Any]) -> Map:
    name = fields.get("name", "")
    known = Map(fields["id"], name, str(fields["type"]), fields["max_entries"], (), None)
    if known.size > _MOST:
        return known
    read = dump(known.id)
    if read is None:
        return known
    found = [entry for entry in read if "error" not in entry]
    entries = tuple(_entry(entry, name) for entry in found[:_SHOWN])
    return Map(known.id, name, known.type, known.size, entries, len(found))


def _entry(entry: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """A key and its value, by the program's BTF where it has that, or else as numbers."""
    told = entry.get("formatted", entry)
    key, value = _decoded(told.get("key", 0), ""), told.get("value")
    if "values" in told:
        value = {str(one["cpu"]): one["value"] for one in told["values"]}
    return key, _decoded(value, name)


def _decoded(value: Any, name: str) -> Any:
    """Bytes as a number, addresses as people write them; of a structure, each field."""
    if isinstance(value, dict):
        return {each: _decoded(one, name if each.isdigit() else each)
                for each, one in value.items()}  # fmt: skip
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        raw = bytes(int(one, 16) for one in value)
        value = int.from_bytes(raw, sys.byteorder) if len(raw) in (1, 2, 4, 8) else raw.hex(" ")
    elif isinstance(value, list):
        return _text(value) or [_decoded(one, name) for one in value]
    if type(value) is int and 0 <= value < 2**32 and _ADDRESS.search(name):
        return str(ipaddress.IPv4Address(value.to_bytes(4, sys.byteorder)))
    return value


def _text(value: list[Any]) -> str | None:
    """What an array of char says, if it is one: it ends with a zero."""
    if value[-1:] != [0] or not all(isinstance(one, int) and 0 <= one < 256 for one in value):
        return None
    text = bytes(value).rstrip(b"\0").decode(errors="replace").rstrip("\n")
    return text if text.isprintable() and text else None


def statistics() -> bool | None:
    """Whether the kernel counts programs' runs; None before v5.1, which can't (492ecee892c2)."""
    try:
        return STATISTICS.read_text().strip() != "0"
    except OSError:
        return None


# ---- other network namespaces


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A program on an interface of another network namespace."""

    attached: Attached
    place: str  # the namespace's name, or a process in it


def elsewhere(shell: Shell, tell: Callable[[str], None]) -> list[Elsewhere]:
    """Every XDP program on an interface of another network namespace.

    `tell` hears of those that can't be entered.  Raises NeedsRoot.
    """
    mine = Path("/proc/self/ns/net").stat().st_ino
    argv = ["lsns", "--json", "--type=net", "--output=NS,PID,COMMAND"]
    asked = Shell(shell.echo).run(shell.as_root(argv, "finding network namespaces"))
    namespaces = json.loads(asked.text("out") or "{}").get("namespaces", [])
    places = {
        int(one["ns"]): (f"/proc/{one['pid']}/ns/net", _of_process(one)) for one in namespaces
    }
    for named in sorted(Path("/run/netns").glob("*")):  # ip-netns(8)
        places[named.stat().st_ino] = str(named), f"the network namespace {named.name}"
    places.pop(mine, None)
    found = []
    for entrance, place in places.values():
        enter = ["nsenter", f"--net={entrance}", "ip", "-json", "link"]
        said = shell.ask(shell.as_root(enter, "looking into another network namespace"))
        try:
            found += [Elsewhere(one, place) for one in netlink.of_ip_link(said.text("out"))]
        except ValueError:
            tell(f"{place} can't be looked into: {said.text('err').strip() or 'it is gone'}")
    return found


def _of_process(namespace: Mapping[str, Any]) -> str:
    words = str(namespace["command"] or "").split()
    command = f" ({words[0].rpartition('/')[2]})" if words else ""
    return f"the network namespace of process {namespace['pid']}{command}"
