"""Floats as float32 and back, by bits: the narrow kinds that checkpoints keep their weights in.

F16, BF16 and F32 as the store's recipes cast them. F8_E4M3 is the format of Micikevicius et al.
2022, *FP8 Formats for Deep Learning*: no infinity, one NaN (0x7F), largest 448, bias 7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lockgate.core.errors import UsageError
from lockgate.store.codec import recipes

Wide = NDArray[np.float32]
Raw = NDArray[np.uint8]
FLOATS = {"F16": recipes.F16, "BF16": recipes.BF16, "F32": recipes.F32}
"""What a checkpoint's weights are made of, by the names that safetensors gives types."""

WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
}  # fmt: skip
"""Bytes of an element; 1 for what is not named."""

E4M3_MAX = 448.0
_E4M3_NAN = 0x7F
_E4M3_LEAST_NORMAL = np.float32(2.0**-6).view(np.uint32)
_E4M3_STEP = np.float32(2.0**9)  # one over the step between the numbers below the least normal


def widen(data: Raw, dtype: str) -> Wide:
    """Returns the floats in `data` (bytes, whole elements) as float32, exactly, flat.

    Raises UsageError for a dtype whose elements are not floats of 8, 16 or 32 bits.
    """
    if dtype == "F8_E4M3":
        return decode_e4m3(data)
    if dtype not in FLOATS:
        raise UsageError(
            f"tensors of {dtype} can't be worked on, only those of {', '.join(sorted(FLOATS))}",
            hint="start from the version with unquantized weights",
        )
    return recipes.widen(data.data, FLOATS[dtype])


def narrow(values: Wide, dtype: str) -> bytes:
    """Returns float32 `values` as the bytes of `dtype`, rounded to nearest, ties to even.

    What is too large for F16 becomes infinite, for F8_E4M3 it becomes NaN.
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if dtype == "F8_E4M3":
        return encode_e4m3(flat).tobytes()
    if dtype == "BF16" and not np.isnan(flat).any():
        return _halves(flat.view(np.uint32))
    return recipes.narrow(flat, FLOATS[dtype])


def _halves(bits: NDArray[np.uint32]) -> bytes:
    """Returns the upper halves of float32s, rounded; as the recipe, a few times as fast."""
    half = bits >> 16
    half &= np.uint32(1)
    half += bits
    half += np.uint32(0x7FFF)
    half >>= 16
    return half.astype("<u2").tobytes()


def stored(values: Wide, dtype: str) -> tuple[bytes, Wide]:
    """Returns the bytes of `narrow`, and `values`, of any shape, as these bytes have them."""
    data = narrow(values, dtype)
    return data, widen(np.frombuffer(data, np.uint8), dtype).reshape(values.shape)


def squares(values: Wide) -> float:
    """Returns Σ x², in float32: for numbers that people read."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    return float(np.dot(flat, flat))


def rounded(values: Wide, dtype: str) -> Wide:
    """Returns `values`, of any shape, as they are after a stay in `dtype`."""
    return stored(values, dtype)[1]


def encode_e4m3(values: Wide) -> Raw:
    """Returns float32 `values`, of any shape, as F8_E4M3's bytes, to nearest, ties to even."""
    word = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = word & np.uint32(0x7FFFFFFF)
    code = bits >> 20
    code &= np.uint32(1)
    code += bits
    code += np.uint32(0x7FFFF)
    code >>= 20
    code -= np.minimum(code, np.uint32(120 << 3))  # the difference of the biases
    small = bits < _E4M3_LEAST_NORMAL
    code[small] = np.rint(bits[small].view(np.float32) * _E4M3_STEP).astype(np.uint32)
    np.minimum(code, np.uint32(_E4M3_NAN), out=code)
    code |= (word >> 24) & np.uint32(0x80)
    return code.astype(np.uint8)


def decode_e4m3(data: Raw) -> Wide:
    """Returns F8_E4M3's bytes, of any shape, as float32, exactly."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, (code & 7).astype(np.float32)
    size = np.where(
        exponent == 0,
        np.ldexp(fraction, -9),
        np.ldexp(fraction + np.float32(8), np.maximum(exponent, 1) - 10),
    )
    size = np.where((code & 0x7F) == _E4M3_NAN, np.float32(np.nan), size)
    table = np.where(code & 0x80, -size, size).astype(np.float32)
    return np.asarray(table[data])
