"""E-processes: evidence that stays valid whenever one looks. Pure functions on arrays.

The gateway chose the candidate for unit i with the logged probability w_i. If the candidate is no
worse, A_i (1: went to the candidate) is a coin with that probability *given the outcomes*, for any
outcome law, drift, burst or dependence. Betting on A_i with any stake that depends on outcomes
alone has expectation 1, so by Ville's inequality it exceeds 1/alpha with probability <= alpha.

Sources: assignment as the only randomness: Ham, Bojinov, Lindon, Tingley (2022); counts: Lindon,
Malek (2022); betting on A given Y: Grünwald, Henzi, Lardy (2023); mixtures: Robbins (1970); mean of
e-values: Vovk, Wang (2021). All values are natural logarithms of e-values.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_SHIFTS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_TAILS = (0.05, 0.1, 0.2, 0.4, 0.8)


def log_mean_exp(values: Floats) -> float:
    """Returns log(mean(exp(values))), the log of a mixture with equal weights."""
    top = float(np.max(values))
    return top + float(np.log(np.mean(np.exp(values - top))))


def event_evidence(arms: Floats, shares: Floats, tolerance: float = 0.0) -> float:
    """Returns log evidence that events hit the candidate more than `1 + tolerance` times as often.

    `arms`, `shares`: shape (n,), one row for each *event* (a failed request): A_i and w_i. Under
    the null with rate ratio r0 = 1 + tolerance the odds of A_i are w r0 : 1 - w; the bet on a ratio
    r > r0 pays r/r0 / (1 + q0 (r/r0 - 1)) with q0 the null probability (Lindon, Malek 2022).
    """
    null = shares * (1 + tolerance)
    q0 = null / (null + 1 - shares)
    logs = [float(np.sum(arms * np.log(r) - np.log1p(q0 * (r - 1)))) for r in _RATIOS]
    return log_mean_exp(np.array(logs))


def score_evidence(arms: Floats, shares: Floats, scores: Floats, *, tail: bool = False) -> float:
    """Returns log evidence that high scores go to the candidate more often than by chance.

    `arms`, `shares`, `scores`: shape (n,): A_i, w_i and c_i, with c_i from the outcomes alone. The
    bet with strength l multiplies by exp(l A c) / (1 + w (exp(l c) - 1)), mixed over l (Grünwald,
    Henzi, Lardy 2023); `tail` takes the grid for exponential tail scores, where l must stay < 1.
    """
    grid = _TAILS if tail else _SHIFTS
    logs = [
        float(np.sum(lam * arms * scores - np.log1p(shares * np.expm1(lam * scores))))
        for lam in grid
    ]
    return log_mean_exp(np.array(logs))


def ratio_evidence(arms: Floats, shares: Floats) -> float:
    """Returns log evidence that units do not go where the logged shares send them.

    Shape (n,) over *all* units. High: rows were lost on the way, or the route is not what the log
    says; then nothing else may be judged (sample-ratio mismatch; two-sided, mixed over strengths).
    """
    ones = np.ones(len(arms))
    more, less = score_evidence(arms, shares, ones), score_evidence(arms, shares, -ones)
    return log_mean_exp(np.array([more, less]))


def rate_evidence(hits: int, count: int, limit: float) -> float:
    """Returns log evidence that a rate is above `limit`, from `hits` among `count` requests.

    Bernoulli likelihood ratios against `limit`, mixed over higher rates (Robbins 1970); valid when
    each request's chance, given the past, is at most `limit`.
    """
    if limit <= 0:
        return float("inf") if hits else 0.0
    if limit >= 1:
        return 0.0
    rates = 1 - (1 - limit) / np.array(_RATIOS)
    rates = np.unique(np.concatenate([rates, np.minimum(limit * np.array(_RATIOS), 0.999)]))
    rates = rates[rates > limit]
    logs = hits * np.log(rates / limit) + (count - hits) * np.log((1 - rates) / (1 - limit))
    return log_mean_exp(logs)


def bucket_ranks(values: Floats, buckets: NDArray[np.int64]) -> Floats:
    """Returns each value's mid-rank in its bucket as a share in (0, 1); ties share their mean.

    `values`, `buckets`: shape (n,). Both arms are ranked together, so that time drift cancels.
    """
    order = np.lexsort((values, buckets))
    sorted_values, sorted_buckets = values[order], buckets[order]
    new_bucket = np.diff(sorted_buckets, prepend=sorted_buckets[:1] - 1) != 0
    new_value = new_bucket | (np.diff(sorted_values, prepend=np.nan) != 0)
    bucket_of = np.cumsum(new_bucket) - 1
    starts = np.flatnonzero(new_bucket)
    sizes = np.diff(np.append(starts, len(values)))
    group_of = np.cumsum(new_value) - 1
    group_starts = np.flatnonzero(new_value)
    group_sizes = np.diff(np.append(group_starts, len(values)))
    middle = group_starts[group_of] + group_sizes[group_of] / 2 - starts[bucket_of]
    ranks = np.empty(len(values))
    ranks[order] = middle / sizes[bucket_of]
    return ranks


def location_scores(ranks: Floats) -> Floats:
    """Returns normal scores of `ranks` in (0, 1): sensitive to a shift of the whole."""
    inverse = NormalDist().inv_cdf
    unique, where = np.unique(ranks, return_inverse=True)
    table = np.array([inverse(min(max(float(u), 1e-9), 1 - 1e-9)) for u in unique])
    return table[where]


def tail_scores(ranks: Floats, quantile: float) -> Floats:
    """Returns exponential scores above `1 - 2 (1 - quantile)`, zero below: sees the tail."""
    start = max(0.0, 1 - 2 * (1 - quantile))
    above = np.maximum(ranks, start)
    scores: Floats = np.log1p(-start) - np.log(np.maximum(1 - above, 1e-9))
    return scores


def weighted_quantile(values: Floats, weights: Floats, quantile: float) -> float:
    """Returns the smallest value with at least `quantile` of the weight at or below it."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    index = int(np.searchsorted(total, quantile * total[-1] * (1 - 1e-12)))
    return float(values[order][min(index, len(values) - 1)])
