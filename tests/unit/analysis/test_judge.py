"""The judge: quiet on unchanged releases, quick on broken ones, silent without data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.analysis.checks import Check, JudgeRules, Window, find_signal
from lockgate.analysis.evidence import (
    bucket_ranks,
    event_evidence,
    location_scores,
    rate_evidence,
    score_evidence,
    tail_scores,
    weighted_quantile,
)
from lockgate.analysis.judge import SequentialJudge
from lockgate.core.errors import UsageError
from lockgate.core.traffic import Sample

OLD, NEW = "blake3:old", "blake3:new"
RULES = JudgeRules(
    checks=(
        Check(signal="error_rate", worse_by_at_most=0.25, floor=0.001),
        Check(signal="ttft_p95", worse_by_at_most=0.10),
        Check(signal="latency_mean", worse_by_at_most=0.05),
    ),
    alpha=0.05,
    min_requests=50,
    bucket_s=10,
)


def traffic(
    seed: int,
    *,
    count: int = 2000,
    share: tuple[float, float] = (0.1, 0.1),
    errors: tuple[float, float] = (0.01, 0.01),
    slower: float = 1.0,
    drift: float = 0.0,
) -> list[Sample]:
    """Requests at 10/s; `share` and latency ramp over the run; `errors` of (old, new)."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        done = i / count
        w = share[0] + (share[1] - share[0]) * done
        new = rng.random() < w
        duration = float(rng.lognormal(-1.5, 0.5)) * (1 + drift * done) * (slower if new else 1.0)
        failed = rng.random() < errors[new]
        samples.append(
            Sample(
                at=1000 + i * 0.1, route="r", version=NEW if new else OLD,
                propensity=w if new else 1 - w, revision=1, status=500 if failed else 200,
                duration_s=duration, first_body_s=duration / 2, tokens=20,
            )
        )  # fmt: skip
    return samples


def judge(samples: list[Sample], rules: JudgeRules = RULES, until: float = 1e9) -> str:
    window = Window(
        samples=[s for s in samples if s.at <= until], candidate=NEW, baseline=OLD,
        step_from=0, now=min(until, samples[-1].at + 100),
    )  # fmt: skip
    return SequentialJudge().judge(window, rules).outcome


def test_an_unchanged_release_passes() -> None:
    assert judge(traffic(1, count=6000)) == "pass"


@pytest.mark.parametrize(
    ("blame", "options"),
    [("error_rate", {"errors": (0.01, 0.20)}), ("ttft_p95", {"slower": 1.6}),
     ("latency_mean", {"slower": 1.3, "share": (0.5, 0.5)})],
)  # fmt: skip
def test_a_worse_candidate_fails_and_the_right_check_is_blamed(
    blame: str, options: dict[str, object]
) -> None:
    samples = traffic(2, count=4000, **options)  # type: ignore[arg-type]
    window = Window(samples=samples, candidate=NEW, baseline=OLD, step_from=0, now=2000)
    verdict = SequentialJudge().judge(window, RULES)
    assert verdict.outcome == "fail"
    assert blame in [check.signal for check in verdict.blame]
    guilty = next(check for check in verdict.checks if check.signal == blame)
    assert guilty.value is not None
    assert guilty.limit is not None
    assert guilty.value > guilty.limit
    assert guilty.e_value is not None
    assert guilty.e_value >= 1 / RULES.alpha


def test_a_better_candidate_passes() -> None:
    assert judge(traffic(3, count=4000, slower=0.7, errors=(0.02, 0.0))) == "pass"


def test_no_data_is_never_a_pass() -> None:
    empty = Window(samples=[], candidate=NEW, baseline=OLD, step_from=0, now=1000)
    verdict = SequentialJudge().judge(empty, RULES)
    assert verdict.outcome == "hold"
    assert all(check.outcome == "hold" for check in verdict.checks)
    only_old = [replace(s, version=OLD, propensity=0.9) for s in traffic(4, count=500)]
    assert judge(only_old) == "hold"
    only_new = [replace(s, version=NEW, propensity=0.1) for s in traffic(4, count=500)]
    assert judge(only_new) == "hold"


def test_lost_rows_hold_the_release_and_blame_nobody() -> None:
    """Two thirds of the baseline's rows never arrive: the candidate must not pay for it."""
    samples = traffic(11, count=4000, share=(0.3, 0.3), errors=(0.2, 0.2))
    lossy = [s for i, s in enumerate(samples) if s.version == NEW or i % 3 == 0]
    window = Window(samples=lossy, candidate=NEW, baseline=OLD, step_from=0, now=2000)
    verdict = SequentialJudge().judge(window, RULES)
    assert verdict.outcome == "hold"
    assert "do not match the weights" in verdict.reason


def test_all_requests_failing_on_both_sides_is_not_blamed_on_the_candidate() -> None:
    broken = [replace(s, status=503, first_body_s=None) for s in traffic(5, count=2000)]
    window = Window(samples=broken, candidate=NEW, baseline=OLD, step_from=0, now=2000)
    verdict = SequentialJudge().judge(window, RULES)
    assert verdict.outcome == "hold"  # nobody can say how fast it is
    assert verdict.checks[0].outcome == "pass"


def test_min_requests_counts_the_step_only() -> None:
    samples = traffic(6, count=3000)
    window = Window(samples=samples, candidate=NEW, baseline=OLD, step_from=1295, now=2000)
    verdict = SequentialJudge().judge(window, RULES)
    assert verdict.outcome == "hold"
    assert "of 50 requests" in verdict.reason


def test_absolute_checks_need_no_baseline() -> None:
    rules = JudgeRules(
        checks=(Check(signal="error_rate", at_most=0.02), Check(signal="latency_p95", at_most=1.0)),
        min_requests=50,
    )
    alone = [replace(s, version=NEW, propensity=1.0) for s in traffic(7, count=1500)]
    assert judge(alone, rules) == "pass"
    slow = [replace(s, duration_s=s.duration_s * 4) for s in alone]
    assert judge(slow, rules) == "fail"
    failing = [replace(s, status=500) if i % 10 == 0 else s for i, s in enumerate(alone)]
    assert judge(failing, rules) == "fail"


def test_tokens_per_second_hurts_downwards() -> None:
    rules = replace(RULES, checks=(Check(signal="tokens_per_second", worse_by_at_most=0.05),))
    assert judge(traffic(8, count=4000, slower=1.5), rules) == "fail"
    assert judge(traffic(8, count=4000, slower=0.8), rules) == "pass"


def test_a_relative_floor_forgives_what_nobody_feels() -> None:
    rules = replace(RULES, checks=(Check(signal="latency_p95", worse_by_at_most=0.0, floor=60.0),))
    assert judge(traffic(9, count=4000, slower=2.0), rules) == "pass"


def test_the_same_window_gives_the_same_verdict_bit_for_bit() -> None:
    samples = traffic(10, count=3000, slower=1.05)
    window = Window(samples=samples, candidate=NEW, baseline=OLD, step_from=0, now=2000)
    assert SequentialJudge().judge(window, RULES) == SequentialJudge().judge(window, RULES)


def test_watched_all_along_an_unchanged_release_alarms_at_most_alpha() -> None:
    """Ramping share under drift, looked at 12 times: the case where pooled tests always alarm."""
    runs, alarms = 150, 0
    for seed in range(runs):
        samples = traffic(1000 + seed, count=1200, share=(0.01, 0.5), drift=2.0)
        looks = [1000 + 10 * k for k in range(1, 13)]
        alarms += any(judge(samples, RULES, until) == "fail" for until in looks)
    assert alarms / runs <= RULES.alpha + 2.3 * math.sqrt(0.05 * 0.95 / runs)


def walk(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0.01, 0.6, n)
    arms = (rng.random(n) < shares).astype(float)
    return arms, shares, rng.exponential(size=n)


@pytest.mark.parametrize("kind", ["event", "event tolerant", "location", "tail"])
def test_each_bet_has_mean_at_most_one_and_keeps_villes_bound(kind: str) -> None:
    finals, crossed, runs = [], 0, 2000
    for seed in range(runs):
        arms, shares, values = walk(seed, 60)
        ranks = bucket_ranks(values, np.arange(60) // 20)
        scores = location_scores(ranks) if kind == "location" else tail_scores(ranks, 0.95)
        top = 0.0
        for n in (20, 40, 60):
            if kind.startswith("event"):
                tolerance = 0.25 if kind.endswith("tolerant") else 0.0
                log_e = event_evidence(arms[:n], shares[:n], tolerance)
            else:
                log_e = score_evidence(arms[:n], shares[:n], scores[:n], tail=kind == "tail")
            top = max(top, log_e)
        finals.append(math.exp(log_e))
        crossed += top >= math.log(20)
    error = np.std(finals) / math.sqrt(runs)
    assert np.mean(finals) <= 1 + 3 * error
    assert crossed / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_the_rate_bet_keeps_villes_bound() -> None:
    crossed, runs = 0, 1500
    for seed in range(runs):
        hits = np.cumsum(np.random.default_rng(seed).random(500) < 0.02)
        crossed += any(
            rate_evidence(int(hits[n - 1]), n, 0.02) >= math.log(20) for n in range(5, 501, 15)
        )
    assert crossed / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert rate_evidence(1, 10, 0.0) == math.inf
    assert rate_evidence(5, 10, 1.0) == 0.0


def test_broken_at_one_percent_share_is_seen_within_a_dozen_candidate_requests() -> None:
    needed = []
    for seed in range(40):
        samples = traffic(seed, count=6000, share=(0.01, 0.01), errors=(0.01, 0.5))
        events = [s for s in samples if s.failed]
        arms = np.array([float(s.version == NEW) for s in events])
        for k in range(1, len(events) + 1):
            if event_evidence(arms[:k], np.full(k, 0.01), 0.25) >= math.log(100):
                at = events[k - 1].at
                needed.append(sum(s.version == NEW and s.at <= at for s in samples))
                break
    assert len(needed) == 40
    assert np.median(needed) <= 12


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=1, max_size=40))
def test_ranks_are_shares_and_ignore_the_order_of_rows(rows: list[tuple[float, int]]) -> None:
    values = np.array([v for v, _ in rows])
    buckets = np.array([b for _, b in rows])
    ranks = bucket_ranks(values, buckets)
    assert np.all((ranks > 0) & (ranks < 1))
    backwards = bucket_ranks(values[::-1], buckets[::-1])[::-1]
    assert np.allclose(ranks, backwards)
    for i, (v, b) in enumerate(rows):
        for j, (u, c) in enumerate(rows):
            if b == c and v < u:
                assert ranks[i] < ranks[j]


def test_weighted_quantiles() -> None:
    values = np.array([3.0, 1.0, 2.0])
    assert weighted_quantile(values, np.ones(3), 0.5) == 2.0
    assert weighted_quantile(values, np.array([10.0, 1.0, 1.0]), 0.5) == 3.0


def test_signal_names() -> None:
    assert find_signal("ttft_p95").quantile == 0.95
    assert find_signal("tokens_per_second").worse == "down"
    for bad in ("ttft", "ttft_p00", "ttft_p100", "speed", "error_rate_p95", ""):
        with pytest.raises(UsageError):
            find_signal(bad)
