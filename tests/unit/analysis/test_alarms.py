"""Whole releases through the case: alpha and beta hold where methods for watching usually break."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lockgate.analysis.checks import Check
from lockgate.core.traffic import Sample

from .made import NEW, OLD, RULES, judge, traffic

STRICT = replace(RULES, checks=tuple(replace(c, tolerate=0.0, floor=None) for c in RULES.checks))
RUNS = 45


def at_most(hits: int, chance: float) -> bool:
    """Says whether `hits` of RUNS may come from `chance`, three deviations allowed."""
    return hits / RUNS <= chance + 3 * math.sqrt(chance * (1 - chance) / RUNS)


def scaled(rows: list[Sample], factor: Callable[[float], float]) -> list[Sample]:
    """Returns rows whose times, and now and then outcomes, the load at that moment changes."""
    found = []
    for s in rows:
        load = factor(s.at)
        found.append(
            replace(
                s, duration_s=s.duration_s * load, first_body_s=s.duration_s * load / 2,
                status=503 if load > 3 and hash(s.duration_s) % 3 == 0 else s.status,
            )
        )  # fmt: skip
    return sorted(found, key=lambda s: s.at + s.duration_s)


def ramp(seed: int) -> list[Sample]:
    return traffic(seed, count=1000, share=(0.01, 0.5), drift=2.0)


def bursts(seed: int) -> list[Sample]:
    begin = float(np.random.default_rng(seed).uniform(1000, 1080))
    return scaled(traffic(seed, count=1000), lambda at: 4.0 if begin <= at < begin + 10 else 1.0)


def autocorrelated(seed: int) -> list[Sample]:
    steps = np.random.default_rng(seed).normal(0, 0.2, 120)
    level = np.exp(np.clip(np.cumsum(steps), -1.0, 1.0))
    return scaled(traffic(seed, count=1000), lambda at: float(level[int(at - 1000) % 120]))


def round_robin(seed: int) -> list[Sample]:
    """Every fourth request: less chance than was logged, so fewer alarms than by chance."""
    rows = sorted(traffic(seed, count=1000, share=(0.25, 0.25)), key=lambda s: s.at)
    turned = [
        replace(s, version=NEW if i % 4 == 0 else OLD, propensity=0.25 if i % 4 == 0 else 0.75)
        for i, s in enumerate(rows)
    ]
    return sorted(turned, key=lambda s: s.at + s.duration_s)


@pytest.mark.parametrize("made", [ramp, bursts, autocorrelated, round_robin])
def test_unchanged_releases_watched_to_their_end_alarm_at_most_alpha(
    made: Callable[[int], list[Sample]],
) -> None:
    hits = sum(judge(made(seed), STRICT).outcome == "fail" for seed in range(RUNS))
    assert at_most(hits, STRICT.alpha)


@pytest.mark.parametrize(
    ("check", "options"),
    [(RULES.checks[0], {"errors": (0.04, 0.06)}), (RULES.checks[1], {"slower": 1.2}),
     (RULES.checks[2], {"slower": 1.1}), (Check(signal="ttft_p50", worse_by_at_most=0.1),
                                          {"slower": 1.1})],
)  # fmt: skip
def test_a_version_at_the_margin_is_called_safe_in_at_most_beta(
    check: Check, options: dict[str, object]
) -> None:
    rules = replace(RULES, checks=(replace(check, floor=None),), alpha=1e-6)
    hits = sum(
        judge(traffic(seed, count=1200, share=(0.3, 0.5), **options), rules).outcome == "pass"  # type: ignore[arg-type]
        for seed in range(RUNS)
    )
    assert at_most(hits, rules.beta)


@pytest.mark.parametrize(
    ("check", "options"),
    [(RULES.checks[0], {"errors": (0.04, 0.06)}), (RULES.checks[1], {"slower": 1.2}),
     (RULES.checks[2], {"slower": 1.1})],
)  # fmt: skip
def test_a_version_that_is_worse_by_what_is_tolerated_fails_in_at_most_alpha(
    check: Check, options: dict[str, object]
) -> None:
    rules = replace(RULES, checks=(replace(check, floor=None),))
    hits = sum(
        judge(traffic(seed, count=1200, share=(0.3, 0.5), **options), rules).outcome == "fail"  # type: ignore[arg-type]
        for seed in range(RUNS)
    )
    assert at_most(hits, rules.alpha)


def test_a_broken_version_at_one_percent_is_seen_within_a_few_of_its_requests() -> None:
    needed = []
    rules = replace(STRICT, checks=STRICT.checks[:1])
    for seed in range(15):
        rows = traffic(seed, count=5000, share=(0.01, 0.01), errors=(0.01, 0.5), rate=100)
        for end in range(100, len(rows), 100):
            if judge(rows[:end], rules).outcome == "fail":
                needed.append(sum(s.version == NEW for s in rows[:end]))
                break
    assert len(needed) == 15
    assert np.median(needed) <= 8
