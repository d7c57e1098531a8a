"""Samples as columns: what a case reads of a row, and nothing else.

A row that can't be judged is left out: of another version, a time that is no number, a propensity
outside (0, 1]. A value that can't be (negative, infinite) is NaN, as one that is not there.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from operator import attrgetter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lockgate.analysis.checks import Signal
from lockgate.core.errors import UsageError
from lockgate.core.traffic import WHOLE, Sample

Floats = NDArray[np.float64]
Array = NDArray[Any]
Rows = Mapping[str, Array]
"""Column → array of shape (n,), rows in the log's order.

`at`, `duration` (s), `arm` (1: the candidate), `share` (the probability of the candidate),
`revision`, `kind` (flags below), `unit` and `id` (hashes; 0: none), one column for each signal and
covariate (NaN: none).
"""

STICKY, MIRRORED, SCORED = 1, 2, 4
COVARIATES = ("request_bytes",)

_FIELDS = attrgetter(
    "at", "version", "propensity", "revision", "status", "duration_s", "first_body_s", "tokens",
    "bytes_in", "flags", "unit", "scores", "mirrored",
)  # fmt: skip
_TIMEOUTS = frozenset({"UT", "SI", "DT"})
_REFUSALS = (403, 429)
_TYPES = {"revision": "<i8", "kind": "|i1", "unit": "<u8", "id": "<u8", "arm": "|i1"}
_FURTHEST_S = 1e12
_LARGEST = 0xFFFF_FFFF_FFFF_FFFF
_BITS = 1 << 20
_PROBES = 4
_PENDING = 4096


class Reader:
    """Turns samples into rows for some signals; remembers whether shadow rows have begun."""

    def __init__(
        self, signals: Iterable[Signal], adjust: Sequence[str], candidate: str, baseline: str | None
    ) -> None:
        if unknown := set(adjust) - set(COVARIATES):
            raise UsageError(
                f"{min(unknown)!r} is no covariate", hint=f"known: {', '.join(COVARIATES)}"
            )
        self.signals = tuple({signal.column: signal for signal in signals}.values())
        self.adjust = tuple(adjust)
        self.arms = {baseline or "": 0, candidate: 1}
        self.paired = False
        """True from the first shadow row on: requests are remembered by their id from there."""

    def columns(self) -> tuple[str, ...]:
        """Returns the names of the columns of its rows."""
        base = ("at", "duration", "arm", "share", "revision", "kind", "unit", "id")
        return (*base, *(signal.column for signal in self.signals), *self.adjust)

    def read(self, samples: Sequence[Sample]) -> Rows:
        """Returns the rows of `samples` that can be judged."""
        if not samples:
            return empty(self.columns())
        (at, version, propensity, revision, status, duration, first, tokens, bytes_in, flags, unit,
         scores, mirrored) = zip(*map(_FIELDS, samples), strict=True)  # fmt: skip
        arms = np.array([self.arms.get(name, -1) for name in version], dtype=np.int8)
        shares = np.array(propensity, dtype=np.float64)
        shares = np.where((shares > 0) & (shares <= 1), shares, np.nan)
        rows: dict[str, Array] = {
            "at": np.array(at, dtype=np.float64),
            "duration": np.array(duration, dtype=np.float64),
            "arm": arms,
            "share": np.round(np.where(arms == 1, shares, 1.0 - shares), 9),
            "revision": np.array(revision, dtype=np.int64),
        }
        kinds = np.zeros(len(samples), dtype=np.int8)
        if any(mirrored):
            kinds += np.array(mirrored, dtype=np.int8) * MIRRORED
        if any(scores):
            kinds += np.array([bool(s) for s in scores], dtype=np.int8) * SCORED
        rows["unit"] = np.zeros(len(samples), dtype=np.uint64)
        if unit.count(None) < len(unit):
            kinds += np.array([u is not None for u in unit], dtype=np.int8) * STICKY
            rows["unit"] = np.array([(u or 0) & _LARGEST for u in unit], dtype=np.uint64)
        rows["kind"] = kinds
        rows["id"] = self._ids(samples, kinds)
        seen = _Seen(
            status=np.array(status, dtype=np.float64),
            flags=flags,
            duration=rows["duration"],
            first=np.array(first, dtype=np.float64),
            tokens=np.array(tokens, dtype=np.float64),
            scores=scores,
            scored=(kinds & SCORED) > 0,
        )
        for signal in self.signals:
            rows[signal.column] = seen.values(signal)
            if signal.measure == "refusal":  # its request has a row, and was one draw with it
                rows[signal.column][(kinds & SCORED > 0) & (kinds & STICKY > 0)] = np.nan
        if "request_bytes" in self.adjust:
            size = np.maximum(np.array(bytes_in, dtype=np.float64), 0.0)
            rows["request_bytes"] = np.log1p(np.where(np.isfinite(size), size, 0.0))
        return sound(rows)

    def _ids(self, samples: Sequence[Sample], kinds: Array) -> Array:
        found = np.zeros(len(samples), dtype=np.uint64)
        first = 0
        if not self.paired:
            shadows = np.flatnonzero(kinds & MIRRORED)
            if not len(shadows):
                return found
            first, self.paired = int(shadows[0]), True
        for i in range(first, len(samples)):
            if samples[i].request_id:
                digest = blake2b(samples[i].request_id.encode(), digest_size=8).digest()
                found[i] = int.from_bytes(digest, "big") or 1
        return found


class _Seen:
    """The fields of samples as arrays, and each signal's values from them."""

    def __init__(
        self, *, status: Floats, flags: Sequence[str], duration: Floats, first: Floats,
        tokens: Floats, scores: Sequence[Mapping[str, float]], scored: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        self.status, self.duration, self.first, self.tokens = status, duration, first, tokens
        self.scores, self.scored = scores, scored
        self.flagged = np.zeros(len(flags), dtype=np.bool_)
        if any(flags):
            self.flagged = np.array([bool(flag) for flag in flags])
        self.flags = flags
        self.failed = (status == 0) | (status >= 500) | self.flagged

    def values(self, signal: Signal) -> Floats:
        """Returns the signal's value of each row; NaN where it has none, as a failed one's time."""
        if signal.measure in ("mark", "score"):
            return self._scored(signal.key, event=signal.event)
        if signal.measure == "error":
            found = self.failed.astype(np.float64)
        elif signal.measure == "timeout":
            late = [bool(_TIMEOUTS.intersection(f.split(","))) if f else False for f in self.flags]
            found = ((self.status == 504) | np.array(late)).astype(np.float64)
        elif signal.measure == "refusal":
            refused = np.isin(self.status, _REFUSALS).astype(np.float64)
            return np.where(self.scored, self._scored("refusal", event=True), refused)
        else:
            found = self._time(signal.measure)
        return np.where(self.scored, np.nan, found)

    def _time(self, measure: str) -> Floats:
        with np.errstate(all="ignore"):
            decode = np.maximum(self.duration - self.first, 1e-6)
            enough = (self.tokens >= 2) & np.isfinite(self.first)
            found = {
                "latency": self.duration,
                "ttft": self.first,
                "tokens": self.tokens,
                "tpot": np.where(enough, decode / (self.tokens - 1), np.nan),
                "throughput": np.where(
                    enough, self.tokens / np.maximum(self.duration, 1e-6), np.nan
                ),
            }[measure]
            lost = self.failed | (self.status >= 400) | ~np.isfinite(found) | (found < 0)
        return np.where(lost, np.nan, found)

    def _scored(self, key: str, *, event: bool) -> Floats:
        found = np.full(len(self.scores), np.nan)
        for i in np.flatnonzero(self.scored).tolist():
            found[i] = self.scores[i].get(key, np.nan)
        found = np.clip(np.where(np.isfinite(found), found, np.nan), 0.0, 1.0)
        return np.where(np.isnan(found), np.nan, (found > 0.5) * 1.0) if event else found


def sound(rows: Rows) -> Rows:
    """Returns the rows that can be judged: of the two versions, at a time that is a number."""
    keep = rows["arm"] >= 0
    keep &= np.abs(rows["at"]) <= _FURTHEST_S  # false for NaN
    keep &= (rows["duration"] >= 0) & (rows["duration"] <= _FURTHEST_S)
    keep &= (rows["share"] >= 0) & (rows["share"] <= 1)
    return dict(rows) if bool(keep.all()) else take(rows, keep)


def empty(columns: Iterable[str]) -> Rows:
    """Returns rows with these columns, none of them."""
    return {name: np.empty(0, dtype=_TYPES.get(name, "<f8")) for name in columns}


def take(rows: Rows, which: slice | Array) -> dict[str, Array]:
    """Returns the rows that `which` (a slice, a mask or indices) names."""
    return {name: column[which] for name, column in rows.items()}


def join(parts: Sequence[Rows]) -> Rows:
    """Returns all rows of `parts` (at least one; same columns), in their order."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def count(rows: Rows) -> int:
    """Returns how many rows there are."""
    return len(rows["at"])


def pack(rows: Rows) -> dict[str, str]:
    """Returns rows as JSON values: each column's bytes in base64."""
    return {
        name: b64encode(column.astype(_TYPES.get(name, "<f8")).tobytes()).decode()
        for name, column in rows.items()
    }


def unpack(state: object) -> Rows:
    """Returns the rows that `pack` made JSON of."""
    return {
        name: np.frombuffer(b64decode(text), dtype=_TYPES.get(name, "<f8")).copy()
        for name, text in cast("dict[str, str]", state).items()
    }


class Sessions:
    """Leaves one row of each session and revision, with the probability of its draw.

    On a sticky route the draw is a function of the session's hash: the candidate has the end of the
    range of hash % 10,000. When its weight grows from w0 to w1, the sessions that were outside are
    drawn anew with probability (w1 - w0) / (1 - w0), and nothing was seen that depends on that
    draw: each is one unit of the new revision. The others' version was known before, so they prove
    nothing (conditional re-randomisation, as in Ham et al. 2022).
    """

    def __init__(self) -> None:
        self._revision = -1
        self._weight = 0
        self._before = 0
        self._bits = bytearray(0)

    def drawn(self, rows: Rows) -> Rows:
        """Returns the rows that may be bet on; `share` is what their draw had.

        A row that was drawn by itself stays as it is. Sessions are remembered in a Bloom filter of
        128 KiB, anew for each revision; a false positive only leaves a session out.
        """
        sticky = np.flatnonzero(rows["kind"] & STICKY)
        if not len(sticky):
            return rows
        shares = rows["share"].copy()
        keep = np.ones(len(shares), dtype=np.bool_)
        keep[sticky] = False
        slots = (rows["unit"][sticky] % np.uint64(WHOLE)).tolist()
        weights = np.rint(shares[sticky] * WHOLE).astype(np.int64).tolist()
        revisions = rows["revision"][sticky].tolist()
        probes = _probes(rows["unit"][sticky], rows["kind"][sticky] & SCORED).tolist()
        for i, index in enumerate(sticky.tolist()):
            if revisions[i] > self._revision:
                self._begin(revisions[i], weights[i])
            now = revisions[i] == self._revision and weights[i] == self._weight
            outside = slots[i] < WHOLE - self._before
            if now and outside and self._weight > self._before and self._first(probes[i]):
                keep[index] = True
                shares[index] = (self._weight - self._before) / (WHOLE - self._before)
        return take({**rows, "share": shares}, keep)

    def _first(self, probes: list[int]) -> bool:
        """Remembers a session; says whether it had not been seen at this revision."""
        bits = self._bits
        if all(bits[p >> 3] & (1 << (p & 7)) for p in probes):
            return False
        for p in probes:
            bits[p >> 3] |= 1 << (p & 7)
        return True

    def _begin(self, revision: int, weight: int) -> None:
        self._before = max(self._before, self._weight)
        self._revision, self._weight = revision, weight
        self._bits = bytearray(_BITS // 8)

    def state(self) -> dict[str, object]:
        """Returns it as JSON values."""
        return {
            "revision": self._revision, "weight": self._weight, "before": self._before,
            "bits": b64encode(self._bits).decode(),
        }  # fmt: skip

    def load(self, state: object) -> None:
        """Becomes what `state` was taken of."""
        values = cast("Mapping[str, object]", state)
        self._revision, self._weight, self._before = (
            int(cast("int", values[name])) for name in ("revision", "weight", "before")
        )
        self._bits = bytearray(b64decode(cast("str", values["bits"])))


class Pairs:
    """Finds the shadow copy of a request, for comparing the two answers to one question.

    At most 4,096 rows wait for their other half, the oldest go first.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], tuple[int, list[float]]] = {}

    def match(self, rows: Rows, columns: Sequence[str]) -> dict[str, Floats] | None:
        """Returns the values of each found pair: column → shape (pairs, 2), baseline first."""
        shadow = (rows["kind"] & MIRRORED > 0).astype(np.int8)
        half = np.flatnonzero((rows["id"] > 0) & (shadow == rows["arm"]))
        if not len(half):
            return None
        table = np.stack([rows[name][half] for name in columns], axis=1).tolist()
        names = zip(rows["id"][half].tolist(), (rows["kind"][half] & SCORED).tolist(), strict=True)
        found = []
        for name, arm, values in zip(names, rows["arm"][half].tolist(), table, strict=True):
            other = self._waiting.get(name)
            if other is None:
                self._waiting[name] = (arm, values)
                if len(self._waiting) > _PENDING:
                    del self._waiting[next(iter(self._waiting))]
            elif other[0] != arm:
                del self._waiting[name]
                found.append((values, other[1]) if arm == 0 else (other[1], values))
        if not found:
            return None
        pairs = np.array(found, dtype=np.float64)
        return {column: pairs[:, :, i] for i, column in enumerate(columns)}

    def state(self) -> list[list[object]]:
        """Returns it as JSON values."""
        return [
            [name, scored, arm, [None if v != v else v for v in values]]
            for (name, scored), (arm, values) in self._waiting.items()
        ]

    def load(self, state: object) -> None:
        """Becomes what `state` was taken of."""
        self._waiting = {
            (int(name), int(scored)): (
                int(arm),
                [np.nan if v is None else float(v) for v in values],
            )
            for name, scored, arm, values in cast("list[list[Any]]", state)
        }


def _probes(units: Array, kinds: Array) -> Array:
    """Returns the filter's bits of each session, shape (n, 4): splitmix64 (Steele et al. 2014)."""
    mixed = units ^ (kinds.astype(np.uint64) << np.uint64(32))
    found = np.empty((len(units), _PROBES), dtype=np.uint64)
    for i in range(_PROBES):
        mixed = mixed + np.uint64(0x9E3779B97F4A7C15)
        z = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found[:, i] = (z ^ (z >> np.uint64(31))) % np.uint64(_BITS)
    return found
