"""Small integers packed into 32-bit words, as the compressed-tensors checkpoint format has them.

Element i of a row is at bits i·b to (i+1)·b of the row's words, the lowest bits first, with
2^(b-1) added so that it is not negative. What is left of the last word is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.int32]
Small = NDArray[np.int8]


def words(elements: int, bits: int) -> int:
    """Returns how many words hold so many elements."""
    return -(-elements * bits // 32)


def pack_rows(values: Small, bits: int) -> Words:
    """Returns int8 [rows, columns] packed along each row: int32 [rows, ⌈columns · bits / 32⌉].

    `bits` is 4 or 8, and the values are those that fit: -8 to 7, or -128 to 127.
    """
    if bits not in (4, 8):
        raise ValueError(f"{bits} bits can't be packed, only 4 and 8")
    least = -(1 << (bits - 1))
    if values.size and (values.min() < least or values.max() > -least - 1):
        raise ValueError(f"a value does not fit {bits} bits")
    rows, columns = values.shape
    width = words(columns, bits) * 32 // bits
    cells: NDArray[Any] = np.zeros((rows, width), np.uint8)
    cells[:, :columns] = values.astype(np.int16) - least
    if bits == 4:
        cells = cells[:, 0::2] | (cells[:, 1::2] << 4)
    return np.ascontiguousarray(cells).view("<i4")


def pack_columns(values: Small, bits: int) -> Words:
    """Returns int8 [rows, columns] packed down each column: int32 [⌈rows · bits / 32⌉, columns]."""
    return np.ascontiguousarray(pack_rows(values.T, bits).T)
