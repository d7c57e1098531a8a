"""Low rank: found where an adapter was merged; a product of integers, exact in any order."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.store.codec import lowrank
from lockgate.store.codec.kernel import named_kernel
from lockgate.store.codec.recipes import narrow, widen

from .shelf import weights

KERNEL = named_kernel("")
KINDS = {4: 2, 5: 2, 6: 4}


def parameters(columns: int, scale: float, own: np.ndarray) -> bytes:
    return struct.pack("<If", columns, scale) + KERNEL.planes_encode(own.astype("<i2").tobytes(), 7)


def child_of(base: np.ndarray, kind: int, rank: int, seed: int = 3) -> bytes:
    rng = np.random.default_rng(seed)
    rows, columns = base.shape
    change = rng.normal(0, 0.02, (rows, rank)) @ rng.normal(0, 0.05, (rank, columns))
    return narrow(base + change.astype("<f4"), kind)


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_merged_adapter_is_found(kind: int, rank: int) -> None:
    raw = narrow(weights((512, 256)), kind)
    base = widen(raw, kind).reshape(512, 256)
    child = child_of(base, kind, rank)
    factors = lowrank.fit(child, raw, kind, 256)
    assert factors is not None
    assert len(factors) == 2 * rank * 256
    own = lowrank.project(child, raw, kind, 256, factors, KERNEL)
    assert own is not None
    moved = lowrank.predict(raw, kind, own, factors, KERNEL)
    left = np.abs(widen(moved, kind) - widen(child, kind)).mean()
    assert left < 0.1 * np.abs(widen(child, kind) - base.ravel()).mean()


def test_a_full_change_has_no_low_rank() -> None:
    base = weights((512, 256))
    child = base + weights((512, 256), 5) / 10
    assert lowrank.fit(narrow(child, 5), narrow(base, 5), 5, 256) is None
    assert lowrank.fit(narrow(base, 5), narrow(base, 5), 5, 256) is None


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rank=st.integers(1, 32),
    rows=st.integers(1, 40),
    columns=st.integers(64, 90),
)
def test_the_product_is_exact_whatever_the_order_of_its_sums(
    seed: int, rank: int, rows: int, columns: int
) -> None:
    """Factors have 16 bits and ranks are 32 at most: every partial sum is an integer below 2^36.

    float64 holds integers up to 2^53. So BLAS may sum in any order, with or without fused
    multiply-add, on any machine: against Python's integers, and backwards.
    """
    rng = np.random.default_rng(seed)
    left = rng.integers(-(2**15), 2**15, (rows, rank)).astype(np.int16)
    right = rng.integers(-(2**15), 2**15, (rank, columns)).astype(np.int16)
    left.flat[0], right.flat[0] = -(2**15), -(2**15)
    product = left.astype(np.float64) @ right.astype(np.float64)
    exact = left.astype(object) @ right.astype(object)
    assert (product == exact.astype(np.float64)).all()
    assert (product.astype(object) == exact).all()
    backwards = left[:, ::-1].astype(np.float64) @ right[::-1].astype(np.float64)
    assert (product == backwards).all()
    base = weights((rows, columns), seed % 100)
    scale = np.float32(2.0**-40)
    found = lowrank.predict(
        base.tobytes(), 6, parameters(columns, scale, left), right.tobytes(), KERNEL
    )
    wanted = base + exact.astype(np.float64).astype(np.float32) * scale
    assert found == wanted.astype("<f4").tobytes()


def test_what_is_no_number_stays_as_it_is() -> None:
    for kind, width in KINDS.items():
        raw = bytearray(narrow(weights((4, 64)), kind))
        odd = {4: 0x7C01, 5: 0xFF81, 6: 0x7F800001}[kind].to_bytes(width, "little")
        raw[5 * width : 6 * width] = odd
        own, right = np.full((4, 1), 100), np.full((1, 64), 100, "<i2").tobytes()
        found = lowrank.predict(bytes(raw), kind, parameters(64, 0.001, own), right, KERNEL)
        assert found[5 * width : 6 * width] == odd
        assert found[: 5 * width] != bytes(raw[: 5 * width])


ONE = np.ones((4, 1))
RIGHT = np.ones((1, 64), "<i2").tobytes()


@pytest.mark.parametrize(
    ("kind", "described", "factors"),
    [
        (5, b"", RIGHT),
        (5, b"1234567", RIGHT),
        (7, parameters(64, 1, ONE), RIGHT),
        (5, parameters(0, 1, ONE), RIGHT),
        (5, parameters(63, 1, ONE), RIGHT),
        (5, parameters(1, 1, np.ones((256, 32))), bytes(64)),
        (5, parameters(128, 1, ONE), RIGHT),
        (5, parameters(2**32 - 1, 1, ONE), RIGHT),
        (5, parameters(64, float("nan"), ONE), RIGHT),
        (5, parameters(64, float("-inf"), ONE), RIGHT),
        (5, parameters(64, 1, ONE), b""),
        (5, parameters(64, 1, ONE), RIGHT[:-1]),
        (5, parameters(64, 1, np.ones((4, 33))), RIGHT * 33),
        (5, parameters(64, 1, np.arange(3)), RIGHT),
        (5, parameters(64, 1, ONE) + b"\0", RIGHT),
    ],
)
def test_hostile_parameters(kind: int, described: bytes, factors: bytes) -> None:
    with pytest.raises(ValueError):
        lowrank.predict(bytes(4 * 64 * 2), kind, described, factors, KERNEL)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), kind=st.sampled_from(sorted(KINDS)), how=st.integers(0, 4))
def test_whatever_is_fitted_is_no_error(seed: int, kind: int, how: int) -> None:
    """Extremes, NaN, infinities, a change in one row only: factors that predict takes, or none."""
    rng = np.random.default_rng(seed)
    shape = (64 * KINDS[kind], 64)
    base, child = weights(shape, seed), weights(shape, seed)
    if how == 0:
        child = rng.integers(0, 2**32, shape, dtype=np.uint32).view("<f4")
    elif how == 1:
        child = np.outer(rng.normal(0, 1, shape[0]), np.ones(64)).astype("<f4") * np.float32(1e37)
    elif how == 2:
        child[3] *= 2
    elif how == 3:
        base[:], child = 0, np.outer(np.arange(shape[0]), np.ones(64)).astype("<f4")
    else:
        base[::2], child[::3] = np.inf, np.nan
    old, new = narrow(base, kind), narrow(child, kind)
    factors = lowrank.fit(new, old, kind, 64)
    if factors is not None:
        own = lowrank.project(new, old, kind, 64, factors, KERNEL)
        if own is not None:
            assert len(lowrank.predict(old, kind, own, factors, KERNEL)) == len(old)
