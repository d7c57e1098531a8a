"""The header of a `.safetensors` file, read as a stranger's.

Layout (format description of the safetensors project): 8 bytes little-endian header length N,
N bytes JSON `{name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {str: str}}`,
then the tensors' bytes, which the offsets must cover without holes or overlaps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import prod
from typing import BinaryIO, TypeGuard

from lockgate.core.errors import IntegrityError
from lockgate.store.formats.spans import TensorSpan, ordered

MAX_HEADER = 100_000_000
_MAX_DIMENSIONS = 64
_MAX_MARKS = 6_000_000  # of JSON; about 400,000 tensors, and no header that fills the memory
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


def tensors(source: BinaryIO, size: int, path: str) -> tuple[TensorSpan, ...]:
    """Returns the tensors of a file of `size` bytes, in the order of their bytes.

    Raises IntegrityError, naming the file, for anything that the format does not allow.
    """
    source.seek(0)
    length = header_length(source.read(8), size, path)
    header = source.read(length)
    if len(header) < length:
        raise _corrupt(path, "it ends in the middle of its header")
    return parse_header(header, size - 8 - length, path)


def header_length(prefix: bytes, file_size: int, name: str) -> int:
    """Returns N from the first 8 bytes; raises IntegrityError, naming the file, if impossible."""
    if len(prefix) < 8:
        raise _corrupt(name, f"it has {file_size} bytes, fewer than the 8 of a header length")
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER:
        raise _corrupt(name, f"its header would be {length} bytes long, the format allows 100 MB")
    if 8 + length > file_size:
        raise _corrupt(name, f"its header would be {length} bytes long, the file has {file_size}")
    return length


def parse_header(header: bytes, data_size: int, name: str) -> tuple[TensorSpan, ...]:
    """Returns the tensors in the order of their bytes; `data_size` is the rest of the file.

    `header` is the JSON alone; the spans count from the start of the file, 8 bytes before it.

    Raises IntegrityError, naming the file, for anything that the format does not allow.
    """
    if sum(header.count(mark) for mark in (b",", b"[", b"{")) > _MAX_MARKS:
        raise _corrupt(name, "its header has more values than tensors need")
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_no_doubles)
    except (ValueError, RecursionError) as error:
        raise _corrupt(name, f"its header is not JSON: {str(error)[:120]}") from error
    if not isinstance(entries, dict):
        raise _corrupt(name, "its header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _corrupt(name, "its __metadata__ does not map text to text")
    data = 8 + len(header)
    spans = ordered(_span(tensor, entry, data, name) for tensor, entry in entries.items())
    _check_cover(spans, data, data_size, name)
    return tuple(spans)


def _no_doubles(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:60]!r} stands in it twice")
        result[key] = value
    return result


def _span(tensor: str, entry: object, data: int, name: str) -> TensorSpan:
    if any("\ud800" <= letter <= "\udfff" for letter in tensor):
        raise _corrupt(name, f"the name of tensor {tensor[:60]!r} is not Unicode")
    if not isinstance(entry, dict):
        raise _corrupt(name, f"tensor {tensor[:60]!r} is not described by an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _corrupt(name, f"tensor {tensor[:60]!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _corrupt(name, f"tensor {tensor[:60]!r} has no proper shape and data_offsets")
    begin, end = offsets
    bits = prod(shape) * _BITS[dtype]
    if bits % 8 or begin + bits // 8 != end:
        raise _corrupt(
            name,
            f"tensor {tensor[:60]!r}: {dtype} {list(shape)[:8]} does not fill {end - begin} bytes",
        )
    return TensorSpan(
        name=tensor, dtype=dtype, shape=tuple(shape), begin=data + begin, end=data + end
    )


def _naturals(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(
            isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**63
            for item in value
        )
    )


def _check_cover(spans: Sequence[TensorSpan], data: int, data_size: int, name: str) -> None:
    at = data
    for span in spans:
        if span.begin != at:
            fault = "overlaps the one before it" if span.begin < at else "leaves a hole before it"
            raise _corrupt(name, f"tensor {span.name[:60]!r} {fault}")
        at = span.end
    if at != data + data_size:
        raise _corrupt(name, f"its tensors fill {at - data} bytes, {data_size} follow the header")


def _corrupt(name: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"{name} is not a sound safetensors file: {what}",
        hint="was it copied whole? compare its size and SHA-256 with the source",
    )
