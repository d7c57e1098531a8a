"""The gate `evaluation` asks: is it good, and no worse than what serves.

Both versions get the same questions, so that differences are paired, row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lockgate.core.document import ours
from lockgate.core.errors import UsageError
from lockgate.core.units import parse_ratio
from lockgate.core.verdict import CheckResult, Outcome, Verdict
from lockgate.gates.api import Asked, verdict_of
from lockgate.gates.measure.intervals import (
    difference_interval,
    drawn_interval,
    mean_interval,
    rows_needed,
)
from lockgate.gates.measure.metrics import Metric
from lockgate.gates.tasks.interview import interview, suite_files
from lockgate.gates.tasks.questions import Answered

Ratio = Annotated[float, BeforeValidator(ours(parse_ratio))]
Interval = tuple[float, float]


class Wanted(BaseModel):
    """What one metric has to reach: alone, against what serves, or both."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    at_least: float | None = None
    at_most: float | None = None
    worse_by_at_most: Ratio | None = Field(
        default=None, description="a share of the value of what serves; has to be proven"
    )
    surely: bool = Field(
        default=False, description="the limit has to be proven, not only met on these rows"
    )

    @model_validator(mode="after")
    def _something(self) -> Wanted:
        if self.at_least is None and self.at_most is None and self.worse_by_at_most is None:
            raise ValueError("say 'at_least', 'at_most' or 'worse_by_at_most'")
        return self


class EvaluationSettings(BaseModel):
    """A suite, and what its metrics have to reach."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str = Field(description="a file beside the gates', or owner/name:v1/path")
    metrics: dict[str, Wanted] = Field(
        min_length=1, description="by task and metric, as arithmetic.score"
    )
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=0.05, description="how often an interval may miss the truth"
    )


class Evaluation:
    """Suites of tasks: minimum values, and margins against what serves."""

    name = "evaluation"
    remedy = "retrain"
    settings = EvaluationSettings

    def reads(self, settings: EvaluationSettings, asked: Asked) -> Sequence[Path]:
        """See `Gate.reads`."""
        return suite_files(settings.suite, asked)

    def judge(self, settings: EvaluationSettings, asked: Asked) -> Verdict:
        """See `Gate.judge`. Without a baseline margins hold: there is nothing to be worse than."""
        found = _metrics(interview(settings.suite, asked.candidate, asked))
        unknown = sorted(set(settings.metrics) - set(found))
        if unknown:
            raise UsageError(
                f"the suite has no metric {unknown[0]!r}", hint=f"it has {', '.join(found)}"
            )
        other: Mapping[str, Metric] = {}
        compared = any(w.worse_by_at_most is not None for w in settings.metrics.values())
        if asked.baseline is not None and compared:
            other = _metrics(interview(settings.suite, asked.baseline, asked))
        checks = [
            check
            for name, wanted in settings.metrics.items()
            for check in _checks(name, wanted, found[name], other.get(name), settings.alpha)
        ]
        return verdict_of(checks, asked.now)


def _metrics(answered: Mapping[str, Answered]) -> dict[str, Metric]:
    return {f"{task}.{m.name}": m for task, found in answered.items() for m in found.metrics}


def _checks(
    name: str, wanted: Wanted, metric: Metric, baseline: Metric | None, alpha: float
) -> Iterator[CheckResult]:
    if not np.isfinite(metric.value):
        yield CheckResult(
            check=name, signal=name, outcome="hold", n=metric.count,
            reason=f"{name} can't be computed from these {metric.count} rows",
        )  # fmt: skip
        return
    span = interval_of(metric, alpha)
    for limit, upward in ((wanted.at_least, True), (wanted.at_most, False)):
        if limit is not None:
            yield _against_limit(name, metric, span, limit, upward=upward, surely=wanted.surely)
    if wanted.worse_by_at_most is not None:
        yield _against_baseline(name, metric, baseline, wanted.worse_by_at_most, alpha)


def interval_of(metric: Metric, alpha: float) -> Interval:
    """Returns how sure a metric is."""
    if metric.rows is not None:
        return mean_interval(metric.rows, alpha=alpha)
    if metric.over is None:
        return metric.value, metric.value
    return drawn_interval(metric.over, metric.count, alpha=alpha)


def _against_limit(
    name: str, metric: Metric, span: Interval, limit: float, *, upward: bool, surely: bool
) -> CheckResult:
    value = metric.value
    met = value >= limit if upward else value <= limit
    proven = span[0] >= limit if upward else span[1] <= limit
    side = "at least" if upward else "at most"
    outcome: Outcome = "pass" if met and (proven or not surely) else "hold" if met else "fail"
    said = f"{name} is {value:.4g} ({span[0]:.4g} to {span[1]:.4g}), {side} {limit:g} is wanted"
    missing = None
    if outcome == "hold":
        spread = 0.5 if metric.rows is None else float(metric.rows.std())
        missing = max(1, rows_needed(spread, abs(value - limit)) - metric.count)
        said += f" and not proven: about {missing:,} more rows"
    return CheckResult(
        check=f"{name} {side} {limit:g}", signal=name, outcome=outcome, reason=said, value=value,
        limit=limit, low=span[0], high=span[1], n=metric.count, missing=missing,
    )  # fmt: skip


def _against_baseline(
    name: str, metric: Metric, baseline: Metric | None, margin: float, alpha: float
) -> CheckResult:
    check = f"{name} worse by at most {margin:.1%}"
    if baseline is None:
        said = f"{name}: nothing serves there, so there is nothing to be worse than"
        return CheckResult(check=check, signal=name, outcome="pass", reason=said,
                           value=metric.value, n=metric.count)  # fmt: skip
    sign = 1.0 if metric.better == "higher" else -1.0
    low, high = (sign * end for end in _difference(metric, baseline, alpha)[:: int(sign)])
    change = sign * (metric.value - baseline.value)  # below zero is worse
    allowed = -margin * abs(baseline.value)
    outcome: Outcome = "fail" if change < allowed else "pass" if low >= allowed else "hold"
    said = (
        f"{name} is {metric.value:.4g}, it was {baseline.value:.4g}: better by {change:.4g} "
        f"({low:.4g} to {high:.4g}), {allowed:.4g} is allowed"
    )
    missing = None
    if outcome == "hold":
        spread = _spread(metric, baseline)
        missing = max(1, rows_needed(spread, change - allowed, alpha=alpha) - metric.count)
        said += f" and not proven: about {missing:,} more rows"
    return CheckResult(
        check=check, signal=name, outcome=outcome, reason=said, value=metric.value,
        baseline=baseline.value, limit=baseline.value - sign * margin * abs(baseline.value),
        low=low, high=high, n=metric.count, n_baseline=baseline.count, missing=missing,
    )  # fmt: skip


def _difference(metric: Metric, baseline: Metric, alpha: float) -> Interval:
    if metric.count != baseline.count:
        raise UsageError("the two versions answered different questions")
    if metric.rows is not None and baseline.rows is not None:
        return difference_interval(metric.rows, baseline.rows, alpha=alpha)
    one, other = metric.over, baseline.over
    if one is None or other is None:
        raise UsageError("the two versions were measured in different ways")
    return drawn_interval(lambda rows: one(rows) - other(rows), metric.count, alpha=alpha)


def _spread(metric: Metric, baseline: Metric) -> float:
    if metric.rows is None or baseline.rows is None:
        return 0.5
    return max(0.05, float((metric.rows - baseline.rows).std()))
