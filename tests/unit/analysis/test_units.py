"""Sessions that stay where they were drawn, and shadow copies: what may be bet on, and once."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lockgate.analysis.checks import Check, JudgeRules, Look
from lockgate.core.traffic import Sample

from .made import NEW, OLD, RULES, case_of, judge, resumed, sample

ERRORS = JudgeRules(
    checks=(Check(signal="error_rate", worse_by_at_most=0.5, tolerate=0.0),), alpha=0.05
)
STEPS = ((1, 0.1), (2, 0.3), (3, 0.5))


def sessions(seed: int, *, count: int = 300, worse: float = 1.0) -> list[Sample]:
    """Sessions of some thirty requests that stay, at growing weights; some sessions fail often."""
    rng = np.random.default_rng(seed)
    hashes = [int(h) for h in rng.integers(0, 2**63, count)]
    prone = 0.5 * (rng.random(count) < 0.1)
    found: list[Sample] = []
    for revision, weight in STEPS:
        for i in rng.integers(0, count, count * 30 // len(STEPS)):
            new = hashes[i] % 10_000 >= 10_000 - weight * 10_000
            bad = rng.random() < min(prone[i] * (worse if new else 1.0), 1.0)
            found.append(
                sample(
                    1000 + len(found) / 10, version=NEW if new else OLD, revision=revision,
                    propensity=weight if new else 1 - weight, unit=hashes[i],
                    status=500 if bad else 200,
                )
            )  # fmt: skip
    return found


def alarms(unit: bool, runs: int = 100) -> int:
    hits = 0
    for seed in range(runs):
        rows = sessions(seed, count=60)
        rows = rows if unit else [replace(s, unit=None) for s in rows]
        hits += judge(rows, ERRORS).outcome == "fail"
    return hits


def test_sessions_are_the_units_where_requests_would_alarm_for_nothing() -> None:
    runs = 60
    assert alarms(unit=True, runs=runs) / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert alarms(unit=False, runs=runs) / runs > 0.12


def test_a_worse_version_is_found_by_its_sessions() -> None:
    found = sum(
        judge(sessions(seed, count=1000, worse=4.0), ERRORS).outcome == "fail" for seed in range(3)
    )
    assert found == 3


def test_a_session_is_bet_on_once_a_revision_and_only_if_it_was_outside() -> None:
    rows = sessions(1, count=500)
    case = case_of(rows, ERRORS)
    units = {(s.revision, s.unit) for s in rows}
    outside = {
        (revision, unit)
        for revision, unit in units
        for before in [{1: 0, 2: 1000, 3: 3000}[revision]]
        if unit is not None and unit % 10_000 < 10_000 - before
    }
    case.add([sample(1e6), sample(2e6)])  # closes all stretches
    state = json.loads(json.dumps(case.state()))
    assert abs(state["split"][0] - len(outside)) <= 3  # the two, and a false positive
    again = resumed(state, ERRORS)
    assert again.verdict(Look(now=1)) == case.verdict(Look(now=1))
    assert len(json.dumps(state)) < 250_000


def shadows(
    seed: int, *, count: int = 400, slower: float = 1.0, errors: tuple[float, float] = (0.05, 0.05)
) -> list[Sample]:
    """Each request goes to the old version, and its copy to the new one."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        size = float(rng.lognormal(0, 1))
        for arm in (0, 1):
            time = 0.1 * size * float(rng.lognormal(0, 0.2)) * (slower if arm else 1.0)
            found.append(
                sample(
                    1000 + i / 5, version=NEW if arm else OLD, propensity=1.0, revision=1,
                    mirrored=bool(arm), request_id=f"r{i}", duration_s=time, first_body_s=time / 2,
                    status=500 if rng.random() < errors[arm] else 200,
                )
            )  # fmt: skip
    return sorted(found, key=lambda s: s.at + s.duration_s)


def test_shadow_copies_prove_and_disprove_before_any_caller_waits() -> None:
    rules = replace(RULES, checks=RULES.checks[1:])
    assert judge(shadows(1, count=1500), rules).outcome == "hold"  # no proof of a quantile
    assert judge(shadows(1, count=1500), rules, need="sane").outcome == "pass"
    verdict = judge(shadows(1, count=1500, slower=1.4), rules)
    assert verdict.outcome == "fail"
    assert judge(shadows(2, count=1500, errors=(0.02, 0.2)), ERRORS).outcome == "fail"
    mean = replace(rules, checks=RULES.checks[2:])
    assert judge(shadows(1, count=1500), mean).outcome == "pass"


def test_unchanged_shadows_alarm_at_most_alpha() -> None:
    runs, rules = 70, replace(RULES, checks=tuple(replace(c, tolerate=0.0) for c in RULES.checks))
    hits = sum(judge(shadows(seed, count=250), rules).outcome == "fail" for seed in range(runs))
    assert hits / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("cut", [1, 333, 700])
def test_pairs_survive_a_restart_between_their_halves(cut: int) -> None:
    rows = shadows(3, slower=1.1)
    whole = case_of(rows)
    case = case_of(rows[:cut])
    case = resumed(json.loads(json.dumps(case.state(), allow_nan=False)))
    case.add(rows[cut:])
    assert case.state() == whole.state()
    assert case.verdict(Look(now=1)) == whole.verdict(Look(now=1))


def test_copies_without_an_original_do_not_pile_up() -> None:
    alone = [replace(s, request_id=f"x{i}") for i, s in enumerate(shadows(4, count=6000))]
    state = case_of(alone).state()
    assert len(json.dumps(state)) < 1_500_000
