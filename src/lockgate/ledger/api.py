"""The ports of the ledger: `Ledger` (facts) and `Leases` (who may act)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lockgate.core.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An event with its envelope. `position` counts all events, `version` those of its stream."""

    position: int
    stream: str
    version: int
    at: float
    actor: str
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An event exactly as it is kept: `body` is canonical JSON text, the hashes chain the rows."""

    position: int
    stream: str
    version: int
    at: float
    actor: str
    kind: str
    body: str
    previous: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of the chain. Kept elsewhere, it proves later that nothing before it was touched."""

    position: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to act for `name` until `expires`; `generation` grows with each new holder."""

    name: str
    holder: str
    generation: int
    expires: float


class Ledger(Protocol):
    """Append-only events in streams, chained by hash over all streams."""

    def append(
        self,
        stream: str,
        expected_version: int,
        events: Sequence[Event],
        *,
        actor: str,
        at: float,
        fence: Lease | None = None,
    ) -> tuple[Recorded, ...]:
        """Appends all of `events` or none, durably.

        Raises ConflictError when the stream has another version than `expected_version` (the
        number of its events; 0: it must be new), or when `fence` was taken over by another holder.
        """
        ...

    def read(
        self, *, stream: str | None = None, after: int = 0, limit: int = 1000
    ) -> tuple[Recorded, ...]:
        """Returns up to `limit` events with a position > `after`, in order.

        `stream` names one stream, or, with a trailing `/`, all streams below it.
        """
        ...

    def rows(self, *, after: int = 0) -> Iterator[Row]:
        """Yields the rows as they are kept, for the audit."""
        ...

    def head(self) -> Head:
        """Returns the recorded end of the chain; position 0 when there is none."""
        ...

    def close(self) -> None:
        """Lets go of the underlying file or connection."""
        ...


class Leases(Protocol):
    """Who may act, one holder a name."""

    def acquire(self, name: str, holder: str, *, ttl: float, now: float) -> Lease | None:
        """Takes or renews the lease; None while another holder's has not expired.

        Taking it over from another holder makes a new generation; renewing keeps it.
        """
        ...

    def give_back(self, lease: Lease) -> None:
        """Ends the lease if it is still this holder's generation; else does nothing."""
        ...
