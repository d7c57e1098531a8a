"""The sequential judge: a case takes the log's rows one after another and keeps sums.

Everything follows from the order of the log (docs/adr/0007): rows are gathered until the log's own
clock closes a time bucket, and then taken as one stretch, however they came in batches. Fail: the
mean of the checks' e-values reaches 1/alpha. Pass: every check has its proof, once 1/beta. Else
hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from hashlib import sha256
from math import floor, log
from typing import Any, cast

import numpy as np

from lockgate.analysis.bets import Floats, Wealth, log_mean_exp
from lockgate.analysis.checks import Case, JudgeRules, Look, find_signal
from lockgate.analysis.estimates import Sketch
from lockgate.analysis.guards import Burn
from lockgate.analysis.rows import (
    MIRRORED,
    SCORED,
    Pairs,
    Reader,
    Rows,
    Sessions,
    count,
    empty,
    join,
    pack,
    sound,
    take,
    unpack,
)
from lockgate.analysis.scores import make_track
from lockgate.analysis.tracks import ahead
from lockgate.analysis.verdicts import Reading, verdict_of
from lockgate.core.errors import IntegrityError
from lockgate.core.traffic import Sample
from lockgate.core.verdict import Verdict

_FORMAT = 1
_MISMATCH = 0.001
_MIN_LAG_S = 0.5
_LAG_LEVEL = 0.8
_MAX_ROWS = 20_000
"""Rows that wait at most, for the clock or for their bucket; then they are taken as they are."""
_DRIFTS = np.array([-0.5, -0.25, -0.1, -0.05, -0.02, 0.02, 0.05, 0.1, 0.25, 0.5])


class SequentialJudge:
    """The `Judge` that lockgate uses: assignment e-processes against the live baseline."""

    def open(self, rules: JudgeRules, *, candidate: str, baseline: str | None) -> Case:
        """See `Judge.open`."""
        return SequentialCase(rules, candidate=candidate, baseline=baseline)

    def resume(
        self,
        rules: JudgeRules,
        state: Mapping[str, object],
        *,
        candidate: str,
        baseline: str | None,
    ) -> Case:
        """See `Judge.resume`."""
        case = SequentialCase(rules, candidate=candidate, baseline=baseline)
        case.load(state)
        return case


class SequentialCase:
    """The evidence about one candidate; see `Case`."""

    def __init__(self, rules: JudgeRules, *, candidate: str, baseline: str | None) -> None:
        self._rules = rules
        self._of = sha256(repr((_FORMAT, rules, candidate, baseline)).encode()).hexdigest()
        pairs = [(check, find_signal(check.signal)) for check in rules.checks]
        self._tracks = [make_track(check, signal, rules.adjust) for check, signal in pairs]
        needed = [signal for _, signal in pairs]
        self._burn = None if rules.slo is None else Burn(rules.slo)
        if self._burn is not None:
            needed.append(find_signal("error_rate"))
        self._reader = Reader(needed, rules.adjust, candidate, baseline)
        self._sessions = Sessions()
        self._pairs = Pairs()
        self._ratio = Wealth(np.ones(len(_DRIFTS)))
        self._durations = Sketch(linear=False)
        self._lag = min(rules.bucket_s, rules.max_lag_s)
        self._clock = float("-inf")
        self._first = float("inf")
        self._tick: int | None = None
        self._waiting: list[Rows] = []
        self._open: Rows = empty(self._reader.columns())
        self._seen: dict[int, int] = {}
        self._split = [0.0, 0.0, 0.0]
        self._guilty: list[float] = []
        self.best = 0.0
        """The most evidence to fail that there ever was, over all checks (a logarithm)."""

    def add(self, samples: Sequence[Sample]) -> None:
        """See `Case.add`."""
        self.add_rows(self._reader.read(samples))

    def add_rows(self, rows: Rows) -> None:
        """Takes the next rows of the log as columns: those of `Reader.columns`."""
        rows = sound(rows)
        if not count(rows):
            return
        ends = np.maximum.accumulate(
            np.concatenate([[self._clock], rows["at"] + rows["duration"]])
        )[1:]
        self._first = min(self._first, float(rows["at"][0]))
        if self._tick is None:
            self._tick = self._tick_at(float(ends[0]))
        begin, size = 0, len(ends)
        while begin < size:
            due = (self._tick + 1) * self._rules.bucket_s + self._lag
            stop = max(int(np.searchsorted(ends, due, side="left")), begin)
            full = begin + _MAX_ROWS - sum(count(part) for part in self._waiting)
            if full <= stop:
                self._wait(rows, ends, begin, full)
                self._take(self._tick, whole=True)
                begin = full
                continue
            self._wait(rows, ends, begin, stop)
            if stop < size:
                self._take(max(self._tick_at(float(ends[stop])), self._tick + 1), whole=False)
            begin = stop

    def _wait(self, rows: Rows, ends: Floats, begin: int, stop: int) -> None:
        if stop > begin:
            self._waiting.append(take(rows, slice(begin, stop)))
            self._clock = float(ends[stop - 1])

    def _tick_at(self, clock: float) -> int:
        return floor((clock - self._lag) / self._rules.bucket_s)

    def _take(self, tick: int, *, whole: bool) -> None:
        """Takes the rows that wait as one stretch, and closes the buckets before `tick`."""
        before, self._tick = cast("int", self._tick), tick
        if self._waiting:
            self._fold(join(self._waiting))
            self._waiting = []
        level = self._durations.weighted(1)[0]
        if level.any():
            slow = 1.1 * self._durations.quantile(level, _LAG_LEVEL)
            self._lag = min(max(slow, _MIN_LAG_S), self._rules.max_lag_s)
        self._close(before, tick, whole=whole or count(self._open) > _MAX_ROWS)
        self._latch()

    def _fold(self, rows: Rows) -> None:
        """Gives rows to every track; those of scorers are a bucket, the others wait for theirs."""
        columns = [signal.column for signal in self._reader.signals]
        if columns and (pairs := self._pairs.match(rows, columns)):
            for track in self._tracks:
                track.pair(pairs)
        mine, drawn = _judged(rows, self._sessions)
        for track in self._tracks:
            track.fold(drawn, mine)
        scored = drawn["kind"] & SCORED > 0
        if bool(scored.any()):
            late, drawn = take(drawn, scored), take(drawn, ~scored)
            for track in self._tracks:
                if track.signal.measure == "score":
                    track.settle(late)
        for revision, n in _candidates(rows).items():
            self._seen[revision] = self._seen.get(revision, 0) + n
        if self._burn is not None:
            ours = (mine["arm"] == 1) & ~np.isnan(mine["error"])
            self._burn.add(mine["at"][ours], mine["error"][ours])
        self._open = join([self._open, drawn]) if count(self._open) else drawn
        once, half = np.ones(count(drawn)), np.full(count(drawn), 0.5)
        self._durations.add(once, half, drawn["duration"])
        split = (drawn["share"] > 0) & (drawn["share"] < 1)
        arms, shares = drawn["arm"][split].astype(np.float64), drawn["share"][split]
        if len(arms):
            self._split[0] += len(arms)
            self._split[1] += float(np.sum(arms))
            self._split[2] += float(np.sum(shares))
            self._ratio.grow(_ratio_bets(arms, shares))

    def _close(self, before: int, tick: int, *, whole: bool) -> None:
        """Settles the buckets before `tick`; a row that came late is of the first of them."""
        bucket = np.maximum(np.floor(self._open["at"] / self._rules.bucket_s), before)
        closed = np.full(len(bucket), fill_value=True) if whole else bucket < tick
        if not closed.any():
            return
        rows, self._open = take(self._open, closed), take(self._open, ~closed)
        bucket = bucket[closed]
        for number in np.unique(bucket):
            group = take(rows, bucket == number)
            for track in self._tracks:
                if track.signal.measure != "score":
                    track.settle(group)

    def _latch(self) -> None:
        """Remembers the moment at which the evidence was enough to fail."""
        logs = [track.logs()[0] for track in self._tracks]
        deciding = [e for t, e in zip(self._tracks, logs, strict=True) if not t.check.dry_run]
        if deciding:
            total = log_mean_exp(np.array(deciding))
            if not self._guilty and total >= -log(self._rules.alpha):
                self._guilty = logs
            self.best = max(self.best, total)

    def verdict(self, look: Look) -> Verdict:
        """See `Case.verdict`."""
        tracks, seen = self._tracks, dict(self._seen)
        if self._waiting:
            rows = join(self._waiting)
            mine, drawn = _judged(rows, deepcopy(self._sessions))
            tracks = [ahead(track, drawn, mine) for track in tracks]
            for revision, n in _candidates(rows).items():
                seen[revision] = seen.get(revision, 0) + n
        reading = Reading(
            rules=self._rules,
            tracks=tuple(tracks),
            requests=sum(n for revision, n in seen.items() if revision >= look.since_revision),
            all_requests=sum(seen.values()),
            over_s=max(self._clock - self._first, 0.0) if seen else 0.0,
            share=self._split[2] / self._split[0] if self._split[0] else 0.0,
            mismatch=self._mismatch(),
            burning=self._burn.alarm if self._burn is not None else None,
            guilty=tuple(self._guilty),
        )
        return verdict_of(reading, look)

    def _mismatch(self) -> str | None:
        """Returns the reason to judge nothing when rows do not match the weights, else None."""
        if self._ratio.value() < -log(_MISMATCH):
            return None
        units, ours, expected = self._split
        return (
            f"rows do not match the weights: {ours / units:.2%} of {units:.0f} came from the "
            f"candidate, {expected / units:.2%} were sent there; are the gateway's rows complete?"
        )

    def state(self) -> Mapping[str, object]:
        """See `Case.state`."""
        return {
            "of": self._of,
            "tracks": [track.state() for track in self._tracks],
            "paired": self._reader.paired,
            "sessions": self._sessions.state(),
            "pairs": self._pairs.state(),
            "ratio": self._ratio.state(),
            "durations": self._durations.state(),
            "lag": self._lag,
            "clock": self._clock if self._tick is not None else None,
            "first": self._first if self._tick is not None else None,
            "tick": self._tick,
            "waiting": pack(join(self._waiting)) if self._waiting else None,
            "open": pack(self._open),
            "seen": sorted([revision, n] for revision, n in self._seen.items()),
            "split": list(self._split),
            "guilty": list(self._guilty),
            "best": self.best,
            "burn": self._burn.state() if self._burn is not None else None,
        }

    def load(self, state: Mapping[str, object]) -> None:
        """Becomes the case that `state` was taken of; raises IntegrityError for another one's."""
        if state.get("of") != self._of:
            raise IntegrityError(
                "this evidence is about other versions, or was judged under other rules",
                hint="open a new case and read the release's samples again",
            )
        values = cast("Mapping[str, Any]", state)
        for track, kept in zip(self._tracks, values["tracks"], strict=True):
            track.load(kept)
        self._reader.paired = values["paired"]
        if self._burn is not None:
            self._burn.load(values["burn"])
        self._sessions.load(values["sessions"])
        self._pairs.load(values["pairs"])
        self._ratio.load(values["ratio"])
        self._durations.load(values["durations"])
        self._lag, self._tick = float(values["lag"]), values["tick"]
        if self._tick is not None:
            self._clock, self._first = float(values["clock"]), float(values["first"])
        self._waiting = [unpack(values["waiting"])] if values["waiting"] else []
        self._open = unpack(values["open"])
        self._seen = {int(revision): int(n) for revision, n in values["seen"]}
        self._split = [float(n) for n in values["split"]]
        self._guilty = [float(log_e) for log_e in values["guilty"]]
        self.best = float(values["best"])


def _judged(rows: Rows, sessions: Sessions) -> tuple[Rows, Rows]:
    """Returns the rows that a caller waited for, and those of them that may be bet on."""
    alive = rows["kind"] & MIRRORED == 0
    mine = rows if bool(alive.all()) else take(rows, alive)
    return mine, sessions.drawn(mine)


def _candidates(rows: Rows) -> dict[int, int]:
    """Returns how many requests the candidate had at each revision, shadow requests too."""
    ours = rows["revision"][(rows["arm"] == 1) & (rows["kind"] & SCORED == 0)]
    revisions, counts = np.unique(ours, return_counts=True)
    return dict(zip(revisions.tolist(), counts.tolist(), strict=True))


def _ratio_bets(arms: Floats, shares: Floats) -> Floats:
    """Returns the log wins of bets on the arms themselves: of a few shares, or of one a row."""
    total = np.zeros(len(_DRIFTS))
    for share in np.unique(shares):
        mine = arms[shares == share]
        total += np.sum(mine) * _DRIFTS - len(mine) * np.log1p(share * np.expm1(_DRIFTS))
    return total
