"""The ports of observe: `Samples`, one row for every request, and `Cases`, what came of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lockgate.core.traffic import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """How many requests a version got on a route, and how many of them failed."""

    route: str
    version: str
    requests: int
    failed: int
    bytes_out: int


class Samples(Protocol):
    """Keeps samples for as long as somebody may judge them."""

    def record(self, samples: Sequence[Sample]) -> None:
        """Adds samples; they survive a killed process once this returns."""
        ...

    def window(self, route: str, *, since: float, limit: int = 200_000) -> Sequence[Sample]:
        """Returns the route's samples that arrived at or after `since`, oldest first.

        At most the `limit` newest.
        """
        ...

    def read(self, route: str, *, after: int, limit: int = 20_000) -> tuple[Sequence[Sample], int]:
        """Returns the route's next samples after position `after` in the order of recording.

        At most `limit`, and the position of the last one (`after` when there is none).
        """
        ...

    def totals(self) -> Sequence[Totals]:
        """Returns the counts since the beginning, pruned samples included."""
        ...

    def prune(self, before: float) -> None:
        """Forgets the samples that arrived before `before`; the totals stay."""
        ...

    def close(self) -> None:
        """Lets go of the underlying file."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A case as it was at a position of its route's samples; `state` are JSON values."""

    position: int
    state: Mapping[str, object]


class Cases(Protocol):
    """Keeps what the judge made of the samples so far, so that nobody reads them twice."""

    def keep(self, release: str, kept: Kept) -> None:
        """Replaces what is kept for `release`; it survives a killed process."""
        ...

    def find(self, release: str) -> Kept | None:
        """Returns what was kept last for `release`, None when nothing was."""
        ...

    def forget(self, release: str) -> None:
        """Removes what is kept for `release`."""
        ...

    def keep_only(self, releases: Collection[str]) -> None:
        """Removes what is kept for all others: of releases that ended while nobody looked."""
        ...

    def end(self) -> int:
        """Returns the position of the last sample recorded: where a new case begins."""
        ...
