"""What can be had, as tables, lines and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from xdplab.kernels import Inventory, ListedKernel, ListedTree
from xdplab.sources.distro import Offer
from xdplab.tree import Origin

SCHEMA = 1  # of `kernels --json`, described in docs/readings.md
_COLUMNS = ("version", "source", "state", "where")


def tree_row(tree: ListedTree) -> tuple[str, ...]:
    """A tree's line."""
    done = {"current": tree.current, "set up": tree.prepared, "patched": tree.patched}
    words = [word for word, holds in done.items() if holds]
    words += [f"built: {', '.join(tree.samples)}"] if tree.samples else []
    state = ", ".join(words) or tree.state
    return str(tree.version), tree.source, state, _where(tree.path, tree.offer, tree.remote)


def kernel_row(kernel: ListedKernel) -> tuple[str, ...]:
    """A kernel's line."""
    bpf = {True: ", with BPF", False: ", without BPF", None: ""}[kernel.bpf]
    source = Origin.DISTRO if kernel.offer else "this machine"
    return kernel.release, source, f"{kernel.state}{bpf}", _where(kernel.image, kernel.offer, None)


def _where(path: Path | None, offer: Offer | None, remote: str | None) -> str:
    return f"{offer.suite}: {offer.package}" if offer else str(path or remote or "")


def table(title: str, rows: Iterable[Sequence[str]]) -> Table:
    """Lines as a table."""
    drawn = Table(*_COLUMNS, title=title)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def kernels_json(inventory: Inventory) -> str:
    """An inventory as a JSON object."""
    trees = [
        {
            "version": str(tree.version),
            "source": tree.source,
            "state": tree.state,
            "path": _or_none(tree.path),
            "remote": tree.remote,
            **_package(tree.offer),
            "current": tree.current,
            "prepared": tree.prepared,
            "patched": tree.patched,
            "samples": tree.samples,
        }
        for tree in inventory.trees
    ]
    kernels = [
        {
            "release": kernel.release,
            "version": _or_none(kernel.version),
            "state": kernel.state,
            "image": _or_none(kernel.image),
            "bpf": kernel.bpf,
            **_package(kernel.offer),
        }
        for kernel in inventory.kernels
    ]
    return json.dumps({"schema": SCHEMA, "trees": trees, "kernels": kernels,
                       "unanswered": inventory.unanswered}, indent=2)  # fmt: skip


def _package(offer: Offer | None) -> dict[str, str | None]:
    return {
        "suite": offer.suite if offer else None,
        "package": offer.package if offer else None,
        "package_version": offer.version if offer else None,
    }


def _or_none(value: object) -> str | None:
    return None if value is None else str(value)
