"""From evidence to a verdict: outcome, blame, what is missing, in sentences with numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, inf, isfinite, log

import numpy as np

from lockgate.analysis.bets import MAX_LOG, log_mean_exp
from lockgate.analysis.checks import JudgeRules, Look, Signal
from lockgate.analysis.estimates import Estimate
from lockgate.analysis.forecast import Guess, outlook
from lockgate.analysis.scores import ScoreTrack
from lockgate.analysis.tracks import EventTrack, LimitTrack, Track
from lockgate.core.verdict import CheckResult, Outcome, Verdict

_SOON = 1e9
_NOTHING = 10.0
"""A bound as wide as ten times the baseline says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a case knows at a moment, over `over_s` seconds and at a mean `share` of the candidate.

    `burning`: how the candidate burns its error budget. `guilty`: the evidence of every check when
    it was enough to fail, else empty.
    """

    rules: JudgeRules
    tracks: tuple[Track, ...]
    requests: int
    all_requests: int
    over_s: float
    share: float
    mismatch: str | None
    burning: str | None
    guilty: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """What people are told of a check."""

    n: int = 0
    n_baseline: int = 0
    value: float | None = None
    baseline: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None


def verdict_of(reading: Reading, look: Look) -> Verdict:
    """Returns the verdict; a rule that is a dry run is reported and decides nothing."""
    rules = reading.rules
    logs = [track.logs() for track in reading.tracks]
    deciding = [i for i, track in enumerate(reading.tracks) if not track.check.dry_run]
    fails = [fail for fail, _, _ in logs]
    if reading.guilty:
        fails = [max(pair) for pair in zip(fails, reading.guilty, strict=True)]
    total = log_mean_exp(np.array([fails[i] for i in deciding])) if deciding else 0.0
    failed = bool(reading.guilty) or (bool(deciding) and total >= -log(rules.alpha))
    blamed = _blamed({i: fails[i] for i in deciding}, rules.alpha) if failed else set()
    changed = {i for i in deciding if reading.tracks[i].changed}
    failed, blamed = failed or bool(changed), blamed | changed
    checks = tuple(
        _result(track, reading, look, fail=fails[i], logs=logs[i], guilty=i in blamed)
        for i, track in enumerate(reading.tracks)
    )
    waiting = [checks[i] for i in deciding if checks[i].outcome == "hold"]
    outcome, reason, ready = _outcome(reading, look, checks, waiting, failed=failed)
    return Verdict(
        outcome=outcome, reason=reason, at=look.now, checks=checks, ready_in_s=ready,
        requests=reading.requests,
    )  # fmt: skip


def _outcome(
    reading: Reading,
    look: Look,
    checks: tuple[CheckResult, ...],
    waiting: list[CheckResult],
    *,
    failed: bool,
) -> tuple[Outcome, str, float | None]:
    if reading.burning is not None:
        return "fail", reading.burning, None
    if reading.mismatch is not None:
        return "hold", reading.mismatch, None
    if failed:
        worst = max((c for c in checks if c.outcome == "fail"), key=lambda c: c.e_value or 0.0)
        return "fail", worst.reason, None
    pace = reading.all_requests / reading.over_s if reading.over_s > 0 else 0.0
    short = look.min_requests - reading.requests
    if reading.requests == 0 or short > 0:
        reason = f"{reading.requests} of {max(look.min_requests, 1)} requests seen at this step"
        return "hold", reason, short / pace if pace else None
    if waiting and look.need != "seen":
        slowest = max(waiting, key=lambda c: inf if c.missing is None else c.missing)
        known = all(c.missing is not None for c in waiting) and pace > 0
        ready = (slowest.missing or 0) / pace if known else None
        return "hold", f"{slowest.signal}: {slowest.reason}", ready
    words = {
        "safe": "every check proven",
        "sane": "no disaster, proven",
        "seen": "none worse so far",
    }
    return "pass", f"{reading.requests} requests, {words[look.need]}", None


def _blamed(logs: dict[int, float], alpha: float) -> set[int]:
    """Returns the checks to blame: by e-BH (Wang, Ramdas 2022), and the strongest in any case."""
    order = sorted(logs, key=lambda i: -logs[i])
    found = 1
    for rank, index in enumerate(order, 1):
        if logs[index] >= log(len(order) / (rank * alpha)):
            found = rank
    return set(order[:found])


def _result(
    track: Track,
    reading: Reading,
    look: Look,
    *,
    fail: float,
    logs: tuple[float, float, float],
    guilty: bool,
) -> CheckResult:
    rules, check, signal = reading.rules, track.check, track.signal
    sane = look.need == "sane"
    now = logs[2] if sane else logs[1]
    proof = max(now, track.sane_best if sane else track.safe_best)
    if sane:
        proof = max(proof, track.safe_best)
    wanted = -log(rules.beta)
    proven = proof >= wanted
    numbers = _numbers(track, rules)
    missing = None if proven else _missing(track, reading, numbers, now, sane=sane)
    outcome: Outcome = "fail" if guilty else "pass" if proven else "hold"
    words = _told(numbers, signal)
    if guilty and track.changed and fail < -log(rules.alpha):
        reason = track.changed
    elif guilty:
        reason = f"{signal.name} is worse: {words}, evidence {exp(min(fail, MAX_LOG)):.3g} of "
        reason += f"{1 / rules.alpha:.3g}"
    elif proven:
        reason = f"{words}, proven {'to be no disaster' if sane else 'within its limit'}"
    else:
        reason = _lacks(track, numbers, words, missing, now, wanted)
    return CheckResult(
        check=check.name, signal=check.signal, outcome=outcome, reason=reason, unit=signal.unit,
        value=numbers.value, baseline=numbers.baseline, limit=numbers.limit,
        e_value=exp(min(fail, MAX_LOG)), threshold=1 / rules.alpha, n=numbers.n,
        n_baseline=numbers.n_baseline, proof=exp(min(proof, MAX_LOG)),
        proof_threshold=1 / rules.beta, low=numbers.low, high=numbers.high, missing=missing,
        dry_run=check.dry_run,
    )  # fmt: skip


def _numbers(track: Track, rules: JudgeRules) -> _Numbers:
    check, down = track.check, track.signal.worse == "down"
    if isinstance(track, LimitTrack):
        value = None
        if track.n:
            found = Estimate(track.sketch, _level(track.signal), rules.alpha)
            value = found.value
        return _Numbers(n=track.n, value=value, limit=check.at_most)
    if isinstance(track, EventTrack):
        n, m, value, baseline, low, high = track.tally.estimate(rules.alpha)
        n = max(n, track.n)
    elif isinstance(track, ScoreTrack):
        found = Estimate(track.sketch, track.signal.quantile, rules.alpha)
        n, m, value, baseline = found.n, found.n_baseline, found.value, found.baseline
        low, high = _or(found.low, -inf), _or(found.high, inf)
    limit = None
    if baseline is not None:
        margin = check.worse_by_at_most or 0.0
        limit = baseline * (1 - margin if down else 1 + margin)
        if check.floor is not None:
            limit = min(limit, check.floor) if down else max(limit, check.floor)
    return _Numbers(
        n=n, n_baseline=m, value=value, baseline=baseline, limit=limit,
        low=low if isfinite(low) else None, high=high if isfinite(high) else None,
    )  # fmt: skip


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _level(signal: Signal) -> float | None:
    if signal.event:
        return None
    return 0.5 if signal.quantile is None else signal.quantile


def _told(numbers: _Numbers, signal: Signal) -> str:
    unit = f" {signal.unit}" if signal.unit else ""
    if numbers.value is None:
        return "the candidate has no answer that can be measured"
    words = f"{numbers.value:.4g}{unit}"
    if numbers.baseline is not None:
        words += f" against {numbers.baseline:.4g}{unit}"
    return words if numbers.limit is None else f"{words}, limit {numbers.limit:.4g}{unit}"


def _lacks(
    track: Track,
    numbers: _Numbers,
    words: str,
    missing: int | None,
    now: float,
    wanted: float,
) -> str:
    """Returns what is known and what the proof still takes."""
    check, down = track.check, track.signal.worse == "down"
    if numbers.value is None:
        return words
    if numbers.baseline is None and check.worse_by_at_most is not None:
        return f"{words}; no request of the baseline yet"
    worst = numbers.low if down else numbers.high
    reason = words
    worse = inf if worst is None else max(-worst if down else worst, 0.0)
    if worse < _NOTHING and check.worse_by_at_most is not None:
        reason += (
            f"; at most {worse:.0%} worse so far, {check.worse_by_at_most:.4g} is to be proven"
        )
    reason += f"; proof {exp(min(now, MAX_LOG)):.3g} of {exp(wanted):.3g}"
    if missing is not None:
        return f"{reason}, about {missing:,} more requests of the candidate"
    return reason


def _missing(
    track: Track, reading: Reading, numbers: _Numbers, now: float, *, sane: bool
) -> int | None:
    """Returns how many more requests the proof takes, None if it probably won't come.

    At the pace of the proof so far; before it has one, as forecast from what was measured.
    """
    wanted, check = -log(reading.rules.beta), track.check
    if numbers.n <= 0:
        return None
    if now > 0:
        more = ceil(numbers.n * (wanted - now) / now)
        return more if 0 < more < _SOON else None
    rates, spreads = {}, {}
    if isinstance(track, ScoreTrack) and numbers.baseline:
        mean, spread = track.sketch.mean(track.sketch.weighted(0)[0])
        spreads[check.signal] = spread**0.5 / mean if mean > 0 else 1.0
    elif numbers.baseline is not None:
        rates[check.signal] = numbers.baseline
    guess = Guess(rate=1.0, rates=rates, spreads=spreads)
    found = outlook(check, reading.rules, reading.share, guess)
    whole = found.sane_requests if sane else found.safe_requests
    if numbers.value is not None and numbers.limit is not None:
        down = track.signal.worse == "down"
        if numbers.value < numbers.limit if down else numbers.value > numbers.limit:
            return None  # as it looks, there is nothing to prove
    return ceil(whole) if whole < _SOON else None
