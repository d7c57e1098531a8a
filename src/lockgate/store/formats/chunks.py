"""Content-defined chunks: where to cut bytes so that an insertion moves the cuts near it only.

A cut depends on the 32 bytes before it, by the Gear rolling hash: H = sum of G[b[i-j]] << j over
j = 0 … 31, in 32 bits (Xia et al., "Ddelta: A deduplication-inspired fast delta compression
approach", 2014). Normalized chunking (Xia et al., "FastCDC", USENIX ATC 2016): a chunk of MIN up
to NORMAL bytes ends where the 18 high bits of H are zero, a longer one where the 14 high bits are,
none is longer than MAX. Over bytes without a pattern that makes 63 KiB on average.

Differing from the papers, the window runs on over cuts, so H does not depend on where the chunk
began, and all places of a block are hashed at once: with S_1[i] = G[b[i]], doubling the window
S_2k[i] = S_k[i] + (S_k[i-k] << k) five times gives S_32 = H.

G is 256 little-endian 32-bit numbers, the first 1024 bytes of BLAKE3's extended output for
`lockgate gear table 1`. Other numbers would cut otherwise, so that nothing stored is found again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import BinaryIO

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from lockgate.core.errors import UsageError

MIN = 16 * 1024
NORMAL = 52 * 1024
MAX = 256 * 1024
"""The shortest chunk (the last may be shorter), where the rule changes, the longest; in bytes."""

WINDOW = 32
HARD = 1 << 14
EASY = 1 << 18
"""A chunk may end where the hash is below this: up to NORMAL bytes, and beyond."""

_LABEL = b"lockgate gear table 1"
_BLOCK = 64 * 1024  # hashed at once; its numbers fit a processor's second cache
_READ = 1024 * 1024
_Numbers = NDArray[np.uint32]
_Places = NDArray[np.intp]


@cache
def gear() -> _Numbers:
    """Returns the table G, 256 numbers of 32 bits."""
    return np.frombuffer(blake3(_LABEL).digest(length=1024), dtype="<u4").astype(np.uint32)


class Cutter:
    """Cuts bytes that arrive in pieces; how they are sliced makes no difference to the cuts.

    Holds the hashes of one block and the 31 bytes before it, whatever it is given.
    """

    __slots__ = ("_before", "_hashes", "_held", "_scratch")

    def __init__(self) -> None:
        self._before = np.zeros(0, np.uint8)
        self._held = 0
        self._hashes = np.empty(_BLOCK + WINDOW, np.uint32)
        self._scratch = np.empty(_BLOCK + WINDOW, np.uint32)

    def feed(self, data: bytes | bytearray | memoryview) -> list[int]:
        """Returns the lengths of the chunks that end within `data`, in order."""
        array = np.frombuffer(data, np.uint8)
        lengths: list[int] = []
        for at in range(0, len(array), _BLOCK):
            lengths.extend(self._feed(array[at : at + _BLOCK]))
        return lengths

    def finish(self) -> list[int]:
        """Returns the length of the last chunk, or nothing, and is ready for another stream."""
        held, self._held = self._held, 0
        self._before = self._before[:0]
        return [held] if held else []

    def _feed(self, block: NDArray[np.uint8]) -> Iterator[int]:
        joined = np.concatenate((self._before, block))
        hashes = self._hash(joined)[len(self._before) :]
        self._before = joined[-(WINDOW - 1) :]
        easy = np.flatnonzero(hashes < EASY)
        hard = easy[hashes[easy] < HARD] + 1
        easy += 1
        begin = -self._held
        while (end := _end(begin, hard, easy)) <= len(block):
            yield end - begin
            begin = end
        self._held = len(block) - begin

    def _hash(self, data: NDArray[np.uint8]) -> _Numbers:
        count = len(data)
        hashes, scratch = self._hashes[:count], self._scratch[:count]
        np.take(gear(), data, out=hashes, mode="wrap")
        for width in (1, 2, 4, 8, 16):
            np.left_shift(hashes[:-width], np.uint32(width), out=scratch[width:])
            np.add(hashes[width:], scratch[width:], out=hashes[width:])
        return hashes


def _end(begin: int, hard: _Places, easy: _Places) -> int:
    """Returns where the chunk ends that began at `begin`, given the places that may end one."""
    for places, least, limit in ((hard, MIN, NORMAL), (easy, NORMAL, MAX)):
        place = int(np.searchsorted(places, begin + least))
        if place < len(places) and places[place] < begin + limit:
            return int(places[place])
    return begin + MAX


def cut(stream: BinaryIO | Iterable[bytes], size: int) -> Iterator[int]:
    """Yields the lengths of the chunks of the next `size` bytes of `stream`; they add up to it.

    Raises UsageError when the stream ends before that; reads no more than `size` from a file.
    """
    cutter = Cutter()
    left = size
    for data in _pieces(stream, size):
        piece = memoryview(data)[:left]
        left -= len(piece)
        yield from cutter.feed(piece)
        if not left:
            break
    if left:
        raise UsageError(
            f"the bytes end {left} too early",
            hint="try again when whatever writes them is done",
        )
    yield from cutter.finish()


def cut_buffer(data: bytes | bytearray | memoryview) -> list[int]:
    """Returns the lengths of the chunks of bytes that are in memory."""
    cutter = Cutter()
    return cutter.feed(data) + cutter.finish()


def _pieces(stream: BinaryIO | Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yields the stream's bytes in pieces of a size that is worth hashing."""
    if hasattr(stream, "read"):
        while size and (data := stream.read(min(_READ, size))):
            size -= len(data)
            yield data
        return
    held = bytearray()
    for data in stream:
        held += data
        if len(held) >= _BLOCK:
            yield bytes(held)
            held.clear()
    yield bytes(held)
