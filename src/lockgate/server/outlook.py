"""What a plan will probably take, from the requests of the last hour. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from lockgate.analysis.checks import find_signal
from lockgate.analysis.forecast import Guess, Stage, forecast
from lockgate.analysis.rows import Reader
from lockgate.core.traffic import WHOLE, Sample
from lockgate.release.plan import Plan

LOOK_BACK_S = 3600.0


def outlook(plan: Plan, samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Returns how long proof will take at today's traffic; None where nothing can be said.

    `samples` are of the route, oldest first; times in seconds, `null` for never.
    """
    if plan.baseline is None or not plan.checks or len(samples) < 2:
        return None
    over_s = samples[-1].at - samples[0].at
    if over_s <= 0:
        return None
    guess = _guess(plan, samples, float(f"{(len(samples) - 1) / over_s:.2g}"))
    stages = [Stage(share=step.weight / WHOLE, min_s=step.bake_s) for step in plan.steps]
    found = forecast(plan.rules, stages, guess)
    return {
        "rate": guess.rate,
        "safe_s": _finite(found.safe_s),
        "share": found.share,
        "advice": found.advice,
        "checks": [
            {
                "signal": one.signal,
                "share": one.share,
                "fail_requests": _finite(one.fail_requests),
                "safe_requests": _finite(one.safe_requests),
                "safe_s": _finite(one.safe_s),
            }
            for one in found.outlooks
        ],
    }


def _guess(plan: Plan, samples: Sequence[Sample], rate: float) -> Guess:
    """Returns what the baseline's requests say of each signal: chances and spreads."""
    signals = [find_signal(check.signal) for check in plan.checks]
    baseline = plan.baseline.digest if plan.baseline else None
    rows = Reader(signals, (), plan.candidate.digest, baseline).read(samples)
    rates, spreads = {}, {}
    for signal in signals:
        values = rows[signal.column]
        values = values[~np.isnan(values) & (rows["arm"] == 0)]
        if len(values) < 20:
            continue
        if signal.event:  # one more of each, so that what never happened has a chance
            rates[signal.name] = float((np.sum(values) + 0.5) / (len(values) + 1))
        else:
            mean = float(np.mean(values))
            spreads[signal.name] = float(np.std(values)) / mean if mean > 0 else 1.0
    return Guess(rate=rate, rates=rates, spreads=spreads)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
