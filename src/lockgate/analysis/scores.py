"""Scores: bets on which version the slow, or bad, ones of each time bucket came from.

To fail, both arms of a bucket are ranked together, the candidate's values first made better by what
is tolerated; bets are on several statistics of the ranks, at several strengths. The proof is of
what the check says: a mean by bets on the bounded mean, a quantile by bets on who is beyond the
bucket's own; so it holds for any shape of the outcomes, where ranks would assume that all scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log, log1p
from typing import Literal, cast

import numpy as np

from lockgate.analysis.bets import (
    Floats,
    Wealth,
    log_mean_exp,
    mean_bets,
    mid_ranks,
    normal_scores,
    rate_bets,
    score_bets,
    tail_scores,
)
from lockgate.analysis.checks import Check, Signal
from lockgate.analysis.estimates import Sketch, Slope
from lockgate.analysis.rows import Rows, count, empty, join, pack, take, unpack
from lockgate.analysis.tracks import SANE_TIMES, EventTrack, LimitTrack, Shadows, Track

_MIN_GROUP, _MAX_GROUP = 20, 400
_LEAK_S = 3600.0
"""Seconds after which a bet on what grows slowly is as strong as its name."""
_CAP = 10.0
"""A mean is judged over values up to so many times the mean; what is more counts as that."""

_DOWN = np.array([-0.04, -0.08, -0.16, -0.35, -0.8])
_STRENGTHS = {False: np.array([0.09, 0.2, 0.5]), True: np.array([0.15, 0.35, 0.8])}
_PARTS = np.array([0.45, 0.35, 0.2])
_RARER = np.log(np.array([0.75, 0.5, 0.25, 0.05]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stake:
    """A part of the stake: which statistic of the ranks, how much, at which strengths.

    `normal`: all; `low`: what is missing among the best; `high`: what is more among the worst, from
    `start` on. `raw`: ranks of what callers saw, not of what the covariates leave. `grows`: in
    proportion to the time since the start, for leaks.
    """

    on: Literal["normal", "low", "high", "mean"]
    weight: float
    start: float = 0.0
    raw: bool = False
    grows: bool = False


def _stakes(signal: Signal) -> tuple[_Stake, ...]:
    """Returns the parts of the stake against a signal; tuned on runs that no table reports."""
    level = signal.quantile
    worst = 0.5 if level is None else (1 - level if signal.worse == "down" else level)
    if worst > 0.6:
        return (
            _Stake(on="high", weight=0.42, start=2 * worst - 1, raw=True),
            _Stake(on="high", weight=0.36, start=max(5 * worst - 4, 0.0), raw=True),
            _Stake(on="high", weight=0.08, start=max(5 * worst - 4, 0.0)),
            _Stake(on="normal", weight=0.06),
            _Stake(on="normal", weight=0.08, grows=True),
        )
    if signal.measure == "score":
        return (
            _Stake(on="low", weight=0.5, start=0.5),
            _Stake(on="mean", weight=0.2),
            _Stake(on="normal", weight=0.1),
            _Stake(on="low", weight=0.1, start=0.5, grows=True),
            _Stake(on="high", weight=0.1, start=0.8),
        )
    return (
        _Stake(on="normal", weight=0.6),
        _Stake(on="normal", weight=0.25, grows=True),
        _Stake(on="low", weight=0.07, start=0.5),
        _Stake(on="high", weight=0.08, start=0.95, raw=True),
    )


class ScoreTrack:
    """The evidence about a mean or a quantile; see `Track`."""

    def __init__(self, check: Check, signal: Signal, adjust: tuple[str, ...]) -> None:
        self.check, self.signal = check, signal
        margin = check.worse_by_at_most or 0.0
        tolerated = margin if check.tolerate is None else check.tolerate
        disaster = max(1 - 1 / SANE_TIMES if signal.worse == "down" else SANE_TIMES - 1, margin)
        self._margins = (tolerated, margin, disaster)
        level = signal.quantile
        self._beyond = None if level is None else (1 - level if signal.worse == "down" else level)
        self._need = _MIN_GROUP
        if self._beyond is not None:
            self._need = max(_MIN_GROUP, min(ceil(4 / (1 - self._beyond)), _MAX_GROUP))
        self._stakes = _stakes(signal)
        weights = [stake.weight * _PARTS for stake in self._stakes]
        self._fail = Wealth(np.concatenate(weights), restarts=True)
        proof = np.ones(len(_DOWN if level is None else _RARER))
        self._safe, self._sane = Wealth(proof), Wealth(proof)
        half = np.ones(len(_STRENGTHS[False]))
        self._shadows = Shadows(half, half, half)
        self._adjust = adjust if signal.measure != "score" else ()
        self._slope = Slope(len(self._adjust))
        self._known: list[float] = []
        self._paired: tuple[float, float] | None = None
        self._over = [0, 0]
        self._from: float | None = None
        self._carry: Rows = empty(("at", "arm", "share", signal.column, *self._adjust))
        self.sketch = Sketch(linear=signal.measure == "score")
        self.safe_best = self.sane_best = 0.0
        self.changed = ""

    def fold(self, rows: Rows, seen: Rows) -> None:  # noqa: ARG002
        """See `Track`; bets wait for the bucket."""
        values = seen[self.signal.column]
        here = ~np.isnan(values)
        drawn = here & (seen["share"] > 0) & (seen["share"] < 1)
        self.sketch.add(seen["arm"][drawn], seen["share"][drawn], values[drawn])
        if self.check.floor is not None and self._beyond is not None:
            ours = values[here & (seen["arm"] == 1)]
            down, floor = self.signal.worse == "down", self.check.floor
            self._over[0] += int(np.sum(ours < floor if down else ours > floor))
            self._over[1] += len(ours)

    def settle(self, rows: Rows) -> None:
        """See `Track`. Too few rows wait for the next bucket's."""
        keep = ~np.isnan(rows[self.signal.column]) & (rows["share"] > 0) & (rows["share"] < 1)
        if not keep.any():
            return
        mine = take({name: rows[name] for name in self._carry}, keep)
        self._carry = join([self._carry, mine]) if count(self._carry) else mine
        if count(self._carry) < self._need:
            return
        group, self._carry = self._carry, take(self._carry, slice(0, 0))
        self._bet(group)
        self._latch()

    def _latch(self) -> None:
        _, safe, sane = self.logs()
        self.safe_best, self.sane_best = max(self.safe_best, safe), max(self.sane_best, sane)

    def pair(self, pairs: Mapping[str, Floats]) -> None:
        """See `Track`. The sign is the coin; how far apart the two are says how much to bet.

        Quantiles are not proven by pairs: a sign says nothing of the tail's shape.
        """
        values = pairs[self.signal.column]
        values = values[~np.isnan(values).any(axis=1)]
        if not len(values):
            return
        sides, shares = np.tile([0, 1], len(values)), np.full(2 * len(values), 0.5)
        self.sketch.add(sides, shares, values.ravel())
        wins, arms = [], np.array([0.0, 1.0])
        for margin, sign in zip(self._margins, (1.0, -1.0, -1.0), strict=True):
            gaps = np.diff(self._hurt(values, arms, margin), axis=1)[:, 0]
            gaps = gaps[gaps != 0]
            far = 2 * normal_scores(0.5 + mid_ranks(np.abs(gaps)) / 2)
            up = (gaps > 0).astype(np.float64)
            wins.append(score_bets(up, np.full(len(up), 0.5), far, sign * _STRENGTHS[False]))
        wins[1] = self._pair_proof(values)
        self._shadows.grow(wins, (self._fail.value(), self._safe.value(), self._sane.value()))
        self._latch()

    def _pair_proof(self, values: Floats) -> Floats:
        """Bets that a pair's values differ by less than the margin, of bounded means."""
        none = np.zeros(len(_STRENGTHS[False]))
        if self._beyond is not None:
            return none
        known, margin = self._paired, self._margins[1]
        mean, spread = known or (float(np.mean(values[:, 0])), 0.0)
        down = self.signal.worse == "down"
        cap = 1.0 if self.signal.measure == "score" else _CAP * max(mean, 1e-9)
        bounded = np.clip(values / cap, 0.0, 1.0)
        keep = 1 - margin if down else 1 + margin
        gains = (bounded[:, 1] - keep * bounded[:, 0]) * (1.0 if down else -1.0)
        now = float(np.std(gains)) or 1.0
        self._paired = (mean, 0.7 * spread + 0.3 * now if known else now)
        if not known:
            return none
        stakes = np.minimum(_STRENGTHS[False] / max(spread, 1e-6), 0.9)
        wins: Floats = np.sum(np.log1p(stakes * gains[:, None]), axis=0)
        return wins

    def _bet(self, group: Rows) -> None:
        arms, shares = group["arm"].astype(np.float64), group["share"]
        values = group[self.signal.column]
        inputs = np.stack([group[name] for name in self._adjust], axis=1) if self._adjust else None
        curve = None
        if inputs is not None:
            curve = self._slope.predict(inputs)
            curve = curve - np.mean(curve)
        last = float(np.max(group["at"]))
        self._from = last if self._from is None else self._from
        if self._beyond is not None:
            self._fail.grow(self._fail_wins(arms, shares, values, curve, last - self._from))
            for wealth, margin in ((self._safe, self._margins[1]), (self._sane, self._margins[2])):
                ranks = mid_ranks(self._hurt(values, arms, margin))
                far = (ranks > self._beyond).astype(np.float64)
                wealth.grow(score_bets(arms, shares, far, _RARER))
        elif self._known:
            self._fail.grow(self._fail_wins(arms, shares, values, curve, last - self._from))
            for wealth, margin in ((self._safe, self._margins[1]), (self._sane, self._margins[2])):
                wealth.grow(self._mean_wins(arms, shares, values, curve, margin, _DOWN))
        self._learn(values, curve)
        if inputs is not None:
            old = arms == 0
            self._slope.learn(inputs[old], self._hurt(values, arms, 0.0)[old])

    def _fail_wins(
        self, arms: Floats, shares: Floats, values: Floats, curve: Floats | None, age_s: float
    ) -> Floats:
        hurt = self._hurt(values, arms, self._margins[0])
        raw = mid_ranks(hurt)
        ranks = raw if curve is None else mid_ranks(hurt - curve)
        wins = []
        for stake in self._stakes:
            strengths = _STRENGTHS[stake.grows]
            if stake.grows:
                strengths = strengths * min(max(age_s, 0.0) / _LEAK_S, 2.0)
            mine = raw if stake.raw else ranks
            if stake.on == "mean":
                wins.append(
                    self._mean_wins(arms, shares, values, curve, self._margins[0], strengths)
                )
                continue
            if stake.on == "normal":
                scores = normal_scores(mine)
            elif stake.on == "low":
                scores = -tail_scores(1 - mine, stake.start)
            else:
                scores = tail_scores(mine, stake.start)
            wins.append(score_bets(arms, shares, scores, strengths))
        return np.concatenate(wins)

    def _mean_wins(
        self,
        arms: Floats,
        shares: Floats,
        values: Floats,
        curve: Floats | None,
        margin: float,
        strengths: Floats,
    ) -> Floats:
        """Bets that the candidate's mean is worse; with `strengths` below 0 that it is better."""
        mean, spread, shift = self._known
        down = self.signal.worse == "down"
        floor = self.check.floor
        clipped = values if floor is None else (np.minimum if down else np.maximum)(values, floor)
        cap = 1.0 if self.signal.measure == "score" else _CAP * mean
        guess = np.full(len(values), mean)
        if curve is not None:
            guess = np.exp((-curve if down else curve) + shift)
        keep = 1 - margin if down else 1 + margin
        sign = -1.0 if down else 1.0
        bounded, centre = np.clip(clipped / cap, 0.0, 1.0), np.clip(guess / cap, 0.0, 1.0)
        stakes = sign * strengths * (cap / spread)
        return mean_bets(arms, shares, bounded, centre, keep, stakes)

    def _learn(self, values: Floats, curve: Floats | None) -> None:
        """Keeps mean, deviation about the curve, and the curve's height, for the next group."""
        mean = float(np.mean(values))
        shift = 0.0
        rest = values - mean
        if curve is not None:
            height = np.exp(-curve if self.signal.worse == "down" else curve)
            scale = float(np.sum(values * height) / max(float(np.sum(height * height)), 1e-300))
            rest = values - scale * height
            shift = log(max(scale, 1e-300))
        limit = 1.0 if self.signal.measure == "score" else _CAP * max(mean, 1e-9)
        spread = float(np.sqrt(np.mean(np.clip(rest, -limit, limit) ** 2)))
        new = [max(mean, 1e-9), max(spread, 0.02 * mean, 1e-9), shift]
        if not self._known:
            self._known = new
            return
        self._known = [0.7 * old + 0.3 * now for old, now in zip(self._known, new, strict=True)]

    def _hurt(self, values: Floats, arms: Floats, margin: float) -> Floats:
        """Returns how bad values are (logarithms), the candidate's made better by `margin`.

        Below the floor all are the same: the baseline's floor is lower by as much as the
        candidate's values are.
        """
        down = self.signal.worse == "down"
        shift = -log1p(-min(margin, 1 - 1e-9)) if down else log1p(margin)
        hurt = np.log(np.maximum(values, 1e-9))
        hurt = (-hurt if down else hurt) - shift * arms
        if self.check.floor is None:
            return hurt
        floor = log(max(self.check.floor, 1e-9))
        return np.maximum(hurt, (-floor if down else floor) - shift)

    def logs(self) -> tuple[float, float, float]:
        """See `Track`."""
        fail, safe, sane = self._shadows.beside(
            (self._fail.value(), self._safe.value(), self._sane.value())
        )
        if self.check.floor is not None and self._beyond is not None:
            below = rate_bets(self._over[0], self._over[1], 1 - self._beyond, below=True)
            safe = log_mean_exp(np.array([safe, below]))
        return fail, safe, sane

    def state(self) -> dict[str, object]:
        """See `Track`."""
        return {
            "fail": self._fail.state(), "safe": self._safe.state(), "sane": self._sane.state(),
            "shadows": self._shadows.state(), "paired": self._paired and list(self._paired),
            "slope": self._slope.state(), "known": list(self._known), "from": self._from,
            "over": list(self._over), "carry": pack(self._carry), "sketch": self.sketch.state(),
            "best": [self.safe_best, self.sane_best],
        }  # fmt: skip

    def load(self, state: object) -> None:
        """See `Track`."""
        values = cast("Mapping[str, object]", state)
        self._fail.load(values["fail"])
        self._safe.load(values["safe"])
        self._sane.load(values["sane"])
        self._shadows.load(values["shadows"])
        paired = cast("list[float] | None", values["paired"])
        self._paired = (paired[0], paired[1]) if paired else None
        self._slope.load(values["slope"])
        self._known = [float(n) for n in cast("list[float]", values["known"])]
        self._from = cast("float | None", values["from"])
        self._over = [int(n) for n in cast("list[int]", values["over"])]
        self._carry = unpack(values["carry"])
        self.sketch.load(values["sketch"])
        self.safe_best, self.sane_best = cast("list[float]", values["best"])


def make_track(check: Check, signal: Signal, adjust: tuple[str, ...]) -> Track:
    """Returns an empty track for a check of that kind."""
    if check.worse_by_at_most is None:
        return LimitTrack(check, signal)
    return EventTrack(check, signal) if signal.event else ScoreTrack(check, signal, adjust)
