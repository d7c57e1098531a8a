"""The index: every entry is found, in little memory."""

from __future__ import annotations

import secrets
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.core.digests import Digest
from lockgate.store.index import Index
from lockgate.store.pack import ENTRY

MANY = 200_000
PACKS = 40


def filled(count: int, packs: int) -> tuple[Index, list[list[bytes]]]:
    """Returns an index of made-up entries with one dependency each, and their digests by pack."""
    index = Index()
    each = []
    for number in range(packs):
        entries = np.zeros(count // packs, ENTRY)
        raw = [secrets.token_bytes(32) for _ in range(len(entries))]
        entries["digest"] = np.frombuffer(b"".join(raw), "V32")
        entries["offset"] = np.arange(len(entries)) + 1000 * number
        entries["deps"] = 1
        index.add(f"p{number}", entries, b"".join(raw))
        each.append(raw)
    index._sort()
    return index, each


def digest(raw: bytes) -> Digest:
    return Digest("blake3:" + raw.hex())


def test_every_entry_is_found_with_what_it_depends_on() -> None:
    index, each = filled(4000, 8)
    for number, raws in enumerate(each):
        for row, raw in enumerate(raws):
            place = index.find(digest(raw))
            assert place
            assert (place.pack, place.offset) == (f"p{number}", row + 1000 * number)
            assert index.deps(digest(raw)) == (digest(raw),)
    assert index.find(digest(bytes(32))) is None
    index.remove({"p3"})
    assert index.find(digest(each[3][0])) is None
    assert index.find(digest(each[4][0]))
    assert len(list(index.digests())) == 3500


def test_an_entry_takes_less_than_a_hundred_bytes() -> None:
    tracemalloc.start()
    index, each = filled(MANY, PACKS)
    del each
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.packs
    used = (index._entries.values, index._starts.values, index._bases, index._keys, index._order)
    assert sum(array.nbytes for array in used) / MANY == 68
    assert held / MANY <= 68 + 56 + 2  # and room to grow, untouched: no memory, but counted here


class Plain:
    """What an index is to do, over dictionaries."""

    def __init__(self) -> None:
        self.packs: dict[str, list[tuple[bytes, tuple[bytes, ...]]]] = {}
        self.hidden: set[tuple[bytes, str]] = set()

    def where(self, raw: bytes) -> set[str]:
        return {
            name
            for name, rows in self.packs.items()
            if (raw, name) not in self.hidden and any(row[0] == raw for row in rows)
        }

    def bases(self, raw: bytes, pack: str) -> tuple[bytes, ...]:
        return next(row[1] for row in self.packs[pack] if row[0] == raw)


RAWS = [bytes([n]) * 2 + bytes([7, 7]) + bytes([n // 2]) * 28 for n in range(12)]
RAWS += [raw[:4] + bytes([9]) * 28 for raw in RAWS[:4]]  # the same first bytes, other digests
SOME = st.lists(
    st.tuples(st.sampled_from(RAWS), st.lists(st.sampled_from(RAWS), max_size=3).map(tuple)),
    max_size=6, unique_by=lambda row: row[0],
)  # fmt: skip
MOVES = st.one_of(
    st.tuples(st.just("add"), SOME),
    st.tuples(st.just("remove"), st.sets(st.integers(0, 8), max_size=3)),
    st.tuples(st.just("hide"), st.tuples(st.sampled_from(RAWS), st.integers(0, 8))),
    st.tuples(st.just("look"), st.sampled_from(RAWS)),
)


@given(st.lists(MOVES, max_size=14), st.sampled_from([0, 3, 1000]))
@settings(max_examples=400, deadline=None)
def test_whatever_comes_it_finds_what_a_dictionary_would(
    moves: list[tuple[str, Any]], overlay: int
) -> None:
    plain, index = Plain(), Index()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lockgate.store.index._OVERLAY", max(1, overlay))
        for number, (move, about) in enumerate(moves):
            if move == "add":
                entries = np.zeros(len(about), ENTRY)
                for row, (raw, bases) in enumerate(about):
                    entries[row]["digest"] = np.void(raw)
                    entries[row]["offset"], entries[row]["deps"] = row, len(bases)
                index.add(f"p{number}", entries, b"".join(b for _, bases in about for b in bases))
                plain.packs[f"p{number}"] = about
            elif move == "remove":
                names = {f"p{n}" for n in about}
                index.remove(names)
                if names & set(plain.packs):
                    plain.packs = {k: v for k, v in plain.packs.items() if k not in names}
                    plain.hidden = {pair for pair in plain.hidden if pair[1] in plain.packs}
            elif move == "hide":
                index.hide(digest(about[0]), f"p{about[1]}")
                plain.hidden.add((about[0], f"p{about[1]}"))
            else:
                index.find(digest(about))
        check(index, plain)


def check(index: Index, plain: Plain) -> None:
    assert index.packs == set(plain.packs)
    for raw in RAWS:
        place, there = index.find(digest(raw)), plain.where(raw)
        assert (place is None) == (not there)
        if place is not None:
            assert place.pack in there
            assert index.deps(digest(raw)) == tuple(
                digest(base) for base in plain.bases(raw, place.pack)
            )
    assert list(index.digests()) == sorted(digest(raw) for raw in RAWS if plain.where(raw))
    for name, rows in plain.packs.items():
        assert [row.tobytes() for row in index.entries(name)["digest"]] == [r for r, _ in rows]
