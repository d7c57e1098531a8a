"""Frames that no encoder writes: refused, within bounds of time and memory that are stated here."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.core.digests import Digest, digest_of
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.store.codec import recipes
from lockgate.store.codec.decode import DRIFT, LOW_RANK, PLAIN, decode, decode_checked, holds
from lockgate.store.codec.dtypes import Grid
from lockgate.store.codec.encode import Object
from lockgate.store.codec.frame import (
    CAST,
    COPY,
    DELTA,
    MAX_OBJECT,
    MAX_SOURCE,
    NAMES,
    PLANES,
    QUANTIZE,
    RAW,
    ZSTD,
    Frame,
    Part,
    pack,
    parse,
)  # fmt: skip
from lockgate.store.codec.kernel import named_kernel

from .shelf import Shelf, codec, rounded, weights, wide

KERNEL = named_kernel("")
TWIN = named_kernel("numpy")
BASE = rounded(weights((64, 64))).tobytes()
HUGE = bytes(MAX_SOURCE + 1)
STORED = {digest_of(data): data for data in (BASE, HUGE, b"", b"\1\0" * 64)}
BASE_AT, HUGE_AT = digest_of(BASE), digest_of(HUGE)
NAN, INFINITE = float("nan"), float("inf")
LOST = Digest("blake3:" + "0" * 64)


def fetch(digest: Digest) -> bytes:
    if digest not in STORED:
        raise NotFoundError(f"{digest} is not here")
    return STORED[digest]


@contextmanager
def bounds(seconds: float = 1.0, megabytes: float = 8.0) -> Iterator[None]:
    """Fails where more of the processor's time, or more memory at once, is used."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
    finally:
        took, (_, most) = time.process_time() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert took < seconds
    assert most < megabytes * 2**20


def of(
    codec: int, size: int, payload: bytes = b"", deps: tuple[Digest, ...] = (), *parts: Part
) -> Frame:
    return Frame(codec=codec, size=size, payload=payload, depth=1 if deps else 0, deps=deps,
                 parts=parts)  # fmt: skip


def delta(predictor: int, parameters: bytes, kind: int = 5, data: bytes = BASE) -> bytes:
    body = KERNEL.delta_encode(data, data, kind, 64)
    return struct.pack("<BI", predictor, len(parameters)) + parameters + body


def drifted(group: int, bits: int) -> bytes:
    return struct.pack("<I", group) + bytes(4 * 256) + b"\xff" * bits


def ranked(columns: int, scale: float, rows: int, rank: int) -> bytes:
    own = np.arange(rows * rank).astype("<i2").tobytes()
    return struct.pack("<If", columns, scale) + KERNEL.planes_encode(own, 7)


def moved(predictor: int, parameters: bytes, deps: tuple[Digest, ...], kind: int = 5) -> Frame:
    return of(DELTA, len(BASE), delta(predictor, parameters, kind), deps)


def cut(codec: int, size: int, payload: bytes, *numbers: int) -> Frame:
    begin, block, stride, count = numbers
    part = Part(dep=0, begin=begin, block=block, stride=stride, count=count)
    return of(codec, size, payload, (BASE_AT,), part)


def streamed(data: bytes) -> bytes:
    """zstd that does not say how much it holds."""
    one = zstandard.ZstdCompressor().compressobj()
    return one.compress(data) + one.flush()


def lying(data: bytes, size: int) -> bytes:
    """zstd that says that it holds `size` bytes."""
    raw = bytearray(zstandard.ZstdCompressor().compress(data))
    assert raw[4] >> 6 == 2, "the size has four bytes"
    raw[5:9] = size.to_bytes(4, "little")
    return bytes(raw)


BOMB = zstandard.ZstdCompressor().compress(bytes(200 * 2**20))
ONE, BOTH, TWO = (BASE_AT,), (BASE_AT, BASE_AT), (BASE_AT, digest_of(b"\1\0" * 64))
SMALL = zstandard.ZstdCompressor().compress(b"text " * 9)
HOSTILE = {
    "raw of another size": of(RAW, 5, b"1234"),
    "zstd that is none": of(ZSTD, 9, b"123456789"),
    "no zstd": of(ZSTD, 9),
    "a bomb": of(ZSTD, 100, BOMB),
    "a bomb that says nothing": of(ZSTD, 100, streamed(bytes(2**24))),
    "a bomb that lies": of(ZSTD, 70_000, lying(bytes(2**24), 70_000)),
    "zstd that has less": of(ZSTD, MAX_OBJECT, lying(bytes(70_000), MAX_OBJECT)),
    "zstd and more": of(ZSTD, 45, SMALL + SMALL),
    "zstd that is cut": of(ZSTD, 45, SMALL[:-1]),
    "planes of nothing": of(PLANES, 8),
    "planes of no kind": of(PLANES, 8, b"\x09\1\0"),
    "planes of kind 0": of(PLANES, 8, b"\0\1\0"),
    "planes of half an element": of(PLANES, 9, b"\5\1\0\1\0"),
    "planes of too much": of(PLANES, MAX_SOURCE + 4, b"\6" + b"\1\0" * 4),
    "planes of more": of(PLANES, 8, b"\5\1\0\1\0\0"),
    "planes that are cut": of(PLANES, 8, b"\5\1\0\1"),
    "a difference of nothing": of(DELTA, 8, b""),
    "a difference without a base": of(DELTA, len(BASE), delta(PLAIN, b"")),
    "a base of another size": of(DELTA, 8, delta(PLAIN, b""), (BASE_AT,)),
    "another predictor": of(DELTA, len(BASE), delta(3, b""), (BASE_AT,)),
    "parameters past the end": of(DELTA, len(BASE), b"\0\xff\xff\xff\xff\5\5\5", (BASE_AT,)),
    "parameters to the end": of(DELTA, len(BASE), b"\1\2\0\0\0\5\5", (BASE_AT,)),
    "drift of a bf16": moved(DRIFT, drifted(64, 8), ONE),
    "drift without a table": moved(DRIFT, bytes(9), ONE, 6),
    "drift of groups of 0": moved(DRIFT, drifted(0, 1), ONE, 6),
    "drift with too few bits": moved(DRIFT, drifted(64, 3), ONE, 6),
    "drift with too many bits": moved(DRIFT, drifted(2**32 - 1, 2), ONE, 6),
    "no factors": moved(LOW_RANK, ranked(64, 1, 64, 1), ONE),
    "factors of int8": moved(LOW_RANK, ranked(64, 1, 64, 1), TWO, 1),
    "no columns": moved(LOW_RANK, ranked(0, 1, 64, 1), TWO),
    "one column": moved(LOW_RANK, ranked(1, 1, 4096, 32), TWO),
    "too many columns": moved(LOW_RANK, ranked(2**32 - 1, 1, 1, 1), TWO),
    "a scale that is none": moved(LOW_RANK, ranked(64, NAN, 64, 1), TWO),
    "an infinite scale": moved(LOW_RANK, ranked(64, INFINITE, 64, 1), TWO),
    "a rank of 64": moved(LOW_RANK, ranked(64, 1, 64, 64), BOTH),
    "own factors of other rows": moved(LOW_RANK, ranked(64, 1, 63, 1), TWO),
    "factors not described": moved(LOW_RANK, b"1234567", TWO),
    "a copy of nothing": of(COPY, 0),
    "a copy of less": of(COPY, 8, b"", (BASE_AT,)),
    "a copy of too much": of(COPY, MAX_SOURCE + 1, b"", (HUGE_AT,)),
    "a part past the end": cut(COPY, 8, b"", len(BASE) - 7, 8, 8, 1),
    "blocks past the end": cut(COPY, 8, b"", 0, 1, 2**32 - 1, 8),
    "a part of another size": cut(COPY, 9, b"", 0, 8, 8, 1),
    "a byte, many times": cut(COPY, 9, b"", 0, 1, 0, 2**22),
    "a cast not described": of(CAST, 8, b"", (BASE_AT,)),
    "a cast from no float": of(CAST, len(BASE), b"\7\6", (BASE_AT,)),
    "a cast to no float": of(CAST, len(BASE), b"\6\1", (BASE_AT,)),
    "a cast of another size": of(CAST, len(BASE), b"\5\6", (BASE_AT,)),
    "a cast without a base": of(CAST, 8, b"\5\6"),
    "a cast of half an element": cut(CAST, 6, b"\6\5", 0, 10, 10, 1),
    "a quantization not described": of(QUANTIZE, 8, b"\1\5", (BASE_AT,)),
    "a quantization of no columns": of(QUANTIZE, 8, struct.pack("<BBI", 1, 5, 0), (BASE_AT,)),
    "a quantization of many": of(QUANTIZE, 8, struct.pack("<BBI", 1, 5, 2**32 - 1), (BASE_AT,)),
    "a quantization of integers": of(QUANTIZE, 8, struct.pack("<BBI", 1, 7, 64), (BASE_AT,)),
    "a quantization by no rule": of(QUANTIZE, 8, struct.pack("<BBI", 9, 5, 64), (BASE_AT,)),
    "blocks of 16": of(QUANTIZE, 4352, struct.pack("<BBI", 3, 5, 16), (BASE_AT,)),
    "a quantization of another size": of(QUANTIZE, 8, struct.pack("<BBI", 1, 5, 64), (BASE_AT,)),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_frame(what: str) -> None:
    frame = HOSTILE[what]
    for kernel in (KERNEL, TWIN):
        kernel.planes_decode(
            kernel.planes_encode(bytes(4096), 1), bytearray(4096), 1
        )  # its scratch
        with pytest.raises(IntegrityError), bounds(megabytes=16):
            decode(frame, fetch, kernel)


def test_a_dependency_that_is_not_here() -> None:
    for deps in ((LOST,), (BASE_AT, LOST)):
        for predictor, parameters in ((PLAIN, b""), (LOW_RANK, ranked(64, 1, 64, 1))):
            frame = of(DELTA, len(BASE), delta(predictor, parameters), deps)
            if deps[-1] == LOST and (predictor == LOW_RANK or len(deps) == 1):
                with pytest.raises(NotFoundError):
                    decode(frame, fetch, KERNEL)
            else:
                assert bytes(decode(frame, fetch, KERNEL)) == BASE


def test_a_group_larger_than_the_source_takes_no_memory() -> None:
    """The group is a stranger's number, up to 2^32: what is made is as large as the source."""
    frame = moved(DRIFT, drifted(2**32 - 1, 1), ONE, 6)
    with bounds():
        assert bytes(decode(frame, fetch, KERNEL)) == BASE
    payload = bytearray(KERNEL.delta_encode(BASE, BASE, 5, 1 << 20))
    for kernel in (KERNEL, TWIN):
        with bounds():
            kernel.delta_decode(bytes(payload), BASE, bytearray(len(BASE)), 5)


def test_many_small_blocks_take_little() -> None:
    """A part of a few bytes in the head says millions of blocks: no object for each is made."""
    count = 2**24
    part = Part(dep=0, begin=0, block=2, stride=1, count=len(BASE) - 1)
    again = Part(dep=0, begin=5, block=1, stride=0, count=count)
    assert (
        bytes(decode(of(COPY, count, b"", (BASE_AT,), again), fetch, KERNEL)) == BASE[5:6] * count
    )
    with bounds(megabytes=2.5 * count / 2**20):
        decode(of(COPY, count, b"", (BASE_AT,), again), fetch, KERNEL)
    found = bytes(decode(of(COPY, 2 * part.count, b"", (BASE_AT,), part), fetch, KERNEL))
    assert found == b"".join(BASE[i : i + 2] for i in range(part.count))


@pytest.mark.parametrize("kind", [COPY, CAST, QUANTIZE, DELTA])
def test_parts_that_make_more_than_is_stated_are_not_taken(kind: int) -> None:
    """Found by fuzzing: 130 bytes had 32 MiB gathered and cast before they were refused."""
    payload = {CAST: bytes([5, 6]), QUANTIZE: struct.pack("<BBI", 1, 5, 2)}.get(kind, b"")
    again = Part(dep=0, begin=1, block=2, stride=0, count=2**24)
    frame = of(kind, 131_072, payload, (BASE_AT,), again)
    with bounds(seconds=0.2, megabytes=2), pytest.raises(IntegrityError, match="its parts make"):
        decode(frame, fetch, KERNEL)


def test_the_most_that_a_few_bytes_may_ask_for() -> None:
    """Nine bytes of constant planes give 64 MiB: that takes a few times as much, no more."""
    frame = of(PLANES, MAX_SOURCE, b"\6" + b"\1\7" * 4)
    with bounds(seconds=2, megabytes=4.5 * MAX_SOURCE / 2**20):
        found = decode(frame, fetch, named_kernel(""))
    assert len(found) == MAX_SOURCE


def test_all_of_a_result_is_written() -> None:
    """A result's memory is not zeroed before: no byte of what lay there may be seen."""
    for count in (1, 63, 64, 4095, 4097, 70_001):
        data = rounded(weights((count,))).tobytes()
        planes, same = KERNEL.planes_encode(data, 5), KERNEL.delta_encode(data, data, 5, 64)
        for value in (b"\0", b"\xff"):
            out = bytearray(value * len(data))
            KERNEL.planes_decode(planes, out, 5)
            assert out == data
            out = bytearray(value * len(data))
            KERNEL.delta_decode(same, data, out, 5)
            assert out == data


def test_another_digest() -> None:
    with pytest.raises(IntegrityError, match="have another digest"):
        decode_checked(BASE_AT, of(RAW, 4, b"1234"), fetch, KERNEL)
    assert bytes(decode_checked(BASE_AT, of(RAW, len(BASE), BASE), fetch, KERNEL)) == BASE


@cache
def real() -> tuple[Shelf, tuple[Frame, ...]]:
    """Frames of every codec and predictor, as the encoder writes them, and what they rest on."""
    shelf = Shelf()
    full = weights((256, 128))
    base = rounded(full)
    source, _ = shelf.tensor(full, "F32")
    half, first = shelf.tensor(base, "BF16")
    rng = np.random.default_rng(2)
    product = (rng.normal(0, 0.02, (256, 4)) @ rng.normal(0, 0.1, (4, 128))).astype("<f4")
    decayed = full.copy()
    for _ in range(20):
        decayed *= np.float32(1 - 2e-6)
    rows = full / (np.abs(full).max(axis=1, keepdims=True) / np.float32(127))
    frames = [
        *first,
        *shelf.tensor(base + rng.integers(0, 5, base.shape).astype("<u2"), "BF16", (half,))[1],
        *shelf.tensor(rounded(wide(base) + product), "BF16", (half,))[1],
        *shelf.tensor(decayed, "F32", (source,))[1],
        *shelf.tensor(full.astype("<f2"), "F16", (source,))[1],
        *shelf.tensor(np.clip(np.rint(rows), -127, 127).astype(np.int8), "I8", (source,))[1],
        *shelf.tensor(base[:, :64].copy(), "BF16", (half,))[1],
    ]
    frames += [
        shelf.put(Object(digest=digest_of(data), data=data)).frame
        for data in (b"some text " * 300, rng.bytes(500))
    ]
    return shelf, tuple(parse(pack(frame)) for frame in frames)


def test_there_is_a_frame_of_each_codec() -> None:
    _, frames = real()
    assert {codec(frame) for frame in frames} == set(NAMES)
    assert {frame.payload[0] for frame in frames if frame.codec == DELTA} == {
        PLAIN,
        DRIFT,
        LOW_RANK,
    }


@settings(max_examples=400, deadline=None)
@given(
    which=st.integers(0, 99),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3),
    cut=st.none() | st.floats(0, 1),
    size=st.sampled_from((0, 0, 0, -1, 1, 4, 10_000_000)),
    other=st.none() | st.integers(0, len(NAMES) - 1),
)
def test_whatever_is_changed_it_is_refused_or_gives_the_stated_size(
    which: int, changes: list[tuple[float, int]], cut: float | None, size: int, other: int | None
) -> None:
    shelf, frames = real()
    frame = frames[which % len(frames)]
    payload = bytearray(frame.payload)
    for spot, value in changes:
        if payload:
            payload[int(spot**3 * (len(payload) - 1))] = value
    if cut is not None:
        del payload[int(cut * len(payload)) :]
    changed = replace(frame, payload=bytes(payload), size=max(frame.size + size, 0),
                      codec=frame.codec if other is None else other)  # fmt: skip
    began = time.process_time()
    try:
        found = decode(changed, shelf.fetch, KERNEL)
        assert holds(changed, found, shelf.fetch, KERNEL)
    except IntegrityError:
        found = b"\0" * changed.size
        with suppress(IntegrityError):
            assert not holds(changed, found, shelf.fetch, KERNEL)
    assert len(found) == changed.size
    assert time.process_time() - began < 2


def test_a_source_too_small_for_a_recipe() -> None:
    for frame in (of(CAST, 0, b"\5\6", (digest_of(b""),)),
                  of(QUANTIZE, 0, struct.pack("<BBI", 1, 5, 7), (digest_of(b""),)),
                  of(QUANTIZE, 0, struct.pack("<BBI", 2, 5, 7), (digest_of(b""),)),
                  of(QUANTIZE, 0, struct.pack("<BBI", 3, 5, 32), (digest_of(b""),))):  # fmt: skip
        assert bytes(decode(frame, fetch, KERNEL)) == b""
    assert list(recipes.quantizations("I8", 2**32)) == []
    assert Grid(dtype="BF16", shape=(0, 5)).columns == 1
