"""Weights as levels and scales: w ≈ (level - zero) · scale, rounded to the nearest level.

Scales come from the smallest and largest weight of a group, as compressed-tensors takes them, and
are rounded to the type that they are stored in before any weight is divided by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockgate.derive.steps.quantizing.scheme import Scheme
from lockgate.derive.steps.weights.floats import Wide, decode_e4m3, encode_e4m3, rounded

_EPSILON = {"F16": 2.0**-10, "BF16": 2.0**-7, "F32": 2.0**-23}
_SHRINKS = tuple(1 - step / 40 for step in range(1, 21))  # 0.975 … 0.5 of the full range


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """Of rows [rows, columns]: `scale` and `zero`, a whole number, float32 [rows, groups]."""

    scale: Wide
    zero: Wide

    def wide(self, columns: int) -> tuple[Wide, Wide]:
        """Returns scale and zero for every weight [rows, columns]."""
        each = columns // self.scale.shape[1]
        return np.repeat(self.scale, each, axis=1), np.repeat(self.zero, each, axis=1)

    def rows(self, begin: int, end: int) -> Scales:
        """Returns those of some of the rows."""
        return Scales(scale=self.scale[begin:end], zero=self.zero[begin:end])


def scales_of(rows: Wide, scheme: Scheme, dtype: str, *, search: bool) -> Scales:
    """Returns the scales of rows [rows, columns], stored as `dtype`.

    `search` also tries smaller ranges, down to half, and takes for each group the one with the
    least squared error: large weights are clipped so that all others are closer.
    """
    grouped = _grouped(rows, scheme)
    low = np.minimum(grouped.min(axis=2), 0)
    high = np.maximum(grouped.max(axis=2), 0)
    best = scales_from(low, high, scheme, dtype)
    if not search:
        return best
    least = _errors(rows, best, scheme)
    scale, zero = best.scale.copy(), best.zero.copy()
    for shrink in _SHRINKS:
        factor = np.float32(shrink)
        tried = scales_from(low * factor, high * factor, scheme, dtype)
        error = _errors(rows, tried, scheme)
        better = error < least
        least = np.where(better, error, least)
        scale[better], zero[better] = tried.scale[better], tried.zero[better]
    return Scales(scale=scale, zero=zero)


def scales_from(low: Wide, high: Wide, scheme: Scheme, dtype: str) -> Scales:
    """Returns the scales for weights from `low` (≤ 0) to `high` (≥ 0), [rows, groups] each.

    Symmetric: max(|low|, |high|) / ((highest - lowest level) / 2); else (high - low) / (highest -
    lowest level) and the zero that puts `low` at the lowest level.
    """
    span = np.float32(scheme.high - scheme.low)
    if scheme.symmetric:
        exact: NDArray[Any] = np.maximum(-low, high) / np.float32(span / 2)
    else:
        exact = (high - low) / span
    scale = rounded(np.asarray(exact, np.float32), dtype)
    scale = np.where(scale == 0, np.float32(_EPSILON[dtype]), scale)
    if scheme.symmetric:
        return Scales(scale=scale, zero=np.zeros_like(scale))
    zero = np.clip(np.rint(np.float32(scheme.low) - low / scale), scheme.low, scheme.high)
    return Scales(scale=scale, zero=zero.astype(np.float32))


def levels_of(values: Wide, scale: Wide, zero: Wide, scheme: Scheme) -> Wide:
    """Returns the nearest levels, ties to even; the arguments broadcast."""
    scaled = np.clip(
        values / scale + zero, np.float32(scheme.low), np.float32(scheme.high), dtype=np.float32
    )
    return decode_e4m3(encode_e4m3(scaled)) if scheme.kind == "float" else np.rint(scaled)


def quantized(rows: Wide, scales: Scales, scheme: Scheme) -> Wide:
    """Returns the levels of rows [rows, columns]."""
    return levels_of(rows, *scales.wide(rows.shape[1]), scheme)


def restored(levels: Wide, scales: Scales) -> Wide:
    """Returns the weights that levels [rows, columns] stand for."""
    scale, zero = scales.wide(levels.shape[1])
    return np.asarray((levels - zero) * scale)


def codes_of(levels: Wide, scheme: Scheme) -> NDArray[Any]:
    """Returns levels as they are stored: int8, or the bytes of F8_E4M3."""
    return encode_e4m3(levels) if scheme.kind == "float" else levels.astype(np.int8)


def levels_from(codes: NDArray[Any], scheme: Scheme) -> Wide:
    """Returns the levels that `codes_of` stored."""
    return decode_e4m3(codes) if scheme.kind == "float" else codes.astype(np.float32)


def _grouped(rows: Wide, scheme: Scheme) -> Wide:
    size = scheme.group if scheme.strategy == "group" else rows.shape[1]
    return rows.reshape(len(rows), -1, size)


def _errors(rows: Wide, scales: Scales, scheme: Scheme) -> Wide:
    """Returns the squared error of each group [rows, groups]."""
    apart = rows - restored(quantized(rows, scales, scheme), scales)
    return np.asarray(np.square(_grouped(apart, scheme)).sum(axis=2))
