"""Frames on their way into packs: at hand at once, durable after `write`."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Mapping

from lockgate.core.digests import Digest, raw_of
from lockgate.store.blobs.api import Blobs
from lockgate.store.pack import FOLDER, Entries, Packed, compose

PACK_BYTES = 64 * 1024 * 1024
"""Frames are written together once they have this many bytes."""

Written = Callable[[str, Entries, bytes], None]


class Writer:
    """Collects frames and writes them as packs; safe for threads. Holds up to one pack of them.

    `stored` counts the bytes of all frames that were taken.
    """

    def __init__(self, blobs: Blobs, written: Written) -> None:
        self._blobs = blobs
        self._written = written
        self._lock = threading.Lock()
        self._pending: dict[Digest, Packed] = {}
        self._writing: dict[Digest, Packed] = {}
        self._bytes = 0
        self.stored = 0

    def find(self, digest: Digest) -> Packed | None:
        """Returns the frame of an object that is in no pack yet."""
        with self._lock:
            return self._pending.get(digest) or self._writing.get(digest)

    def digests(self) -> set[Digest]:
        """Returns the objects that are in no pack yet."""
        with self._lock:
            return {*self._pending, *self._writing}

    def add(self, packed: Packed) -> None:
        """Takes a frame; writes a pack when there is one full."""
        with self._lock:
            if packed.digest in self._pending or packed.digest in self._writing:
                return
            self._pending[packed.digest] = packed
            self._bytes += len(packed.data)
            self.stored += len(packed.data)
            full = self._bytes >= PACK_BYTES
        if full:
            self.write()

    def drop(self, digests: Iterable[Digest]) -> None:
        """Forgets frames that were not written yet."""
        with self._lock:
            for digest in digests:
                if digest in self._pending:
                    self._bytes -= len(self._pending.pop(digest).data)

    def write(self) -> None:
        """Writes what is here as one pack; returns when it is durable. Raises as `Blobs.write`."""
        with self._lock:
            batch, self._pending, self._bytes = self._pending, {}, 0
            self._writing |= batch
        if not batch:
            return
        name = pack_name(secrets.token_hex(16))
        parts, entries = compose(list(batch.values()))
        try:
            self._blobs.write(name, parts)
            deps = (digest for packed in batch.values() for digest in packed.deps)
            self._written(name, entries, b"".join(raw_of(d) for d in deps))
        finally:
            self._forget(batch)

    def _forget(self, batch: Mapping[Digest, Packed]) -> None:
        with self._lock:
            for digest, packed in batch.items():
                if self._writing.get(digest) is packed:
                    del self._writing[digest]


def pack_name(unique: str) -> str:
    """Returns the name of the pack with that identifier of 32 hexadecimal digits."""
    return f"{FOLDER}{unique[:2]}/{unique}.pack"
