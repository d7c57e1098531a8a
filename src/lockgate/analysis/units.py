"""What the proxy drew: a request, or a session that stays where it was drawn.

On a sticky route the draw is a function of the session's hash: the candidate has the end of the
range of hash % 10,000. When its weight grows from w0 to w1, the sessions that were outside are
drawn anew with probability (w1 - w0) / (1 - w0), and nothing was seen that depends on that draw:
each is one unit of the new revision. The others' version was known before, so they prove nothing.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import cast

import numpy as np

from lockgate.analysis.rows import SCORED, STICKY, Array, Rows, take
from lockgate.core.traffic import WHOLE

_BITS = 1 << 20
_PROBES = 4


class Sessions:
    """Leaves one row of each session and revision, with the probability of its draw."""

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
