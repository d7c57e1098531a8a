"""Drift: found where weights decayed, not elsewhere; hostile parameters are refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.store.codec import drift

from .shelf import weights

F32 = 6


def decayed(base: np.ndarray, steps: int = 25) -> np.ndarray:
    out = base.copy()
    for _ in range(steps):
        out *= np.float32(1 - 2e-6)
    return out


def described(group: int, table: np.ndarray, bits: bytes) -> bytes:
    return struct.pack("<I", group) + table.astype("<i4").tobytes() + bits


def test_decay_is_found_and_predicts() -> None:
    base = weights((256, 256))
    after = decayed(base)
    found = drift.fit(after.tobytes(), base.tobytes(), F32, 256)
    assert found is not None
    moved = np.frombuffer(drift.predict(base.tobytes(), F32, found), "<i4").reshape(base.shape)
    left = np.abs(moved.astype(np.int64) - after.view("<i4"))
    before = np.abs(base.view("<i4").astype(np.int64) - after.view("<i4"))
    assert left.mean() < 0.1 * before.mean()


def test_only_the_groups_that_drift_are_moved() -> None:
    base = weights((256, 256))
    after = decayed(base)
    after[::2] = base[::2] + weights((128, 256), 4) / 10
    found = drift.fit(after.tobytes(), base.tobytes(), F32, 256)
    assert found is not None
    bits = np.unpackbits(np.frombuffer(found[4 + 1024 :], np.uint8), bitorder="little")
    assert bits.tolist() == [0, 1] * 128


@pytest.mark.parametrize("other", [weights((256, 128)), weights((256, 128), 3)])
def test_there_is_no_drift(other: np.ndarray) -> None:
    assert drift.fit(other.tobytes(), weights((256, 128)).tobytes(), F32, 128) is None


def test_too_few_or_other_elements_have_none() -> None:
    base = weights((8, 8))
    assert drift.fit(decayed(base).tobytes(), base.tobytes(), F32, 8) is None
    large = weights((256, 256)).astype("<f2").tobytes()
    assert drift.fit(large, large, 4, 256) is None


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.integers(0, 2**32 - 1), max_size=60),
    losses=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8),
    group=st.integers(1, 2**32 - 1) | st.integers(1, 70),
)
def test_any_table_is_the_same_integers_everywhere(
    words: list[int], losses: list[int], group: int
) -> None:
    """Integers only, so that no machine rounds: against the rule said again in Python's."""
    table = np.resize(np.array(losses, "<i4"), 256)
    groups = -(-len(words) // group)
    bits = bytes([0b01010101]) * (-(-groups // 8))
    source = struct.pack(f"<{len(words)}I", *words)
    found = drift.predict(source, F32, described(group, table, bits))
    for i, (word, (got,)) in enumerate(zip(words, struct.iter_unpack("<I", found), strict=True)):
        size, sign = word & 0x7FFFFFFF, word & 0x80000000
        moved = size + int(table[word >> 15 & 255])
        inside = (1 << 23) <= moved < (255 << 23) and size < (255 << 23)
        assert got == sign | (moved if inside and i // group % 2 == 0 else size)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        (64, b""),
        (64, bytes(4 + 1024)),
        (64, described(0, np.zeros(256), b"\0")),
        (64, described(4, np.zeros(256), b"")),
        (64, described(4, np.zeros(256), b"\0\0")),
        (64, described(2**32 - 1, np.zeros(256), b"\0\0")),
        (63, described(4, np.zeros(256), b"\0")),
        (64, described(4, np.zeros(255), b"\0\0\0\0")),
    ],
)
def test_hostile_parameters(size: int, parameters: bytes) -> None:
    with pytest.raises(ValueError):
        drift.predict(bytes(size), F32, parameters)
    with pytest.raises(ValueError):
        drift.predict(bytes(64), 5, described(4, np.zeros(256), b"\0"))


def test_an_empty_source() -> None:
    assert drift.predict(b"", F32, described(7, np.zeros(256), b"")) == b""


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from((7, 64, 512, 100_000)))
def test_whatever_is_fitted_fits(seed: int, group: int) -> None:
    """Infinities, NaN and noise among the weights: no error, and parameters that predict takes."""
    rng = np.random.default_rng(seed)
    base = weights((20_000,), seed)
    after = decayed(base)
    odd = rng.random(base.size) < 0.02
    base.view("<u4")[odd] = rng.integers(0, 2**32, odd.sum(), dtype=np.uint32)
    after.view("<u4")[rng.random(base.size) < 0.02] = 0x7F800001
    found = drift.fit(after.tobytes(), base.tobytes(), F32, group)
    if found is not None:
        assert len(drift.predict(base.tobytes(), F32, found)) == base.nbytes
