"""Guards around the comparison: absolute floors, lost rows, counters only, and after promotion.

None of them needs rows of single requests: they read counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import cast

import numpy as np

from lockgate.analysis.bets import MAX_LOG, Floats, Wealth, log_mean_exp, rate_bets
from lockgate.core.errors import UsageError

BURNS = ((14.4, 300.0, 3_600.0), (6.0, 1_800.0, 21_600.0))
"""Burn rate, short and long window in s: what spends 2 % of a month in an hour, 5 % in six."""

_SURE = 1000.0
_RATIOS = np.array([1.4, 2.0, 4.0, 10.0, 50.0])
_LESS = np.array([0.9, 0.75, 0.5, 0.2])
_WORSE = np.array([1.3, 1.8, 3.0, 8.0, 30.0])


def burning(counts: Mapping[float, tuple[int, int]], objective: float) -> str | None:
    """Returns which burn-rate rule fires, as a sentence, or None.

    `counts`: window in s → (bad, all) requests in it; `objective`: the share that shall be good
    (0.999). A rule fires when both of its windows burn the error budget at its rate or faster; a
    window without requests fires nothing. Site Reliability Workbook (2018), chapter 5.
    """
    if not 0 < objective < 1:
        raise UsageError(f"an objective is a share between 0 and 1, not {objective}")
    budget = 1 - objective
    for rate, short, long in BURNS:
        windows = [counts.get(window, (0, 0)) for window in (short, long)]
        burns = [bad / total / budget if total > 0 else 0.0 for bad, total in windows]
        if min(burns) >= rate:
            return (
                f"the error budget of {budget:.3%} burns {min(burns):.1f} times too fast over "
                f"{short / 60:.0f} min and {long / 3600:.0f} h ({rate:g} is the limit)"
            )
    return None


class Burn:
    """Counts one version's requests and failures by the minute, for as long as `BURNS` look back.

    Minutes are of the log's clock: the latest minute counted is now.
    """

    def __init__(self, objective: float) -> None:
        self._objective = objective
        self._minutes: dict[int, list[int]] = {}

    def add(self, at: Floats, failed: Floats) -> None:
        """Counts requests that arrived at `at` (s), `failed` being 0 or 1; shapes (n,)."""
        if not len(at):
            return
        minutes = np.floor(at / 60.0).astype(np.int64)
        for minute in np.unique(minutes).tolist():
            mine = minutes == minute
            cell = self._minutes.setdefault(minute, [0, 0])
            cell[0] += int(np.sum(failed[mine]))
            cell[1] += int(np.sum(mine))
        oldest = max(self._minutes) - int(max(long for _, _, long in BURNS) // 60)
        self._minutes = {m: cell for m, cell in sorted(self._minutes.items()) if m > oldest}

    @property
    def alarm(self) -> str | None:
        """What `burning` says of the minutes counted, where that is no bad luck of a few.

        Bets that the rate is above the budget must have won `_SURE` over all that was counted.
        """
        bad, total = (sum(cell[i] for cell in self._minutes.values()) for i in (0, 1))
        if not total or rate_bets(bad, total, 1 - self._objective) < log(_SURE):
            return None
        now, counts = max(self._minutes), {}
        for window in sorted({w for _, short, long in BURNS for w in (short, long)}):
            cells = [c for m, c in self._minutes.items() if m > now - window / 60]
            counts[window] = (sum(c[0] for c in cells), sum(c[1] for c in cells))
        return burning(counts, self._objective)

    def state(self) -> list[list[int]]:
        """Returns it as JSON values."""
        return [[minute, *cell] for minute, cell in self._minutes.items()]

    def load(self, state: object) -> None:
        """Becomes what `state` was taken of."""
        self._minutes = {m: [bad, n] for m, bad, n in cast("list[list[int]]", state)}


def lost(recorded: int, sent: int, *, tolerated: float = 0.01, alpha: float = 0.001) -> str | None:
    """Returns a sentence when more rows than `tolerated` (a share) are missing, or None.

    `sent`: what the proxy's own counter says; Bernoulli bets against the tolerated loss, valid
    whenever one looks.
    """
    missing = max(sent - recorded, 0)
    if sent <= 0 or rate_bets(missing, sent, tolerated) < -log(alpha):
        return None
    return f"{missing / sent:.1%} of {sent} requests have no row; {tolerated:.1%} may be missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What counters gained between two scrapes, while the candidate's share was `share`.

    `candidate` and `baseline` are events (failures, or requests over a histogram's bound).
    """

    share: float
    candidate: int
    baseline: int


def gained(before: float, after: float) -> int:
    """Returns what a counter gained; one that went back was restarted from 0."""
    return max(round(after - before if after >= before else after), 0)


def over_bounds(before: Mapping[float, float], after: Mapping[float, float]) -> dict[float, int]:
    """Returns, for each bound `le` of a cumulative histogram, how many values above it came.

    `before`, `after`: `le` → count, `inf` among them (Prometheus' classic histograms).
    """
    top = float("inf")
    if top not in after:
        raise UsageError("a histogram needs its bucket le=+Inf")
    restarted = after[top] < before.get(top, 0.0)
    old = {} if restarted else before
    whole = after[top] - old.get(top, 0.0)
    return {
        le: max(round(whole - (count - old.get(le, 0.0))), 0)
        for le, count in sorted(after.items())
        if le < top
    }


class Aggregates:
    """The comparison where only counters exist: bets on which arm events of an interval came from.

    The same formula as for single events (Lindon, Malek 2022), on sums: fewer looks, same bound.
    """

    def __init__(self, *, tolerate: float, margin: float) -> None:
        self._nulls = (1 + tolerate, 1 + margin)
        self._fail = Wealth(np.ones(len(_RATIOS)), restarts=True)
        self._safe = Wealth(np.ones(len(_LESS)))

    def add(self, delta: Delta) -> None:
        """Takes the events of one interval between scrapes."""
        if not 0 < delta.share < 1 or delta.candidate + delta.baseline <= 0:
            return
        for wealth, null, ratios in (
            (self._fail, self._nulls[0], _RATIOS),
            (self._safe, self._nulls[1], _LESS),
        ):
            wealth.grow(delta_bets(delta, null, ratios))

    def evidence(self) -> tuple[float, float]:
        """Returns the e-values to fail and for safe."""
        return exp(min(self._fail.value(), MAX_LOG)), exp(min(self._safe.best, MAX_LOG))

    def state(self) -> dict[str, object]:
        """Returns it as JSON values."""
        return {"fail": self._fail.state(), "safe": self._safe.state()}

    def load(self, state: Mapping[str, object]) -> None:
        """Becomes what `state` was taken of."""
        self._fail.load(state["fail"])
        self._safe.load(state["safe"])


def delta_bets(delta: Delta, null: float, ratios: Floats) -> Floats:
    """Returns the log wins, shape (k,), of `bets.event_bets` from an interval's sums."""
    odds = delta.share * null
    chance = odds / (odds + 1 - delta.share)
    events = delta.candidate + delta.baseline
    wins: Floats = delta.candidate * np.log(ratios) - events * np.log1p(chance * (ratios - 1))
    return wins


class Detector:
    """Watches a version alone, after its promotion: whether something became more frequent.

    An e-detector (Shin, Ramdas, Rinaldo 2023): M_t = (M_{t-1} + 1) × L_t, L_t being the likelihood
    ratio of a round's counts against `chance`, mixed over higher rates. While each request's chance
    is at most that, the mean number of rounds to an alarm is at least `rounds`, however long one
    watches. For a time: hits are requests over the old version's stored quantile, and `chance` is
    what that quantile leaves, times what is tolerated.
    """

    def __init__(self, chance: float, *, rounds: float) -> None:
        if not 0 < chance < 1 or rounds < 1:
            raise UsageError(f"a detector needs 0 < chance < 1 and rounds >= 1, not {chance}")
        self.chance = chance
        self._rates = np.minimum(chance * _WORSE, (1 + chance) / 2)
        self._threshold = log(rounds)
        self._logs = np.full(len(self._rates), -MAX_LOG)

    def add(self, hits: int, count: int) -> bool:
        """Takes a round's counts; says whether the alarm is on."""
        if count > 0 and 0 <= hits <= count:
            ups = np.log(self._rates / self.chance)
            downs = np.log1p(-self._rates) - np.log1p(-self.chance)
            grown = np.logaddexp(self._logs, 0.0) + hits * ups + (count - hits) * downs
            self._logs = np.clip(grown, -MAX_LOG, MAX_LOG)
        return self.alarm

    @property
    def alarm(self) -> bool:
        """True once the mixture is over its threshold, until evidence against it comes."""
        return log_mean_exp(self._logs) >= self._threshold

    def state(self) -> list[float]:
        """Returns it as JSON values."""
        return cast("list[float]", self._logs.tolist())

    def load(self, state: Sequence[float]) -> None:
        """Becomes what `state` was taken of."""
        self._logs = np.array(state, dtype=np.float64)


def stored_chance(values: Floats, limit: float, *, tolerate: float = 0.0) -> float:
    """Returns the chance that the old version's `values`, shape (n,), are over `limit`, at most.

    The upper end of a 99 % interval (Wilson 1927) times what is tolerated, for `Detector`.
    """
    if not len(values):
        raise UsageError("there is nothing stored of the old version")
    upper = upper_rate(int(np.sum(values > limit)), len(values))
    return min(max(upper * (1 + tolerate), 1e-9), 1 - 1e-9)


def upper_rate(hits: int, n: int) -> float:
    """Returns the upper end of a 99 % interval of a rate (Wilson 1927); `n` is above 0."""
    z, p = 2.326, hits / n
    middle = p + z * z / (2 * n)
    upper: float = (middle + z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5) / (1 + z * z / n)
    return upper
