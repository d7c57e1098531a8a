"""Objects on the wire: many of them in one body.

Each frame is 32 bytes BLAKE3, u32 length of a JSON head, u32 length of the data (little-endian),
then the head and the data. The head says what the data is like: `{}`, or the tensor that it is a
piece of (`dtype`, `shape`, `begin`) and stored ones that resemble it (`sources`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from lockgate.core import canonical
from lockgate.core.digests import from_raw, parse_digest, raw_of
from lockgate.core.errors import UsageError
from lockgate.store.codec.dtypes import Grid, Object, Source

_HEAD = struct.Struct("<32sII")
MAX_BODY = 320 * 1024 * 1024
_MAX_SOURCES = 8
_MAX_DIMENSIONS = 64


def pack(objects: Iterable[Object]) -> Iterator[bytes]:
    """Yields the frames of `objects`."""
    for given in objects:
        head = canonical.encode(_likeness(given))
        yield _HEAD.pack(raw_of(given.digest), len(head), len(given.data)) + head
        yield bytes(given.data)


def _likeness(given: Object) -> dict[str, object]:
    if given.grid is None:
        return {}
    sources = [
        {"dtype": source.grid.dtype, "shape": list(source.grid.shape),
         "pieces": [[digest, size] for digest, size in source.pieces]}
        for source in given.sources
    ]  # fmt: skip
    return {"dtype": given.grid.dtype, "shape": list(given.grid.shape), "begin": given.begin,
            "sources": sources}  # fmt: skip


def unpack(body: bytes) -> Iterator[Object]:
    """Yields the objects of `body`, not yet checked; raises UsageError when it is cut or wrong."""
    view = memoryview(body)
    at = 0
    while at < len(view):
        if at + _HEAD.size > len(view):
            raise UsageError("the body ends inside a frame's head")
        raw, head, size = _HEAD.unpack_from(view, at)
        at += _HEAD.size
        if head + size > len(view) - at:
            raise UsageError("the body ends inside an object")
        grid, begin, sources = _read(bytes(view[at : at + head]))
        data = view[at + head : at + head + size]
        at += head + size
        yield Object(digest=from_raw(raw), data=data, grid=grid, begin=begin,
                     sources=sources)  # fmt: skip


def _read(head: bytes) -> tuple[Grid | None, int, tuple[Source, ...]]:
    try:
        body = json.loads(head.decode("utf-8"))
        if body == {}:
            return None, 0, ()
        sources = tuple(_source(item) for item in body["sources"][:_MAX_SOURCES])
        return _grid(body), _natural(body["begin"]), sources
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"a frame's head can't be read: {str(error)[:120]}") from error


def _grid(body: Any) -> Grid:
    shape = tuple(_natural(item) for item in body["shape"])
    if len(shape) > _MAX_DIMENSIONS or not isinstance(body["dtype"], str):
        raise ValueError("it describes no tensor")
    return Grid(dtype=body["dtype"][:32], shape=shape)


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise ValueError("a size is not a number")
    return value


def _source(body: Any) -> Source:
    pieces = tuple((parse_digest(digest), _natural(size)) for digest, size in body["pieces"])
    return Source(grid=_grid(body), pieces=pieces)
