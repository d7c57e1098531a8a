"""Low rank: what merging an adapter (LoRA, arXiv:2106.09685) does to a weight matrix.

The child is the base plus a product of two thin matrices, rounded. They are found again from the
difference by weighted least squares, an element weighing as much as its rounding is fine, and are
kept as integers: their product is exact in float64 whatever the order of its sums, and the
prediction the same on every machine.
"""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lockgate.store.codec.dtypes import WIDTHS, Buffer
from lockgate.store.codec.kernel import Kernel
from lockgate.store.codec.recipes import FLOATS, Wide, narrow, widen

_HEAD = struct.Struct("<If")
_I16 = 7
_MANTISSA = {4: 10, 5: 7, 6: 23}
_MAX_RANK = 32
_ROWS = 64
_SAMPLED = 256
_LEFT, _RIGHT = 4095, 1023
_GAP = 3.0
_LEAST_COLUMNS = 64
Matrix = NDArray[np.float64]


def predict(
    source: Buffer, kind: int, parameters: Buffer, factors: Buffer, kernel: Kernel
) -> bytes:
    """Returns `source` plus the product that `parameters` and `factors` describe.

    `factors` are int16, rank × columns. Parameters: columns u32, scale f32, then the piece's own
    int16 factors, rows × rank, as planes. Raises ValueError when they do not fit.
    """
    if kind not in FLOATS or len(parameters) < _HEAD.size:
        raise ValueError("its factors are not described")
    columns, scale = _HEAD.unpack_from(parameters)
    row = columns * WIDTHS[kind]
    fits = columns >= _LEAST_COLUMNS and len(source) % row == 0 and np.isfinite(scale)
    if not fits or not len(factors) or len(factors) % (2 * columns):
        raise ValueError("its factors do not fit its source")
    rows, rank = len(source) // row, len(factors) // (2 * columns)
    if rank > _MAX_RANK:
        raise ValueError("its factors have too many ranks")
    own = bytearray(2 * rows * rank)
    kernel.planes_decode(memoryview(parameters)[_HEAD.size :], own, _I16)
    left = np.frombuffer(own, "<i2").reshape(rows, rank)
    right = np.frombuffer(factors, "<i2").reshape(rank, columns)
    return _moved(source, kind, left, right, np.float32(scale))


def _moved(
    source: Buffer, kind: int, left: NDArray[np.int16], right: NDArray[np.int16], scale: np.float32
) -> bytes:
    product = (left.astype(np.float64) @ right.astype(np.float64)).astype(np.float32).ravel()
    base = widen(bytes(source), kind)
    with np.errstate(all="ignore"):
        moved = narrow(base + product * scale, kind)
    plain = np.frombuffer(source, f"<u{WIDTHS[kind]}")
    found = np.where(np.isfinite(base), np.frombuffer(moved, plain.dtype), plain)
    return found.astype(plain.dtype).tobytes()


@np.errstate(all="ignore")
def fit(data: Buffer, source: Buffer, kind: int, columns: int) -> bytes | None:
    """Returns the shared factors of a piece of whole rows, None where the change has no low rank.

    What is returned is int16, rank × columns.
    """
    if kind not in FLOATS or columns < _LEAST_COLUMNS:
        return None
    if len(data) < WIDTHS[kind] * columns * _MAX_RANK * 2:
        return None
    right = _rows_span(data, source, kind, columns)
    if right is None:
        return None
    change, weight = _change(data, source, kind, columns)
    for _ in range(3):
        left = _solve(change, weight, right)
        right = _solve(change.T, weight.T, left.T).T
    peak = np.abs(right).max(axis=1, keepdims=True)
    if not np.isfinite(peak).all() or not peak.all():
        return None
    return bytes(np.rint(right / peak * _RIGHT).astype("<i2"))


def _rows_span(data: Buffer, source: Buffer, kind: int, columns: int) -> Matrix | None:
    """Returns the first right factors of the change, judged by a few of its rows."""
    width = WIDTHS[kind]
    at = np.linspace(0, len(data) // (columns * width) - 1, _ROWS, dtype=int)
    few = [np.frombuffer(part, f"<u{width}").reshape(-1, columns)[at] for part in (data, source)]
    step = max(columns // _SAMPLED, 1)
    thin = [np.ascontiguousarray(part[:, ::step]) for part in few]
    some, _ = _difference(thin[0].data, thin[1].data, kind)
    chosen = _pivots(some.reshape(_ROWS, -1))
    if not chosen:
        return None
    return _difference(few[0].data, few[1].data, kind)[0].reshape(_ROWS, columns)[chosen]


def _pivots(rows: Matrix) -> list[int]:
    """Returns the rows that span all the others but for noise, none when there are no such few.

    Gram-Schmidt with pivoting; without LAPACK, which would wake its threads for every tensor.
    """
    left = rows.copy()
    sizes: list[float] = []
    chosen: list[int] = []
    for _ in range(min(_MAX_RANK + 1, len(rows))):
        norms = np.einsum("ij,ij->i", left, left)
        pivot = int(norms.argmax())
        sizes.append(float(norms[pivot]))
        chosen.append(pivot)
        if not sizes[-1]:
            break
        direction = left[pivot] / np.sqrt(norms[pivot])
        left -= np.einsum("ij,j->i", left, direction)[:, None] * direction
    if len(sizes) < 2 or not np.isfinite(sizes).all():
        return []
    gaps = [a / max(b, 1e-300) for a, b in pairwise(sizes)]
    rank = int(np.argmax(gaps)) + 1
    return chosen[:rank] if gaps[rank - 1] >= _GAP else []


@np.errstate(all="ignore")
def project(
    data: Buffer, source: Buffer, kind: int, columns: int, factors: Buffer, kernel: Kernel
) -> bytes | None:
    """Returns the parameters that bring `source` nearest to `data` with the shared `factors`."""
    right = np.frombuffer(factors, "<i2").reshape(-1, columns).astype(np.float64)
    change, weight = _change(data, source, kind, columns)
    left = _solve(change, weight, right)
    peak = float(np.abs(left).max(initial=0))
    if not np.isfinite(peak) or not peak:
        return None
    scale = np.float32(peak / _LEFT)
    own = np.clip(np.rint(left / float(scale)), -_LEFT, _LEFT).astype("<i2")
    return _HEAD.pack(columns, scale) + kernel.planes_encode(own.tobytes(), _I16)


def _difference(data: Buffer, source: Buffer, kind: int) -> tuple[Matrix, Wide]:
    """Returns child less base, where that is a number, and the base."""
    base: Wide = widen(bytes(source), kind)
    with np.errstate(all="ignore"):
        moved = widen(bytes(data), kind).astype(np.float64) - base
    return np.where(np.isfinite(moved), moved, 0.0), base


def _change(data: Buffer, source: Buffer, kind: int, columns: int) -> tuple[Matrix, Matrix]:
    """Returns child less base, and each element's weight: 1 / (its unit in the last place)²."""
    change, base = _difference(data, source, kind)
    exponent = np.frexp(np.where(np.isfinite(base), base, 0.0))[1] - 1 - _MANTISSA[kind]
    exponent = np.maximum(exponent, exponent.max(initial=0) - 12)
    weight: Matrix = np.ldexp(np.float64(1), -2 * (exponent - int(exponent.max(initial=0))))
    return change.reshape(-1, columns), weight.reshape(-1, columns)


def _solve(change: Matrix, weight: Matrix, right: Matrix) -> Matrix:
    """Returns, for each row, the coefficients of `right` that fit it best under its weights.

    They are NaN where LAPACK finds none.
    """
    rank = len(right)
    pairs = (right[:, None, :] * right[None, :, :]).reshape(rank * rank, -1)
    normal = (weight @ pairs.T).reshape(-1, rank, rank)
    normal += np.eye(rank) * (1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-300)
    aim = (weight * change) @ right.T
    try:
        return np.asarray(np.linalg.solve(normal, aim[:, :, None])[:, :, 0], np.float64)
    except np.linalg.LinAlgError:
        return np.full_like(aim, np.nan)
