"""How sure a measured number is. Pure; NumPy only; seeded where rows are drawn again."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

_GRID = 1000
_BOLD = 0.75
_DRAWS = 1000
_ORDERS = 8
_MANY = 20_000
_CHUNK = 4_000_000
Rows = NDArray[np.float64]


def mean_interval(rows: Rows, *, alpha: float = 0.05, seed: int = 0) -> tuple[float, float]:
    """Returns an interval that holds the mean of what `rows` (each from 0 to 1) were drawn from.

    It misses with probability alpha at most, for any distribution and any number of rows: the
    means against which no bet wins 1/alpha (hedged capital, Waudby-Smith and Ramdas 2023, theorem
    3; by Markov's inequality, at the last row). What is won is averaged over some seeded orders of
    the rows, so that neither the order of a file nor a lucky one counts. (0, 1) for no rows.
    """
    n = len(rows)
    if n == 0:
        return 0.0, 1.0
    draw = np.random.default_rng(seed)
    clipped = np.clip(rows, 0.0, 1.0)
    grid = np.linspace(0.0, 1.0, _GRID + 1)
    won = np.full(len(grid), -np.inf)
    orders = _ORDERS if n <= _MANY else 2
    for _ in range(orders):
        drawn = draw.permutation(clipped)
        stakes = _stakes(drawn, alpha)
        size = max(1, _CHUNK // n)
        for begin in range(0, len(grid), size):
            part = slice(begin, begin + size)
            won[part] = np.logaddexp(won[part], _won(drawn, stakes, grid[part]))
    inside = np.flatnonzero(won - log(2 * orders) < log(1 / alpha))
    middle = float(clipped.mean())
    if not len(inside):
        return middle, middle
    low, high = grid[max(0, inside[0] - 1)], grid[min(_GRID, inside[-1] + 1)]
    return min(float(low), middle), max(float(high), middle)


def _stakes(rows: Rows, alpha: float) -> Rows:
    """Returns the bet on each row, from those before it (the paper's predictable plug-in)."""
    n = len(rows)
    count = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(rows)) / (count + 1)
    squares = (0.25 + np.cumsum((rows - means) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], squares[:-1]])
    return np.sqrt(2 * log(2 / alpha) / (n * before))


def _won(rows: Rows, stakes: Rows, means: Rows) -> Rows:
    """Returns the log of what bets upwards and downwards against each mean win, together."""
    away = rows[None, :] - means[:, None]
    up = np.minimum(stakes[None, :], _BOLD / np.maximum(means[:, None], 1e-12))
    down = np.minimum(stakes[None, :], _BOLD / np.maximum(1 - means[:, None], 1e-12))
    wins: Rows = np.logaddexp(np.log1p(up * away).sum(axis=1), np.log1p(-down * away).sum(axis=1))
    return wins


def difference_interval(
    rows: Rows, others: Rows, *, alpha: float = 0.05, seed: int = 0
) -> tuple[float, float]:
    """Returns an interval for mean(rows) − mean(others), row by row the same question.

    See `mean_interval`; what both answer alike costs no certainty.
    """
    low, high = mean_interval((rows - others + 1) / 2, alpha=alpha, seed=seed)
    return 2 * low - 1, 2 * high - 1


def drawn_interval(
    value: Callable[[NDArray[np.int64]], float], rows: int, *, alpha: float = 0.05, seed: int = 0
) -> tuple[float, float]:
    """Returns the percentile interval of `value` over rows drawn again (Efron 1979).

    Approximate; for what is no mean of rows. `value` gets the numbers of the rows drawn.
    """
    draw = np.random.default_rng(seed)
    found = np.array([value(draw.integers(0, rows, rows)) for _ in range(_DRAWS)])
    found = found[np.isfinite(found)]
    if not len(found):
        return float("-inf"), float("inf")
    low, high = np.quantile(found, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def rows_needed(spread: float, distance: float, *, alpha: float = 0.05) -> int:
    """Returns about how many rows tell a `distance` from nothing, for rows of that deviation."""
    if distance <= 0:
        return 0
    return round(2 * (spread * sqrt(log(2 / alpha)) / distance) ** 2) + 1
