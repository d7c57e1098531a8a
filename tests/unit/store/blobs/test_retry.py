"""Tries, pauses, and the rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random

import pytest

from lockgate.core.clock import ManualClock
from lockgate.core.errors import PermanentError, TemporaryError, UsageError
from lockgate.store.blobs.api import Blob
from lockgate.store.blobs.limited import RateLimitedBlobs
from lockgate.store.blobs.memory import MemoryBlobs
from lockgate.store.blobs.retry import RetryBlobs


class Shaky:
    """Memory blobs whose calls fail as often as told, before or in the middle of the work."""

    def __init__(self, failures: int, error: Exception | None = None, *, take: int = 0) -> None:
        self.inner = MemoryBlobs()
        self.left = failures
        self.error = error or TemporaryError("busy", retry_in=2.0)
        self.calls = 0
        self.take = take

    def _maybe(self) -> None:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        parts = iter(parts)
        taken = [next(parts) for _ in range(self.take)]
        self._maybe()
        return self.inner.write(name, [*taken, *parts])

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        self._maybe()
        return self.inner.read(name, begin, size)

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self._maybe()
        return self.inner.read_ranges(name, ranges)

    def list(self, prefix: str = "") -> Iterator[Blob]:
        for number, blob in enumerate(self.inner.list(prefix)):
            if number == 2:
                self._maybe()
            yield blob
        self._maybe()

    def remove(self, names: Iterable[str]) -> None:
        names = list(names)
        self._maybe()
        self.inner.remove(names)

    def close(self) -> None: ...


def retry(shaky: Shaky, clock: ManualClock | None = None, **more: int) -> RetryBlobs:
    return RetryBlobs(shaky, clock=clock or ManualClock(), random=Random(1), **more)


def test_every_call_is_tried_again() -> None:
    shaky = Shaky(0)
    blobs = retry(shaky)
    shaky.left = 2
    assert blobs.write("a", [b"abc"]) == 3
    shaky.left = 2
    assert blobs.read("a", 1) == b"bc"
    shaky.left = 2
    assert blobs.read_ranges("a", [(0, 1)]) == [b"a"]
    for name in "bcd":
        blobs.write(name, [b"x"])
    shaky.left = 4
    assert [blob.name for blob in blobs.list()] == ["a", "b", "c", "d"]
    assert shaky.left == 0
    shaky.left = 2
    blobs.remove(iter(["a", "b"]))
    assert [blob.name for blob in blobs.list()] == ["c", "d"]


def test_the_pauses_grow_and_hold_what_the_error_asks_for() -> None:
    waits = []
    for failures in range(1, 8):
        clock = ManualClock(0)
        shaky = Shaky(failures)
        shaky.inner.write("a", [b"x"])
        assert retry(shaky, clock, attempts=8).read("a") == b"x"
        waits.append(clock.now())
    pauses = [b - a for a, b in zip([0.0, *waits], waits, strict=False)]
    for number, pause in enumerate(pauses, 1):
        assert 2.0 <= pause <= 2.0 + min(30.0, 0.5 * 2**number)
    assert len({round(pause, 6) for pause in pauses}) == len(pauses), "no jitter"


def test_the_last_error_is_raised_after_that_many_tries() -> None:
    shaky = Shaky(100)
    with pytest.raises(TemporaryError, match="busy"):
        retry(shaky, attempts=3).read("a")
    assert shaky.calls == 3


def test_a_permanent_error_is_not_tried_again() -> None:
    shaky = Shaky(1, PermanentError("never"))
    with pytest.raises(PermanentError):
        retry(shaky).read("a")
    assert shaky.calls == 1


def test_a_generator_that_gave_nothing_yet_is_tried_again() -> None:
    shaky = Shaky(2)
    assert retry(shaky).write("a", (part for part in [b"a", b"b"])) == 2
    assert shaky.inner.read("a") == b"ab"


def test_a_generator_that_was_begun_is_not_sent_as_if_it_were_whole() -> None:
    shaky = Shaky(1, take=1)
    with pytest.raises(TemporaryError):
        retry(shaky).write("a", (part for part in [b"a", b"b"]))
    assert shaky.calls == 1
    assert list(shaky.inner.list()) == []


def test_parts_that_can_be_gone_through_again_are() -> None:
    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"a", b"b"])

    for parts in ([b"a", b"b"], (b"a", b"b"), Parts()):
        shaky = Shaky(2, take=1)
        assert retry(shaky).write("a", parts) == 2
        assert shaky.inner.read("a") == b"ab"


def test_the_rate_holds_over_time() -> None:
    clock = ManualClock(0)
    blobs = RateLimitedBlobs(MemoryBlobs(), 1000, clock=clock)
    blobs.write("a", [bytes(500)] * 2)
    assert clock.now() == 0  # the bucket was full
    blobs.write("b", (bytes(500) for _ in range(4)))
    assert clock.now() == pytest.approx(2)
    blobs.read("a")
    blobs.read_ranges("b", [(0, 500), (5, 1500)])
    assert clock.now() == pytest.approx(5)
    clock.sleep(60)
    blobs.read("b")  # saved up: one second's worth, not sixty
    assert clock.now() == pytest.approx(66)


def test_a_rate_of_nothing_is_refused() -> None:
    for rate in (0, -1, float("nan")):
        with pytest.raises(UsageError, match="above 0"):
            RateLimitedBlobs(MemoryBlobs(), rate)
