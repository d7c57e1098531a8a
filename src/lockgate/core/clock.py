"""Time as a value that is passed in, so that a test can own it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time and waits."""

    def now(self) -> float:
        """Returns seconds since the Unix epoch, UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits `seconds`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Returns seconds since the Unix epoch, UTC."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Waits `seconds`."""
        time.sleep(max(0.0, seconds))


class ManualClock:
    """A clock that moves only when told to; for tests and simulations."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        """Returns the time that was set."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Moves the time by `seconds` at once."""
        self._now += max(0.0, seconds)


def iso(at: float) -> str:
    """Returns `at` (seconds since the epoch) as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
