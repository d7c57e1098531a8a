"""A frame: an object as it is stored. Its head says how to decode it and what from.

Layout, little-endian (docs/store-format.md):

    0   u8   format, 1                  8   u32  bytes of the object
    1   u8   codec                     12   u32  bytes of the payload
    2   u8   objects it depends on     16   8 bytes BLAKE3 of the frame with these bytes zero
    3   u8   depth of its chain        24   dependencies, 32 bytes each
    4   u32  parts of its source            parts, 5 × u32 each; then the payload
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from blake3 import blake3
from numpy.lib.stride_tricks import as_strided

from lockgate.core.digests import Digest, from_raw, raw_of
from lockgate.core.errors import IntegrityError
from lockgate.store.codec.dtypes import Buffer

RAW, ZSTD, PLANES, DELTA, COPY, CAST, QUANTIZE = range(7)
NAMES = ("raw", "zstd", "planes", "delta", "copy", "cast", "quantize")
RECIPES = (COPY, CAST, QUANTIZE)
MAX_DEPTH = 3
"""The longest chain of differences; a recipe may stand on its end."""
MAX_OBJECT = 256 * 1024 * 1024
MAX_SOURCE = 64 * 1024 * 1024
_FIRST = 4096
_MAX_DEPS = 64
_MAX_PARTS = 4096
_MOST = 2**32 - 1
_HEAD = struct.Struct("<4B3I8s")
_PART = struct.Struct("<5I")
_FORMAT = 1

Fetch = Callable[[Digest], Buffer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`count` blocks of `block` bytes from dependency `dep`, each `stride` bytes after the last."""

    dep: int
    begin: int
    block: int
    stride: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """An encoded object. `size`: its bytes decoded; `depth`: how long its chain of bases is.

    Without `parts`, its source is all of its first dependency.
    """

    codec: int
    size: int
    payload: bytes | memoryview
    depth: int = 0
    deps: tuple[Digest, ...] = ()
    parts: tuple[Part, ...] = ()


def pack(frame: Frame) -> bytes:
    """Returns the bytes of `frame`."""
    deps = b"".join(raw_of(digest) for digest in frame.deps)
    parts = b"".join(
        _PART.pack(part.dep, part.begin, part.block, part.stride, part.count)
        for part in frame.parts
    )
    fields = (_FORMAT, frame.codec, len(frame.deps), frame.depth, len(frame.parts), frame.size,
              len(frame.payload))  # fmt: skip
    check = blake3(_HEAD.pack(*fields, bytes(8)))
    for piece in (deps, parts, frame.payload):
        check.update(piece)
    return b"".join((_HEAD.pack(*fields, check.digest()[:8]), deps, parts, frame.payload))


def parse(data: bytes | memoryview, *, check: bool = True) -> Frame:
    """Reads a frame as a stranger's; raises IntegrityError when it is not one, whole.

    Without `check` its checksum is not looked at: for who compares the decoded bytes' digest.
    """
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise _unsound("it is shorter than a head")
    form, codec, deps, depth, parts, size, length, checksum = _HEAD.unpack_from(view)
    at = _HEAD.size + 32 * deps
    body = at + _PART.size * parts
    if form != _FORMAT or codec >= len(NAMES) or parts > _MAX_PARTS:
        raise _unsound(f"format {form}, codec {codec}, {parts} parts")
    if body + length != len(view):
        raise _unsound(f"it has {len(view)} bytes, not {body + length}")
    if check:
        found = blake3(_HEAD.pack(form, codec, deps, depth, parts, size, length, bytes(8)))
        if found.update(view[_HEAD.size :]).digest()[:8] != checksum:
            raise _unsound("its bytes do not have its checksum")
    frame = Frame(
        codec=codec,
        size=size,
        depth=depth,
        deps=tuple(_digest(view[i : i + 32]) for i in range(_HEAD.size, at, 32)),
        parts=tuple(_part(view, i) for i in range(at, body, _PART.size)),
        payload=view[body:],
    )
    check_limits(frame)
    return frame


def check_limits(frame: Frame) -> None:
    """Raises IntegrityError for a frame that `parse` refuses, whatever its bytes are."""
    deps, parts, depth = len(frame.deps), len(frame.parts), frame.depth
    most = MAX_DEPTH + (frame.codec in RECIPES)
    if deps > _MAX_DEPS or parts > _MAX_PARTS or depth > most or bool(deps) != bool(depth):
        raise _unsound(f"{deps} dependencies, {parts} parts, depth {depth}")
    if frame.size > MAX_OBJECT or sum(part.block * part.count for part in frame.parts) > MAX_SOURCE:
        raise _unsound("it or its source is too large")
    if any(part.block < 1 or part.count < 1 or part.stride > _MOST for part in frame.parts):
        raise _unsound("a part of its source is empty")
    order = [0, *(part.dep for part in frame.parts), deps - 1]
    if parts and any(before > after for before, after in pairwise(order)):
        raise _unsound("the parts of its source are not in the order of its dependencies")


def _digest(raw: memoryview) -> Digest:
    return from_raw(raw)


def _part(view: memoryview, at: int) -> Part:
    dep, begin, block, stride, count = _PART.unpack_from(view, at)
    return Part(dep=dep, begin=begin, block=block, stride=stride, count=count)


def source_of(frame: Frame, fetch: Fetch) -> Buffer:
    """Returns the bytes that `frame` is made from; `fetch` gives a dependency, checked.

    Raises IntegrityError when the parts are not in the dependencies, or are too many bytes.
    """
    if not frame.deps:
        raise _unsound("its codec needs a source and it names none")
    if frame.parts:
        return gather(frame.deps, frame.parts, fetch)
    source = fetch(frame.deps[0])
    if len(source) > MAX_SOURCE:
        raise _unsound("its source is too large")
    return source


def gather(deps: Sequence[Digest], parts: Sequence[Part], fetch: Fetch) -> Buffer:
    """Returns the parts of the dependencies, one after the other; raises IntegrityError.

    Each dependency is fetched once, and all but what is taken of it let go before the next.
    """
    if len(parts) == 1:
        return _cut(memoryview(fetch(deps[parts[0].dep])), parts[0])
    pieces: list[bytes] = []
    for dep, some in groupby(parts, key=lambda part: part.dep):
        data = memoryview(fetch(deps[dep]))
        pieces += [bytes(_cut(data, part)) for part in some]
    return b"".join(pieces)


def _cut(data: memoryview, part: Part) -> Buffer:
    end = part.begin + (part.count - 1) * part.stride + part.block
    if end > len(data):
        raise _unsound("a part of its source is outside of its dependency")
    if part.stride == part.block:
        return data[part.begin : end]
    inside = np.frombuffer(data, np.uint8)[part.begin : end]
    return as_strided(inside, (part.count, part.block), (part.stride, 1), writeable=False).tobytes()


def same(one: Buffer, other: Buffer) -> bool:
    """Says whether two buffers hold the same bytes; `==` of memoryviews goes byte by byte."""
    if len(one) != len(other):
        return False
    few = min(len(one), _FIRST)
    if bytes(one[:few]) != bytes(other[:few]):
        return False
    whole = len(one) // 8 * 8
    words = [np.frombuffer(memoryview(data)[:whole], "<u8") for data in (one, other)]
    return bool((words[0] == words[1]).all()) and bytes(one[whole:]) == bytes(other[whole:])


def _unsound(what: str) -> IntegrityError:
    return IntegrityError(
        f"a stored frame is not sound: {what}",
        hint="run 'lockgate verify' to see which versions it hurts",
    )
