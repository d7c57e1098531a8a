"""Frames: packed and parsed alike, and nothing else is taken for one."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.core.digests import Digest, digest_of
from lockgate.core.errors import IntegrityError
from lockgate.store.codec import frame as frames
from lockgate.store.codec.frame import COPY, MAX_OBJECT, RAW, Frame, Part, gather, pack, parse

A, B = b"0123456789abcdefghij", b"ABCDEFGHIJ"
DIGESTS = (digest_of(A), digest_of(B))
STORED = dict(zip(DIGESTS, (A, B), strict=True))
NUMBER = st.integers(0, 2**32 - 1)


@st.composite
def some_frames(draw: st.DrawFn) -> Frame:
    deps = tuple(
        Digest("blake3:" + raw.hex())
        for raw in draw(st.lists(st.binary(min_size=32, max_size=32), max_size=4))
    )
    number = st.integers(0, len(deps) - 1) if deps else st.nothing()
    part = st.builds(
        Part, dep=number, begin=NUMBER, block=st.integers(1, 4096), stride=NUMBER,
        count=st.integers(1, 4096),
    )  # fmt: skip
    parts = draw(st.lists(part, max_size=3)) if deps else []
    return Frame(
        codec=draw(st.integers(0, 6)),
        size=draw(st.integers(0, MAX_OBJECT)),
        payload=draw(st.binary(max_size=200)),
        depth=draw(st.integers(1, 3)) if deps else 0,
        deps=deps,
        parts=tuple(sorted(parts, key=lambda part: part.dep)),
    )


@given(some_frames())
def test_it_comes_back(one: Frame) -> None:
    found = parse(pack(one))
    assert replace(found, payload=bytes(found.payload)) == one
    assert pack(found) == pack(one)


@given(some_frames())
@settings(max_examples=10)
def test_every_flipped_bit_is_noticed(one: Frame) -> None:
    data = pack(one)
    for at in range(len(data)):
        for bit in (1, 0x80):
            with pytest.raises(IntegrityError):
                parse(data[:at] + bytes((data[at] ^ bit,)) + data[at + 1 :])


@given(some_frames())
@settings(max_examples=20)
def test_another_length_is_noticed(one: Frame) -> None:
    data = pack(one)
    for size in range(len(data)):
        with pytest.raises(IntegrityError):
            parse(data[:size])
    with pytest.raises(IntegrityError):
        parse(data + b"\0")


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse(data)


def by_hand(head: tuple[int, ...], tail: bytes = b"", check: bytes | None = None) -> bytes:
    """A frame of any numbers, with the checksum that they need."""
    form = struct.Struct("<4B3I8s")
    found = blake3(form.pack(*head, bytes(8)) + tail).digest()[:8]
    return form.pack(*head, found if check is None else check) + tail


DEPS = bytes(32) + bytes(32)


def part(dep: int = 0, begin: int = 0, block: int = 1, stride: int = 1, count: int = 1) -> bytes:
    return struct.pack("<5I", dep, begin, block, stride, count)


HOSTILE = {
    "another format": by_hand((2, 0, 0, 0, 0, 0, 0)),
    "no codec": by_hand((1, 7, 0, 0, 0, 0, 0)),
    "a huge object": by_hand((1, 0, 0, 0, 0, MAX_OBJECT + 1, 0)),
    "too deep": by_hand((1, 3, 2, 4, 0, 0, 0), DEPS),
    "a recipe that is too deep": by_hand((1, 4, 2, 5, 0, 0, 0), DEPS),
    "deep without bases": by_hand((1, 4, 0, 1, 0, 0, 0)),
    "bases without depth": by_hand((1, 4, 2, 0, 0, 0, 0), DEPS),
    "too many bases": by_hand((1, 4, 65, 1, 0, 0, 0), bytes(65 * 32)),
    "too many parts": by_hand((1, 4, 1, 1, 4097, 0, 0), bytes(32) + part() * 4097),
    "parts that are not there": by_hand((1, 4, 1, 1, 2**32 - 1, 0, 0), bytes(32)),
    "a payload that is not there": by_hand((1, 0, 0, 0, 0, 0, 2**32 - 1)),
    "parts of nothing": by_hand((1, 0, 0, 0, 1, 0, 0), part()),
    "a part of no base": by_hand((1, 4, 2, 1, 1, 0, 0), DEPS + part(dep=2)),
    "a part without bytes": by_hand((1, 4, 2, 1, 1, 0, 0), DEPS + part(block=0)),
    "a part of no blocks": by_hand((1, 4, 2, 1, 1, 0, 0), DEPS + part(count=0)),
    "too large a source": by_hand((1, 4, 2, 1, 1, 0, 0), DEPS + part(block=2**31, count=2**31)),
    "one that goes back": by_hand((1, 4, 2, 1, 2, 0, 0), DEPS + part(dep=1) + part(dep=0)),
    "another checksum": by_hand((1, 0, 0, 0, 0, 0, 0), check=bytes(8)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_head(what: str) -> None:
    with pytest.raises(IntegrityError) as refused:
        parse(HOSTILE[what])
    assert refused.value.hint


def test_the_same_head_without_malice() -> None:
    """What the hostile ones are made from is taken."""
    assert parse(by_hand((1, 0, 0, 0, 0, 0, 0))) == Frame(codec=RAW, size=0, payload=b"")
    assert parse(by_hand((1, 4, 2, 3, 2, 2, 0), DEPS + part(dep=0) + part(dep=1))).depth == 3
    assert parse(by_hand((1, 4, 2, 4, 0, 0, 0), DEPS)).depth == 4  # a recipe on a full chain


def test_without_a_look_at_the_checksum() -> None:
    assert parse(HOSTILE["another checksum"], check=False).size == 0
    for what in set(HOSTILE) - {"another checksum"}:
        with pytest.raises(IntegrityError):
            parse(HOSTILE[what], check=False)


def taken(parts: tuple[Part, ...]) -> bytes:
    return bytes(gather(DIGESTS, parts, STORED.__getitem__))


def spread(dep: int, begin: int, block: int, stride: int, count: int) -> Part:
    return Part(dep=dep, begin=begin, block=block, stride=stride, count=count)


def test_parts_of_a_source() -> None:
    assert taken((spread(0, 0, 20, 20, 1),)) == A
    assert taken((spread(0, 3, 2, 5, 3),)) == b"3489de"
    assert taken((spread(0, 3, 2, 0, 3),)) == b"343434"
    assert taken((spread(0, 3, 4, 1, 3),)) == b"345645675678"
    assert taken((spread(0, 18, 2, 99, 1),)) == b"ij"
    assert taken((spread(0, 18, 2, 2, 1), spread(1, 0, 1, 9, 2))) == b"ijAJ"


@given(st.integers(0, 30), st.integers(1, 8), st.integers(0, 8), st.integers(1, 8))
def test_parts_are_what_they_say(begin: int, block: int, stride: int, count: int) -> None:
    wanted = [A[begin + i * stride : begin + i * stride + block] for i in range(count)]
    if all(len(piece) == block for piece in wanted):
        assert taken((spread(0, begin, block, stride, count),)) == b"".join(wanted)
    else:
        with pytest.raises(IntegrityError, match="outside of its dependency"):
            taken((spread(0, begin, block, stride, count),))


def test_each_dependency_is_fetched_once() -> None:
    fetched: list[Digest] = []

    def fetch(digest: Digest) -> bytes:
        fetched.append(digest)
        return STORED[digest]

    parts = (*(spread(0, i, 1, 1, 1) for i in range(9)), *(spread(1, i, 1, 1, 1) for i in range(9)))
    one = Frame(codec=COPY, size=18, payload=b"", depth=1, deps=DIGESTS, parts=parts)
    assert frames.source_of(one, fetch) == A[:9] + B[:9]
    assert fetched == list(DIGESTS)


def test_too_large_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_SOURCE", 19)
    one = Frame(codec=COPY, size=20, payload=b"", depth=1, deps=DIGESTS[:1])
    with pytest.raises(IntegrityError, match="too large"):
        frames.source_of(one, STORED.__getitem__)


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 3))
def test_same(one: bytes, other: bytes, offset: int) -> None:
    assert frames.same(one, other) == (one == other)
    moved = memoryview(bytearray(b"x" * offset + one))[offset:]
    assert frames.same(moved, one)
