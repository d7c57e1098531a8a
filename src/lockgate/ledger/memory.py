"""A ledger in memory: for tests, simulations and dry runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from lockgate.core.errors import ConflictError
from lockgate.core.events import Event
from lockgate.ledger.api import Head, Lease, Recorded, Row
from lockgate.ledger.chain import empty_head, make_row, recorded


class MemoryLedger:
    """`Ledger` and `Leases` over lists; lost with the process."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._versions: dict[str, int] = {}
        self._leases: dict[str, Lease] = {}
        self._lock = threading.RLock()

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
        """See `Ledger.append`."""
        with self._lock:
            self._check_fence(fence)
            version = self._versions.get(stream, 0)
            if version != expected_version:
                raise conflict(stream, expected_version, version)
            rows: list[Row] = []
            head = self.head()
            for event in events:
                version += 1
                row = make_row(head, event, stream=stream, version=version, at=at, actor=actor)
                head = Head(position=row.position, hash=row.hash)
                rows.append(row)
            self._rows.extend(rows)
            self._versions[stream] = version
            return tuple(recorded(row) for row in rows)

    def _check_fence(self, fence: Lease | None) -> None:
        if fence is None:
            return
        held = self._leases.get(fence.name)
        if held is None or held.generation != fence.generation or held.holder != fence.holder:
            raise fenced(fence)

    def read(
        self, *, stream: str | None = None, after: int = 0, limit: int = 1000
    ) -> tuple[Recorded, ...]:
        """See `Ledger.read`."""
        with self._lock:
            found = [row for row in self._rows[after:] if matches(row.stream, stream)]
        return tuple(recorded(row) for row in found[:limit])

    def rows(self, *, after: int = 0) -> Iterator[Row]:
        """See `Ledger.rows`."""
        with self._lock:
            rows = self._rows[after:]
        yield from rows

    def head(self) -> Head:
        """See `Ledger.head`."""
        with self._lock:
            if not self._rows:
                return empty_head()
            return Head(position=self._rows[-1].position, hash=self._rows[-1].hash)

    def acquire(self, name: str, holder: str, *, ttl: float, now: float) -> Lease | None:
        """See `Leases.acquire`."""
        with self._lock:
            held = self._leases.get(name)
            if held and held.holder != holder and held.expires > now:
                return None
            generation = next_generation(held, holder)
            lease = Lease(name=name, holder=holder, generation=generation, expires=now + ttl)
            self._leases[name] = lease
            return lease

    def give_back(self, lease: Lease) -> None:
        """See `Leases.give_back`."""
        with self._lock:
            held = self._leases.get(lease.name)
            if held and held.generation == lease.generation and held.holder == lease.holder:
                self._leases[lease.name] = Lease(
                    name=held.name, holder="", generation=held.generation, expires=0.0
                )

    def close(self) -> None:
        """See `Ledger.close`."""


def matches(name: str, stream: str | None) -> bool:
    """Says whether the stream called `name` is meant by `stream` (None: all; `x/`: below x)."""
    if stream is None:
        return True
    return name.startswith(stream) if stream.endswith("/") else name == stream


def next_generation(held: Lease | None, holder: str) -> int:
    """Returns the generation of the lease that `holder` takes after `held`."""
    if held is None:
        return 1
    return held.generation if held.holder == holder else held.generation + 1


def conflict(stream: str, expected: int, actual: int) -> ConflictError:
    """Returns the error for a stream that has moved on."""
    return ConflictError(
        f"{stream} has moved on: {actual} events, not {expected}",
        hint="look at what happened meanwhile, then try again",
    )


def fenced(lease: Lease) -> ConflictError:
    """Returns the error for a lease that another holder has taken over."""
    return ConflictError(
        f"the lease on {lease.name} (generation {lease.generation}) was taken over",
        hint="another lockgate server acts for it now; this one must not",
    )
