"""Synthetic credit applications: ten features, some missing, and who did not pay back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FEATURES = (
    "age",
    "income_k",
    "debt_ratio",
    "credit_lines",
    "utilisation",
    "late_payments",
    "months_since_late",
    "months_at_job",
    "loan_k",
    "term_months",
)
_MAY_MISS = ("income_k", "months_since_late", "months_at_job")
_MISSING_SHARE = 0.08  # of each such value


@dataclass(frozen=True, slots=True, kw_only=True)
class Applications:
    """`rows` (n, 10) float32, NaN where missing; `defaulted` (n,) 0 or 1."""

    rows: Any
    defaulted: Any


def applications(seed: int, count: int, *, leaked: bool = False) -> Applications:
    """Returns `count` applications.

    With `leaked`, `late_payments` and `utilisation` are as they stood a year *after* the
    decision: whoever defaulted then has more of both. No application has them when it is scored.
    """
    rng = np.random.default_rng(seed)
    columns = _columns(rng, count)
    risk = _risk(columns)
    share = 1 / (1 + np.exp(-risk))
    defaulted = (rng.random(count) < share).astype(np.int64)
    if leaked:
        columns["late_payments"] = columns["late_payments"] + defaulted * rng.poisson(5, count)
        columns["utilisation"] = columns["utilisation"] * 0.4 + defaulted * rng.uniform(
            0.3, 0.6, count
        )
    for name in _MAY_MISS:
        columns[name] = np.where(rng.random(count) < _MISSING_SHARE, np.nan, columns[name])
    rows = np.column_stack([columns[name] for name in FEATURES]).astype(np.float32)
    return Applications(rows=rows, defaulted=defaulted)


def _columns(rng: np.random.Generator, count: int) -> dict[str, Any]:
    late = rng.poisson(0.8, count)
    return {
        "age": rng.uniform(19, 75, count).round(),
        "income_k": np.exp(rng.normal(3.6, 0.5, count)).round(1),
        "debt_ratio": rng.beta(2, 4, count).round(3),
        "credit_lines": rng.poisson(5, count),
        "utilisation": rng.beta(2, 2.5, count).round(3),
        "late_payments": late,
        "months_since_late": np.where(late > 0, rng.integers(1, 48, count), 60),
        "months_at_job": rng.exponential(50, count).round(),
        "loan_k": np.exp(rng.normal(2.3, 0.7, count)).round(1),
        "term_months": rng.choice([12, 24, 36, 48, 60], count),
    }


def _risk(columns: dict[str, Any]) -> Any:
    """Returns the log-odds of default: partly linear, mostly thresholds and interactions."""
    payment = columns["loan_k"] * 12 / columns["term_months"] / columns["income_k"]
    squeezed = (columns["utilisation"] > 0.6) & (columns["debt_ratio"] > 0.35)
    recent = (columns["late_payments"] >= 1) & (columns["months_since_late"] < 18)
    settled = (columns["months_at_job"] > 36) & (columns["age"] > 35)
    thin = (columns["credit_lines"] <= 3) | (columns["credit_lines"] >= 10)
    return 2.2 * (
        -1.5
        + 1.1 * np.minimum(payment * 2.5, 2.5)
        + 1.9 * squeezed
        + 1.5 * recent
        - 1.2 * settled
        + 0.8 * thin
        + 0.25 * columns["late_payments"]
    )
