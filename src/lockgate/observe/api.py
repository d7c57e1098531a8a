"""The port of observe: `Samples`, one row for every request."""

from __future__ import annotations

from collections.abc import Sequence
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

    def totals(self) -> Sequence[Totals]:
        """Returns the counts since the beginning, pruned samples included."""
        ...

    def prune(self, before: float) -> None:
        """Forgets the samples that arrived before `before`; the totals stay."""
        ...

    def close(self) -> None:
        """Lets go of the underlying file."""
        ...
