"""Tracks: what a case knows about one check. One class for each kind: events, scores, limits.

Each track holds three e-processes: `fail` against "worse by at most `tolerate`", `safe` against
"worse by `worse_by_at_most` or more", `sane` against "a disaster". All are logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from math import ceil, log, log1p
from typing import Protocol, cast

import numpy as np

from lockgate.analysis.bets import (
    Floats,
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
from lockgate.analysis.checks import Check, Signal
from lockgate.analysis.estimates import Sketch, Slope, Tally
from lockgate.analysis.rows import Array, Rows, count, empty, join, pack, take, unpack

SANE_RATIO, SANE_RATE, SANE_TIMES = 5.0, 0.05, 2.0
"""A disaster: events five times as often and over 5 %, times twice as long, scores halved."""

_UP = np.array([1.25, 1.6, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0])
_SHIFTS = np.array([0.06, 0.12, 0.25, 0.5, 1.0])
_TAIL = np.array([0.06, 0.12, 0.25, 0.5])
_DOWN = np.array([-0.06, -0.12, -0.25, -0.5, -1.0, -2.0])
_MIN_GROUP, _MAX_GROUP = 20, 400


class Track(Protocol):
    """The evidence about one check."""

    check: Check
    signal: Signal
    safe_best: float
    sane_best: float

    def fold(self, rows: Rows, seen: Rows) -> None:
        """Takes a stretch of the log: `rows` may be bet on, `seen` are all of them."""
        ...

    def settle(self, rows: Rows) -> None:
        """Takes the rows of a time bucket that has closed."""
        ...

    def logs(self) -> tuple[float, float, float]:
        """Returns the evidence to fail, for safe and for sane, as of now."""
        ...

    def state(self) -> dict[str, object]:
        """Returns it as JSON values."""
        ...

    def load(self, state: object) -> None:
        """Becomes what `state` was taken of."""
        ...


def ahead(track: Track, rows: Rows, seen: Rows) -> Track:
    """Returns the track as it would be after `rows`; `track` stays as it is."""
    if not track.signal.event and track.check.worse_by_at_most is not None:
        return track
    copy = deepcopy(track)
    copy.fold(rows, seen)
    return copy


class EventTrack:
    """A rate: bets on which version each event hit. Exact for each single event."""

    def __init__(self, check: Check, signal: Signal) -> None:
        self.check, self.signal = check, signal
        margin = check.worse_by_at_most or 0.0
        tolerated = margin if check.tolerate is None else check.tolerate
        self._nulls = (1 + tolerated, 1 + margin, max(SANE_RATIO, 1 + margin))
        ratios = [_lower(null) for null in self._nulls[1:]]
        self._ratios = (_UP, *ratios)
        self._fail = Wealth(np.ones(len(_UP)), restarts=True)
        self._safe, self._sane = (Wealth(np.ones(len(r))) for r in ratios)
        self.tally = Tally()
        self.hits, self.n = 0, 0
        self.safe_best = self.sane_best = 0.0

    def fold(self, rows: Rows, seen: Rows) -> None:
        """See `Track`."""
        values = seen[self.signal.column]
        known = ~np.isnan(values)
        mine = known & (seen["arm"] == 1)
        self.n += int(np.sum(mine))
        self.hits += int(np.sum(values[mine]))
        drawn = known & (seen["share"] > 0) & (seen["share"] < 1)
        self.tally.add(seen["arm"][drawn], seen["share"][drawn], values[drawn])
        event = (rows[self.signal.column] == 1) & (rows["share"] > 0) & (rows["share"] < 1)
        arms, shares = rows["arm"][event].astype(np.float64), rows["share"][event]
        for wealth, null, ratios in zip(
            (self._fail, self._safe, self._sane), self._nulls, self._ratios, strict=True
        ):
            wealth.grow(event_bets(arms, shares, null, ratios))
        _, safe, sane = self.logs()
        self.safe_best, self.sane_best = max(self.safe_best, safe), max(self.sane_best, sane)

    def settle(self, rows: Rows) -> None:
        """See `Track`; events have no buckets."""

    def logs(self) -> tuple[float, float, float]:
        """See `Track`. A rate within its floor neither fails nor hinders; one over it must."""
        fail, safe, sane = self._fail.value(), self._safe.value(), self._sane.value()
        rate = max(SANE_RATE, self.check.floor or 0.0)
        sane = log_mean_exp(np.array([sane, rate_bets(self.hits, self.n, rate, below=True)]))
        if self.check.floor is not None:
            floor = self.check.floor
            fail = min(fail, rate_bets(self.hits, self.n, floor))
            below = rate_bets(self.hits, self.n, floor, below=True)
            safe = log_mean_exp(np.array([safe, below]))
        return fail, safe, sane

    def state(self) -> dict[str, object]:
        """See `Track`."""
        return {
            "fail": self._fail.state(), "safe": self._safe.state(), "sane": self._sane.state(),
            "tally": self.tally.state(), "hits": self.hits, "n": self.n,
            "best": [self.safe_best, self.sane_best],
        }  # fmt: skip

    def load(self, state: object) -> None:
        """See `Track`."""
        values = cast("Mapping[str, object]", state)
        _load(values, {"fail": self._fail, "safe": self._safe, "sane": self._sane})
        self.tally.load(values["tally"])
        self.hits, self.n = int(cast("int", values["hits"])), int(cast("int", values["n"]))
        self.safe_best, self.sane_best = cast("list[float]", values["best"])


def _lower(null: float) -> Floats:
    """Returns ratios to `null` below 1: the same rate as the baseline's, and some beside it."""
    true = np.array([1.0, null**0.5, 0.8, 0.5, 0.2, 0.02])
    return np.unique(np.minimum(true / null, 0.98))


class LimitTrack:
    """An absolute limit: bets on how often the candidate alone is beyond it."""

    def __init__(self, check: Check, signal: Signal) -> None:
        self.check, self.signal = check, signal
        limit = check.at_most or 0.0
        down = signal.worse == "down"
        level = 0.5 if signal.quantile is None else signal.quantile
        if signal.event:
            self._limits, self._rates = (0.5, 0.5), (limit, max(SANE_RATE, 5 * limit))
        else:
            beyond = level if down else 1 - level
            disaster = limit / SANE_TIMES if down else limit * SANE_TIMES
            self._limits, self._rates = (limit, disaster), (beyond, beyond)
        self.sketch = Sketch(linear=signal.measure == "score" or signal.event)
        self._beyond = [0, 0]
        self.n = 0
        self.safe_best = self.sane_best = 0.0

    def fold(self, rows: Rows, seen: Rows) -> None:  # noqa: ARG002
        """See `Track`."""
        values = seen[self.signal.column]
        values = values[~np.isnan(values) & (seen["arm"] == 1)]
        self.n += len(values)
        self.sketch.add(np.ones(len(values)), np.full(len(values), 0.5), values)
        for i, limit in enumerate(self._limits):
            down = self.signal.worse == "down"
            self._beyond[i] += int(np.sum(values < limit if down else values > limit))
        _, safe, sane = self.logs()
        self.safe_best, self.sane_best = max(self.safe_best, safe), max(self.sane_best, sane)

    def settle(self, rows: Rows) -> None:
        """See `Track`; a limit has no buckets."""

    def logs(self) -> tuple[float, float, float]:
        """See `Track`."""
        over, far = self._beyond
        return (
            rate_bets(over, self.n, self._rates[0]),
            rate_bets(over, self.n, self._rates[0], below=True),
            rate_bets(far, self.n, self._rates[1], below=True),
        )

    def state(self) -> dict[str, object]:
        """See `Track`."""
        return {
            "sketch": self.sketch.state(), "beyond": list(self._beyond), "n": self.n,
            "best": [self.safe_best, self.sane_best],
        }  # fmt: skip

    def load(self, state: object) -> None:
        """See `Track`."""
        values = cast("Mapping[str, object]", state)
        self.sketch.load(values["sketch"])
        self._beyond = [int(n) for n in cast("list[int]", values["beyond"])]
        self.n = int(cast("int", values["n"]))
        self.safe_best, self.sane_best = cast("list[float]", values["best"])


class ScoreTrack:
    """Times and scores: bets on which version the worst of each time bucket came from."""

    def __init__(self, check: Check, signal: Signal, adjust: tuple[str, ...]) -> None:
        self.check, self.signal = check, signal
        margin = check.worse_by_at_most or 0.0
        tolerated = margin if check.tolerate is None else check.tolerate
        disaster = max(1 - 1 / SANE_TIMES if signal.worse == "down" else SANE_TIMES - 1, margin)
        self._margins = (tolerated, margin, disaster)
        self._bounded = signal.measure == "score" and signal.quantile is None
        level = signal.quantile
        worst = None if level is None else (1 - level if signal.worse == "down" else level)
        self._tails = () if worst is None else (max(0.0, 2 * worst - 1), max(0.0, 10 * worst - 9))
        self._need = _MIN_GROUP
        if worst is not None and worst < 1:
            self._need = min(max(_MIN_GROUP, ceil(4 / (1 - worst))), _MAX_GROUP)
        self._fail = Wealth(self._weights(), restarts=True)
        safe = np.ones(len(_DOWN) * max(len(self._tails), 1))
        self._safe, self._sane = Wealth(safe), Wealth(safe)
        self._adjust = adjust if signal.measure != "score" else ()
        self._slope = Slope(len(self._adjust))
        self._centre: tuple[float, float] | None = None
        columns = ("at", "arm", "share", signal.column, *self._adjust)
        self._carry: Rows = empty(columns)
        self.sketch = Sketch(linear=signal.measure == "score")
        self.safe_best = self.sane_best = 0.0

    def _weights(self) -> Floats:
        """The stake on each bet of `fail`, in the order of `_fail_bets`."""
        if self._bounded:
            parts = [(0.6, _SHIFTS), (0.4, _SHIFTS)]
        elif self._tails:
            parts = [(0.4, _TAIL), (0.4, _TAIL), (0.2, _SHIFTS)]
        else:
            parts = [(0.85, _SHIFTS), (0.15, _TAIL)]
        return np.concatenate([np.full(len(g), share / len(g)) for share, g in parts])

    def fold(self, rows: Rows, seen: Rows) -> None:  # noqa: ARG002
        """See `Track`."""
        values = seen[self.signal.column]
        drawn = ~np.isnan(values) & (seen["share"] > 0) & (seen["share"] < 1)
        self.sketch.add(seen["arm"][drawn], seen["share"][drawn], values[drawn])

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
        self.safe_best, self.sane_best = self._safe.best, self._sane.best

    def _bet(self, group: Rows) -> None:
        arms, shares = group["arm"].astype(np.float64), group["share"]
        values = group[self.signal.column]
        inputs = np.stack([group[name] for name in self._adjust], axis=1) if self._adjust else None
        known = np.zeros(len(values)) if inputs is None else self._slope.predict(inputs)
        ranks = mid_ranks(self._hurt(values, arms, self._margins[0]) - known)
        wins = [score_bets(arms, shares, normal_scores(ranks), _SHIFTS)]
        if self._bounded:
            if self._centre is not None:
                wins.insert(0, self._mean_wins(arms, shares, values, self._margins[0], -_SHIFTS))
                self._fail.grow(np.concatenate(wins))
                down = self._margins[1:]
                for wealth, margin in zip((self._safe, self._sane), down, strict=True):
                    wealth.grow(self._mean_wins(arms, shares, values, margin, -_DOWN))
            self._centre = _settled(self._centre, values)
            return
        tails = [score_bets(arms, shares, tail_scores(ranks, s), _TAIL) for s in self._tails]
        if not tails:
            tails = [score_bets(arms, shares, tail_scores(ranks, 0.9), _TAIL)]
            wins = [*wins, *tails]
        else:
            wins = [*tails, *wins]
        self._fail.grow(np.concatenate(wins))
        for wealth, margin in zip((self._safe, self._sane), self._margins[1:], strict=True):
            ranks = mid_ranks(self._hurt(values, arms, margin) - known)
            scores = [tail_scores(ranks, s) for s in self._tails] or [normal_scores(ranks)]
            wealth.grow(np.concatenate([score_bets(arms, shares, c, _DOWN) for c in scores]))
        if inputs is not None:
            old = arms == 0
            self._slope.learn(inputs[old], self._hurt(values, arms, 0.0)[old])

    def _hurt(self, values: Floats, arms: Array, margin: float) -> Floats:
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

    def _mean_wins(
        self, arms: Array, shares: Floats, values: Floats, margin: float, strengths: Floats
    ) -> Floats:
        centre, spread = self._centre or (0.5, 0.5)
        guess = np.full(len(values), centre)
        return mean_bets(arms, shares, values, guess, 1 - margin, strengths / spread)

    def logs(self) -> tuple[float, float, float]:
        """See `Track`."""
        return self._fail.value(), self._safe.value(), self._sane.value()

    def state(self) -> dict[str, object]:
        """See `Track`."""
        return {
            "fail": self._fail.state(), "safe": self._safe.state(), "sane": self._sane.state(),
            "slope": self._slope.state(), "centre": self._centre and list(self._centre),
            "carry": pack(self._carry), "sketch": self.sketch.state(),
            "best": [self.safe_best, self.sane_best],
        }  # fmt: skip

    def load(self, state: object) -> None:
        """See `Track`."""
        values = cast("Mapping[str, object]", state)
        _load(values, {"fail": self._fail, "safe": self._safe, "sane": self._sane})
        self._slope.load(values["slope"])
        centre = cast("list[float] | None", values["centre"])
        self._centre = (centre[0], centre[1]) if centre else None
        self._carry = unpack(values["carry"])
        self.sketch.load(values["sketch"])
        self.safe_best, self.sane_best = cast("list[float]", values["best"])


def _settled(old: tuple[float, float] | None, values: Floats) -> tuple[float, float]:
    """Returns centre and spread of scores for the next group: half old, half new."""
    mean, spread = float(np.mean(values)), max(float(np.std(values)), 0.01)
    return (mean, spread) if old is None else ((old[0] + mean) / 2, (old[1] + spread) / 2)


def _load(values: Mapping[str, object], parts: Mapping[str, Wealth]) -> None:
    for name, wealth in parts.items():
        wealth.load(values[name])


def make_track(check: Check, signal: Signal, adjust: tuple[str, ...]) -> Track:
    """Returns an empty track for a check of that kind."""
    if check.worse_by_at_most is None:
        return LimitTrack(check, signal)
    return EventTrack(check, signal) if signal.event else ScoreTrack(check, signal, adjust)
