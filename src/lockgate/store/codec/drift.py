"""Drift: what weight decay alone does to float32 weights that no gradient reached.

Each step multiplies by a number just below one and rounds, so that how many units in the last place
a weight lost follows from its leading mantissa bits. A table of 256 such losses predicts it; groups
(rows of an embedding, say) that the table does not help keep their base as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lockgate.store.codec.dtypes import WIDTHS, Buffer

F32 = 6
_CELLS = 256
_LIMIT = 1 << 20
_LEAST = 16384
_GROUPS = 64


def predict(source: Buffer, kind: int, parameters: Buffer) -> bytes:
    """Returns `source` after the drift of `parameters`.

    They are: group u32, 256 losses i32, one bit a group (1: drifts). Raises ValueError.
    """
    if kind != F32 or len(parameters) < 4 + 4 * _CELLS:
        raise ValueError("its drift is not described")
    group = int.from_bytes(parameters[:4], "little")
    base = np.frombuffer(source, "<u4")
    groups = -(-base.size // group) if group else 0
    if not group or len(parameters) - 4 - 4 * _CELLS != (groups + 7) // 8:
        raise ValueError("its drift does not fit its source")
    table = np.frombuffer(parameters[4 : 4 + 4 * _CELLS], "<i4")
    bits = np.frombuffer(parameters[4 + 4 * _CELLS :], np.uint8)
    moving = np.unpackbits(bits, bitorder="little")
    drifts = np.repeat(moving[:groups], min(group, base.size))[: base.size] > 0
    return _apply(base, table, drifts).astype("<u4").tobytes()


def _apply(
    base: NDArray[np.uint32], table: NDArray[np.int32], moving: NDArray[np.bool_]
) -> NDArray[np.uint32]:
    """Adds the loss of each mantissa's cell to the magnitude where there is room on both sides."""
    magnitude = (base & np.uint32(0x7FFFFFFF)).astype(np.int64)
    moved = magnitude + table[(base >> np.uint32(15)) & np.uint32(255)]
    inside = moving & (moved >= 1 << 23) & (moved < 255 << 23) & (magnitude < 255 << 23)
    kept = np.where(inside, moved, magnitude).astype(np.uint32)
    return base & np.uint32(0x80000000) | kept


def fit(data: Buffer, source: Buffer, kind: int, group: int) -> bytes | None:
    """Returns the parameters of the drift from `source` to `data`, None where there is none."""
    if kind != F32 or WIDTHS[kind] * _LEAST > len(data):
        return None
    base, after = np.frombuffer(source, "<u4"), np.frombuffer(data, "<u4")
    few = _few(base.size, group)
    if few is not None and _fit(after[few], base[few], group) is None:
        return None
    return _fit(after, base, group)


def _few(size: int, group: int) -> NDArray[np.int64] | None:
    """Returns the elements of some groups, evenly spaced; None when these are most of them."""
    groups = size // group
    if groups < 4 * _GROUPS:
        return None
    chosen = np.linspace(0, groups - 1, _GROUPS, dtype=np.int64)
    return (chosen[:, None] * group + np.arange(group)).ravel()


def _fit(after: NDArray[np.uint32], base: NDArray[np.uint32], group: int) -> bytes | None:
    same_sign = (base ^ after) >> np.uint32(31) == 0
    step = (after & np.uint32(0x7FFFFFFF)).astype(np.int64) - (base & np.uint32(0x7FFFFFFF))
    starts = np.arange(0, base.size, group)
    sizes = np.diff(np.append(starts, base.size))
    loud = np.where(same_sign, np.minimum(np.abs(step), _LIMIT), _LIMIT)
    before = np.add.reduceat(np.log2(loud + 1.0), starts) / sizes
    quiet = np.repeat(before <= np.quantile(before, 0.25), sizes)
    table = _medians(step[quiet & same_sign], (base >> np.uint32(15) & 255)[quiet & same_sign])
    if table is None or not table.any():
        return None
    moved = _apply(base, table, np.ones(base.size, np.bool_))
    aim, got = after & np.uint32(0x7FFFFFFF), moved & np.uint32(0x7FFFFFFF)
    left = np.abs(aim.astype(np.int64) - got)
    rest = np.where(same_sign, np.minimum(left, _LIMIT), _LIMIT)
    moving = np.add.reduceat(np.log2(rest + 1.0), starts) / sizes < before - 0.5
    if not moving.any():
        return None
    bits = np.packbits(moving, bitorder="little").tobytes()
    return group.to_bytes(4, "little") + table.astype("<i4").tobytes() + bits


def _medians(step: NDArray[np.int64], cell: NDArray[np.uint32]) -> NDArray[np.int32] | None:
    """Returns the median step of each cell, 0 for one that is empty."""
    order = np.lexsort((step, cell))
    step, cell = step[order], cell[order]
    counts = np.bincount(cell, minlength=_CELLS)
    if not step.size:
        return None
    ends = np.cumsum(counts)
    middle = np.minimum(ends - counts + counts // 2, step.size - 1)
    found = np.where(counts > 0, step[middle], 0)
    return np.clip(found, -_LIMIT, _LIMIT).astype(np.int32)
