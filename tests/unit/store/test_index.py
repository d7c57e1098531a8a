"""The index: every entry is found, in little memory."""

from __future__ import annotations

import secrets
import tracemalloc

import numpy as np

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


def test_an_entry_takes_about_a_hundred_bytes() -> None:
    tracemalloc.start()
    index, each = filled(MANY, PACKS)
    del each
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.packs
    assert held / MANY <= 101
