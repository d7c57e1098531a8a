"""Summaries of a stream in bounded memory: moments, a sample, frequent and distinct values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]
_GOLD = np.uint64(0x9E3779B97F4A7C15)
SAMPLE = 8192
SMALLEST = 4096


class Moments:
    """Count, mean and variance of a stream, batch by batch.

    Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
    variances", equation 2.1.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, values: Floats) -> None:
        """Adds finite values."""
        n = len(values)
        if not n:
            return
        with np.errstate(all="ignore"):
            mean = float(values.mean())
            squares = float(np.square(values - mean).sum())
            apart, total = mean - self.mean, self.n + n
            self._squares += squares + apart * apart * self.n * n / total
            self.mean += apart * n / total
        self.n = total

    @property
    def std(self) -> float:
        """The sample's standard deviation (n - 1); NaN below two values."""
        return math.sqrt(self._squares / (self.n - 1)) if self.n > 1 else math.nan


class Sample:
    """A uniform sample without replacement: the values with the smallest random keys.

    (Bottom-k sampling with uniform keys; Vitter 1985's reservoir has the same law.)
    """

    def __init__(self, rng: np.random.Generator, size: int = SAMPLE) -> None:
        self._rng = rng
        self._size = size
        self._keys = np.empty(0)
        self.values = np.empty(0)
        self.seen = 0

    def add(self, values: Floats) -> None:
        """Looks at values, in order; the sample depends on them and the generator alone."""
        keys = self._rng.random(len(values))
        self.seen += len(values)
        if len(self._keys) == self._size:
            near = keys < self._keys.max()
            keys, values = keys[near], values[near]
        keys, values = np.concatenate([self._keys, keys]), np.concatenate([self.values, values])
        if len(keys) > self._size:
            kept = np.argpartition(keys, self._size - 1)[: self._size]
            keys, values = keys[kept], values[kept]
        self._keys, self.values = keys, values

    def quantiles(self, shares: tuple[float, ...]) -> list[float]:
        """Returns quantiles by linear interpolation (type 7 of Hyndman and Fan 1996)."""
        return [float(q) for q in np.quantile(self.values, shares)] if len(self.values) else []


class Distinct:
    """How many different values: exact while there are few, then estimated from hashes.

    The estimate is (k - 1) / (k-th smallest hash as a share), Bar-Yossef et al. 2002; its relative
    standard error (`error`) is about 1/sqrt(k - 2), 1.6 % for k = 4096. Counts of the most frequent
    values are exact as long as the number is; then they are those of Misra and Gries 1982 (merged
    as in Agarwal et al. 2012), too low by at most rows / (`frequent` + 1).
    """

    def __init__(self, bound: int, frequent: int = 1000, smallest: int = SMALLEST) -> None:
        self._bound = bound
        self._frequent = frequent
        self._size = smallest
        self.error = 1 / math.sqrt(smallest - 2)
        self._counts: dict[Any, int] = {}
        self._smallest: Hashes | None = None
        self.lost = 0

    @property
    def exact(self) -> bool:
        """Whether number and counts are exact."""
        return self._smallest is None

    def add(self, values: Any, counts: Any) -> None:
        """Adds different values (an Arrow array without null) and how often each came."""
        if self._smallest is None and len(values) + len(self._counts) > self._bound:
            new = sum(value not in self._counts for value in values.to_pylist())
            if new + len(self._counts) > self._bound:
                self._leave_exact(values.type)
        if self._smallest is not None:
            self._smallest = _smallest(self._smallest, hash_array(values), self._size)
            values, counts = self._frequent_of(values, counts.to_numpy(zero_copy_only=False))
        else:
            counts = counts.to_pylist()
        for value, count in zip(values.to_pylist(), counts, strict=True):
            self._counts[value] = self._counts.get(value, 0) + int(count)
        if self._smallest is not None:
            self._prune()

    def _leave_exact(self, kind: Any) -> None:
        import pyarrow as pa

        seen = pa.array(list(self._counts), kind)
        self._smallest = _smallest(np.empty(0, np.uint64), hash_array(seen), self._size)
        self._prune()

    def _frequent_of(self, values: Any, counts: Any) -> tuple[Any, Any]:
        """Returns a batch's own summary, so that few values go through Python."""
        import pyarrow as pa

        if len(counts) <= self._frequent:
            return values, counts
        less = int(np.partition(counts, -self._frequent - 1)[-self._frequent - 1])
        kept = np.flatnonzero(counts > less)
        self.lost += less
        return values.take(pa.array(kept)), counts[kept] - less

    def _prune(self) -> None:
        if len(self._counts) > self._frequent:
            less = sorted(self._counts.values(), reverse=True)[self._frequent]
            self._counts = {v: c - less for v, c in self._counts.items() if c > less}
            self.lost += less

    def number(self) -> int:
        """Returns how many different values came, or the estimate."""
        if self._smallest is None:
            return len(self._counts)
        k = len(self._smallest)
        if k < self._size:
            return k
        return round((k - 1) / (float(self._smallest[-1]) / 2.0**64))

    def top(self, size: int) -> Mapping[Any, int]:
        """Returns the most frequent values with their counts, ties in the values' own order."""
        order = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return dict(order[:size])


def _smallest(kept: Hashes, more: Hashes, size: int) -> Hashes:
    if len(kept) == size:
        more = more[more < kept[-1]]
    return np.unique(np.concatenate([kept, more]))[:size]


def mix(hashes: Hashes) -> Hashes:
    """Returns 64-bit words scrambled (the finalizer of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        h = hashes + _GOLD
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(h ^ (h >> np.uint64(31)), np.uint64)


def hash_array(array: Any) -> Hashes:
    """Returns a 64-bit hash of each cell; equal cells, null and -0.0 among them, have equal ones.

    Texts by XXH3, numbers, dates and times by their bits.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as pt

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    isnull = pc.is_null(array).to_numpy(zero_copy_only=False)
    if pt.is_string(array.type):
        found = _of_texts(array)
    elif pt.is_floating(array.type):
        plain = pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False) + 0.0
        found = np.where(np.isnan(plain), np.nan, plain).view(np.uint64)
    else:
        wide = array.cast(pa.int32()) if pt.is_date32(array.type) else array
        whole = pc.fill_null(wide.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        found = whole.view(np.uint64)
    found = mix(np.asarray(found, np.uint64))
    found[isnull] = np.uint64(0x6E756C6C)
    return found


def _of_texts(array: Any) -> Hashes:
    import xxhash

    coded = array.dictionary_encode()
    hashed = np.fromiter(
        (xxhash.xxh3_64_intdigest(text.encode()) for text in coded.dictionary.to_pylist()),
        np.uint64, len(coded.dictionary),
    )  # fmt: skip
    places = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    if not len(hashed):
        return np.zeros(len(array), np.uint64)
    return np.asarray(hashed[places], np.uint64)


def hash_rows(table: Any) -> Hashes:
    """Returns a 64-bit hash of each row of a table: over its cells in the order of its columns."""
    with np.errstate(over="ignore"):
        total = np.zeros(table.num_rows, np.uint64)
        for column in table.columns:
            total = mix(total * _GOLD + hash_array(column))
        return total
