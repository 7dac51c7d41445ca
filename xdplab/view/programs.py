"""The XDP programs of a machine, for people and as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from xdplab.census import Seen
from xdplab.programs import Loaded, Map

SCHEMA = 1  # of `status --json`, described in docs/readings.md
_SWITCH = "sudo sysctl kernel.bpf_stats_enabled=1"


def lines(seen: Sequence[Seen], statistics: bool | None) -> Iterator[str]:
    """A line each, its columns those of `ip link`; below it, indented, what else is known."""
    for one in seen:
        at = one.attached
        where = f"{at.ifindex}: {at.dev}: {at.mode}" if at else "-"
        place = one.place and f", in {one.place}"
        yield f"{where}: prog/xdp id {one.program}: {one.whose}{place}"
        if one.loaded:
            yield from (f"    {line}" for line in _facts(one.loaded, statistics))


def _facts(loaded: Loaded, statistics: bool | None) -> Iterator[str]:
    since = time.strftime("%F %T", time.localtime(loaded.loaded_at))
    by = "" if loaded.uid is None else f" by user {loaded.uid}"
    yield f"{loaded.name or 'without a name'}, tag {loaded.tag}, loaded {since}{by}"
    holders = [*([f"bpf_link {loaded.link}"] if loaded.link else []), *(loaded.processes or ())]
    if holders:
        yield f"held by {', '.join(holders)}"
    if loaded.runs:
        mean = (loaded.nanoseconds or 0) / loaded.runs
        yield f"ran {loaded.runs:,} times, {mean:,.0f} ns each"
    elif statistics:
        yield "has not run since it is counted"
    elif statistics is False:
        yield f"its runs are not counted: {_SWITCH} (each gets a little slower; =0 ends it)"
    for one in loaded.maps:
        yield f"{one.name} ({one.type}): {_contents(one)}"


def _contents(one: Map) -> str:
    if one.count is None:
        return f"not read, up to {one.size:,} entries: sudo bpftool map dump id {one.id}"
    shown = [f"{_plain(key)} = {_value(value)}" for key, value in one.entries]
    more = one.count - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])]) or "empty"


def _value(value: Any) -> str:
    """A value; of numbers by CPU their sum, and those that are not 0."""
    if isinstance(value, dict) and value and all(
        cpu.isdigit() and isinstance(one, int) for cpu, one in value.items()
    ):  # fmt: skip
        each = ", ".join(f"cpu {cpu}: {one}" for cpu, one in value.items() if one)
        return f"{sum(value.values())}{each and f' ({each})'}"
    return _plain(value)


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 64 else f"{text[:61]}..."


def to_json(seen: Sequence[Seen], statistics: bool | None) -> str:
    """The same as an object."""
    rows = [_row(one) for one in seen]
    return json.dumps({"schema": SCHEMA, "statistics": statistics, "programs": rows}, indent=2)


def _row(one: Seen) -> dict[str, Any]:
    at, loaded = one.attached, one.loaded
    run = one.run and {
        "alive": one.alive,
        **{name: one.run.get(name) for name in ("pid", "ip", "policy", "on", "started", "tag")},
    }
    return {
        "id": one.program,
        "dev": at and at.dev,
        "ifindex": at and at.ifindex,
        "mode": at and at.mode,
        "place": one.place or None,
        "run": run,
        "loaded": loaded and {**asdict(loaded), "maps": [_map(each) for each in loaded.maps]},
    }


def _map(one: Map) -> dict[str, Any]:
    entries = [{"key": key, "value": value} for key, value in one.entries]
    return {**asdict(one), "entries": entries}
