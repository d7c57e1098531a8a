"""Blobs that move no more bytes a second than they may."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from lockgate.core.clock import Clock, SystemClock
from lockgate.core.errors import UsageError
from lockgate.store.blobs.api import Blob, Blobs


class RateLimitedBlobs:
    """`Blobs` with a token bucket before `inner`: `bytes_per_second`, reads and writes together.

    The bucket holds one second's worth. A large read is let through whole and paid for afterwards,
    so the rate holds over seconds, not within each one. Raises UsageError for a rate not above 0.
    """

    def __init__(
        self, inner: Blobs, bytes_per_second: float, *, clock: Clock | None = None
    ) -> None:
        if not bytes_per_second > 0:
            raise UsageError(f"{bytes_per_second} bytes a second is no rate; it must be above 0")
        self._inner = inner
        self._rate = bytes_per_second
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._tokens = bytes_per_second
        self._at = self._clock.now()

    def _pay(self, size: int) -> None:
        """Takes `size` tokens and waits until the bucket is out of debt."""
        with self._lock:
            now = self._clock.now()
            gained = max(0.0, now - self._at) * self._rate
            self._tokens = min(self._rate, self._tokens + gained) - size
            self._at = now
            wait = -self._tokens / self._rate
        if wait > 0:
            self._clock.sleep(wait)

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """See `Blobs.write`."""
        return self._inner.write(name, self._paid(parts))

    def _paid(self, parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        for part in parts:
            self._pay(memoryview(part).nbytes)
            yield part

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        """See `Blobs.read`."""
        data = self._inner.read(name, begin, size)
        self._pay(len(data))
        return data

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Blobs.read_ranges`."""
        found = self._inner.read_ranges(name, ranges)
        self._pay(sum(len(data) for data in found))
        return found

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """See `Blobs.list`; listing is not counted."""
        return self._inner.list(prefix)

    def remove(self, names: Iterable[str]) -> None:
        """See `Blobs.remove`."""
        self._inner.remove(names)

    def close(self) -> None:
        """See `Blobs.close`."""
        self._inner.close()
