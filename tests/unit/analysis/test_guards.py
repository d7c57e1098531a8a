"""Guards: quiet while nothing changes for as long as they say, quick once it does."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lockgate.analysis.bets import event_bets
from lockgate.analysis.checks import Check, JudgeRules, Look
from lockgate.analysis.guards import (
    Aggregates,
    Delta,
    Detector,
    burning,
    delta_bets,
    gained,
    lost,
    over_bounds,
    stored_chance,
)
from lockgate.core.errors import UsageError
from lockgate.core.traffic import Sample

from .made import NEW, case_of, judge, resumed, sample, traffic


def test_a_burn_needs_both_windows() -> None:
    fast = {300.0: (20, 1000), 3600.0: (200, 12_000)}
    assert "14.4" in (burning(fast, 0.999) or "")
    assert burning(fast | {3600.0: (12, 12_000)}, 0.999) is None
    slow = {300.0: (7, 1000), 3600.0: (80, 12_000), 1800.0: (40, 6000), 21_600.0: (450, 72_000)}
    assert "6 h" in (burning(slow, 0.999) or "")
    assert burning({}, 0.999) is None
    with pytest.raises(UsageError):
        burning({}, 1.0)


def test_lost_rows_are_told_from_chance() -> None:
    assert lost(9_950, 10_000) is None
    assert "5.0%" in (lost(9_500, 10_000) or "")
    assert lost(0, 0) is None
    assert lost(10, 5) is None


def test_counters_that_restart_and_histograms() -> None:
    assert gained(10, 12) == 2
    assert gained(10, 3) == 3
    before = {0.1: 5.0, 1.0: 8.0, math.inf: 10.0}
    after = {0.1: 6.0, 1.0: 14.0, math.inf: 20.0}
    assert over_bounds(before, after) == {0.1: 9, 1.0: 4}
    assert over_bounds(after, before) == {0.1: 5, 1.0: 2}  # restarted
    with pytest.raises(UsageError):
        over_bounds({}, {1.0: 2.0})


def test_sums_give_what_single_events_give() -> None:
    ratios = np.array([0.5, 2.0, 10.0])
    arms, shares = np.array([1.0] * 3 + [0.0] * 5), np.full(8, 0.2)
    summed = delta_bets(Delta(share=0.2, candidate=3, baseline=5), 1.3, ratios)
    assert summed == pytest.approx(event_bets(arms, shares, 1.3, ratios))


def test_aggregates_keep_villes_bound_and_find_errors() -> None:
    crossed, found, proven = 0, 0, 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        quiet, loud = (Aggregates(tolerate=0.0, margin=0.5) for _ in range(2))
        most = 0.0
        for step in range(60):
            load = 30 * (1 + step / 20) * (5 if rng.random() < 0.1 else 1)
            share = 0.05 + 0.4 * step / 60
            for case, ratio in ((quiet, 1.0), (loud, 2.0)):
                ours = int(rng.poisson(load * share * ratio))
                theirs = int(rng.poisson(load * (1 - share)))
                case.add(Delta(share=share, candidate=ours, baseline=theirs))
            most = max(most, quiet.evidence()[0])
        crossed += most >= 20
        found += loud.evidence()[0] >= 20
        proven += quiet.evidence()[1] >= 20
        again = Aggregates(tolerate=0.0, margin=0.5)
        again.load(loud.state())
        assert again.evidence() == loud.evidence()
    assert crossed / 150 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)
    assert found == 150
    assert proven > 138


@pytest.mark.parametrize("rounds", [50, 200])
def test_a_detector_runs_as_long_as_it_says_and_finds_a_change(rounds: int) -> None:
    lengths, delays = [], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        detector, length = Detector(0.05, rounds=rounds), 0
        while length < 20 * rounds:
            length += 1
            if detector.add(int(rng.binomial(40, 0.05)), 40):
                break
        lengths.append(length)
        detector = Detector(0.05, rounds=rounds)
        for _ in range(20):
            detector.add(int(rng.binomial(40, 0.05)), 40)
        if detector.alarm:
            continue
        after = Detector(0.05, rounds=rounds)
        after.load(detector.state())
        delay = 1
        while not after.add(int(rng.binomial(40, 0.15)), 40):
            delay += 1
        delays.append(delay)
    assert np.mean(lengths) >= rounds - 3 * np.std(lengths) / math.sqrt(len(lengths))
    assert np.median(delays) <= 5


def test_a_detector_with_nothing_to_see_stays_quiet() -> None:
    detector = Detector(0.1, rounds=10)
    assert not any(detector.add(0, 0) or detector.add(-1, 5) or detector.add(9, 5) for _ in "ab")
    with pytest.raises(UsageError):
        Detector(0.0, rounds=10)


def test_what_is_stored_of_the_old_version_gives_an_upper_bound() -> None:
    values = np.arange(1000) / 1000
    assert 0.05 < stored_chance(values, 0.95) < 0.08
    assert stored_chance(values, 0.95, tolerate=0.5) > 0.075
    with pytest.raises(UsageError):
        stored_chance(np.array([]), 1.0)


ERRORS = JudgeRules(
    checks=(Check(signal="error_rate", worse_by_at_most=0.5, floor=0.02),), alpha=0.05, bucket_s=5
)


def alone(seed: int, rate: float, *, count: int = 3000) -> list[Sample]:
    """A canary at a half, then requests that only the candidate gets, `rate` of which fail."""
    before = traffic(seed, count=2000, share=(0.5, 0.5), errors=(0.01, 0.01))
    draw = np.random.default_rng(seed + 1000)
    start = before[-1].at + 1
    after = [
        sample(start + i / 10, version=NEW, propensity=1.0, revision=2,
               status=500 if draw.random() < rate else 200)
        for i in range(count)
    ]  # fmt: skip
    return before + after


def test_a_version_that_turns_bad_at_100_percent_is_found_without_a_baseline() -> None:
    log = alone(1, 0.08)
    verdict = judge(log, ERRORS, need="seen", since_revision=2)
    assert verdict.outcome == "fail"
    assert "became worse when the candidate had all traffic" in verdict.reason
    early = judge(log[:2400], ERRORS, need="seen", since_revision=2)  # 400 requests alone
    assert early.outcome == "fail"


def test_one_that_stays_as_it_was_is_left_alone() -> None:
    outcomes = [
        judge(alone(seed, 0.01, count=6000), ERRORS, need="seen", since_revision=2).outcome
        for seed in range(20)
    ]
    assert outcomes == ["pass"] * 20


def test_what_was_seen_alone_survives_a_restart() -> None:
    log = alone(3, 0.05)
    whole = case_of(log, ERRORS)
    for cut in (2100, 2300, 2900):
        first = case_of(log[:cut], ERRORS)
        again = resumed(json.loads(json.dumps(first.state())), ERRORS)
        again.add(log[cut:])
        assert again.state() == whole.state()


SLO = JudgeRules(checks=(), alpha=0.05, bucket_s=5, slo=0.99)


def test_an_objective_fails_a_candidate_that_is_as_bad_as_the_baseline() -> None:
    both_bad = traffic(5, count=4000, errors=(0.3, 0.3), share=(0.5, 0.5))
    verdict = judge(both_bad, SLO, need="seen")
    assert verdict.outcome == "fail"
    assert "the error budget of 1.000% burns" in verdict.reason
    fine = traffic(5, count=4000, errors=(0.3, 0.01), share=(0.5, 0.5))
    assert judge(fine, SLO, need="seen").outcome == "pass"  # the baseline's are not its fault


def test_a_few_failures_at_the_start_burn_nothing() -> None:
    few = [sample(1000.0 + i, version=NEW, propensity=0.5 if i % 2 else 1.0,
                  status=500 if i < 2 else 200) for i in range(4)]  # fmt: skip
    assert judge(few, SLO, need="seen").outcome == "pass"


def test_what_burned_is_forgotten_after_its_windows_and_survives_a_restart() -> None:
    bad = traffic(6, count=1000, errors=(0.0, 0.5), share=(0.5, 0.5))
    start = bad[-1].at
    calm = [sample(start + 7 * 3600 + i, version=NEW, propensity=1.0) for i in range(600)]
    case = case_of(bad, SLO)
    again = resumed(json.loads(json.dumps(case.state())), SLO)
    for each in (case, again):
        assert each.verdict(Look(now=2000.0, need="seen")).outcome == "fail"
        each.add(calm)
        assert each.verdict(Look(now=9e4, need="seen")).outcome == "pass"
    assert case.state() == again.state()
