"""Packing, bit for bit what compressed-tensors packs, and what can't be packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.derive.steps.packing import pack_columns, pack_rows

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 70))


def naive(row: np.ndarray, bits: int) -> list[int]:
    """One row's words, by whole numbers."""
    whole = sum((int(value) + (1 << bits - 1)) << (bits * at) for at, value in enumerate(row))
    count = -(-len(row) * bits // 32)
    return [(whole >> (32 * word)) & 0xFFFFFFFF for word in range(count)]


@given(SHAPES, st.sampled_from([4, 8]), st.integers(0, 2**32))
def test_packing_is_the_documented_layout(shape: tuple[int, int], bits: int, seed: int) -> None:
    top = 1 << bits - 1
    values = np.random.default_rng(seed).integers(-top, top, shape).astype(np.int8)
    packed = pack_rows(values, bits)
    assert [[int(word) & 0xFFFFFFFF for word in row] for row in packed] == [
        naive(row, bits) for row in values
    ]
    assert (pack_columns(values, bits) == pack_rows(values.T.copy(), bits).T).all()


@settings(deadline=None)  # the first example imports torch
@given(SHAPES, st.sampled_from([4, 8]), st.integers(0, 2**32))
def test_packing_is_what_compressed_tensors_packs(
    shape: tuple[int, int], bits: int, seed: int
) -> None:
    library: Any = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers",
        reason="compressed-tensors is not installed",
    )
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    top = 1 << bits - 1
    values = np.random.default_rng(seed).integers(-top, top, shape).astype(np.int8)
    wide = torch.from_numpy(values)
    for ours, dim in ((pack_rows(values, bits), 1), (pack_columns(values, bits), 0)):
        assert (ours == library.pack_to_int32(wide, bits, dim).numpy()).all()
        if dim or len(ours) > 1:  # compressed-tensors 0.20 can't read a single word down a column
            again = library.unpack_from_int32(torch.from_numpy(ours.copy()), bits, shape, dim)
            assert (again.numpy() == values).all()


@pytest.mark.parametrize(("value", "bits"), [(8, 4), (-9, 4), (1, 3), (1, 2)])
def test_what_does_not_fit_is_refused(value: int, bits: int) -> None:
    with pytest.raises(ValueError, match=r"fit|packed"):
        pack_rows(np.array([[value]], np.int8), bits)
