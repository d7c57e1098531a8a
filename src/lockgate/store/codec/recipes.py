"""Recipes: elements that follow from other elements by a rule, so that only the rule is stored.

A cast, a symmetric quantization. Each is plain IEEE arithmetic in a stated order, the same on every
machine; an encoder keeps a recipe only after running it gave the very bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lockgate.core.errors import IntegrityError
from lockgate.store.codec.dtypes import WIDTHS, Buffer

F16, BF16, F32 = 4, 5, 6
FLOATS = (F16, BF16, F32)
ROWS_INT8, ROWS_SCALE, Q8_0 = 1, 2, 3
"""int8 by row and its float32 scales; GGML's Q8_0 blocks of 32."""

_QUANTIZE = struct.Struct("<BBI")
Wide = NDArray[np.float32]
_NAN = np.float32(np.nan)


def widen(data: Buffer, kind: int) -> Wide:
    """Returns floats of `kind` as float32, exactly; of what is no number, one NaN for all.

    Machines differ in what they make of a NaN's other bits, so that none of these may matter.
    """
    if kind == F32:
        return np.frombuffer(data, "<f4")
    if kind == F16:
        with np.errstate(invalid="ignore"):
            wide = np.frombuffer(data, "<f2").astype(np.float32)
        return np.where(np.isnan(wide), _NAN, wide)
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def narrow(values: Wide, kind: int) -> bytes:
    """Returns float32 values as floats of `kind`, rounded to nearest, ties to even.

    What is no number becomes the NaN of a half that is positive and quiet and says no more.
    """
    if kind == F32:
        return values.astype("<f4").tobytes()
    if kind == F16:
        with np.errstate(all="ignore"):
            half = values.astype("<f2").view("<u2")
        return np.where(np.isnan(values), 0x7E00, half).astype("<u2").tobytes()
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").tobytes()


def cast(source: Buffer, payload: Buffer) -> bytes:
    """Returns `source` cast as `payload` says (kind from, kind to); raises IntegrityError."""
    if len(payload) != 2 or payload[0] not in FLOATS or payload[1] not in FLOATS:
        raise IntegrityError("a stored frame casts between kinds that are no floats")
    if len(source) % WIDTHS[payload[0]]:
        raise IntegrityError("a stored frame casts a source of broken elements")
    return narrow(widen(source, payload[0]), payload[1])


def cast_bytes(taken: int, payload: Buffer) -> int:
    """Returns how many bytes a cast makes of `taken` bytes; −1 for a payload that is none."""
    if len(payload) != 2 or payload[0] not in FLOATS or payload[1] not in FLOATS:
        return -1
    return taken // WIDTHS[payload[0]] * WIDTHS[payload[1]]


def quantized_bytes(taken: int, payload: Buffer) -> int:
    """Returns how many bytes a quantization makes of `taken` bytes; −1 where it can't be one."""
    if len(payload) != _QUANTIZE.size:
        return -1
    rule, kind, columns = _QUANTIZE.unpack(payload)
    if kind not in FLOATS or not columns:
        return -1
    elements = taken // WIDTHS[kind]
    made = {ROWS_INT8: elements, ROWS_SCALE: elements // columns * 4, Q8_0: elements // 32 * 34}
    found: int = made.get(rule, -1)
    return found


def quantize(source: Buffer, payload: Buffer) -> bytes:
    """Returns `source` quantized as `payload` says (rule, kind, columns); raises IntegrityError."""
    if len(payload) != _QUANTIZE.size:
        raise IntegrityError("a stored frame's quantization is not described")
    rule, kind, columns = _QUANTIZE.unpack(payload)
    whole = kind in FLOATS and columns and len(source) % (WIDTHS[kind] * columns) == 0
    if not whole or rule not in (ROWS_INT8, ROWS_SCALE, Q8_0):
        raise IntegrityError("a stored frame's quantization does not fit its source")
    rows = widen(source, kind).reshape(-1, columns)
    if not np.isfinite(rows).all() or (rule == Q8_0 and columns % 32):
        raise IntegrityError("a stored frame's quantization is of no numbers")
    return _q8_0(rows) if rule == Q8_0 else _by_row(rows, rule)


def _by_row(rows: Wide, rule: int) -> bytes:
    """Returns int8 `round(w / s)` with `s = max|w| / 127` of the row (0: 1), or the `s`."""
    scale = np.abs(rows).max(axis=1, keepdims=True, initial=0) / np.float32(127)
    if rule == ROWS_SCALE:
        return bytes(scale.astype("<f4"))
    safe = np.where(scale == 0, np.float32(1), scale)
    return np.clip(np.rint(rows / safe), -127, 127).astype(np.int8).tobytes()


def _q8_0(rows: Wide) -> bytes:
    """Returns blocks of a float16 scale and 32 int8, as GGML's reference quantizer makes them."""
    blocks = rows.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(all="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        scaled = blocks * inverse
        halves = scale.astype("<f2")
    if not np.isfinite(scaled).all() or not np.isfinite(halves).all():
        raise IntegrityError("a stored frame's quantization is of numbers too small or too large")
    away = np.floor(np.abs(scaled) + np.float32(0.5)) * np.sign(scaled)
    out = np.empty((len(blocks), 34), np.uint8)
    out[:, :2] = halves.view(np.uint8).reshape(-1, 2)
    out[:, 2:] = away.astype(np.int8).view(np.uint8)
    return out.tobytes()


def quantizations(dtype: str, columns: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Yields, for a result of `dtype`, (payload, kind, bytes out, elements in) of each rule."""
    for kind in FLOATS if columns < 2**32 else ():
        if dtype in ("I8", "U8"):
            yield _QUANTIZE.pack(ROWS_INT8, kind, columns), kind, 1, 1
        if dtype == "F32":
            yield _QUANTIZE.pack(ROWS_SCALE, kind, columns), kind, 4, columns
        if dtype == "GGML_Q8_0" and columns % 32 == 0:
            yield _QUANTIZE.pack(Q8_0, kind, columns), kind, 34, 32
