"""The header of a GGUF file (llama.cpp, ollama, …), read as a stranger's.

Layout (`docs/gguf.md` of the ggml project, versions 2 and 3, little endian): `GGUF`, version u32,
tensor count u64, pair count u64; the pairs: key, type u32, value; the tensors: name, number of
dimensions u32, dimensions u64 innermost first, type u32, offset u64; padding to the alignment
(`general.alignment`, 32 when it is not given); then the data, which the offsets count from. A text
is its length u64 and its UTF-8 bytes. Block and type sizes are those of `ggml-common.h`.

Version 1, a later version and big endian are not read: such a file is bytes like any other. A
tensor of a type that the table below does not know is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

from lockgate.core.errors import IntegrityError
from lockgate.store.formats.cursor import Cursor
from lockgate.store.formats.spans import TensorSpan, ordered

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_TENSORS = 1_000_000
_MAX_PAIRS = 100_000
_MAX_VALUES = 8_000_000  # texts and arrays in arrays; a vocabulary with merges has under a million
_MAX_KEY = 65_535
_MAX_NAME = 4096
_MAX_DIMENSIONS = 8
_MAX_DEPTH = 4
_MAX_ALIGNMENT = 1 << 24
_DEFAULT_ALIGNMENT = 32
_LEAST_PAIR = 8 + 4 + 1
_LEAST_TENSOR = 8 + 4 + 4 + 8

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_U32, _TEXT, _ARRAY = 4, 8, 9

_TYPES = {  # number → name, weights in a block, bytes of a block
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("GGML_Q4_0", 32, 18), 3: ("GGML_Q4_1", 32, 20), 6: ("GGML_Q5_0", 32, 22),
    7: ("GGML_Q5_1", 32, 24), 8: ("GGML_Q8_0", 32, 34), 9: ("GGML_Q8_1", 32, 36),
    10: ("GGML_Q2_K", 256, 84), 11: ("GGML_Q3_K", 256, 110), 12: ("GGML_Q4_K", 256, 144),
    13: ("GGML_Q5_K", 256, 176), 14: ("GGML_Q6_K", 256, 210), 15: ("GGML_Q8_K", 256, 292),
    16: ("GGML_IQ2_XXS", 256, 66), 17: ("GGML_IQ2_XS", 256, 74), 18: ("GGML_IQ3_XXS", 256, 98),
    19: ("GGML_IQ1_S", 256, 50), 20: ("GGML_IQ4_NL", 32, 18), 21: ("GGML_IQ3_S", 256, 110),
    22: ("GGML_IQ2_S", 256, 82), 23: ("GGML_IQ4_XS", 256, 136), 29: ("GGML_IQ1_M", 256, 56),
    34: ("GGML_TQ1_0", 256, 54), 35: ("GGML_TQ2_0", 256, 66), 39: ("GGML_MXFP4", 32, 17),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A tensor as the header has it; `offset` counts from the data's begin."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def is_gguf(prefix: bytes) -> bool:
    """Says whether the first 8 bytes of a file are those of a GGUF file that is read here."""
    return prefix[:4] == MAGIC and int.from_bytes(prefix[4:8], "little") in _VERSIONS


def tensors(source: BinaryIO, size: int, path: str) -> tuple[TensorSpan, ...]:
    """Returns the tensors of a file of which `is_gguf` said yes, in the order of their bytes.

    Raises IntegrityError, naming the file, for anything that the format does not allow.
    """
    try:
        return _tensors(Cursor(source, size, at=8))
    except ValueError as error:
        raise IntegrityError(
            f"{path} is not a sound GGUF file: {error}",
            hint="was it copied whole? compare its size and SHA-256 with the source",
        ) from error


def _tensors(cursor: Cursor) -> tuple[TensorSpan, ...]:
    tensor_count = _count(cursor, "tensors", _MAX_TENSORS, _LEAST_TENSOR)
    pair_count = _count(cursor, "pairs", _MAX_PAIRS, _LEAST_PAIR)
    alignment = _Pairs(cursor).alignment(pair_count)
    entries = [_entry(cursor, alignment) for _ in range(tensor_count)]
    if len({entry.name for entry in entries}) < len(entries):
        raise ValueError("two of its tensors have the same name")
    data = -(-cursor.at // alignment) * alignment
    spans = ordered(_spans(entries, data))
    _check(spans, cursor.at + cursor.left)
    return tuple(spans)


def _count(cursor: Cursor, what: str, ceiling: int, least: int) -> int:
    count = cursor.natural(8)
    if count > ceiling or count * least > cursor.left:
        raise ValueError(f"it can't hold {count} {what}")
    return count


def _text(cursor: Cursor, ceiling: int) -> str:
    length = cursor.natural(8)
    if length > ceiling:
        raise ValueError(f"a name in it would be {length} bytes long")
    return cursor.take(length).decode("utf-8")


class _Pairs:
    """The key-value pairs; all but the alignment are walked over, with a bounded effort."""

    __slots__ = ("_cursor", "_values")

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._values = 0

    def alignment(self, count: int) -> int:
        """Walks over `count` pairs and returns the alignment of the data, in bytes."""
        alignment = _DEFAULT_ALIGNMENT
        for _ in range(count):
            key = _text(self._cursor, _MAX_KEY)
            kind = self._cursor.natural(4)
            if key == "general.alignment":
                alignment = self._alignment(kind)
            else:
                self._skip(kind, 0)
        return alignment

    def _alignment(self, kind: int) -> int:
        value = self._cursor.natural(4) if kind == _U32 else 0
        if not 0 < value <= _MAX_ALIGNMENT or (value % 8 and value & (value - 1)):
            raise ValueError("its general.alignment is no multiple of 8 of the type u32")
        return value

    def _skip(self, kind: int, depth: int) -> None:
        if kind in _SCALAR_BYTES:
            self._cursor.skip(_SCALAR_BYTES[kind])
        elif kind == _TEXT:
            self._cursor.skip(self._cursor.natural(8))
        elif kind == _ARRAY:
            self._skip_array(depth + 1)
        else:
            raise ValueError(f"a value in it has the unknown type {kind}")

    def _skip_array(self, depth: int) -> None:
        kind, count = self._cursor.natural(4), self._cursor.natural(8)
        if depth > _MAX_DEPTH:
            raise ValueError(f"arrays in it are nested more than {_MAX_DEPTH} deep")
        if kind in _SCALAR_BYTES:
            self._cursor.skip(count * _SCALAR_BYTES[kind])
            return
        self._values += count
        if self._values > _MAX_VALUES or count * 8 > self._cursor.left:
            raise ValueError(f"it can't hold an array of {count} values")
        for _ in range(count):
            self._skip(kind, depth)


def _entry(cursor: Cursor, alignment: int) -> _Entry:
    name = _text(cursor, _MAX_NAME)
    dimensions = cursor.natural(4)
    if dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"tensor {name[:60]!r} would have {dimensions} dimensions")
    inner_first = [cursor.natural(8) for _ in range(dimensions)]
    kind, offset = cursor.natural(4), cursor.natural(8)
    if offset % alignment or any(length >= 2**63 for length in inner_first):
        raise ValueError(f"tensor {name[:60]!r} has an offset or a shape that can't be")
    return _Entry(name=name, shape=tuple(reversed(inner_first)), kind=kind, offset=offset)


def _spans(entries: Sequence[_Entry], data: int) -> Iterator[TensorSpan]:
    for entry in entries:
        if entry.kind not in _TYPES:
            continue
        dtype, weights, length = _TYPES[entry.kind]
        row = entry.shape[-1] if entry.shape else 1
        if row % weights:
            raise ValueError(f"the rows of tensor {entry.name[:60]!r} are no whole blocks")
        begin = data + entry.offset
        end = begin + prod(entry.shape) // weights * length
        yield TensorSpan(name=entry.name, dtype=dtype, shape=entry.shape, begin=begin, end=end)


def _check(spans: Sequence[TensorSpan], size: int) -> None:
    at = 0
    for span in spans:
        if span.end > size:
            raise ValueError(f"tensor {span.name[:60]!r} ends beyond its end, at byte {span.end}")
        if span.begin < at:
            raise ValueError(f"tensor {span.name[:60]!r} overlaps the one before it")
        at = span.end
