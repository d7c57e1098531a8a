"""Has a column's distribution moved: two tests, one size, and a correction for many columns.

Pure: arrays in, numbers out. A test says whether a difference is proven, PSI says how large it is;
with many rows every difference is proven, with few none is, so both are needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_BINS = 10
_WORDS = 50
_EXPECTED = 5.0  # Cochran 1954: below this a cell is too small for the chi-squared law


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One column of two samples.

    `statistic`: the largest distance of two distribution functions (Kolmogorov–Smirnov) or
    chi-squared. `p`: how often chance alone gives so much, for this column alone. `psi`: the size.
    """

    column: str
    test: Literal["Kolmogorov–Smirnov", "chi-squared"]
    statistic: float
    p: float
    psi: float
    n: int
    n_baseline: int


def compare_numbers(column: str, found: Floats, baseline: Floats) -> Drift:
    """Compares two samples of numbers, NaN for null; nulls are a bin of their own.

    Where there are nulls, their share is a second test, and `p` twice the smaller one (Bonferroni).
    """
    here, there = found[~np.isnan(found)], baseline[~np.isnan(baseline)]
    distance, p = kolmogorov_smirnov(here, there)
    lost = np.array([len(found) - len(here), len(baseline) - len(there)])
    if lost.any():
        _, p_null = chi_squared(
            np.array([len(here), lost[0]], float), np.array([len(there), lost[1]], float)
        )
        p = min(1.0, 2 * min(p, p_null))
    edges = np.empty(0)
    if len(there):
        edges = np.unique(np.quantile(there, np.arange(1, _BINS) / _BINS))
    size = psi(_binned(here, edges, lost[0]), _binned(there, edges, lost[1]))
    return Drift(
        column=column, test="Kolmogorov–Smirnov", statistic=distance, p=p, psi=size, n=len(found),
        n_baseline=len(baseline),
    )  # fmt: skip


def _binned(values: Floats, edges: Floats, nulls: int) -> Floats:
    places = np.searchsorted(edges, values, side="left")
    return np.append(np.bincount(places, minlength=len(edges) + 1), nulls).astype(float)


def compare_words(column: str, found: Sequence[Any], baseline: Sequence[Any]) -> Drift:
    """Compares two samples of categories, None for null.

    The 50 most frequent of both samples together are told apart, all others are one.
    """
    known: dict[Any, int] = {}
    for value in (*baseline, *found):
        known[value] = known.get(value, 0) + 1
    frequent = sorted(known, key=lambda value: (-known[value], str(value)))[:_WORDS]
    places = {value: place for place, value in enumerate(frequent)}
    counts = [
        np.bincount([places.get(v, len(frequent)) for v in side], minlength=len(frequent) + 1)
        for side in (found, baseline)
    ]
    here, there = (count.astype(float) for count in counts)
    statistic, p = chi_squared(here, there)
    return Drift(
        column=column, test="chi-squared", statistic=statistic, p=p, psi=psi(here, there),
        n=len(found), n_baseline=len(baseline),
    )  # fmt: skip


def psi(found: Floats, baseline: Floats) -> float:
    """Returns the population stability index of two rows of counts: Σ (p − q) ln(p / q).

    (Siddiqi 2006, "Credit Risk Scorecards"; the symmetric divergence of Jeffreys 1946.) Half a row
    is added to each bin, so that an empty one has a finite share. Without any drift it is about
    (bins − 1)(1/n + 1/m) (Yurdakul 2018): with few rows it is large by chance.
    """
    filled = (found + baseline) > 0
    here, there = found[filled] + 0.5, baseline[filled] + 0.5
    p, q = here / here.sum(), there / there.sum()
    return float(np.sum((p - q) * np.log(p / q)))


def kolmogorov_smirnov(found: Floats, baseline: Floats) -> tuple[float, float]:
    """Returns the two-sample statistic and its asymptotic p-value; (0, 1) for an empty sample.

    Smirnov 1939; with Stephens' 1970 correction for small samples, λ = (√e + 0.12 + 0.11/√e) D,
    e = nm/(n + m). With ties (discrete values) it is conservative.
    """
    if not len(found) or not len(baseline):
        return 0.0, 1.0
    a, b = np.sort(found), np.sort(baseline)
    both = np.concatenate([a, b])
    apart = np.searchsorted(a, both, "right") / len(a) - np.searchsorted(b, both, "right") / len(b)
    distance = float(np.abs(apart).max())
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    return distance, _kolmogorov((root + 0.12 + 0.11 / root) * distance)


def _kolmogorov(x: float) -> float:
    """Returns P(K > x) of Kolmogorov's law: 2 Σ (−1)^(j−1) exp(−2 j² x²)."""
    if x < 0.2:
        return 1.0
    terms = [(-1) ** (j - 1) * math.exp(-2 * j * j * x * x) for j in range(1, 101)]
    return min(1.0, max(0.0, 2 * math.fsum(terms)))


def chi_squared(found: Floats, baseline: Floats) -> tuple[float, float]:
    """Returns Pearson's statistic of two rows of counts over the same cells, and its p-value.

    Pearson 1900, for homogeneity. Cells that would be expected below five times in either row are
    pooled (Cochran 1954). (0, 1) where one cell is left.
    """
    n, m = found.sum(), baseline.sum()
    if not n or not m:
        return 0.0, 1.0
    total = found + baseline
    small = total * min(n, m) / (n + m) < _EXPECTED
    pair = np.array([found, baseline])
    cells = np.column_stack([pair[:, ~small], pair[:, small].sum(axis=1)])
    cells = cells[:, cells.sum(axis=0) > 0]
    if cells.shape[1] > 1 and cells[:, -1].sum() * min(n, m) / (n + m) < _EXPECTED and small.any():
        least = int(np.argmin(cells[:, :-1].sum(axis=0)))
        cells[:, least] += cells[:, -1]
        cells = cells[:, :-1]
    if cells.shape[1] < 2:
        return 0.0, 1.0
    expected = np.outer([n, m], cells.sum(axis=0)) / (n + m)
    statistic = float(((cells - expected) ** 2 / expected).sum())
    return statistic, upper_gamma((cells.shape[1] - 1) / 2, statistic / 2)


def upper_gamma(a: float, x: float) -> float:
    """Returns the regularized upper incomplete gamma function Q(a, x), a > 0, x ≥ 0.

    By its series below a + 1 and its continued fraction above (Abramowitz and Stegun 6.5.29 and
    6.5.31, the latter by Lentz's method). P(χ² > s) with k degrees of freedom is Q(k/2, s/2).
    """
    if x <= 0:
        return 1.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        for step in range(1, 10_000):
            term *= x / (a + step)
            total += term
            if term < total * 1e-15:
                break
        return max(0.0, 1 - front * total)
    b = x + 1 - a
    c, d = 1e300, 1 / b
    fraction = d
    for step in range(1, 10_000):
        factor = -step * (step - a)
        b += 2
        d = 1 / (factor * d + b)
        c = b + factor / c
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction


def holm(ps: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number, in the same order.

    Holm 1979: the chance that any true "no drift" is below alpha is at most alpha, however the
    columns depend on each other; never weaker than Bonferroni.
    """
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    found, worst = [1.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[place]))
        found[place] = worst
    return found
