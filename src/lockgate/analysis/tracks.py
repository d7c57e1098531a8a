"""Tracks: what a case knows about one check: here of events and of limits; see also `scores`.

Each track holds three e-processes: `fail` against "worse by at most `tolerate`", `safe` against
"worse by `worse_by_at_most` or more", `sane` against "a disaster". All are logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import log
from typing import Protocol, cast

import numpy as np

from lockgate.analysis.bets import (
    Floats,
    Wealth,
    event_bets,
    log_mean_exp,
    rate_bets,
)
from lockgate.analysis.checks import Check, Signal
from lockgate.analysis.estimates import Sketch, Tally
from lockgate.analysis.guards import Detector, upper_rate
from lockgate.analysis.rows import Rows

SANE_RATIO, SANE_RATE, SANE_TIMES = 5.0, 0.05, 2.0
"""A disaster: events five times as often and over 5 %, times twice as long, scores halved."""

RUN_LENGTH = 1e5
"""Rounds (stretches of a bucket) until a false alarm at 100 %, on average, at least."""

_SHADOW = 0.1
_KNOWN = 50
_UP = np.array([1.4, 2.0, 3.5, 8.0, 25.0, 100.0])
_UP_WEIGHTS = np.array([0.12, 0.36, 0.12, 0.1, 0.24, 0.06])


class Track(Protocol):
    """The evidence about one check."""

    check: Check
    signal: Signal
    safe_best: float
    sane_best: float
    changed: str

    def fold(self, rows: Rows, seen: Rows) -> None:
        """Takes a stretch of the log: `rows` may be bet on, `seen` are all of them."""
        ...

    def settle(self, rows: Rows) -> None:
        """Takes the rows of a time bucket that has closed."""
        ...

    def pair(self, pairs: Mapping[str, Floats]) -> None:
        """Takes pairs of a request and its shadow: column → shape (n, 2), baseline first."""
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


class Shadows:
    """Bets on pairs of a request and its shadow, beside the bets on the assignment.

    If the versions are alike, which of two answers to one question is the worse is a coin (Fisher
    1935; as a bet: Duan, Ramdas, Wang 2022). From the first pair on they have a tenth of the stake.
    """

    def __init__(self, *weights: Floats) -> None:
        self._wealth = [Wealth(each) for each in weights]
        self._begun: list[float] = []

    def grow(self, wins: Sequence[Floats], logs: Sequence[float]) -> None:
        """Ends a round of pairs; `logs`: what the other bets were worth."""
        self._begun = self._begun or list(logs)
        for wealth, won in zip(self._wealth, wins, strict=True):
            wealth.grow(won)

    def beside(self, logs: Sequence[float]) -> tuple[float, float, float]:
        """Returns what all bets are worth, the others being worth `logs`."""
        fail, safe, sane = logs
        if self._begun:
            fail, safe, sane = (
                float(np.logaddexp(log(1 - _SHADOW) + other, log(_SHADOW) + begun + w.value()))
                for other, begun, w in zip(logs, self._begun, self._wealth, strict=True)
            )
        return fail, safe, sane

    def state(self) -> dict[str, object]:
        """Returns it as JSON values."""
        return {"begun": list(self._begun), "wealth": [w.state() for w in self._wealth]}

    def load(self, state: object) -> None:
        """Becomes what `state` was taken of."""
        values = cast("Mapping[str, list[float]]", state)
        self._begun = [float(n) for n in values["begun"]]
        for wealth, kept in zip(self._wealth, values["wealth"], strict=True):
            wealth.load(kept)


class EventTrack:
    """A rate: bets on which version each event hit. Exact for each single event."""

    def __init__(self, check: Check, signal: Signal) -> None:
        self.check, self.signal = check, signal
        margin = check.worse_by_at_most or 0.0
        tolerated = margin if check.tolerate is None else check.tolerate
        self._nulls = (1 + tolerated, 1 + margin, max(SANE_RATIO, 1 + margin))
        ratios = [_lower(null) for null in self._nulls[1:]]
        self._ratios = (_UP, *ratios)
        self._fail = Wealth(_UP_WEIGHTS, restarts=True)
        self._safe, self._sane = (Wealth(np.ones(len(r))) for r in ratios)
        self._shadows = Shadows(_UP_WEIGHTS, *(np.ones(len(r)) for r in ratios))
        self.tally = Tally()
        self.hits, self.n = 0, 0
        self.safe_best = self.sane_best = 0.0
        self.changed = ""
        self._alone: Detector | None = None
        self._alone_seen = [0, 0]

    def fold(self, rows: Rows, seen: Rows) -> None:
        """See `Track`. Requests that only the candidate could get are a round of its detector."""
        values = seen[self.signal.column]
        known = ~np.isnan(values)
        mine = known & (seen["arm"] == 1)
        self._watch(values[mine & (seen["share"] >= 1)])
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
        self._latch()

    def _watch(self, values: Floats) -> None:
        """Compares what the candidate does alone with what the baseline did beside it."""
        hits0, n0 = self.tally.baseline()
        if not len(values) or (self._alone is None and n0 < _KNOWN):
            return
        margin = 1 + (self.check.worse_by_at_most or 0.0)
        if self._alone is None:
            usual = max(upper_rate(hits0, n0) * margin, self.check.floor or 0.0)
            self._alone = Detector(min(usual, 0.99), rounds=RUN_LENGTH)
        self._alone_seen[0] += int(np.sum(values))
        self._alone_seen[1] += len(values)
        if self._alone.add(int(np.sum(values)), len(values)) and not self.changed:
            hits, n = self._alone_seen
            self.changed = (
                f"{self.signal.name} became worse when the candidate had all traffic: {hits} of "
                f"{n} requests, the baseline's were {hits0} of {n0}"
            )

    def settle(self, rows: Rows) -> None:
        """See `Track`; events have no buckets."""

    def pair(self, pairs: Mapping[str, Floats]) -> None:
        """See `Track`. Only where one of the two failed is there something to bet on.

        A floor is about the candidate alone: its shadow answers prove it as well.
        """
        values = pairs[self.signal.column]
        values = values[~np.isnan(values).any(axis=1)]
        self.n += len(values)
        self.hits += int(np.sum(values[:, 1]))
        arms, shares = np.tile([0, 1], len(values)), np.full(2 * len(values), 0.5)
        self.tally.add(arms, shares, values.ravel())
        values = values[values[:, 0] + values[:, 1] == 1]
        if len(values):
            half = np.full(len(values), 0.5)
            found = zip(self._nulls, self._ratios, strict=True)
            wins = [event_bets(values[:, 1], half, null, ratios) for null, ratios in found]
            self._shadows.grow(wins, (self._fail.value(), self._safe.value(), self._sane.value()))
        self._latch()

    def _latch(self) -> None:
        _, safe, sane = self.logs()
        self.safe_best, self.sane_best = max(self.safe_best, safe), max(self.sane_best, sane)

    def logs(self) -> tuple[float, float, float]:
        """See `Track`. A rate within its floor neither fails nor hinders; one over it must."""
        fail, safe, sane = self._shadows.beside(
            (self._fail.value(), self._safe.value(), self._sane.value())
        )
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
            "shadows": self._shadows.state(), "tally": self.tally.state(),
            "hits": self.hits, "n": self.n, "best": [self.safe_best, self.sane_best],
            "changed": self.changed, "alone_seen": list(self._alone_seen),
            "alone": self._alone and [self._alone.chance, *self._alone.state()],
        }  # fmt: skip

    def load(self, state: object) -> None:
        """See `Track`."""
        values = cast("Mapping[str, object]", state)
        _load(values, {"fail": self._fail, "safe": self._safe, "sane": self._sane})
        self._shadows.load(values["shadows"])
        self.tally.load(values["tally"])
        self.hits, self.n = int(cast("int", values["hits"])), int(cast("int", values["n"]))
        self.changed = str(values["changed"])
        self._alone_seen = [int(n) for n in cast("list[int]", values["alone_seen"])]
        if alone := cast("list[float] | None", values["alone"]):
            self._alone = Detector(alone[0], rounds=RUN_LENGTH)
            self._alone.load(alone[1:])
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
        self.changed = ""

    def fold(self, rows: Rows, seen: Rows) -> None:  # noqa: ARG002
        """See `Track`."""
        values = seen[self.signal.column]
        self._judge(values[~np.isnan(values) & (seen["arm"] == 1)])

    def _judge(self, values: Floats) -> None:
        self.n += len(values)
        self.sketch.add(np.ones(len(values)), np.full(len(values), 0.5), values)
        for i, limit in enumerate(self._limits):
            down = self.signal.worse == "down"
            self._beyond[i] += int(np.sum(values < limit if down else values > limit))
        _, safe, sane = self.logs()
        self.safe_best, self.sane_best = max(self.safe_best, safe), max(self.sane_best, sane)

    def settle(self, rows: Rows) -> None:
        """See `Track`; a limit has no buckets."""

    def pair(self, pairs: Mapping[str, Floats]) -> None:
        """See `Track`; a limit looks at the candidate's answers alone."""
        ours = pairs[self.signal.column][:, 1]
        self._judge(ours[~np.isnan(ours)])

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


def _load(values: Mapping[str, object], parts: Mapping[str, Wealth]) -> None:
    for name, wealth in parts.items():
        wealth.load(values[name])
