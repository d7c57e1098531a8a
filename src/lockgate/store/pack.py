"""A pack: many frames in one immutable blob, with an index at its end.

Layout, little-endian (docs/store-format.md): 8 bytes `LGPACK01`; the frames, one after the other;
for each an entry (32 bytes digest, u64 offset, u32 length, u32 size, u8 codec, u8 depth, u8 number
of dependencies, u8 0); the dependencies of all entries, 32 bytes each; a tail (u32 entries, u32
bytes of entries and dependencies, 32 bytes BLAKE3 of them, `LGINDEX1`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from lockgate.core.digests import Digest, from_raw, raw_of
from lockgate.core.errors import IntegrityError
from lockgate.store.blobs.api import Blobs

MAGIC = b"LGPACK01"
FOLDER = "packs/"
_TAIL_MAGIC = b"LGINDEX1"
_TAIL = struct.Struct("<II32s8s")
_AHEAD = 64 * 1024
ENTRY = np.dtype(
    [("digest", "V32"), ("offset", "<u8"), ("length", "<u4"), ("size", "<u4"), ("codec", "u1"),
     ("depth", "u1"), ("deps", "u1"), ("zero", "u1")]
)  # fmt: skip
Entries = NDArray[np.void]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A frame on its way into a pack: its object's digest and size, and the frame's bytes."""

    digest: Digest
    data: bytes
    size: int
    codec: int
    depth: int
    deps: tuple[Digest, ...]


def compose(frames: Sequence[Packed]) -> tuple[list[bytes], Entries]:
    """Returns the parts of the pack that holds `frames`, and its entries."""
    entries = np.zeros(len(frames), ENTRY)
    at = len(MAGIC)
    for entry, frame in zip(entries, frames, strict=True):
        raw = raw_of(frame.digest)
        entry["digest"] = np.void(raw)
        entry["offset"], entry["length"], entry["size"] = at, len(frame.data), frame.size
        entry["codec"], entry["depth"], entry["deps"] = frame.codec, frame.depth, len(frame.deps)
        at += len(frame.data)
    deps = b"".join(raw_of(digest) for frame in frames for digest in frame.deps)
    index = entries.tobytes() + deps
    tail = _TAIL.pack(len(frames), len(index), blake3(index).digest(), _TAIL_MAGIC)
    return [MAGIC, *(frame.data for frame in frames), index, tail], entries


def read_index(blobs: Blobs, name: str, size: int) -> tuple[Entries, bytes]:
    """Returns the entries of the pack `name`, and the dependencies of all of them.

    Raises IntegrityError when it is no sound pack, NotFoundError when it is gone.
    """
    ahead = min(size, _AHEAD)
    end = blobs.read(name, size - ahead, ahead)
    if len(end) < len(MAGIC) + _TAIL.size:
        raise _unsound(name, "it is too short")
    count, length, check, magic = _TAIL.unpack(end[-_TAIL.size :])
    begin = size - _TAIL.size - length
    if magic != _TAIL_MAGIC or begin < len(MAGIC) or length < count * ENTRY.itemsize:
        raise _unsound(name, "its tail is not one")
    held = end[: -_TAIL.size]
    index = held[-length:] if length <= len(held) else blobs.read(name, begin, length)
    if not length:
        index = b""
    if blake3(index).digest() != check:
        raise _unsound(name, "its index does not have its checksum")
    entries = np.frombuffer(index, ENTRY, count).copy()  # or it would keep the whole index
    _check(entries, begin, length, name)
    return entries, index[count * ENTRY.itemsize :]


def _check(entries: Entries, begin: int, length: int, name: str) -> None:
    ends = entries["offset"] + entries["length"]
    inside = (entries["offset"] >= len(MAGIC)) & (ends <= begin) & (ends >= entries["offset"])
    deps = int(entries["deps"].sum(dtype=np.int64))
    if not inside.all() or length != entries.nbytes + 32 * deps:
        raise _unsound(name, "its index points outside of it")


def dependencies(entries: Entries, deps: bytes) -> Iterable[tuple[Digest, tuple[Digest, ...]]]:
    """Yields each entry's digest and what its frame depends on."""
    at = 0
    for entry in entries:
        many = int(entry["deps"])
        yield (
            to_digest(entry["digest"]),
            tuple(from_raw(deps[at + 32 * i : at + 32 * i + 32]) for i in range(many)),
        )
        at += 32 * many


def to_digest(raw: np.void) -> Digest:
    """Returns the digest of an entry."""
    return Digest("blake3:" + raw.tobytes().hex())


def _unsound(name: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"the pack {name} is not sound: {what}", hint="lockgate repair takes it from a replica"
    )
