"""Frames in scapy's own notation, as in Ether() / IP(src='192.0.2.1') / ICMP(): read, never run.

The text is parsed as Python, and of Python's grammar only this means something: layers of
scapy with fields by name, `/` between layers, constants, lists and tuples.  Nothing else
is evaluated, no name is looked up outside of scapy's layers, and no host is asked for.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import ipaddress
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from xdplab.errors import NotAFrame

if TYPE_CHECKING:  # scapy takes most of a second to import
    from scapy.fields import AnyField
    from scapy.packet import Packet

_MODULES = (
    *("scapy.layers.l2", "scapy.layers.inet", "scapy.layers.inet6", "scapy.layers.ppp"),
    *("scapy.layers.sctp", "scapy.layers.vxlan", "scapy.contrib.mpls", "scapy.packet"),
)
_LONGEST = 65535  # bytes, of a payload that is written as b'x' * NUMBER

# What scapy would ask this machine for where a frame doesn't say it: the same everywhere.
# Locally administered addresses, and those for documentation (RFC 5737, RFC 3849).
_GIVEN = {
    "DestMACField": "02:00:00:00:00:01",
    "SourceMACField": "02:00:00:00:00:02",
    "SourceIPField": "192.0.2.2",
    "SourceIP6Field": "2001:db8::2",
}


def _mac(text: str) -> None:
    if not re.fullmatch("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise ValueError


_ADDRESSES: Mapping[str, Callable[[str], object]] = {
    "IPField": ipaddress.IPv4Address,
    "IP6Field": ipaddress.IPv6Address,
    "MACField": _mac,
}


def frame(text: str) -> bytes:
    """The Ethernet frame that a text describes; raises NotAFrame with the reason."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Python's, on escapes that it doesn't know
            tree = ast.parse(text.strip(), mode="eval")
        packet = _Reader(text.strip()).value(tree.body)
    except SyntaxError as error:
        raise NotAFrame(f"{error.msg} in {text!r}") from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise NotAFrame(f"it can't be parsed: {error}") from None
    known = layers()
    if not isinstance(packet, (known["Ether"], known["Dot3"])):
        raise NotAFrame("it must begin with Ether()")
    try:
        _give(packet)
        return bytes(packet)
    except Exception as error:  # scapy raises what its fields happen to
        raise NotAFrame(f"scapy can't make it: {error}") from None


@functools.cache
def layers() -> Mapping[str, type[Packet]]:
    """The layers of scapy that may be named."""
    from scapy.packet import NoPayload, Packet

    found = {
        name: kind
        for module in map(import_module, _MODULES)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Packet)
    }
    return {name: kind for name, kind in found.items() if kind not in (Packet, NoPayload)}


class _Reader:
    """Reads the nodes of one text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def value(self, node: ast.expr) -> Any:
        """What a node is; raises NotAFrame."""
        match node:
            case ast.Constant(value=int() | str() | bytes() | None):
                return node.value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
                return -number
            case ast.List() | ast.Tuple():
                values = [self.value(one) for one in node.elts]
                return values if isinstance(node, ast.List) else tuple(values)
            case ast.BinOp(op=ast.Mult()):
                return self._repeated(self.value(node.left), self.value(node.right))
            case ast.BinOp(op=ast.Div()):
                return self._payload(node.left) / self._payload(node.right)
            case ast.Call(func=ast.Name(id=name)):
                return self._layer(name, node)
        raise NotAFrame(f"{self._shown(node)!r} can't be in a frame")

    def _shown(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text, node) or self._text

    def _repeated(self, text: Any, times: Any) -> str | bytes:
        if not isinstance(text, str | bytes) or not isinstance(times, int):
            raise NotAFrame("only text can be repeated: b'x' * 100")
        if len(text) * times > _LONGEST:
            raise NotAFrame(f"a text that is repeated has at most {_LONGEST} bytes")
        return text * times

    def _payload(self, node: ast.expr) -> Packet:
        known = layers()
        found = self.value(node)
        if isinstance(found, str | bytes):
            return known["Raw"](found)
        if not isinstance(found, tuple(known.values())):
            raise NotAFrame(f"{self._shown(node)!r} is no layer")
        return found

    def _layer(self, name: str, call: ast.Call) -> Packet:
        kind = layers().get(name)
        if not kind:
            raise NotAFrame(f"scapy has no layer {name}{_like(name, layers())}")
        known = {field.name: field for field in kind.fields_desc}
        given = {}
        if name == "Raw" and len(call.args) == 1:  # as everybody writes it
            given["load"] = self.value(call.args[0])
        elif call.args:
            raise NotAFrame(f"the fields of {name} must be given by name: {self._shown(call)}")
        for keyword in call.keywords:
            field = keyword.arg or "**"
            if field not in known:
                raise NotAFrame(f"{name} has no field {field}{_like(field, known)}")
            given[field] = self.value(keyword.value)
            _require_address(known[field], given[field], f"{name}({field}=)")
        try:
            return kind(**given)
        except Exception as error:  # scapy raises what its fields happen to
            raise NotAFrame(f"{self._shown(call)}: {error}") from None


def _like(name: str, known: Collection[str]) -> str:
    """What may be meant."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _kinds(field: AnyField) -> Iterator[str]:
    """The names of a field's classes, and of those that it stands for."""
    yield from (kind.__name__ for kind in type(field).__mro__)
    inner = [one for one, _ in getattr(field, "flds", [])] + [getattr(field, "fld", None)]
    for one in filter(None, inner):
        yield from _kinds(one)


def _require_address(field: AnyField, value: Any, where: str) -> None:
    """Raise NotAFrame for what isn't one address: scapy takes it for a host's name, or for text."""
    readers = [_ADDRESSES[name] for name in _kinds(field) if name in _ADDRESSES]
    if not readers or value is None:
        return
    for read in readers if isinstance(value, str) and "%" not in value else ():
        with contextlib.suppress(ValueError):
            read(value)
            return
    raise NotAFrame(f"{where} takes one address in numbers: not {value!r}")


def _give(packet: Packet) -> None:
    """Fill in what scapy would ask this machine for."""
    for layer in packet.iterpayloads():
        for field in layer.fields_desc:
            given = [_GIVEN[name] for name in _kinds(field) if name in _GIVEN]
            if given and field.name not in {*layer.fields, *layer.overloaded_fields}:
                layer.setfieldval(field.name, given[0])
