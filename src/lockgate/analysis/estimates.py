"""Estimates for people: what a signal is for either version, and its bounds. They never decide.

Values are counted in bins, for each arm and probability of assignment apart, so that the baseline
can be weighted by w/(1-w): then both versions stand for the same times while the share grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log, sqrt
from typing import cast

import numpy as np

from lockgate.analysis.bets import Floats
from lockgate.analysis.rows import Array

_GROWTH = log(1.02)
_LOWEST = 1e-6
_LOG_BINS, _LINEAR_BINS = 1400, 501
_PER_ODDS = 8.0
Cell = tuple[int, int]
"""Arm, and the assignment's log odds in eighths."""


class Sketch:
    """Counts of values by bins: 2 % wide from 1e-6 on, or, for what lies in [0, 1], 1/500 wide."""

    def __init__(self, *, linear: bool) -> None:
        self._linear = linear
        self._size = _LINEAR_BINS if linear else _LOG_BINS
        self._counts: dict[Cell, Array] = {}
        self._shares: dict[int, float] = {}

    def add(self, arms: Array, shares: Floats, values: Floats) -> None:
        """Counts `values`, shape (n,), of requests that were drawn (0 < w < 1)."""
        if not len(values):
            return
        if self._linear:
            bins = np.rint(np.clip(values, 0.0, 1.0) * (_LINEAR_BINS - 1)).astype(np.int64)
        else:
            raw = np.floor(np.log(np.maximum(values, _LOWEST) / _LOWEST) / _GROWTH)
            bins = np.clip(raw, 0, _LOG_BINS - 1).astype(np.int64)
        odds = np.rint(_PER_ODDS * np.log(shares / (1 - shares))).astype(np.int64)
        found, first = np.unique(odds, return_index=True)
        for level, index in zip(found.tolist(), first.tolist(), strict=True):
            self._shares.setdefault(level, float(shares[index]))
            for arm in (0, 1):
                mine = bins[(odds == level) & (arms == arm)]
                if len(mine):
                    counted = np.bincount(mine, minlength=self._size)
                    cell = (arm, level)
                    known = self._counts.get(cell)
                    self._counts[cell] = counted if known is None else known + counted

    def weighted(self, arm: int) -> tuple[Floats, float]:
        """Returns the bins' weights, shape (bins,), and their effective number of requests."""
        total, squares = np.zeros(self._size), 0.0
        for (which, level), counts in sorted(self._counts.items()):
            if which == arm:
                share = self._shares[level]
                weight = 1.0 if arm else share / (1 - share)
                total += counts * weight
                squares += float(np.sum(counts)) * weight * weight
        return total, float(np.sum(total)) ** 2 / squares if squares else 0.0

    def count(self, arm: int) -> int:
        """Returns how many values of an arm were counted."""
        cells = (c for (which, _), c in sorted(self._counts.items()) if which == arm)
        return int(sum(int(np.sum(c)) for c in cells))

    def middle(self, index: Array) -> Floats:
        """Returns the values at fractional bins `index`."""
        if self._linear:
            return np.asarray((index - 0.5) / (_LINEAR_BINS - 1))
        return np.asarray(_LOWEST * np.exp(_GROWTH * index))

    def mean(self, weights: Floats) -> tuple[float, float]:
        """Returns mean and variance of the values that `weights` counts."""
        values = self.middle(np.arange(self._size) + 0.5)
        total = float(np.sum(weights))
        mean = float(np.sum(weights * values)) / total
        return mean, float(np.sum(weights * (values - mean) ** 2)) / total

    def quantile(self, weights: Floats, level: float) -> float:
        """Returns the value with `level` of the weight below it, linear within its bin."""
        whole = np.cumsum(weights)
        wanted = min(max(level, 0.0), 1.0) * float(whole[-1])
        index = min(int(np.searchsorted(whole, wanted, side="left")), self._size - 1)
        here = float(weights[index])
        before = float(whole[index]) - here
        part = (wanted - before) / here if here > 0 else 0.5
        return float(self.middle(np.array([index + min(max(part, 0.0), 1.0)]))[0])

    def state(self) -> dict[str, object]:
        """Returns it as JSON values: of each cell the bins that are not empty."""
        cells = []
        for (arm, level), counts in sorted(self._counts.items()):
            bins = np.flatnonzero(counts)
            cells.append([arm, level, bins.tolist(), counts[bins].tolist()])
        return {"cells": cells, "shares": [[k, v] for k, v in sorted(self._shares.items())]}

    def load(self, state: object) -> None:
        """Becomes what `state` was taken of."""
        values = cast("Mapping[str, list[list[object]]]", state)
        self._shares = {int(cast("int", k)): float(cast("float", v)) for k, v in values["shares"]}
        self._counts = {}
        for arm, level, bins, counts in values["cells"]:
            whole = np.zeros(self._size, dtype=np.int64)
            whole[np.array(bins, dtype=np.int64)] = np.array(counts, dtype=np.int64)
            self._counts[int(cast("int", arm)), int(cast("int", level))] = whole


def half_width(count: float, alpha: float) -> float:
    """Returns the half width, in standard deviations, of an asymptotic confidence sequence.

    Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024), eq. (3): it holds at all `count` >= about
    100 at once with probability 1 - alpha; narrowest near 1,000.
    """
    if count <= 0:
        return float("inf")
    rho2 = 2 * log(1 / alpha) / 1000
    inside = 2 * (count * rho2 + 1) / (count * count * rho2)
    return sqrt(inside * log(sqrt(count * rho2 + 1) / alpha))


class Estimate:
    """A signal's value for candidate and baseline, and bounds of their difference as a share."""

    def __init__(self, sketch: Sketch, quantile: float | None, alpha: float) -> None:
        self.n, self.n_baseline = sketch.count(1), sketch.count(0)
        self.value: float | None = None
        self.baseline: float | None = None
        self.low: float | None = None
        self.high: float | None = None
        ours, n = sketch.weighted(1)
        theirs, m = sketch.weighted(0)
        if n:
            self.value = _value(sketch, ours, quantile)
        if m:
            self.baseline = _value(sketch, theirs, quantile)
        if self.value is None or not self.baseline:
            return
        if quantile is None:
            spread = sqrt(sketch.mean(ours)[1] + sketch.mean(theirs)[1] * n / m)
            wide = spread * half_width(n, alpha)
            self.low = (self.value - wide) / self.baseline - 1
            self.high = (self.value + wide) / self.baseline - 1
            return
        spread = sqrt(quantile * (1 - quantile))
        here, there = spread * half_width(n, alpha / 2), spread * half_width(m, alpha / 2)
        if quantile + here < 1 and quantile - here > 0 and quantile + there < 1:
            least = sketch.quantile(theirs, quantile - there)
            most = sketch.quantile(theirs, quantile + there)
            self.low = sketch.quantile(ours, quantile - here) / max(most, _LOWEST) - 1
            self.high = sketch.quantile(ours, quantile + here) / max(least, _LOWEST) - 1


def _value(sketch: Sketch, weights: Floats, quantile: float | None) -> float:
    return sketch.mean(weights)[0] if quantile is None else sketch.quantile(weights, quantile)


class Slope:
    """A curve of times over covariates, fitted on the baseline's past: a covariate and its square.

    Least squares about each group's own means, so that drift is not taken for a slope; what it
    predicts of a row was learned before the row (CUPED: Deng, Xu, Kohavi, Walker 2013).
    """

    def __init__(self, covariates: int) -> None:
        self._xx = np.zeros((2 * covariates, 2 * covariates))
        self._xy = np.zeros(2 * covariates)
        self._n = 0

    def predict(self, x: Floats) -> Floats:
        """Returns what is known of y at covariates `x`, shape (n, covariates), up to a constant."""
        if self._n < 4 * len(self._xy):
            return np.zeros(len(x))
        ridge = np.diag(1e-3 * np.diag(self._xx) + 1e-9)
        return np.asarray(_powers(x) @ np.linalg.solve(self._xx + ridge, self._xy))

    def learn(self, x: Floats, y: Floats) -> None:
        """Learns from one group of the baseline's rows, shapes (n, covariates) and (n,)."""
        if len(y) < 2 or not len(self._xy):
            return
        inputs = _powers(x)
        inputs = inputs - np.mean(inputs, axis=0)
        self._xx += inputs.T @ inputs
        self._xy += inputs.T @ (y - np.mean(y))
        self._n += len(y)

    def state(self) -> dict[str, object]:
        """Returns it as JSON values."""
        return {"xx": self._xx.tolist(), "xy": self._xy.tolist(), "n": self._n}

    def load(self, state: object) -> None:
        """Becomes what `state` was taken of."""
        values = cast("Mapping[str, object]", state)
        self._xx = np.array(values["xx"], dtype=np.float64).reshape(self._xx.shape)
        self._xy = np.array(values["xy"], dtype=np.float64)
        self._n = int(cast("int", values["n"]))


def _powers(x: Floats) -> Floats:
    near = x / 10.0  # logarithms of sizes: about 1
    return np.concatenate([near, near * near], axis=1)


class Tally:
    """Counts of requests and events, for each arm and probability of assignment apart."""

    def __init__(self) -> None:
        self._cells: dict[int, list[float]] = {}

    def add(self, arms: Array, shares: Floats, values: Floats) -> None:
        """Counts `values` (0 or 1), shape (n,), of requests that were drawn (0 < w < 1)."""
        if not len(values):
            return
        odds = np.rint(_PER_ODDS * np.log(shares / (1 - shares))).astype(np.int64)
        found, first = np.unique(odds, return_index=True)
        for level, index in zip(found.tolist(), first.tolist(), strict=True):
            cell = self._cells.setdefault(level, [float(shares[index]), 0.0, 0.0, 0.0, 0.0])
            mine = odds == level
            ours = mine & (arms == 1)
            n, all_n = int(np.sum(ours)), int(np.sum(mine))
            hits, all_hits = float(np.sum(values[ours])), float(np.sum(values[mine]))
            for i, more in enumerate((n, hits, all_n - n, all_hits - hits), 1):
                cell[i] += more

    def estimate(self, alpha: float) -> tuple[int, int, float | None, float | None, float, float]:
        """Returns n, n of the baseline, both rates, and low and high of their ratio less one."""
        n = hits = m = base = weight = squares = 0.0
        for _, (share, n1, hits1, n0, hits0) in sorted(self._cells.items()):
            odds = share / (1 - share)
            n, hits, m = n + n1, hits + hits1, m + n0
            weight, base, squares = weight + odds * n0, base + odds * hits0, squares + odds**2 * n0
        value = hits / n if n else None
        baseline = base / weight if weight else None
        if not n or not squares:
            return int(n), int(m), value, baseline, float("-inf"), float("inf")
        size = weight * weight / squares
        ours, theirs = (hits + 0.5) / (n + 1), (base + 0.5 * weight / m) / (weight * (1 + 1 / m))
        # of the logarithm of the ratio, by the delta method
        spread = sqrt((1 - ours) / ours + (1 - theirs) / theirs * n / size)
        wide = min(spread * half_width(n, alpha), 50.0)
        ratio = ours / theirs
        return int(n), int(m), value, baseline, ratio * exp(-wide) - 1, ratio * exp(wide) - 1

    def baseline(self) -> tuple[int, int]:
        """Returns the baseline's events and requests, as they were counted."""
        cells = self._cells.values()
        return int(sum(cell[4] for cell in cells)), int(sum(cell[3] for cell in cells))

    def state(self) -> list[list[float]]:
        """Returns it as JSON values."""
        return [[level, *cell] for level, cell in sorted(self._cells.items())]

    def load(self, state: object) -> None:
        """Becomes what `state` was taken of."""
        rows = cast("list[list[float]]", state)
        self._cells = {int(level): list(cell) for level, *cell in rows}
