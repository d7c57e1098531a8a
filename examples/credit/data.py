"""Makes credit applications: ten numbers each, whether it was paid back, and an age group."""

from __future__ import annotations

import numpy as np

NAMES = ("age", "income_k", "debt_ratio", "credit_lines", "utilisation", "late_payments",
         "months_since_late", "months_at_job", "loan_k", "term_months")  # fmt: skip


def applications(seed: int, count: int) -> list[dict]:
    """Returns `count` rows: `features` by NAMES, `label` 1 for a default, `group` by age."""
    draw = np.random.default_rng(seed)
    late = draw.poisson(0.8, count)
    columns = {
        "age": draw.uniform(19, 75, count).round(),
        "income_k": np.exp(draw.normal(3.6, 0.5, count)).round(1),
        "debt_ratio": draw.beta(2, 4, count).round(3),
        "credit_lines": draw.poisson(5, count),
        "utilisation": draw.beta(2, 2.5, count).round(3),
        "late_payments": late,
        "months_since_late": np.where(late > 0, draw.integers(1, 48, count), 60),
        "months_at_job": draw.exponential(50, count).round(),
        "loan_k": np.exp(draw.normal(2.3, 0.7, count)).round(1),
        "term_months": draw.choice([12, 24, 36, 48, 60], count),
    }
    payment = columns["loan_k"] * 12 / columns["term_months"] / columns["income_k"]
    squeezed = (columns["utilisation"] > 0.6) & (columns["debt_ratio"] > 0.35)
    recent = (late >= 1) & (columns["months_since_late"] < 18)
    settled = columns["months_at_job"] > 36
    risk = 2 * (-1.2 + np.minimum(2.5 * payment, 2.5) + 1.8 * squeezed + 1.5 * recent
                - 1.0 * settled + 0.25 * late)  # fmt: skip
    label = (draw.random(count) < 1 / (1 + np.exp(-risk))).astype(int)
    rows = np.column_stack([columns[name] for name in NAMES]).astype(float)
    group = np.where(columns["age"] < 35, "under 35", "35 and over")
    return [
        {"features": row.tolist(), "label": int(y), "group": str(g)}
        for row, y, g in zip(rows, label, group, strict=True)
    ]
