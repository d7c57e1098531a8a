"""Metrics against their definitions, and intervals that keep what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.gates.measure.intervals import difference_interval, drawn_interval, mean_interval
from lockgate.gates.measure.metrics import (
    area,
    calibration_error,
    classification,
    gaps,
    ranking,
)

DRAWS = 400


@pytest.mark.parametrize("mean", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("rows", [20, 300])
def test_an_interval_misses_the_truth_as_rarely_as_it_says(mean: float, rows: int) -> None:
    draw = np.random.default_rng(7)
    missed = 0
    for seed in range(DRAWS):
        found = (draw.random(rows) < mean).astype(float)
        low, high = mean_interval(found, alpha=0.1, seed=seed)
        missed += not low <= mean <= high
    assert missed / DRAWS <= 0.1 + 3 * (0.1 * 0.9 / DRAWS) ** 0.5


def test_an_interval_of_differences_misses_as_rarely() -> None:
    draw = np.random.default_rng(8)
    missed = 0
    for seed in range(DRAWS):
        ease = draw.random(200)
        one, other = (ease + draw.normal(0, 0.1, 200) > t for t in (0.55, 0.5))
        truth = -0.05
        low, high = difference_interval(
            one.astype(float), other.astype(float), alpha=0.1, seed=seed
        )
        missed += not low <= truth <= high
    assert missed / DRAWS <= 0.13


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_an_interval_holds_the_mean_of_its_rows(values: list[float], seed: int) -> None:
    rows = np.array(values)
    low, high = mean_interval(rows, seed=seed)
    assert 0 <= low <= high <= 1
    if values:
        assert low - 1e-9 <= rows.mean() <= high + 1e-9


def test_few_rows_prove_little_and_pairs_prove_more() -> None:
    alike = np.array([1.0, 0.0] * 100)
    low, high = difference_interval(alike, alike)
    assert low < 0 < high
    assert high - low < 0.1  # the two differ nowhere
    assert mean_interval(np.ones(3))[0] < 0.5
    assert mean_interval(np.array([])) == (0.0, 1.0)


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 2, 60)
    chances = draw.integers(0, 12, 60) / 12
    ones, zeros = chances[labels == 1], chances[labels == 0]
    pairs = [(a > b) + 0.5 * (a == b) for a in ones for b in zeros]
    assert area(labels, chances) == pytest.approx(np.mean(pairs))
    assert np.isnan(area(np.ones(4, dtype=int), chances[:4]))


def test_classification_says_what_its_definitions_say() -> None:
    labels, chances = np.array([1, 0, 1, 0]), np.array([0.9, 0.2, 0.4, 0.1])
    found = {m.name: m.value for m in classification(labels, chances)}
    assert found["accuracy"] == 0.75
    assert found["brier"] == pytest.approx((0.01 + 0.04 + 0.36 + 0.01) / 4)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.9]).mean())
    assert found["auc"] == 1.0
    assert calibration_error(labels, chances) == pytest.approx((0.1 + 0.2 + 0.6 + 0.1) / 4)


def test_ranking_says_what_its_definitions_say() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    relevant = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    found = {m.name: m for m in ranking(scores, relevant, k=2)}
    assert found["recall_at_2"].value == pytest.approx((1 / 2 + 0) / 2)
    assert found["hit_rate_at_2"].value == 0.5
    assert found["ndcg_at_2"].value == pytest.approx((1 / (1 + 1 / np.log2(3)) + 0) / 2)
    assert found["ndcg_at_2"].count == 2  # who wants nothing is not asked


def test_gaps_are_differences_of_rates_between_groups() -> None:
    labels = np.array([1, 1, 0, 0, 1, 1, 0, 0])
    said = np.array([1, 1, 1, 0, 1, 0, 0, 0])
    groups = np.array(["a"] * 4 + ["b"] * 4)
    found = {gap.name: gap for gap in gaps(labels, said, groups)}
    assert found["selection"].value == pytest.approx(0.75 - 0.25)
    assert found["opportunity"].value == pytest.approx(1.0 - 0.5)
    assert found["false_alarm"].value == pytest.approx(0.5 - 0.0)
    assert found["accuracy"].value == 0.0
    assert (found["selection"].high_group, found["selection"].low_group) == ("a", "b")


def test_rows_drawn_again_say_how_sure_a_figure_is() -> None:
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 2, 500)
    chances = np.clip(labels * 0.3 + draw.random(500) * 0.7, 0, 1)
    low, high = drawn_interval(lambda rows: area(labels[rows], chances[rows]), 500)
    assert low < area(labels, chances) < high
    assert high - low < 0.1
    assert drawn_interval(lambda rows: area(labels[rows], chances[rows]), 500) == (low, high)
