"""Bets: what a stake wins on rows. Pure functions on arrays; all results are natural logarithms.

The gateway chose the candidate for unit i with the logged probability w_i. If the candidate is no
worse, A_i (1: went to the candidate) is a coin with that probability *given the outcomes*, for any
outcome law, drift, burst or dependence. Betting on A_i with any stake that depends on outcomes
alone has expectation 1, so by Ville's inequality it exceeds 1/alpha with probability <= alpha.

Sources: assignment as the only randomness: Ham, Bojinov, Lindon, Tingley (2022); counts: Lindon,
Malek (2022); betting on A given Y: Grünwald, Henzi, Lardy (2023); bounded means by betting:
Waudby-Smith, Ramdas (2023); mixtures: Robbins (1970); mean of e-values: Vovk, Wang (2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_LOG = 600.0
"""Evidence is shown up to e^600; beyond it a float would overflow."""

_LATER = 0.3
_NEVER = -1e300
"""The logarithm of nothing, as a number that JSON can hold."""
_RATES = np.array([1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0])


def log_mean_exp(values: Floats, weights: Floats | None = None) -> float:
    """Returns log(sum(weights * exp(values))), the log of a mixture; equal weights by default."""
    top = float(np.max(values))
    if not np.isfinite(top):
        return top
    each = np.exp(values - top)
    total = float(np.mean(each)) if weights is None else float(np.sum(weights * each))
    return top + float(np.log(total))


def event_bets(arms: Floats, shares: Floats, null: float, ratios: Floats) -> Floats:
    """Returns the log wins, shape (k,), of bets on rate ratios `null * ratios`, shape (k,).

    `arms`, `shares`: shape (n,), one row for each *event* (a failed request): A_i and w_i. If the
    candidate's rate is `null` times the baseline's, the odds of A_i are w null : 1 - w; the bet
    pays r^A / (1 + q (r - 1)), q being that probability (Lindon, Malek 2022). With r > 1 it has
    mean <= 1 also where the true ratio is lower, with r < 1 where it is higher.
    """
    odds = shares * null
    chance = odds / (odds + 1.0 - shares)
    wins: Floats = np.sum(arms) * np.log(ratios) - np.sum(
        np.log1p(chance[:, None] * (ratios - 1.0)), axis=0
    )
    return wins


def score_bets(arms: Floats, shares: Floats, scores: Floats, strengths: Floats) -> Floats:
    """Returns the log wins, shape (k,), of bets that high scores go to the candidate.

    `arms`, `shares`, `scores`: shape (n,): A_i, w_i and c_i, with c_i from the outcomes alone. The
    bet of strength l multiplies by exp(l A c) / (1 + w (exp(l c) - 1)) (Grünwald, Henzi, Lardy
    2023); `strengths`, shape (k,), below 0 bet that low scores do.
    """
    if not scores.all():  # a tail: most are nothing
        some = scores != 0
        arms, shares, scores = arms[some], shares[some], scores[some]
    paid = strengths * float(np.sum(arms * scores))
    cost = np.sum(np.log1p(shares[:, None] * np.expm1(scores[:, None] * strengths)), axis=0)
    wins: Floats = paid - cost
    return wins


def mean_bets(
    arms: Floats, shares: Floats, values: Floats, centre: Floats, keep: float, strengths: Floats
) -> Floats:
    """Returns the log wins, shape (k,), of bets that the candidate's mean is above `keep` × ours.

    `values` in [0, 1] and `centre` (a guess of each, made before it), shape (n,). With
    G = A (1-w) (y-h) - (1-A) w (keep y - h), E[G] = w (1-w) (m_candidate - keep m_baseline)
    whatever the shape of the outcomes, so 1 + l G has mean <= 1 when that is <= 0; over several
    units it is enough that the sum is (log is concave). `strengths` below 0 bet on the other side,
    and are cut where a unit could take more than 9/10 of the stake. Waudby-Smith, Ramdas (2023),
    with the assignment of Ham et al. (2022) as the only randomness.
    """
    other = 1.0 - shares
    gain = np.where(arms == 1, other * (values - centre), -shares * (keep * values - centre))
    lowest = np.minimum(-other * centre, -shares * (keep - centre))
    highest = np.maximum(other * (1.0 - centre), shares * centre)
    up = 0.9 / np.maximum(-lowest, 1e-9)[:, None]
    down = -0.9 / np.maximum(highest, 1e-9)[:, None]
    stakes = np.clip(strengths, down, up)
    wins: Floats = np.sum(np.log1p(stakes * gain[:, None]), axis=0)
    return wins


def rate_bets(hits: int, count: int, limit: float, *, below: bool = False) -> float:
    """Returns log evidence that a rate is above (or `below`) `limit`: `hits` among `count` units.

    Bernoulli likelihood ratios against `limit`, mixed over other rates (Robbins 1970); valid when
    each unit's chance, given the past, is at most (at least) `limit`.
    """
    if below:
        return 0.0 if limit <= 0 else rate_bets(count - hits, count, 1.0 - min(limit, 1.0))
    if limit <= 0:
        return MAX_LOG if hits else 0.0
    if limit >= 1 or count <= 0:
        return 0.0
    rates = np.concatenate([1 - (1 - limit) / _RATES, np.minimum(limit * _RATES, 1 - 1e-9)])
    rates = np.unique(rates[rates > limit])
    logs = hits * np.log(rates / limit) + (count - hits) * np.log((1 - rates) / (1 - limit))
    return min(log_mean_exp(logs), MAX_LOG)


def mid_ranks(values: Floats) -> Floats:
    """Returns each value's rank, shape (n,), as a share in (0, 1); ties share their middle."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.empty(len(values), dtype=np.bool_)
    new[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    ranks = np.empty(len(values))
    if bool(new.all()):
        ranks[order] = (np.arange(len(values)) + 0.5) / len(values)
        return ranks
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(values)))
    middle = starts + sizes / 2
    ranks[order] = middle[np.cumsum(new) - 1] / len(values)
    return ranks


def normal_scores(ranks: Floats) -> Floats:
    """Returns the normal quantiles of `ranks` in (0, 1): they see a shift of the whole.

    Acklam's rational approximation (2003), relative error below 1.2e-9.
    """
    p = np.clip(ranks, 1e-12, 1 - 1e-12)
    q = p - 0.5
    r = q * q
    top = np.polyval(_A, r) * q
    middle = top / (np.polyval(_B, r) * r + 1.0)
    edge = np.sqrt(-2.0 * np.log(np.minimum(p, 1 - p)))
    outer = np.polyval(_C, edge) / (np.polyval(_D, edge) * edge + 1.0)
    found: Floats = np.where(np.abs(q) <= 0.47575, middle, np.where(q < 0, outer, -outer))
    return found


_A = np.array([-3.969683028665376e01, 2.209460984245205e02, -2.759285104469687e02,
               1.383577518672690e02, -3.066479806614716e01, 2.506628277459239e00])  # fmt: skip
_B = np.array([-5.447609879822406e01, 1.615858368580409e02, -1.556989798598866e02,
               6.680131188771972e01, -1.328068155288572e01])  # fmt: skip
_C = np.array([-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e00,
               -2.549732539343734e00, 4.374664141464968e00, 2.938163982698783e00])  # fmt: skip
_D = np.array([7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e00,
               3.754408661907416e00])  # fmt: skip


def tail_scores(ranks: Floats, start: float) -> Floats:
    """Returns the exponential excess of `ranks` over `start`, 0 below: they see the tail."""
    above = np.maximum(ranks, start)
    scores: Floats = np.log1p(-start) - np.log1p(-np.minimum(above, 1 - 1e-12))
    return scores


class Wealth:
    """The logarithm of an e-process: a mixture of `weights`, shape (k,), which add up to 1.

    The stake is divided over effects (Robbins 1970) and, with `restarts`, for what begins late,
    over start times: most is bet from the beginning, 0.3 / (j (j + 1)) from a later round j on
    (restarted e-processes: Shin, Ramdas, Rinaldo 2023). Every part has mean <= 1, so has the sum.
    """

    def __init__(self, weights: Floats, *, restarts: bool = False) -> None:
        self._weights = weights / np.sum(weights)
        self._later = _LATER if restarts else 0.0
        self._won = np.zeros(len(weights))
        self._since = np.full(len(weights), _NEVER)
        self._rounds = 0
        self.best = 0.0
        """The most that it ever was, by the end of a round."""

    def grow(self, wins: Floats) -> None:
        """Ends a round in which the bets won `wins` (logarithms, shape (k,))."""
        self._rounds += 1
        if self._later and self._rounds > 1:
            begun = np.log(self._later / ((self._rounds - 1) * self._rounds))
            self._since = np.logaddexp(self._since, begun) + wins
        self._won = self._won + wins
        self.best = max(self.best, self.value())

    def value(self) -> float:
        """Returns the logarithm of what it is worth now."""
        if not self._later:
            return _bounded(log_mean_exp(self._won, self._weights))
        begun = np.logaddexp(np.log(1 - self._later) + self._won, self._since)
        rest = np.log(self._later / max(self._rounds, 1))
        return _bounded(float(np.logaddexp(log_mean_exp(begun, self._weights), rest)))

    def state(self) -> dict[str, object]:
        """Returns it as JSON values."""
        return {
            "won": self._won.tolist(),
            "since": self._since.tolist(),
            "rounds": self._rounds,
            "best": self.best,
        }

    def load(self, state: object) -> None:
        """Becomes what `state` was taken of; made with the same weights."""
        values = cast("Mapping[str, object]", state)
        self._won = np.array(values["won"], dtype=np.float64)
        self._since = np.array(values["since"], dtype=np.float64)
        self._rounds = int(cast("int", values["rounds"]))
        self.best = float(cast("float", values["best"]))


def _bounded(value: float) -> float:
    return min(max(value, -MAX_LOG), MAX_LOG)
