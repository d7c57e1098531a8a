"""What is kept at hand: decoded bases, the last ones that were used, and memory for pieces."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lockgate.core.digests import Digest
from lockgate.store.codec.dtypes import PIECE_BYTES, Buffer

_LEAST = PIECE_BYTES // 8
_ROOMS = 8
Block = NDArray[np.uint8]


class Held:
    """The bytes of the objects that were asked for last; safe for threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._found: OrderedDict[Digest, tuple[Buffer, bool]] = OrderedDict()
        self._bytes = 0

    def get(
        self, digest: Digest, load: Callable[[Digest], Buffer], *, checked: bool, keep: bool = True
    ) -> Buffer:
        """Returns an object's bytes, by `load` when they are not at hand.

        With `checked` only bytes that a checking `load` gave will do; without `keep` what it gave
        is not kept.
        """
        with self._lock:
            held = self._found.get(digest)
            if held is not None and (held[1] or not checked):
                self._found.move_to_end(digest)
                return held[0]
        data = load(digest)
        if not keep:
            return data
        with self._lock:
            self._drop(digest)
            self._found[digest] = (data, checked)
            self._bytes += len(data)
            while self._bytes > self._limit and len(self._found) > 1:
                self._drop(next(iter(self._found)))
        return data

    def _drop(self, digest: Digest) -> None:
        if digest in self._found:
            self._bytes -= len(self._found.pop(digest)[0])

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._found.clear()
            self._bytes = 0


class Rooms:
    """Memory for pieces, lent again once nobody looks at it any more; safe for threads.

    Fresh pages cost as much as decoding into them. Keeps up to 32 MiB.
    """

    def __init__(self) -> None:
        self._free: deque[Block] = deque(maxlen=_ROOMS)
        self._lent: dict[int, weakref.ref[Block]] = {}

    def lend(self, size: int) -> memoryview:
        """Returns `size` bytes, not zeroed; they are the caller's until the last view is gone."""
        if not size:
            return memoryview(bytearray())
        if not _LEAST <= size <= PIECE_BYTES:
            return np.empty(size, np.uint8).data
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(PIECE_BYTES, np.uint8)
        room = block[:size]
        self._lent[id(block)] = weakref.ref(room, partial(self._take_back, block))
        return room.data

    def _take_back(self, block: Block, _: weakref.ref[Block]) -> None:
        del self._lent[id(block)]
        self._free.append(block)
