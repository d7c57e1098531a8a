"""The smallest magnitudes of a stream, exactly, in two passes and half a megabyte.

The bits of a non-negative float32 are ordered like its value, so that a count of the upper 16 bits
and then of the lower 16 finds the n-th smallest without sorting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lockgate.derive.steps.weights.floats import Wide

Stream = Callable[[], Iterable[Wide]]
_HALF = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Parts magnitudes in small and large.

    Small is what has fewer `bits`, and the first `equal` of those that have as many.
    """

    bits: int
    equal: int


def magnitudes(values: Wide) -> NDArray[np.uint32]:
    """Returns the bits of the absolute values, ordered like them."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)


def cut(stream: Stream, small: int) -> Cut:
    """Returns what parts the `small` smallest magnitudes of a stream, read twice, from the rest."""
    if small <= 0:
        return Cut(bits=0, equal=0)
    upper = np.zeros(_HALF, np.int64)
    for part in stream():
        upper += np.bincount(magnitudes(part).reshape(-1) >> 16, minlength=_HALF)
    first, left = _bin(upper, small)
    lower = np.zeros(_HALF, np.int64)
    for part in stream():
        bits = magnitudes(part).reshape(-1)
        here = bits[bits >> 16 == first]
        lower += np.bincount(here & np.uint32(_HALF - 1), minlength=_HALF)
    second, left = _bin(lower, left)
    return Cut(bits=(first << 16) | second, equal=left)


def _bin(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """Returns the bin that holds the `wanted`-th element, and its place within the bin."""
    ends = np.cumsum(counts)
    place = int(np.searchsorted(ends, wanted))
    return place, wanted - int(ends[place] - counts[place])


def is_small(values: Wide, where: Cut, seen: int) -> tuple[NDArray[np.bool_], int]:
    """Returns which of the next `values` of the stream are small, and the equals seen so far."""
    bits = magnitudes(values)
    same = bits == where.bits
    ranks = np.cumsum(same.reshape(-1)).reshape(values.shape) + seen
    small = (bits < where.bits) | (same & (ranks <= where.equal))
    return small, seen + int(same.sum())
