"""Recipes give the same bits on every machine: checked against each rule said again, slowly."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.errors import IntegrityError
from lockgate.store.codec.recipes import (
    BF16,
    F16,
    F32,
    Q8_0,
    ROWS_INT8,
    ROWS_SCALE,
    cast,
    narrow,
    quantize,
    widen,
)

WORDS = st.lists(st.integers(0, 2**32 - 1), max_size=50)
HALVES = st.lists(st.integers(0, 2**16 - 1), max_size=50)


def bits(values: list[int], form: str) -> bytes:
    return b"".join(struct.pack(form, value) for value in values)


def half_of(word: int) -> int:
    """A float32's bits rounded to bfloat16's: to nearest, ties to even, one NaN."""
    if word & 0x7FFFFFFF > 0x7F800000:
        return 0x7FC0
    high, low = word >> 16, word & 0xFFFF
    return (high + (low > 0x8000 or (low == 0x8000 and high & 1))) & 0xFFFF


@given(WORDS)
def test_float32_to_bfloat16(words: list[int]) -> None:
    found = cast(bits(words, "<I"), bytes((F32, BF16)))
    assert found == bits([half_of(word) for word in words], "<H")


@given(HALVES)
def test_bfloat16_to_float32_and_back(halves: list[int]) -> None:
    wide = cast(bits(halves, "<H"), bytes((BF16, F32)))
    assert wide == bits([half << 16 for half in halves], "<I")
    again = cast(wide, bytes((F32, BF16)))
    assert again == bits([h if h & 0x7FFF <= 0x7F80 else 0x7FC0 for h in halves], "<H")


@given(HALVES)
def test_float16_to_float32_and_back(halves: list[int]) -> None:
    """What is no number becomes one NaN, whatever the machine makes of its other bits."""
    wide = cast(bits(halves, "<H"), bytes((F16, F32)))
    for half, (word,) in zip(halves, struct.iter_unpack("<I", wide), strict=True):
        (value,) = struct.unpack("<e", struct.pack("<H", half))
        wanted = (
            0x7FC00000
            if half & 0x7FFF > 0x7C00
            else struct.unpack("<I", struct.pack("<f", value))[0]
        )
        assert word == wanted
    again = cast(wide, bytes((F32, F16)))
    assert again == bits([h if h & 0x7FFF <= 0x7C00 else 0x7E00 for h in halves], "<H")


@given(WORDS)
def test_float32_to_float16(words: list[int]) -> None:
    found = cast(bits(words, "<I"), bytes((F32, F16)))
    for word, (half,) in zip(words, struct.iter_unpack("<H", found), strict=True):
        (value,) = struct.unpack("<f", struct.pack("<I", word))
        sign = word >> 16 & 0x8000
        if value != value:
            assert half == 0x7E00
        elif abs(value) >= 65520:
            assert half == sign | 0x7C00
        else:
            assert half == struct.unpack("<H", struct.pack("<e", value))[0]


def rule(which: int, columns: int, kind: int = F32) -> bytes:
    return struct.pack("<BBI", which, kind, columns)


def rows(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype("<f4")


def test_int8_by_row() -> None:
    data = rows(1, (20, 48))
    data[7] = 0
    data[8, 3] = 1e-45  # its scale is less than the least number: 0
    scales = np.frombuffer(quantize(data.tobytes(), rule(ROWS_SCALE, 48)), "<f4")
    values = np.frombuffer(quantize(data.tobytes(), rule(ROWS_INT8, 48)), np.int8).reshape(20, 48)
    for row, scale, found in zip(data, scales, values, strict=True):
        assert scale == np.float32(max(abs(float(v)) for v in row)) / np.float32(127)
        for value, one in zip(row, found, strict=True):
            wanted = round(float(value / (scale or np.float32(1))))  # ties to even, as rint
            assert one == max(-127, min(127, wanted))


def test_blocks_of_q8_0() -> None:
    data = rows(2, (4, 64))
    data[0, :32] = 0
    data[1, :32] = np.arange(32) * np.float32(2) - np.float32(31)
    found = quantize(data.tobytes(), rule(Q8_0, 64))
    assert len(found) == 8 * 34
    for block, at in zip(data.reshape(-1, 32), range(0, len(found), 34), strict=True):
        scale = np.abs(block).max() / np.float32(127)
        inverse = np.float32(1) / scale if scale else np.float32(0)
        assert found[at : at + 2] == scale.astype("<f2").tobytes()
        for value, one in zip(block, np.frombuffer(found[at + 2 : at + 34], np.int8), strict=True):
            scaled = float(value * inverse)  # C's roundf: halves away from zero
            assert one == int(abs(scaled) + 0.5) * (1 if scaled >= 0 else -1)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [ROWS_INT8, ROWS_SCALE, Q8_0])
def test_what_is_no_number_is_not_quantized(odd: float, which: int) -> None:
    """Casting a NaN or an infinity to an integer is another result on each machine."""
    data = rows(3, (2, 32))
    data[1, 5] = odd
    for kind in (F32, F16, BF16):
        with pytest.raises(IntegrityError, match="of no numbers"):
            quantize(narrow(data, kind), rule(which, 32, kind))


@pytest.mark.parametrize("size", [1e-40, 1e30])
def test_blocks_whose_scale_is_too_small_or_large(size: float) -> None:
    """1 / scale is infinite, or the scale is as a half: again no machine is like the other."""
    data = np.full((1, 32), size, "<f4")
    with pytest.raises(IntegrityError, match="too small or too large"):
        quantize(data.tobytes(), rule(Q8_0, 32))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\1\5", rule(0, 4), rule(4, 4), rule(1, 0), rule(1, 3), rule(1, 4, 1), rule(1, 4, 9),
     rule(1, 2**32 - 1), rule(1, 4) + b"\0", rule(Q8_0, 4)],
)  # fmt: skip
def test_a_hostile_quantization(payload: bytes) -> None:
    with pytest.raises(IntegrityError):
        quantize(bytes(16), payload)


@pytest.mark.parametrize("payload", [b"", b"\5", b"\5\5\5", b"\0\5", b"\5\1", b"\xff\xff", b"\6\5"])
def test_a_hostile_cast(payload: bytes) -> None:
    with pytest.raises(IntegrityError):
        cast(bytes(6), payload)


def test_widening_keeps_what_bits_can() -> None:
    assert widen(b"\x80\x7f", BF16)[0] == np.inf
    assert narrow(np.array([np.inf], "<f4"), F16) == b"\0\x7c"
