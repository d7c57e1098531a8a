"""Every bet wins nothing on average where its null holds, and keeps Ville's bound."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockgate.analysis.bets import (
    Wealth,
    event_bets,
    log_mean_exp,
    mean_bets,
    mid_ranks,
    normal_scores,
    rate_bets,
    score_bets,
    tail_scores,
)

Floats = NDArray[np.float64]
UP, DOWN = np.array([0.1, 0.3, 0.8]), np.array([-0.1, -0.3, -0.8])
RUNS, ROUNDS, SIZE = 500, 6, 12


def coin(rng: np.random.Generator) -> tuple[Floats, Floats]:
    shares = rng.uniform(0.02, 0.6, SIZE)
    return (rng.random(SIZE) < shares).astype(np.float64), shares


def events(null: float, ratios: Floats, ratio: float) -> Callable[..., Floats]:
    """Bets on events; the candidate's chance of one is `ratio` times the baseline's."""

    def round_(rng: np.random.Generator, level: float) -> Floats:
        arms, shares = coin(rng)
        chance = np.minimum(0.2 * level * np.where(arms == 1, ratio, 1.0), 1.0)
        hit = rng.random(SIZE) < chance
        return event_bets(arms[hit], shares[hit], null, ratios)

    return round_


def ranks(strengths: Floats, *, tail: bool, slower: float = 1.0) -> Callable[..., Floats]:
    """Bets on ranks; the candidate is `slower`, and its values are made better by as much."""

    def round_(rng: np.random.Generator, level: float) -> Floats:
        arms, shares = coin(rng)
        values = rng.standard_cauchy(SIZE) ** 2 * level * np.where(arms == 1, slower, 1.0)
        ordered = mid_ranks(np.log(values) - np.log(slower) * arms)
        scores = tail_scores(ordered, 0.7) if tail else normal_scores(ordered)
        return score_bets(arms, shares, scores, strengths)

    return round_


def means(strengths: Floats, keep: float, shape: str) -> Callable[..., Floats]:
    """Bets on a bounded mean; the candidate's is `keep` of the baseline's, in another shape."""

    def round_(rng: np.random.Generator, level: float) -> Floats:
        arms, shares = coin(rng)
        base = np.minimum(rng.beta(8, 2, SIZE) * (0.5 + level / 8), 1.0)
        worse = base * keep if shape == "scaled" else base * (rng.random(SIZE) < keep)
        values = np.where(arms == 1, worse, base)
        return mean_bets(arms, shares, values, np.full(SIZE, 0.6), keep, strengths)

    return round_


BETS: dict[str, Callable[..., Floats]] = {
    "events, no worse": events(1.0, np.array([1.5, 3.0, 20.0]), 1.0),
    "events, worse by the tolerance": events(1.25, np.array([1.5, 3.0]), 1.25),
    "events, better": events(1.25, np.array([1.5, 3.0]), 0.5),
    "events, for safe": events(1.5, np.array([0.7, 0.3]), 1.5),
    "events, for safe, far worse": events(1.5, np.array([0.7, 0.3]), 3.0),
    "ranks": ranks(UP, tail=False),
    "tails": ranks(UP, tail=True),
    "ranks, worse by the tolerance": ranks(UP, tail=False, slower=1.2),
    "ranks, for safe": ranks(DOWN, tail=False, slower=1.2),
    "tails, for safe": ranks(DOWN, tail=True, slower=1.2),
    "means": means(-UP * 3, 1.0, "scaled"),
    "means, worse by the tolerance": means(-UP * 3, 0.9, "scaled"),
    "means, some wholly bad": means(-UP * 3, 0.9, "wholly"),
    "means, for safe": means(UP * 3, 0.9, "scaled"),
    "means, for safe, some wholly bad": means(UP * 3, 0.9, "wholly"),
}


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("name", BETS)
def test_each_bet_has_mean_at_most_one_and_keeps_villes_bound(name: str, restarts: bool) -> None:
    """The load doubles and bursts on the way: the same for both versions."""
    finals, crossed = [], 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        wealth = None
        for k in range(ROUNDS):
            wins = BETS[name](rng, (1 + k / ROUNDS) * (3.0 if rng.random() < 0.2 else 1.0))
            wealth = wealth or Wealth(np.ones(len(wins)), restarts=restarts)
            wealth.grow(wins)
        assert wealth is not None
        finals.append(math.exp(wealth.value()))
        crossed += wealth.best >= math.log(10)
    error = np.std(finals) / math.sqrt(RUNS)
    assert np.mean(finals) <= 1 + 3 * error
    assert crossed / RUNS <= 0.1 + 3 * math.sqrt(0.09 / RUNS)


@pytest.mark.parametrize("name", ["ranks", "tails", "events, no worse", "means"])
def test_one_bet_of_mean_one_has_exactly_that(name: str) -> None:
    """A bet that wastes stake would be valid too: these must not."""
    wins = [BETS[name](np.random.default_rng(seed), 1.0) for seed in range(5000)]
    values = np.exp(np.array(wins))
    errors = np.std(values, axis=0) / math.sqrt(len(values))
    assert np.all(np.abs(np.mean(values, axis=0) - 1) <= 4 * errors)


@pytest.mark.parametrize("below", [False, True])
def test_the_rate_bet_keeps_villes_bound(below: bool) -> None:
    crossed, runs = 0, 500
    for seed in range(runs):
        hits = np.cumsum(np.random.default_rng(seed).random(500) < 0.05)
        crossed += any(
            rate_bets(int(hits[n - 1]), n, 0.05, below=below) >= math.log(20)
            for n in range(5, 501, 15)
        )
    assert crossed / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_the_rate_bet_at_its_edges() -> None:
    assert rate_bets(1, 10, 0.0) > 100
    assert rate_bets(0, 10, 0.0) == 0.0
    assert rate_bets(5, 10, 1.0) == 0.0
    assert rate_bets(0, 0, 0.1) == 0.0
    assert rate_bets(0, 100, 0.05, below=True) >= math.log(20)
    assert rate_bets(0, 100, 0.0, below=True) == 0.0
    assert rate_bets(100, 100, 0.05, below=True) < 0
    assert rate_bets(5, 10, 1.5, below=True) > 0


def test_restarts_find_what_begins_late() -> None:
    rounds = [np.array([-0.2])] * 100 + [np.array([0.5])] * 25
    plain, restarted = Wealth(np.ones(1)), Wealth(np.ones(1), restarts=True)
    for wins in rounds:
        plain.grow(wins)
        restarted.grow(wins)
    assert plain.value() < 0
    assert restarted.value() > 3
    again = Wealth(np.ones(1), restarts=True)
    again.load(restarted.state())
    again.grow(rounds[-1])
    restarted.grow(rounds[-1])
    assert again.value() == restarted.value()
    assert again.state() == restarted.state()


def test_wealth_tells_what_it_would_be() -> None:
    wealth = Wealth(np.ones(2), restarts=True)
    for wins in (np.array([0.3, -0.1]), np.array([0.2, 0.4])):
        wealth.grow(wins)
    assert log_mean_exp(np.array([1.0, 1.0])) == pytest.approx(1.0)
    assert log_mean_exp(np.array([0.0, 2.0]), np.array([1.0, 0.0])) == pytest.approx(0.0)
    assert wealth.best >= wealth.value() > 0


@settings(max_examples=100)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_ranks_are_shares_and_ties_share_theirs(values: list[float]) -> None:
    found = mid_ranks(np.array(values))
    assert np.all((found > 0) & (found < 1))
    assert np.allclose(found, mid_ranks(np.array(values[::-1]))[::-1])
    for v, r in zip(values, found, strict=True):
        for u, s in zip(values, found, strict=True):
            assert (v < u) == (r < s)
    assert np.mean(found) == pytest.approx(0.5)


def test_normal_scores_are_normal_quantiles() -> None:
    from statistics import NormalDist

    levels = np.array([1e-6, 0.01, 0.02425, 0.1, 0.5, 0.7, 0.97575, 0.999])
    wanted = [NormalDist().inv_cdf(float(p)) for p in levels]
    assert normal_scores(levels) == pytest.approx(wanted, abs=1e-7)
    assert np.mean(tail_scores((np.arange(10_000) + 0.5) / 10_000, 0.9)) == pytest.approx(0.1, 1e-2)
