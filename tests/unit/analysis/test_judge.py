"""The judge: quiet on unchanged releases, quick on broken ones, silent without data."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.analysis.checks import Check, JudgeRules, Look, find_signal
from lockgate.analysis.judge import SequentialJudge
from lockgate.core.errors import IntegrityError, UsageError
from lockgate.core.traffic import Sample
from lockgate.core.verdict import Verdict

from .made import NEW, OLD, RULES, case_of, judge, resumed, sample, traffic

LOOK = Look(now=2000.0)


def test_an_unchanged_release_is_proven_safe() -> None:
    verdict = judge(traffic(1, count=6000), min_requests=100)
    assert verdict.outcome == "pass"
    assert all(check.outcome == "pass" for check in verdict.checks)
    assert all((check.proof or 0) >= 1 / RULES.beta for check in verdict.checks)
    assert verdict.ready_in_s is None


def test_a_step_opens_once_no_disaster_is_proven_long_before_all_is_safe() -> None:
    samples = traffic(1, count=1300)
    assert judge(samples, need="sane").outcome == "pass"
    verdict = judge(samples)
    assert verdict.outcome == "hold"
    assert "more requests of the candidate" in verdict.reason
    assert verdict.ready_in_s is not None
    assert verdict.ready_in_s > 0
    lacking = [check for check in verdict.checks if check.outcome == "hold"]
    assert all(check.missing is None or check.missing > 0 for check in lacking)


def test_seen_needs_requests_alone() -> None:
    samples = traffic(1, count=200)
    assert judge(samples, need="seen", min_requests=5).outcome == "pass"
    verdict = judge(samples, need="seen", min_requests=500)
    assert verdict.outcome == "hold"
    assert "of 500 requests" in verdict.reason


@pytest.mark.parametrize(
    ("blame", "options"),
    [("error_rate", {"errors": (0.01, 0.20)}), ("ttft_p95", {"slower": 1.8}),
     ("latency_mean", {"slower": 1.4, "share": (0.5, 0.5)})],
)  # fmt: skip
def test_a_worse_candidate_fails_and_the_right_check_is_blamed(
    blame: str, options: dict[str, object]
) -> None:
    verdict = judge(traffic(2, count=4000, **options))  # type: ignore[arg-type]
    assert verdict.outcome == "fail"
    assert blame in [check.signal for check in verdict.blame]
    guilty = next(check for check in verdict.checks if check.signal == blame)
    assert guilty.value is not None
    assert guilty.limit is not None
    assert guilty.value > guilty.limit
    assert guilty.e_value is not None
    assert guilty.e_value >= 1 / RULES.alpha


def test_a_better_candidate_passes() -> None:
    assert judge(traffic(3, count=4000, slower=0.7, errors=(0.02, 0.0))).outcome == "pass"


def test_no_data_is_never_a_pass() -> None:
    for need in ("safe", "sane", "seen"):
        verdict = judge([], need=need)
        assert verdict.outcome == "hold"
        assert all(check.outcome == "hold" for check in verdict.checks)
    only_old = [replace(s, version=OLD, propensity=0.9) for s in traffic(4, count=500)]
    assert judge(only_old).outcome == "hold"
    only_new = [replace(s, version=NEW, propensity=0.1) for s in traffic(4, count=500)]
    assert judge(only_new).outcome == "hold"


def test_lost_rows_hold_the_release_and_blame_nobody() -> None:
    """Two thirds of the baseline's rows never arrive: the candidate must not pay for it."""
    samples = traffic(11, count=4000, share=(0.3, 0.3), errors=(0.2, 0.2))
    lossy = [s for i, s in enumerate(samples) if s.version == NEW or i % 3 == 0]
    verdict = judge(lossy)
    assert verdict.outcome == "hold"
    assert "do not match the weights" in verdict.reason


def test_all_requests_failing_on_both_sides_is_not_blamed_on_the_candidate() -> None:
    broken = [replace(s, status=503, first_body_s=None) for s in traffic(5, count=3000)]
    verdict = judge(broken)
    assert verdict.outcome == "hold"  # nobody can say how fast it is
    assert verdict.checks[0].outcome == "pass"


def test_min_requests_counts_from_the_revision_on() -> None:
    samples = traffic(6, count=3000)
    later = [replace(s, revision=2) if s.at > 1250 else s for s in samples]
    verdict = judge(later, min_requests=200, since_revision=2, need="seen")
    assert verdict.outcome == "hold"
    assert "of 200 requests" in verdict.reason
    assert judge(later, min_requests=200, need="seen").outcome == "pass"


def test_absolute_checks_need_no_baseline() -> None:
    rules = JudgeRules(
        checks=(Check(signal="error_rate", at_most=0.03), Check(signal="latency_p95", at_most=1.0)),
    )
    alone = [replace(s, version=NEW, propensity=1.0) for s in traffic(7, count=1500)]
    assert judge(alone, rules).outcome == "pass"
    slow = [replace(s, duration_s=s.duration_s * 4) for s in alone]
    assert judge(slow, rules).outcome == "fail"
    failing = [replace(s, status=500) if i % 10 == 0 else s for i, s in enumerate(alone)]
    assert judge(failing, rules).outcome == "fail"
    assert judge(alone[:20], rules).outcome == "hold"


def test_tokens_per_second_hurts_downwards() -> None:
    rules = replace(RULES, checks=(Check(signal="tokens_per_second", worse_by_at_most=0.05),))
    assert judge(traffic(8, count=4000, slower=1.5), rules).outcome == "fail"
    assert judge(traffic(8, count=4000, slower=0.8), rules).outcome == "pass"


def test_quality_comes_in_rows_of_its_own_and_hurts_downwards() -> None:
    rules = replace(RULES, checks=(Check(signal="quality", worse_by_at_most=0.05),))

    def scored(worse: float) -> list[Sample]:
        rng = np.random.default_rng(1)
        found = []
        for s in traffic(12, count=6000, share=(0.3, 0.3)):
            score = rng.beta(8, 2) * (1 - worse * (s.version == NEW))
            found += [s, replace(s, scores={"quality": score})]
        return found

    assert judge(scored(0.0), rules).outcome == "pass"
    verdict = judge(scored(0.1), rules)
    assert verdict.outcome == "fail"
    assert verdict.checks[0].value == pytest.approx(0.72, abs=0.02)
    assert judge(traffic(12), rules).outcome == "hold"  # no scores, no pass


def test_rates_of_scorers_timeouts_and_refusals() -> None:
    names = ("invalid_json_rate", "timeout_rate", "refusal_rate")
    rng = np.random.default_rng(2)
    base = traffic(13, count=3000, share=(0.3, 0.3), errors=(0, 0))
    bad = [(s.version == NEW and rng.random() < 0.2) or rng.random() < 0.02 for s in base]
    rows = {
        "invalid_json_rate": [
            replace(s, scores={"invalid_json": float(b)}) for s, b in zip(base, bad, strict=True)
        ],
        "timeout_rate": [
            replace(s, flags="UT" if b else "") for s, b in zip(base, bad, strict=True)
        ],
        "refusal_rate": [
            replace(s, status=429 if b else 200) for s, b in zip(base, bad, strict=True)
        ],
    }
    for name in names:
        rules = replace(RULES, checks=(Check(signal=name, worse_by_at_most=0.5),))
        assert judge(rows[name], rules).outcome == "fail", name
        assert judge(base, rules).outcome == "hold", name


def test_a_relative_floor_forgives_what_nobody_feels() -> None:
    rules = replace(RULES, checks=(Check(signal="latency_p95", worse_by_at_most=0.0, floor=60.0),))
    verdict = judge(traffic(9, count=4000, slower=2.0), rules)
    assert verdict.outcome != "fail"
    rates = replace(
        RULES, checks=(Check(signal="error_rate", worse_by_at_most=0.0, floor=0.1),), beta=0.05
    )
    assert judge(traffic(9, count=4000, errors=(0.001, 0.02)), rates).outcome == "pass"


def test_a_dry_run_is_reported_and_decides_nothing() -> None:
    broken = traffic(2, count=8000, errors=(0.01, 0.3))
    error, *others = RULES.checks
    rules = replace(RULES, checks=(replace(error, dry_run=True), *others))
    verdict = judge(broken, rules)
    assert verdict.outcome == "pass"
    assert verdict.checks[0].dry_run
    assert (verdict.checks[0].e_value or 0) > 1 / RULES.alpha


def test_tolerate_decides_when_to_fail_and_the_margin_when_to_pass() -> None:
    slower = traffic(14, count=8000, share=(0.5, 0.5), slower=1.15)
    wide = replace(RULES, checks=(Check(signal="latency_mean", worse_by_at_most=0.3),))
    assert judge(slower, wide).outcome == "pass"
    strict = replace(
        RULES, checks=(Check(signal="latency_mean", worse_by_at_most=0.3, tolerate=0.02),)
    )
    assert judge(slower, strict).outcome == "fail"


# One log, one verdict


def both(samples: list[Sample]) -> tuple[Verdict, str]:
    case = case_of(samples)
    return case.verdict(LOOK), json.dumps(case.state(), allow_nan=False)


LOG = traffic(10, count=1500, slower=1.05, share=(0.05, 0.4))
WHOLE_LOG = both(LOG)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(LOG)), st.booleans()), max_size=6))
def test_however_the_log_is_cut_the_verdict_is_the_same_bit_for_bit(
    cuts: list[tuple[int, bool]],
) -> None:
    case, begin = case_of([]), 0
    for end, snapshot in [*sorted(cuts), (len(LOG), False)]:
        case.add(LOG[begin:end])
        case.verdict(LOOK)
        begin = end
        if snapshot:
            case = resumed(json.loads(json.dumps(case.state(), allow_nan=False)))
    assert case.verdict(LOOK) == WHOLE_LOG[0]
    assert json.dumps(case.state(), allow_nan=False) == WHOLE_LOG[1]


def test_row_by_row_is_the_same_as_at_once() -> None:
    case = case_of([])
    for row in LOG:
        case.add([row])
    assert (case.verdict(LOOK), json.dumps(case.state())) == WHOLE_LOG


def test_the_state_does_not_grow_with_the_log() -> None:
    short, long = (len(json.dumps(case_of(traffic(15, count=n)).state())) for n in (2000, 20_000))
    assert long < 1.5 * short


def test_the_state_is_bounded_where_requests_are_many_and_slow() -> None:
    rows = [replace(s, duration_s=300 + s.duration_s) for s in traffic(16, count=45_000, rate=1000)]
    assert len(json.dumps(case_of(rows).state())) < 6_000_000


def test_a_case_of_another_release_is_not_resumed() -> None:
    state = case_of(LOG).state()
    with pytest.raises(IntegrityError):
        SequentialJudge().resume(RULES, state, candidate="blake3:other", baseline=OLD)
    with pytest.raises(IntegrityError):
        resumed(state, replace(RULES, alpha=0.01))


# Hostile rows

NUMBERS = st.one_of(
    st.floats(), st.floats(-1, 2000), st.sampled_from([0.0, -0.0, 1e300, -1e300, 1e12, 1e-320])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(-1, 600)), max_size=40))
def test_no_row_breaks_the_judge(rows: list[tuple[float, float, float, float, int]]) -> None:
    checks = (*RULES.checks, Check(signal="tokens_per_second", worse_by_at_most=0.1),
              Check(signal="quality", worse_by_at_most=0.1),
              Check(signal="latency_p99", at_most=1.0))  # fmt: skip
    rules = replace(RULES, checks=checks, adjust=("request_bytes",))
    samples = [
        sample(at, version=(OLD, NEW, "other")[i % 3], propensity=share, duration_s=duration,
               first_body_s=first, status=status, bytes_in=status, tokens=status,
               scores={"quality": first} if i % 5 == 0 else {}, revision=i)
        for i, (at, share, duration, first, status) in enumerate(rows)
    ]  # fmt: skip
    case = case_of([*samples, *LOG[:200]], rules)
    verdict = case.verdict(LOOK)
    json.dumps(case.state(), allow_nan=False)
    assert verdict.outcome in ("hold", "fail")
    for check in verdict.checks:
        numbers = (check.value, check.baseline, check.e_value, check.proof, check.low, check.high)
        assert not any(n is not None and math.isnan(n) for n in numbers)


def test_a_clock_that_jumps_is_survived() -> None:
    ahead = [sample(5e9), *traffic(1, count=40_000, rate=20)]
    assert judge(ahead).outcome == "pass"  # buckets then close by their size
    back = [replace(s, at=s.at - 3600) if i > 1000 else s for i, s in enumerate(traffic(1))]
    assert judge(back).outcome in ("hold", "pass")


def test_signal_names() -> None:
    assert find_signal("ttft_p95").quantile == 0.95
    assert find_signal("tokens_per_second").worse == "down"
    assert find_signal("quality").worse == "down"
    assert find_signal("faithful_mean").key == "faithful"
    assert find_signal("faithful_p05").quantile == 0.05
    assert find_signal("invalid_json_rate").event
    assert find_signal("output_tokens_p95").measure == "tokens"
    bad_names = ("ttft", "ttft_p00", "ttft_p100", "speed", "error_rate_p95", "", "latency_rate",
                 "error_mean", "Quality_mean")  # fmt: skip
    for bad in bad_names:
        with pytest.raises(UsageError):
            find_signal(bad)
    with pytest.raises(UsageError):
        case_of([], replace(RULES, adjust=("weather",)))
