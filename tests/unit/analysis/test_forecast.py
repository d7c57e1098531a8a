"""Forecasts: what they promise beside what the judge does."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isfinite

import numpy as np
import pytest

from lockgate.analysis.checks import Check, JudgeRules, Look
from lockgate.analysis.forecast import (
    Guess,
    Stage,
    event_information,
    forecast,
    outlook,
    rate_information,
    shift_information,
    told,
)

from .made import RULES, case_of, traffic

GUESS = Guess(rate=10, rates={"error_rate": 0.02}, spreads={"latency_mean": 0.53, "ttft_p95": 0.53})


def first(seed: int, wanted: str, signal: str, **options: object) -> float:
    """Returns the candidate's requests after which a check alone is decided, else infinity."""
    check = next(check for check in RULES.checks if check.signal == signal)
    samples = traffic(seed, count=20_000, share=(0.3, 0.3), **options)  # type: ignore[arg-type]
    case = case_of([], replace(RULES, checks=(replace(check, floor=None, tolerate=0.0),)))
    seen = 0
    for begin in range(0, len(samples), 200):
        part = samples[begin : begin + 200]
        case.add(part)
        seen += sum(s.version.endswith("new") for s in part)
        if case.verdict(Look(now=0)).checks[0].outcome == wanted:
            return seen
    return inf


@pytest.mark.parametrize(
    ("signal", "options", "effect"),
    [("error_rate", {"errors": (0.02, 0.06)}, 2.0), ("latency_mean", {"slower": 1.1}, 0.1)],
)
def test_what_is_forecast_to_fail_fails_about_then(
    signal: str, options: dict[str, object], effect: float
) -> None:
    check = next(check for check in RULES.checks if check.signal == signal)
    rules = replace(RULES, checks=(replace(check, tolerate=0.0, floor=None),))
    said = outlook(rules.checks[0], rules, 0.3, GUESS, effect)
    did = float(np.median([first(seed, "fail", signal, **options) for seed in range(5)]))
    assert said.fail_requests / 2.5 <= did <= said.fail_requests * 2.5
    assert said.fail_s == pytest.approx(said.fail_requests / 3)


@pytest.mark.parametrize("signal", ["error_rate", "latency_mean", "ttft_p95"])
def test_what_is_forecast_to_be_proven_is_about_then(signal: str) -> None:
    check = next(check for check in RULES.checks if check.signal == signal)
    rules = replace(RULES, checks=(replace(check, floor=None),))
    said = outlook(rules.checks[0], rules, 0.3, GUESS)
    options = {"errors": (0.02, 0.02)}
    did = float(np.median([first(seed, "pass", signal, **options) for seed in range(5)]))
    assert said.safe_requests / 2.5 <= did <= said.safe_requests * 2.5
    assert said.sane_requests <= said.safe_requests


def test_a_trickle_takes_days_and_a_larger_share_is_advised() -> None:
    found = forecast(RULES, (Stage(share=0.01),), replace(GUESS, rate=3.0))
    assert found.safe_s > 86_400 / 2
    assert found.share > 0.05
    assert "it would take" in found.advice
    assert "3 requests/s" in found.advice


def test_stages_add_up_and_gather_evidence() -> None:
    stages = (Stage(share=0.01, min_s=600), Stage(share=0.1, min_s=600), Stage(share=0.5))
    found = forecast(RULES, stages, GUESS)
    assert len(found.outlooks) == 9
    alone = forecast(RULES, stages[-1:], GUESS)
    assert alone.safe_s < found.safe_s < alone.safe_s + 1200
    long = (Stage(share=0.5, min_s=1e7), Stage(share=0.9, min_s=5))
    assert forecast(RULES, long, GUESS).safe_s == 1e7 + 5


def test_where_nothing_fails_a_floor_is_what_can_be_proven() -> None:
    bare = JudgeRules(checks=(Check(signal="error_rate", worse_by_at_most=0.5),))
    never = forecast(bare, (Stage(share=0.1),), Guess(rate=10, rates={"error_rate": 0.0}))
    assert never.safe_s == inf
    assert "floor" in never.advice
    floored = JudgeRules(checks=(Check(signal="error_rate", worse_by_at_most=0.5, floor=0.01),))
    found = forecast(floored, (Stage(share=0.1),), Guess(rate=10, rates={"error_rate": 0.0}))
    assert isfinite(found.safe_s)
    assert forecast(floored, (), GUESS).safe_s == inf
    assert forecast(floored, (Stage(share=0.1),), Guess(rate=0.0)).safe_s == inf
    limits = JudgeRules(checks=(Check(signal="latency_p95", at_most=1.0),))
    assert isfinite(forecast(limits, (Stage(share=0.1),), GUESS).safe_s)


def test_information_has_its_known_limits() -> None:
    assert event_information(0.01, 0.3, 1.0) == pytest.approx(0.0)
    assert event_information(0.01, 1.0, 2.0) == 0.0
    small = event_information(0.01, 1e-6, 2.0)
    assert small == pytest.approx(0.01 * (2 * np.log(2) - 1), rel=1e-3)
    assert shift_information(0.1, 0.5) == pytest.approx(0.0025)
    assert shift_information(3.0, 0.5) > shift_information(1.0, 0.5)
    assert rate_information(0.0, 0.05) == pytest.approx(-np.log(0.95))
    assert rate_information(0.1, 0.05) == 0.0
    assert [told(s) for s in (5, 240, 111_600, 1e6, inf)] == [
        "5 s", "4 min", "31 h", "12 d", "for ever",
    ]  # fmt: skip
