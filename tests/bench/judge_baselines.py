"""What others do, written from their documented behaviour: at which second each would alarm.

All see the same run and look every 10 s (Kayenta every 10 minutes, thresholds every minute), at
error rate, latency (mean, p99) and mean quality; those with an alpha divide it by their metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from math import e, log
from statistics import NormalDist

import numpy as np
from judge_traffic import Run
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LOOK_S = 10.0
_NEVER = float("inf")
_GRID = 120


class Looks:
    """Sums of a run up to each look, for either arm; made once, read by every method."""

    def __init__(self, run: Run) -> None:
        self.run = run
        failed = run.error == 1
        done = run.at + run.latency
        order = np.argsort(done, kind="stable")
        self.done, self.arm = done[order], run.arm[order]
        self.failed = failed[order]
        self.values = {"error": run.error[order], "latency": run.latency[order],
                       "quality": run.quality[order]}  # fmt: skip
        self.times = np.arange(LOOK_S, run.seconds + LOOK_S / 2, LOOK_S)
        self.ends = np.searchsorted(self.done, self.times, side="right")
        self.share = float(np.mean(run.share))

    def sums(self, metric: str, arm: int) -> tuple[Floats, Floats, Floats]:
        """Returns n, sum and sum of squares of an arm's values up to each look."""
        mine = self.arm == arm
        if metric != "error":
            mine = mine & ~self.failed
        values = np.where(mine, self.values[metric], 0.0)
        parts = (mine.astype(np.float64), values, values * values)
        n, total, squares = (np.concatenate([[0.0], np.cumsum(p)])[self.ends] for p in parts)
        return n, total, squares

    def series(self, metric: str, arm: int) -> tuple[Floats, NDArray[np.int64]]:
        """Returns an arm's values in the log's order, and how many of them each look has."""
        mine = self.arm == arm
        if metric != "error":
            mine = mine & ~self.failed
        seen = np.concatenate([[0], np.cumsum(mine)])[self.ends]
        return self.values[metric][mine], seen

    def when(self, alarm: NDArray[np.bool_]) -> float:
        """Returns the time of the first look with an alarm, else infinity."""
        hits = np.flatnonzero(alarm)
        return float(self.times[hits[0]]) if len(hits) else _NEVER


def _means(looks: Looks, metric: str) -> tuple[Floats, Floats, Floats, Floats]:
    """Returns the difference (positive: worse), its variance, and both counts, at each look."""
    n1, s1, q1 = looks.sums(metric, 1)
    n0, s0, q0 = looks.sums(metric, 0)
    with np.errstate(all="ignore"):
        m1, m0 = s1 / n1, s0 / n0
        spread = (q1 / n1 - m1**2) / (n1 - 1) + (q0 / n0 - m0**2) / (n0 - 1)
    return (m0 - m1 if metric == "quality" else m1 - m0), spread, n1, n0


def t_test(looks: Looks, alpha: float) -> float:
    """Welch's test at every look, from 30 requests on."""
    alarm = np.zeros(len(looks.times), dtype=np.bool_)
    limit = NormalDist().inv_cdf(1 - alpha / 3)
    for metric in ("error", "latency", "quality"):
        gap, spread, n1, _ = _means(looks, metric)
        with np.errstate(all="ignore"):
            alarm |= (n1 >= 30) & (gap / np.sqrt(spread) > limit) & (spread > 0)
    return looks.when(alarm)


def msprt(looks: Looks, alpha: float) -> float:
    """Mixture SPRT (Johari, Koomen, Pekelis, Walsh 2022), plug-in variance, from 100 requests on.

    The normal mixture's deviation is the margin (errors + 0.5 %, latency 5 %, quality 2 %).
    """
    alarm = np.zeros(len(looks.times), dtype=np.bool_)
    for metric, tau in (("error", 0.005), ("latency", 0.05 * 2.56), ("quality", 0.016)):
        gap, spread, n1, _ = _means(looks, metric)
        with np.errstate(all="ignore"):
            logs = 0.5 * np.log(spread / (spread + tau**2))
            logs += tau**2 * gap**2 / (2 * spread * (spread + tau**2))
            alarm |= (n1 >= 100) & (gap > 0) & (spread > 0) & (logs >= log(3 / alpha))
    return looks.when(alarm)


def _eb_bounds(values: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Predictable plug-in empirical-Bernstein bounds (Waudby-Smith, Ramdas 2023) at each value."""
    n = np.arange(1, len(values) + 1)
    mean = (0.5 + np.cumsum(values)) / (n + 1)
    spread = (0.25 + np.cumsum((values - mean) ** 2)) / (n + 1)
    before = np.concatenate([[0.25], spread[:-1]])
    centre = np.concatenate([[0.5], mean[:-1]])
    stake = np.minimum(np.sqrt(2 * log(1 / alpha) / (before * n * np.log(1 + n))), 0.5)
    cost = (values - centre) ** 2 * (-np.log1p(-stake) - stake)
    total = np.cumsum(stake)
    middle = np.cumsum(stake * values) / total
    wide = (log(1 / alpha) + np.cumsum(cost)) / total
    return np.maximum.accumulate(middle - wide), np.minimum.accumulate(middle + wide)


def _at(bounds: Floats, seen: NDArray[np.int64], empty: float) -> Floats:
    return np.concatenate([[empty], bounds])[seen]


def eb_and_quantiles(looks: Looks, alpha: float) -> float:
    """Empirical-Bernstein CS of bounded means, quantile CS (Howard, Ramdas 2022) of p50 and p99."""
    alarm = np.zeros(len(looks.times), dtype=np.bool_)
    each = alpha / 8
    for metric in ("error", "quality"):
        bounds = []
        for arm in (0, 1):
            values, seen = looks.series(metric, arm)
            low, high = _eb_bounds(values, each)
            bounds.append((_at(low, seen, -np.inf), _at(high, seen, np.inf)))
        worse, better = (0, 1) if metric == "quality" else (1, 0)
        alarm |= bounds[worse][0] > bounds[better][1]
    below, counts = _cdfs(looks)
    width = [_lil(n, each) for n in counts]
    grid_levels = below[0] / np.maximum(counts[0], 1)[:, None]
    levels = below[1] / np.maximum(counts[1], 1)[:, None]
    for p in (0.5, 0.99):
        slack = [1.5 * np.sqrt(p * (1 - p) * w) + 0.8 * w for w in width]
        # some x with the baseline's quantile surely below it and the candidate's surely above
        sure = (grid_levels >= (p + slack[0])[:, None]) & (levels < (p - slack[1])[:, None])
        alarm |= np.any(sure, axis=1)
    return looks.when(alarm)


def _lil(n: Floats, alpha: float) -> Floats:
    n = np.maximum(n, 3.0)
    return (1.4 * np.log(np.log(2.1 * n)) + log(10 / alpha)) / n


def _cdfs(looks: Looks) -> tuple[list[Floats], list[Floats]]:
    """Returns how many latencies of each arm are below each grid point, shape (looks, grid)."""
    fine = np.linspace(0, 0.95, _GRID // 2)
    levels = np.concatenate([fine, 1 - np.geomspace(0.05, 0.0005, _GRID // 2)])
    grid = np.quantile(looks.values["latency"], np.unique(levels))
    below, counts = [], []
    for arm in (0, 1):
        values, seen = looks.series("latency", arm)
        cell = np.searchsorted(grid, values, side="left")
        which = np.searchsorted(seen, np.arange(len(values)), side="right")
        table = np.zeros((len(looks.times) + 1, len(grid) + 1))
        np.add.at(table, (which, cell), 1)
        below.append(np.cumsum(np.cumsum(table, axis=0)[:-1], axis=1)[:, :-1])
        counts.append(seen.astype(np.float64))
    return below, counts


def dkw(looks: Looks, alpha: float) -> float:
    """Sequential DKW bands (Howard, Ramdas 2022) as a canary gate (Lindon, Sanden, Shirikian 2022).

    Errors by the multinomial test of the same team (Lindon, Malek 2022), Dirichlet of weight 100.
    """
    below, counts = _cdfs(looks)
    bands = [
        0.85 * np.sqrt((np.log(np.log(e * np.maximum(n, 1))) + 0.8 * log(1612 / (alpha / 6)))
                       / np.maximum(n, 1))
        for n in counts
    ]  # fmt: skip
    gap = (
        below[0] / np.maximum(counts[0], 1)[:, None] - below[1] / np.maximum(counts[1], 1)[:, None]
    )
    alarm = np.max(gap, axis=1) > bands[0] + bands[1]
    alarm |= _dkw_quality(looks, bands, counts)
    _, hits1, _ = looks.sums("error", 1)
    _, hits0, _ = looks.sums("error", 0)
    w, weight = looks.share, 100.0
    logs = _log_beta(weight * w + hits1, weight * (1 - w) + hits0) - _log_beta(
        np.array(weight * w), np.array(weight * (1 - w))
    )
    logs -= hits1 * log(w) + hits0 * log(1 - w)
    alarm |= (logs >= log(3 / alpha)) & (hits1 > w * (hits1 + hits0))
    return looks.when(alarm)


def _dkw_quality(looks: Looks, bands: list[Floats], counts: list[Floats]) -> NDArray[np.bool_]:
    grid = np.linspace(0.2, 0.999, 60)
    shares = []
    for arm in (0, 1):
        values, seen = looks.series("quality", arm)
        cell = np.searchsorted(grid, values, side="left")
        which = np.searchsorted(seen, np.arange(len(values)), side="right")
        table = np.zeros((len(looks.times) + 1, len(grid) + 1))
        np.add.at(table, (which, cell), 1)
        below = np.cumsum(np.cumsum(table, axis=0)[:-1], axis=1)[:, :-1]
        shares.append(below / np.maximum(counts[arm], 1)[:, None])
    found: NDArray[np.bool_] = np.max(shares[1] - shares[0], axis=1) > bands[0] + bands[1]
    return found


def _log_beta(a: Floats, b: Floats) -> Floats:
    return _log_gamma(a) + _log_gamma(b) - _log_gamma(a + b)


def _log_gamma(x: Floats) -> Floats:
    """Stirling's series after shifting x up by 8."""
    shift = sum(np.log(x + k) for k in range(8))
    y = x + 8
    series = 1 / (12 * y) - 1 / (360 * y**3) + 1 / (1260 * y**5)
    found: Floats = (y - 0.5) * np.log(y) - y + 0.5 * log(2 * np.pi) + series - shift
    return found


def _by_minute(looks: Looks) -> dict[str, tuple[Floats, Floats]]:
    """Returns each metric's value in each minute, baseline and candidate; NaN without requests."""
    minutes = int(looks.run.seconds // 60)
    which = np.minimum((looks.done // 60).astype(np.int64), minutes)
    found: dict[str, list[Floats]] = {}
    for arm in (0, 1):
        ok = (looks.arm == arm) & ~looks.failed
        parts = {"error": (looks.arm == arm, "error"), "latency": (ok, "latency"),
                 "quality": (ok, "quality")}  # fmt: skip
        for name, (mine, column) in parts.items():
            n = np.bincount(which[mine], minlength=minutes + 1)[:minutes]
            total = np.bincount(which[mine], looks.values[column][mine], minutes + 1)[:minutes]
            with np.errstate(all="ignore"):
                found.setdefault(name, []).append(np.where(n > 0, total / n, np.nan))
        order = np.lexsort((looks.values["latency"][ok], which[ok]))
        values, cells = looks.values["latency"][ok][order], which[ok][order]
        starts = np.searchsorted(cells, np.arange(minutes + 1))
        place = starts[:-1] + np.floor(0.99 * np.diff(starts)).astype(np.int64)
        p99 = values[np.minimum(place, len(values) - 1)]
        found.setdefault("p99", []).append(np.where(np.diff(starts) > 0, p99, np.nan))
    return {name: (pair[0], pair[1]) for name, pair in found.items()}


def threshold(looks: Looks, alpha: float) -> float:
    """Fixed thresholds every minute, failure limit 3 (Argo Rollouts; Flagger's counter)."""
    limits = {"error": 0.02, "latency": 2.56 * 1.1, "p99": 10.2 * 1.2}
    failed = np.zeros(int(looks.run.seconds // 60))
    for name, (_, ours) in _by_minute(looks).items():
        with np.errstate(invalid="ignore"):
            failed += (ours < 0.78) if name == "quality" else (ours > limits[name])
    over = np.flatnonzero(np.cumsum(failed > 0) > 3)
    return 60.0 * (over[0] + 1) if len(over) else _NEVER


def kayenta(looks: Looks, alpha: float) -> float:
    """Mann-Whitney on series by the minute, looked at every 10 minutes (Kayenta's NetflixACAJudge).

    High where the 98 % interval of the shift clears a quarter of its Hodges-Lehmann estimate; any
    metric that is High fails (all critical).
    """
    series = _by_minute(looks)
    z = NormalDist().inv_cdf(0.99)
    for end in range(10, int(looks.run.seconds // 60) + 1, 10):
        for name, (base, ours) in series.items():
            x, y = ours[:end][~np.isnan(ours[:end])], base[:end][~np.isnan(base[:end])]
            if len(x) < 5 or len(y) < 5:
                continue
            gaps = np.sort((x[:, None] - y[None, :]).ravel())
            if name == "quality":
                gaps = -gaps[::-1]
            middle = len(x) * len(y) / 2
            wide = z * np.sqrt(len(x) * len(y) * (len(x) + len(y) + 1) / 12)
            low = gaps[max(int(np.floor(middle - wide)), 0)]
            if low > 0.25 * abs(float(np.median(gaps))):
                return 60.0 * end
    return _NEVER


BASELINES: dict[str, Callable[[Looks, float], float]] = {
    "fixed threshold": threshold,
    "Kayenta": kayenta,
    "peeked t-test": t_test,
    "mSPRT": msprt,
    "EB and quantile CS": eb_and_quantiles,
    "DKW and counts": dkw,
}
