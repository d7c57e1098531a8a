"""Objects on the wire: many of them in one body.

Each frame is 32 bytes BLAKE3, 8 bytes little-endian length, then that many bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from lockgate.core.digests import Digest, hex_of
from lockgate.core.errors import UsageError

_HEAD = struct.Struct("<32sQ")
MAX_BODY = 64 * 1024 * 1024


def pack(objects: Iterable[tuple[Digest, bytes]]) -> Iterator[bytes]:
    """Yields the frames of `objects`."""
    for digest, data in objects:
        yield _HEAD.pack(bytes.fromhex(hex_of(digest)), len(data)) + data


def unpack(body: bytes) -> Iterator[tuple[Digest, bytes]]:
    """Yields the objects of `body`, not yet checked; raises UsageError when it is cut."""
    at = 0
    while at < len(body):
        if at + _HEAD.size > len(body):
            raise UsageError("the body ends inside a frame's head")
        raw, size = _HEAD.unpack_from(body, at)
        at += _HEAD.size
        if size > len(body) - at:
            raise UsageError("the body ends inside an object")
        yield Digest("blake3:" + raw.hex()), body[at : at + size]
        at += size
