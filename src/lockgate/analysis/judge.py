"""The sequential judge: fails on evidence, passes on data, holds on silence.

Fail: the mean of the checks' e-values reaches 1/alpha. Pass: enough requests, and every check's
estimate is within its limit. Anything else is hold. Estimates weight each baseline request by
w/(1-w), so that both arms stand for the same times even while the share is growing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite, log

import numpy as np
from numpy.typing import NDArray

from lockgate.analysis.checks import Check, JudgeRules, Signal, Window, find_signal
from lockgate.analysis.evidence import (
    Floats,
    bucket_ranks,
    event_evidence,
    location_scores,
    log_mean_exp,
    rate_evidence,
    ratio_evidence,
    score_evidence,
    tail_scores,
    weighted_quantile,
)
from lockgate.core.traffic import Sample
from lockgate.core.verdict import CheckResult, Verdict

_MIN_LAG_S = 1.0
_MAX_LAG_S = 60.0
_MAX_LOG = 600.0
_MISMATCH = log(1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One measure over a window; arrays of shape (n,): time, A_i, w_i, value."""

    at: Floats
    arms: Floats
    shares: Floats
    values: Floats

    def of_candidate(self) -> Floats:
        """The candidate's values."""
        found: Floats = self.values[self.arms == 1]
        return found

    def keep(self, mask: NDArray[np.bool_]) -> Series:
        """Returns the rows where `mask` is true."""
        return Series(
            at=self.at[mask],
            arms=self.arms[mask],
            shares=self.shares[mask],
            values=self.values[mask],
        )


class SequentialJudge:
    """The `Judge` that lockgate uses: assignment e-processes against the live baseline."""

    def judge(self, window: Window, rules: JudgeRules) -> Verdict:
        """See `Judge.judge`."""
        in_step = sum(
            1 for s in window.samples if s.version == window.candidate and s.at >= window.step_from
        )
        mismatch = _mismatch(window)
        results, logs = [], []
        lag = _lag(window.samples)
        for check in rules.checks:
            result, evidence = _judge_check(check, window, rules, lag)
            results.append(result)
            logs.append(evidence)
        total = log_mean_exp(np.array(logs)) if logs else 0.0
        failed = total >= -log(rules.alpha)
        checks = tuple(
            _with_outcome(r, e, rules, failed) for r, e in zip(results, logs, strict=True)
        )
        if mismatch is not None:
            return Verdict(outcome="hold", reason=mismatch, at=window.now, checks=checks)
        return _verdict(checks, in_step, rules, window.now, failed)


def _mismatch(window: Window) -> str | None:
    """Returns the reason to judge nothing when samples do not match the weights, else None."""
    series = _series(find_signal("error_rate"), window)
    split = series.keep((series.shares > 0) & (series.shares < 1))
    if ratio_evidence(split.arms, split.shares) < _MISMATCH:
        return None
    expected = float(np.mean(split.shares))
    return (
        f"samples do not match the weights: {np.mean(split.arms):.2%} of {len(split.arms)} came "
        f"from the candidate, {expected:.2%} were sent there; are the gateway's rows complete?"
    )


def _verdict(
    checks: tuple[CheckResult, ...], in_step: int, rules: JudgeRules, now: float, failed: bool
) -> Verdict:
    if failed:
        worst = max(checks, key=lambda check: check.e_value or 0.0)
        return Verdict(outcome="fail", reason=worst.reason, at=now, checks=checks)
    if in_step < rules.min_requests:
        reason = f"{in_step} of {rules.min_requests} requests seen at this step"
        return Verdict(outcome="hold", reason=reason, at=now, checks=checks)
    waiting = [check for check in checks if check.outcome == "hold"]
    if waiting:
        reason = f"{waiting[0].signal}: {waiting[0].reason}"
        return Verdict(outcome="hold", reason=reason, at=now, checks=checks)
    reason = f"{in_step} requests, every check within its limit"
    return Verdict(outcome="pass", reason=reason, at=now, checks=checks)


def _with_outcome(
    result: CheckResult, evidence: float, rules: JudgeRules, failed: bool
) -> CheckResult:
    """Returns `result` with its evidence, and `fail` where that alone reaches 1/alpha."""
    threshold = 1 / rules.alpha
    guilty = failed and evidence >= -log(rules.alpha)
    values = {name: getattr(result, name) for name in CheckResult.__slots__}
    values |= {"e_value": exp(min(evidence, _MAX_LOG)), "threshold": threshold}
    if guilty:
        values |= {"outcome": "fail", "reason": f"{result.signal} is worse: {result.reason}"}
    return CheckResult(**values)


def _lag(samples: Sequence[Sample]) -> float:
    """How long after its end a time bucket may still miss slow requests: the longest seen."""
    longest = max((sample.duration_s for sample in samples), default=0.0)
    return min(max(longest * 1.1, _MIN_LAG_S), _MAX_LAG_S)


def _judge_check(
    check: Check, window: Window, rules: JudgeRules, lag: float
) -> tuple[CheckResult, float]:
    signal = find_signal(check.signal)
    series = _series(signal, window)
    if check.worse_by_at_most is None:
        return _absolute(check, signal, series)
    result = _estimate(check, signal, series)
    if signal.measure == "error":
        evidence = _error_evidence(check, series)
    else:
        closed = series.keep(
            _bucket(series, rules) * rules.bucket_s + rules.bucket_s + lag <= window.now
        )
        evidence = _score_evidence(check, signal, closed, rules)
    return result, evidence


def _bucket(series: Series, rules: JudgeRules) -> NDArray[np.int64]:
    return np.floor(series.at / rules.bucket_s).astype(np.int64)


def _series(signal: Signal, window: Window) -> Series:
    rows = [
        (s.at, s.version == window.candidate, s.propensity, value)
        for s in window.samples
        if s.version in (window.candidate, window.baseline)
        and (value := measure(signal, s)) is not None
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    arms, propensity = table[:, 1], table[:, 2]
    shares = np.where(arms == 1, propensity, 1 - propensity)
    return Series(at=table[:, 0], arms=arms, shares=shares, values=table[:, 3])


def measure(signal: Signal, sample: Sample) -> float | None:
    """Returns the signal's value of one sample; None where it has none, as a failed one's time."""
    if signal.measure == "error":
        return float(sample.failed)
    if sample.failed or sample.status >= 400:
        return None
    if signal.measure == "latency":
        return sample.duration_s
    if signal.measure == "ttft":
        return sample.first_body_s
    if sample.tokens is None or sample.tokens < 2 or sample.first_body_s is None:
        return None
    decode = max(sample.duration_s - sample.first_body_s, 1e-6)
    if signal.measure == "tpot":
        return decode / (sample.tokens - 1)
    return sample.tokens / max(sample.duration_s, 1e-6)


def _statistic(signal: Signal, values: Floats, weights: Floats) -> float:
    if signal.quantile is None:
        return float(np.sum(values * weights) / np.sum(weights))
    return weighted_quantile(values, weights, signal.quantile)


def _estimate(check: Check, signal: Signal, series: Series) -> CheckResult:
    """Returns the check's estimates; `hold` when the candidate looks worse than the limit."""
    candidate = series.of_candidate()
    mixed = series.keep((series.arms == 0) & (series.shares > 0) & (series.shares < 1))
    counts = {"n": len(candidate), "n_baseline": len(mixed.values)}
    if not len(candidate) or not len(mixed.values):
        who = "candidate" if not len(candidate) else "baseline"
        return _result(check, signal, "hold", f"no sample of the {who} yet", **counts)
    value = _statistic(signal, candidate, np.ones(len(candidate)))
    weights = mixed.shares / (1 - mixed.shares)
    baseline = _statistic(signal, mixed.values, weights)
    margin = check.worse_by_at_most or 0.0
    limit = baseline * (1 - margin if signal.worse == "down" else 1 + margin)
    if check.floor is not None:
        limit = min(limit, check.floor) if signal.worse == "down" else max(limit, check.floor)
    within = value >= limit if signal.worse == "down" else value <= limit
    reason = f"{value:.4g} {signal.unit} against {baseline:.4g}, limit {limit:.4g}".replace(
        "  ", " "
    )
    return _result(check, signal, "pass" if within else "hold", reason, value=value,
                   baseline=baseline, limit=limit, **counts)  # fmt: skip


def _absolute(check: Check, signal: Signal, series: Series) -> tuple[CheckResult, float]:
    """Judges the candidate alone against a fixed limit; a mean is judged as its median."""
    if signal.measure != "error" and signal.quantile is None:
        signal = replace(signal, quantile=0.5)
    values = series.of_candidate()
    limit = check.at_most or 0.0
    if not len(values):
        return _result(check, signal, "hold", "no sample of the candidate yet", limit=limit), 0.0
    value = _statistic(signal, values, np.ones(len(values)))
    if signal.measure == "error":
        hits, rate = int(np.sum(values)), limit
    else:
        beyond = values < limit if signal.worse == "down" else values > limit
        hits, rate = int(np.sum(beyond)), 1 - (signal.quantile or 0.0)
    evidence = rate_evidence(hits, len(values), rate)
    within = value >= limit if signal.worse == "down" else value <= limit
    reason = f"{value:.4g} {signal.unit}, limit {limit:.4g}".replace(" ,", ",")
    result = _result(check, signal, "pass" if within else "hold", reason, value=value, limit=limit,
                     n=len(values))  # fmt: skip
    return result, evidence if isfinite(evidence) else _MAX_LOG


def _result(
    check: Check, signal: Signal, outcome: str, reason: str, **numbers: float
) -> CheckResult:
    return CheckResult(
        check=check.name, signal=check.signal, outcome=outcome, reason=reason,  # type: ignore[arg-type]
        unit=signal.unit, **numbers,  # type: ignore[arg-type]
    )  # fmt: skip


def _error_evidence(check: Check, series: Series) -> float:
    """Evidence that failures prefer the candidate, and, with a floor, exceed the floor too.

    The null is "ratio within tolerance OR rate within floor": the lesser of both evidences bounds
    it (intersection-union).
    """
    events = series.keep((series.values == 1) & (series.shares < 1))
    evidence = event_evidence(events.arms, events.shares, check.worse_by_at_most or 0.0)
    if check.floor is None:
        return evidence
    candidate = series.of_candidate()
    return min(evidence, rate_evidence(int(np.sum(candidate)), len(candidate), check.floor))


def _score_evidence(check: Check, signal: Signal, series: Series, rules: JudgeRules) -> float:
    """Evidence that the candidate, made better by the tolerance, still ranks worse."""
    series = series.keep((series.shares > 0) & (series.shares < 1))
    if not len(series.values):
        return 0.0
    margin = check.worse_by_at_most or 0.0
    factor = 1 / max(1 - margin, 1e-6) if signal.worse == "down" else 1 / (1 + margin)
    values = np.where(series.arms == 1, series.values * factor, series.values)
    if check.floor is not None:
        harmless = values >= check.floor if signal.worse == "down" else values <= check.floor
        values = np.where(harmless, check.floor, values)
    ranks = bucket_ranks(-values if signal.worse == "down" else values, _bucket(series, rules))
    tail = signal.quantile is not None and signal.quantile > 0.5
    scores = tail_scores(ranks, signal.quantile or 0.5) if tail else location_scores(ranks)
    return score_evidence(series.arms, series.shares, scores, tail=tail)
