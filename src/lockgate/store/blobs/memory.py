"""Blobs in memory: for tests and dry runs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from lockgate.core.clock import Clock, SystemClock
from lockgate.store.blobs.api import Blob, absent, check_name, check_ranges, too_short


class MemoryBlobs:
    """`Blobs` in a dictionary; lost with the process."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._blobs: dict[str, tuple[bytes, float]] = {}

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """See `Blobs.write`."""
        check_name(name)
        data = b"".join(parts)
        with self._lock:
            self._blobs[name] = (data, self._clock.now())
        return len(data)

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        """See `Blobs.read`."""
        check_ranges([(begin, size or 0)])
        with self._lock:
            found = self._blobs.get(check_name(name))
        if found is None:
            raise absent(name)
        end = len(found[0]) if size is None else begin + size
        if max(begin, end) > len(found[0]):
            raise too_short(name, begin, size)
        return found[0][begin:end]

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Blobs.read_ranges`."""
        return [self.read(name, begin, size) for begin, size in ranges]

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """See `Blobs.list`."""
        with self._lock:
            found = sorted(item for item in self._blobs.items() if item[0].startswith(prefix))
        for name, (data, modified) in found:
            yield Blob(name=name, size=len(data), modified=modified)

    def remove(self, names: Iterable[str]) -> None:
        """See `Blobs.remove`."""
        for name in names:
            with self._lock:
                self._blobs.pop(check_name(name), None)

    def close(self) -> None:
        """See `Blobs.close`: there is nothing to let go of."""
