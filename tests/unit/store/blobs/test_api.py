"""What all blob backends share: names and pieces."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.errors import UsageError
from lockgate.store.blobs.api import check_name, cut, is_name, is_prefix


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(1, 30))
def test_cutting_keeps_the_bytes_and_bounds_the_pieces(parts: list[bytes], size: int) -> None:
    pieces = list(cut(parts, size))
    assert b"".join(pieces) == b"".join(parts)
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces[-1:])


def test_cutting_takes_views_of_other_items() -> None:
    numbers = memoryview(array("d", [1.0, 2.0]))
    assert b"".join(cut([numbers, memoryview(b"")], 5)) == numbers.tobytes()


def test_cutting_is_lazy() -> None:
    def parts() -> object:
        yield b"ab"
        raise AssertionError("too far")

    assert next(cut(parts(), 2)) == b"ab"  # type: ignore[arg-type]


@given(st.text(alphabet="ab09._-/A é\n", max_size=12))
def test_every_beginning_of_a_name_is_a_prefix(text: str) -> None:
    if is_name(text):
        assert check_name(text) == text
        assert not any(bad in f"/{text}" for bad in ("//", "/."))
        for end in range(len(text) + 1):
            assert is_prefix(text[:end])
    else:
        with pytest.raises(UsageError):
            check_name(text)
