"""The tensors of an ONNX file, found in the protobuf wire format without decoding the model.

Messages and field numbers: `onnx/onnx.proto` (ModelProto, GraphProto, NodeProto, AttributeProto,
FunctionProto, TensorProto); encoding: "Encoding" of the Protocol Buffers documentation. The walk
seeks over what it does not need, so that 2 GB of weights cost their headers only.

Weights lie in `raw_data`, or in another file that `external_data` names by location, offset and
length (`docs/ExternalData.md` of the onnx project). A location is a stranger's word: only a plain
relative path below the folder of the ONNX file counts. ONNX has no magic number: what is
malformed is no error but a file of bytes like any other.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import BinaryIO

from lockgate.store.formats.cursor import Cursor
from lockgate.store.formats.spans import TensorSpan, without_clashes

_MAX_FIELDS = 2_000_000
_MAX_DEPTH = 32
_MAX_NAME = 4096
_MAX_LOCATION = 1024
_MAX_DIMENSIONS = 64
_EXTERNAL = 1  # TensorProto.DataLocation

_TYPES = {  # TensorProto.DataType → name, bits of a value; texts have no range of bytes
    1: ("F32", 32), 2: ("U8", 8), 3: ("I8", 8), 4: ("U16", 16), 5: ("I16", 16), 6: ("I32", 32),
    7: ("I64", 64), 9: ("BOOL", 8), 10: ("F16", 16), 11: ("F64", 64), 12: ("U32", 32),
    13: ("U64", 64), 14: ("C64", 64), 15: ("C128", 128), 16: ("BF16", 16), 17: ("F8_E4M3", 8),
    18: ("F8_E4M3FNUZ", 8), 19: ("F8_E5M2", 8), 20: ("F8_E5M2FNUZ", 8), 21: ("U4", 4),
    22: ("I4", 4), 23: ("F4", 4), 24: ("F8_E8M0", 8), 25: ("U2", 2), 26: ("I2", 2),
}  # fmt: skip

_INSIDE = {  # message → field that holds another one → which
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The tensors in an ONNX file, and those that it says are in files beside it, by path."""

    own: tuple[TensorSpan, ...] = ()
    elsewhere: Mapping[str, tuple[TensorSpan, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """A TensorProto as read: `raw` is a range of this file, `outside` names one in another."""

    name: str
    shape: tuple[int, ...]
    kind: int
    raw: tuple[int, int] | None
    outside: Mapping[str, str] | None


def tensors(source: BinaryIO, size: int, path: str) -> Found:
    """Returns the tensors of the ONNX file called `path`; nothing when it is malformed."""
    try:
        found = list(_Walk(Cursor(source, size)).message("model", size, 0))
        own = [_inside(tensor) for tensor in found if tensor.raw and tensor.kind in _TYPES]
    except ValueError:
        return Found()
    elsewhere: dict[str, list[TensorSpan]] = {}
    for tensor in found:
        other = _location(tensor, path)
        if other is not None:
            elsewhere.setdefault(other, []).extend(_outside(tensor))
    return Found(
        own=without_clashes(own, size),
        elsewhere={other: tuple(spans) for other, spans in elsewhere.items() if spans},
    )


class _Walk:
    """A walk over the messages; raises ValueError for what is malformed or has no end."""

    __slots__ = ("_cursor", "_fields_left", "_nameless")

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._fields_left = _MAX_FIELDS
        self._nameless = 0

    def message(self, kind: str, end: int, depth: int) -> Iterator[_Tensor]:
        """Yields every tensor in the message that begins here and ends at `end`."""
        if depth > _MAX_DEPTH:
            raise ValueError("messages are nested too deep")
        for number, _, stop in self._fields(end):
            inner = _INSIDE[kind].get(number)
            if inner is None or stop is None:
                continue
            if inner == "tensor":
                tensor = self._tensor(stop)
                if tensor.raw or tensor.outside:
                    yield tensor
            else:
                yield from self.message(inner, stop, depth + 1)

    def _fields(self, end: int) -> Iterator[tuple[int, int, int | None]]:
        """Yields each field: number, value, None; or number, begin, end where it has a length."""
        cursor = self._cursor
        while cursor.at < end:
            self._fields_left -= 1
            key = self._varint()
            number, wire = key >> 3, key & 7
            if not self._fields_left or not 0 < number < 1 << 29:
                raise ValueError("this is no protobuf message")
            value, stop = 0, None
            if wire == 0:
                value = self._varint()
            elif wire == 2:
                length = self._varint()
                value = cursor.at
                stop = value + length
            elif wire in (1, 5):
                cursor.skip(8 if wire == 1 else 4)
            else:
                raise ValueError("groups are not used by ONNX")
            if max(cursor.at, stop or 0) > end:
                raise ValueError("a field is longer than its message")
            yield number, value, stop
            if stop is not None:
                cursor.seek(stop)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._cursor.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF
        raise ValueError("a number has more than 64 bits")

    def _text(self, begin: int, stop: int, ceiling: int) -> str:
        if stop - begin > ceiling:
            raise ValueError("a text is too long")
        return self._cursor.take(stop - begin).decode("utf-8")

    def _tensor(self, end: int) -> _Tensor:
        name, kind, raw, location = "", 0, None, 0
        dimensions: list[int] = []
        outside: dict[str, str] = {}
        for number, value, stop in self._fields(end):
            if number == 1:
                dimensions.extend([value] if stop is None else self._packed(stop))
            elif number == 2 and stop is None:
                kind = value
            elif number == 8 and stop is not None:
                name = self._text(value, stop, _MAX_NAME)
            elif number == 9 and stop is not None:
                raw = (value, stop)
            elif number == 13 and stop is not None:
                outside.update(self._pair(stop))
            elif number == 14 and stop is None:
                location = value
            if len(dimensions) > _MAX_DIMENSIONS or len(outside) > 16:
                raise ValueError("a tensor has too many dimensions or places")
        away = location == _EXTERNAL
        return _Tensor(
            name=name or self._next_name(),
            shape=tuple(dimensions),
            kind=kind,
            raw=None if away else raw,
            outside=outside if away else None,
        )

    def _next_name(self) -> str:
        self._nameless += 1
        return f"constant/{self._nameless - 1}"

    def _packed(self, end: int) -> Iterator[int]:
        for _ in range(_MAX_DIMENSIONS + 1):
            if self._cursor.at >= end:
                break
            yield self._varint()

    def _pair(self, end: int) -> dict[str, str]:
        """Returns a StringStringEntryProto as {key: value}."""
        texts = {1: "", 2: ""}
        for number, value, stop in self._fields(end):
            if number in texts and stop is not None:
                texts[number] = self._text(value, stop, _MAX_LOCATION)
        return {texts[1]: texts[2]}


def _inside(tensor: _Tensor) -> TensorSpan:
    begin, end = tensor.raw or (0, 0)
    if _bytes(tensor) != end - begin:
        raise ValueError("a tensor's shape does not fill its bytes")
    return TensorSpan(
        name=tensor.name, dtype=_TYPES[tensor.kind][0], shape=tensor.shape, begin=begin, end=end
    )


def _bytes(tensor: _Tensor) -> int:
    """Returns what the shape and the type come to; raises ValueError for an unknown type."""
    if tensor.kind not in _TYPES or any(length >= 2**63 for length in tensor.shape):
        raise ValueError("a tensor has no size")
    return -(-prod(tensor.shape) * _TYPES[tensor.kind][1] // 8)


def _location(tensor: _Tensor, path: str) -> str | None:
    """Returns the path in the folder of the file that holds the tensor, None for no proper one."""
    location = (tensor.outside or {}).get("location", "")
    parts = location.removeprefix("./").split("/")
    if any(part in ("", ".", "..") for part in parts) or set(location) & set("\\:\0"):
        return None
    return posixpath.join(posixpath.dirname(path), *parts)


def _outside(tensor: _Tensor) -> Iterator[TensorSpan]:
    """Yields the tensor's span in the file that holds it, if what is said of it fits together."""
    said = tensor.outside or {}
    try:
        length = _bytes(tensor)
        begin = _natural(said.get("offset", "0"))
        claimed = _natural(said.get("length", str(length)))
    except ValueError:
        return
    if claimed == length:
        yield TensorSpan(
            name=tensor.name,
            dtype=_TYPES[tensor.kind][0],
            shape=tensor.shape,
            begin=begin,
            end=begin + length,
        )


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise ValueError("this is no offset")
    return int(text)
