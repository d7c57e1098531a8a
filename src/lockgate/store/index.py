"""Which object is where: the entries of all packs, sorted, 70 bytes an object, 32 more a base."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from lockgate.core.digests import Digest, from_raw, raw_of
from lockgate.store.pack import Entries, to_digest

_OVERLAY = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a frame is, and what is known of it without reading it. Sizes in bytes."""

    pack: str
    offset: int
    length: int
    size: int
    codec: int
    depth: int


class Index:
    """The entries of the packs that were added; not safe for threads by itself.

    Entries of new packs are found by a dictionary until there are many of them; then all are
    sorted anew, so that adding n objects costs O(n log n) over the life of a store.
    """

    def __init__(self) -> None:
        self._packs: dict[str, Entries] = {}
        self._names: list[str] = []
        self._keys: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._rows: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._ends: list[int] = []
        self._recent: dict[bytes, tuple[str, int]] = {}
        self._hidden: set[tuple[bytes, str]] = set()
        self._deps: dict[str, tuple[bytes, NDArray[np.uint32]]] = {}

    @property
    def packs(self) -> frozenset[str]:
        """The names of the packs."""
        return frozenset(self._packs)

    def entries(self, pack: str) -> Entries:
        """Returns the entries of a pack."""
        return self._packs[pack]

    def add(self, pack: str, entries: Entries, deps: bytes) -> None:
        """Adds a pack; `deps` are the dependencies of its entries, in order, 32 bytes each."""
        if pack in self._packs:
            return
        self._packs[pack] = entries
        counts = entries["deps"].astype(np.uint32)
        self._deps[pack] = (deps, np.cumsum(counts, dtype=np.uint32) - counts)
        raws = entries["digest"].tobytes()
        for row in range(len(entries)):
            self._recent[raws[32 * row : 32 * row + 32]] = (pack, row)
        if len(self._recent) > _OVERLAY:
            self._sort()

    def remove(self, packs: set[str]) -> None:
        """Forgets packs."""
        if packs & set(self._packs):
            for name in packs:
                self._packs.pop(name, None)
                self._deps.pop(name, None)
            self._hidden = {pair for pair in self._hidden if pair[1] in self._packs}
            self._sort()

    def hide(self, digest: Digest, pack: str) -> None:
        """Makes an entry that turned out damaged be found no more."""
        raw = raw_of(digest)
        if (raw, pack) in self._hidden:
            return
        self._hidden.add((raw, pack))
        if self._recent.get(raw, ("", 0))[0] == pack:
            self._sort()  # another pack may have it

    def _sort(self) -> None:
        self._names = list(self._packs)
        keys = [_keys(self._packs[name]) for name in self._names]
        joined = np.concatenate([*keys, np.zeros(0, np.uint64)])
        order = np.argsort(joined, kind="stable")
        self._keys, self._rows = joined[order], order.astype(np.uint32)
        self._ends = list(accumulate(key.size for key in keys))
        self._recent = {}

    def find(self, digest: Digest) -> Place | None:
        """Returns where the object is, None when it is in no pack."""
        found = self._row_of(digest)
        return self._place(*found) if found else None

    def _row_of(self, digest: Digest) -> tuple[str, int] | None:
        raw = raw_of(digest)
        recent = self._recent.get(raw)
        if recent is not None:
            return recent
        key = np.frombuffer(raw, "<u8", 1)[0]
        at = int(np.searchsorted(self._keys, key))
        while at < self._keys.size and self._keys[at] == key:
            pack, row = self._split(int(self._rows[at]))
            same = self._packs[pack][row]["digest"].tobytes() == raw
            if same and (raw, pack) not in self._hidden:
                return pack, row
            at += 1
        return None

    def _split(self, number: int) -> tuple[str, int]:
        """Returns the pack and the row in it of an entry, by its number among all."""
        at = bisect_right(self._ends, number)
        return self._names[at], number - (self._ends[at - 1] if at else 0)

    def deps(self, digest: Digest) -> tuple[Digest, ...]:
        """Returns what an object's frame depends on; nothing for one that is in no pack."""
        found = self._row_of(digest)
        if found is None:
            return ()
        pack, row = found
        deps, starts = self._deps[pack]
        first = int(starts[row])
        many = int(self._packs[pack][row]["deps"])
        return tuple(from_raw(deps[32 * i : 32 * i + 32]) for i in range(first, first + many))

    def _place(self, pack: str, row: int) -> Place:
        entry = self._packs[pack][row]
        return Place(
            pack=pack,
            offset=int(entry["offset"]),
            length=int(entry["length"]),
            size=int(entry["size"]),
            codec=int(entry["codec"]),
            depth=int(entry["depth"]),
        )

    def digests(self) -> Iterator[Digest]:
        """Yields every digest once, in order."""
        raws = {raw for name in self._packs for raw in _raws(self._packs[name])}
        for raw in sorted(raws):
            digest = to_digest(np.void(raw))
            if self.find(digest) is not None:
                yield digest


def _keys(entries: Entries) -> NDArray[np.uint64]:
    raws = np.frombuffer(entries["digest"].tobytes(), "<u8").reshape(-1, 4)
    return raws[:, 0].copy()


def _raws(entries: Entries) -> Iterator[bytes]:
    joined = entries["digest"].tobytes()
    return (joined[at : at + 32] for at in range(0, len(joined), 32))
