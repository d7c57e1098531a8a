"""Blobs whose temporary errors are tried again, with growing pauses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import TypeVar

from lockgate.core.clock import Clock, SystemClock
from lockgate.core.errors import TemporaryError
from lockgate.store.blobs.api import Blob, Blobs

T = TypeVar("T")
_LONGEST_S = 30.0


class RetryBlobs:
    """`Blobs` that calls `inner` up to `attempts` times while it raises TemporaryError.

    The pause before try n+1 is what the error asks for, and beyond it a random share of
    `pause_s` × 2ⁿ, 30 s at most ("full jitter": M. Brooker, Exponential Backoff And Jitter, 2015).
    """

    def __init__(
        self,
        inner: Blobs,
        *,
        attempts: int = 5,
        pause_s: float = 0.5,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self._inner = inner
        self._attempts = max(1, attempts)
        self._pause_s = pause_s
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311 (spreads load, guards nothing)

    def _again(self, call: Callable[[], T], may: Callable[[], bool] = lambda: True) -> T:
        """Returns what `call` returns in the end; `may` says whether it can be repeated at all."""
        for attempt in range(1, self._attempts):
            try:
                return call()
            except TemporaryError as error:
                if not may():
                    raise
                most = min(_LONGEST_S, self._pause_s * 2**attempt)
                self._clock.sleep(error.retry_in + self._random.uniform(0, most))
        return call()

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """See `Blobs.write`.

        A list, or anything else that can be gone through again, is sent again. A generator is
        used up by the first try: once it gave a part, the error is raised, and the caller,
        who can make the parts again, must repeat.
        """
        if iter(parts) is not parts:
            return self._again(lambda: self._inner.write(name, parts))
        source = _Once(parts)
        return self._again(
            lambda: self._inner.write(name, source), may=lambda: not source.was_begun
        )

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        """See `Blobs.read`."""
        return self._again(lambda: self._inner.read(name, begin, size))

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Blobs.read_ranges`."""
        return self._again(lambda: self._inner.read_ranges(name, ranges))

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """See `Blobs.list`. What was yielded before an error is not yielded again."""
        last = ""
        listing = self._inner.list(prefix)

        def following() -> Blob | None:
            nonlocal listing
            with suppress(StopIteration):
                try:
                    return next(blob for blob in listing if blob.name > last)
                except TemporaryError:
                    listing = self._inner.list(prefix)
                    raise
            return None

        while (blob := self._again(following)) is not None:
            last = blob.name
            yield blob

    def remove(self, names: Iterable[str]) -> None:
        """See `Blobs.remove`."""
        wanted = [*names]
        self._again(lambda: self._inner.remove(wanted))

    def close(self) -> None:
        """See `Blobs.close`."""
        self._inner.close()


class _Once:
    """An iterator that remembers whether anything was taken from it."""

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self._parts = iter(parts)
        self.was_begun = False

    def __iter__(self) -> _Once:
        return self

    def __next__(self) -> bytes | memoryview:
        self.was_begun = True
        return next(self._parts)
