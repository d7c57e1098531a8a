"""Content-defined chunks: how the stream is sliced makes no difference, an insertion is local."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.core.errors import UsageError
from lockgate.store.formats.chunks import (
    EASY,
    HARD,
    MAX,
    MIN,
    NORMAL,
    WINDOW,
    Cutter,
    cut,
    cut_buffer,
    gear,
)


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


DATA = noise(3_000_000) + bytes(700_000) + noise(1_000_000, 1)
CUTS = cut_buffer(DATA)


def slowly(data: bytes) -> Iterator[int]:
    """Yields the lengths as the rule in the docstring says it, byte by byte."""
    table = [int(number) for number in gear()]
    begin, value = 0, 0
    for at, byte in enumerate(data, 1):
        value = ((value << 1) + table[byte]) & 0xFFFFFFFF
        length = at - begin
        limit = 0 if length < MIN else HARD if length < NORMAL else EASY
        if value < limit or length == MAX:
            yield length
            begin = at
    if begin < len(data):
        yield len(data) - begin


def test_the_fast_way_is_the_rule() -> None:
    data = DATA[2_700_000:4_100_000]
    assert cut_buffer(data) == list(slowly(data))


def test_the_table_is_what_the_page_says() -> None:
    assert len(set(gear().tolist())) == 256
    assert gear()[:3].tolist() == [3886479855, 2839973146, 133770420]


def test_lengths_are_within_their_bounds_and_add_up() -> None:
    assert sum(CUTS) == len(DATA)
    assert all(MIN <= length <= MAX for length in CUTS[:-1])
    assert MAX in CUTS


def test_the_average_is_about_64_kib() -> None:
    lengths = cut_buffer(noise(50_000_000, 2))
    assert 60 * 1024 < np.mean(lengths) < 68 * 1024


@given(places=st.lists(st.integers(0, len(DATA)), max_size=8))
@settings(max_examples=30, deadline=None)
def test_how_the_stream_is_sliced_makes_no_difference(places: list[int]) -> None:
    edges = [0, *sorted(places), len(DATA)]
    slices = [DATA[a:b] for a, b in itertools.pairwise(edges)]
    assert list(cut(slices, len(DATA))) == CUTS
    cutter = Cutter()
    fed = [length for piece in slices for length in cutter.feed(piece)]
    assert fed + cutter.finish() == CUTS


@pytest.mark.parametrize("step", [1, 31, 32, 33, 4097, 65_536, 65_537])
def test_equal_slices_make_no_difference(step: int) -> None:
    data = DATA[: 60_000 * min(step, 20)]
    slices = (data[at : at + step] for at in range(0, len(data), step))
    assert list(cut(slices, len(data))) == cut_buffer(data)


def test_a_file_is_cut_from_where_it_stands_and_read_no_further() -> None:
    file = io.BytesIO(DATA)
    file.seek(100_000)
    assert list(cut(file, 2_000_000)) == cut_buffer(DATA[100_000:2_100_000])
    assert file.tell() == 2_100_000


def test_a_stream_that_ends_too_early_is_told() -> None:
    with pytest.raises(UsageError, match="10 too early"):
        list(cut(io.BytesIO(b"x" * 90), 100))
    assert list(cut([b"x" * 90], 50)) == [50]
    assert list(cut([], 0)) == []


def ends(lengths: list[int], begin: int = 0) -> set[int]:
    return {begin + end for end in itertools.accumulate(lengths)}


@given(at=st.integers(0, 3_000_000), length=st.integers(1, 100_000), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_an_insertion_moves_the_cuts_near_it_only(at: int, length: int, seed: int) -> None:
    after = cut_buffer(DATA[:at] + noise(length, seed + 10) + DATA[at:])
    before, moved = ends(CUTS), {end - length for end in ends(after) if end > at + length}
    assert {end for end in before if end <= at} <= ends(after)
    far = {end for end in before if end > at + 8 * MAX}
    assert far <= moved


def test_bytes_without_content_make_the_longest_chunks() -> None:
    for byte in range(256):
        assert set(cut_buffer(bytes([byte]) * (2 * MAX))) == {MAX}


def test_a_cutter_is_ready_for_another_stream() -> None:
    cutter = Cutter()
    for _ in range(2):
        assert cutter.feed(DATA) + cutter.finish() == CUTS
    assert cutter.finish() == []
    assert WINDOW == 32
