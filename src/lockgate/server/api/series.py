"""Samples → short series for charts: per version and time slot. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lockgate.core.traffic import Sample


def series(samples: Sequence[Sample], slot_s: float) -> list[dict[str, Any]]:
    """Returns one row per slot and version: requests, failures, and times in seconds.

    `at` is the slot's start (seconds since the epoch); `p50`, `p95` are of the whole duration,
    `ttft_p50` of the time to the first body byte; None where no request succeeded.
    """
    groups: dict[tuple[int, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[int(sample.at // slot_s), sample.version].append(sample)
    return [
        {"at": slot * slot_s, "version": version, **_row(rows)}
        for (slot, version), rows in sorted(groups.items())
    ]


def _row(rows: Sequence[Sample]) -> dict[str, Any]:
    fine = [row for row in rows if not row.failed]
    durations = sorted(row.duration_s for row in fine)
    first = sorted(row.first_body_s for row in fine if row.first_body_s is not None)
    return {
        "requests": len(rows),
        "failed": len(rows) - len(fine),
        "p50": _at(durations, 0.5),
        "p95": _at(durations, 0.95),
        "ttft_p50": _at(first, 0.5),
        "tokens": sum(row.tokens or 0 for row in rows),
    }


def _at(values: Sequence[float], share: float) -> float | None:
    return values[min(int(len(values) * share), len(values) - 1)] if values else None
