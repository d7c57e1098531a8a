"""Decoded bases that are kept at hand: the last ones that were used, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from lockgate.core.digests import Digest
from lockgate.store.codec.dtypes import Buffer


class Held:
    """The bytes of the objects that were asked for last; safe for threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._found: OrderedDict[Digest, tuple[Buffer, bool]] = OrderedDict()
        self._bytes = 0

    def get(self, digest: Digest, load: Callable[[Digest], Buffer], *, checked: bool) -> Buffer:
        """Returns an object's bytes, by `load` when they are not at hand.

        With `checked` only bytes that a checking `load` gave will do.
        """
        with self._lock:
            held = self._found.get(digest)
            if held is not None and (held[1] or not checked):
                self._found.move_to_end(digest)
                return held[0]
        data = load(digest)
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
