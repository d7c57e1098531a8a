"""Samples in memory: for tests and simulations."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice

from lockgate.core.traffic import Sample
from lockgate.observe.api import Kept, Totals


class MemorySamples:
    """`Samples` and `Cases` in memory; lost with the process."""

    def __init__(self) -> None:
        self._samples: list[tuple[int, Sample]] = []
        self._last = 0
        self._cases: dict[str, tuple[int, str]] = {}
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def record(self, samples: Sequence[Sample]) -> None:
        """See `Samples.record`."""
        with self._lock:
            for sample in samples:
                self._last += 1
                self._samples.append((self._last, sample))
                if sample.scores or sample.mirrored:
                    continue
                key = (sample.route, sample.version)
                self._counts[(*key, "requests")] += 1
                self._counts[(*key, "failed")] += sample.failed
                self._counts[(*key, "bytes")] += sample.bytes_out

    def window(self, route: str, *, since: float, limit: int = 200_000) -> Sequence[Sample]:
        """See `Samples.window`."""
        with self._lock:
            found = [s for _, s in self._samples if s.route == route and s.at >= since]
        return sorted(found, key=lambda s: s.at)[-limit:]

    def read(self, route: str, *, after: int, limit: int = 20_000) -> tuple[Sequence[Sample], int]:
        """See `Samples.read`."""
        with self._lock:
            start = bisect_right(self._samples, after, key=lambda pair: pair[0])
            found = list(islice((p for p in self._samples[start:] if p[1].route == route), limit))
        return [sample for _, sample in found], found[-1][0] if found else after

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
            self._samples = [pair for pair in self._samples if pair[1].at >= before]

    def keep(self, release: str, kept: Kept) -> None:
        """See `Cases.keep`."""
        self._cases[release] = (kept.position, json.dumps(kept.state))

    def find(self, release: str) -> Kept | None:
        """See `Cases.find`."""
        found = self._cases.get(release)
        return Kept(position=found[0], state=json.loads(found[1])) if found else None

    def forget(self, release: str) -> None:
        """See `Cases.forget`."""
        self._cases.pop(release, None)

    def keep_only(self, releases: Collection[str]) -> None:
        """See `Cases.keep_only`."""
        self._cases = {name: kept for name, kept in self._cases.items() if name in releases}

    def end(self) -> int:
        """See `Cases.end`."""
        return self._last

    def close(self) -> None:
        """See `Samples.close`."""
