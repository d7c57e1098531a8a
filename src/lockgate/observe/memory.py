"""Samples in memory: for tests and simulations."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from lockgate.core.traffic import Sample
from lockgate.observe.api import Totals


class MemorySamples:
    """`Samples` in a list; lost with the process."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def record(self, samples: Sequence[Sample]) -> None:
        """See `Samples.record`."""
        with self._lock:
            self._samples.extend(samples)
            for sample in samples:
                key = (sample.route, sample.version)
                self._counts[(*key, "requests")] += 1
                self._counts[(*key, "failed")] += sample.failed
                self._counts[(*key, "bytes")] += sample.bytes_out

    def window(self, route: str, *, since: float, limit: int = 200_000) -> Sequence[Sample]:
        """See `Samples.window`."""
        with self._lock:
            found = [s for s in self._samples if s.route == route and s.at >= since]
        return sorted(found, key=lambda s: s.at)[-limit:]

    def totals(self) -> Sequence[Totals]:
        """See `Samples.totals`."""
        with self._lock:
            pairs = sorted({(route, version) for route, version, _ in self._counts})
            return tuple(
                Totals(
                    route=route,
                    version=version,
                    requests=self._counts[(route, version, "requests")],
                    failed=self._counts[(route, version, "failed")],
                    bytes_out=self._counts[(route, version, "bytes")],
                )
                for route, version in pairs
            )

    def prune(self, before: float) -> None:
        """See `Samples.prune`."""
        with self._lock:
            self._samples = [s for s in self._samples if s.at >= before]

    def close(self) -> None:
        """See `Samples.close`."""
