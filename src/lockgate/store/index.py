"""Which object is where: the entries of all packs, sorted; 64 bytes an object, 4 more a base."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockgate.core.digests import Digest, from_raw, raw_of
from lockgate.store.pack import ENTRY, Entries, to_digest

_OVERLAY = 65_536
_LOOSE = 1 << 31  # a base's number from here on: its digest is in no pack
_FIRST = 1024
Numbers = NDArray[np.uint32]
Raws = NDArray[np.void]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a frame is, and what is known of it without reading it. Sizes in bytes."""

    pack: str
    offset: int
    length: int
    size: int
    codec: int
    depth: int


class _Growing:
    """An array that grows at its end; room that is not used yet takes no memory."""

    def __init__(self, dtype: Any) -> None:
        self._room: NDArray[Any] = np.empty(_FIRST, dtype)
        self.size = 0

    @property
    def values(self) -> NDArray[Any]:
        """What was added."""
        return self._room[: self.size]

    def add(self, values: NDArray[Any]) -> None:
        """Adds values at the end."""
        size = self.size + len(values)
        if size > len(self._room):
            room = np.empty(2 * size, self._room.dtype)
            room[: self.size] = self.values
            self._room = room
        self._room[self.size : size] = values
        self.size = size


class Index:
    """The entries of the packs that were added; not safe for threads by itself.

    An entry has a number: its place among all, pack by pack. Those of new packs are found by a
    dictionary until there are many of them; then all are sorted anew, at the next look, so that
    adding n objects costs O(n log n) over the life of a store. What a frame depends on is kept by
    number where it is an entry itself.
    """

    def __init__(self) -> None:
        self._hidden: set[tuple[bytes, str]] = set()
        self._clear()

    def _clear(self) -> None:
        self._entries = _Growing(ENTRY)
        self._starts = _Growing(np.uint32)  # of each entry's bases, among all bases
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._ends: list[int] = []
        self._bases: Numbers = np.zeros(0, np.uint32)
        self._loose: Raws = np.zeros(0, "V32")
        self._fresh_bases = bytearray()  # of entries that are not sorted yet, as digests
        self._keys: Numbers = np.zeros(0, np.uint32)
        self._order: Numbers = np.zeros(0, np.uint32)
        self._recent: dict[bytes, int] = {}
        self._noted = 0

    @property
    def packs(self) -> frozenset[str]:
        """The names of the packs."""
        return frozenset(self._numbers)

    def entries(self, pack: str) -> Entries:
        """Returns the entries of a pack."""
        number = self._numbers[pack]
        begin = self._ends[number - 1] if number else 0
        return self._entries.values[begin : self._ends[number]]

    def add(self, pack: str, entries: Entries, deps: bytes) -> None:
        """Adds a pack; `deps` are the dependencies of its entries, in order, 32 bytes each."""
        if pack in self._numbers:
            return
        first = self._bases.size + len(self._fresh_bases) // 32
        counts = entries["deps"].astype(np.uint32)
        self._starts.add(np.cumsum(counts, dtype=np.uint32) - counts + np.uint32(first))
        self._entries.add(entries)
        self._numbers[pack] = len(self._names)
        self._names.append(pack)
        self._ends.append(self._entries.size)
        self._fresh_bases += deps

    def remove(self, packs: set[str]) -> None:
        """Forgets packs."""
        if not packs & set(self._numbers):
            return
        kept = [
            (name, self.entries(name).copy(), self._bases_of(name))
            for name in self._names
            if name not in packs
        ]
        self._clear()
        for name, entries, bases in kept:
            self.add(name, entries, bases)
        self._sort()
        self._hidden = {pair for pair in self._hidden if pair[1] in self._numbers}

    def _bases_of(self, pack: str) -> bytes:
        """Returns the dependencies of a pack's entries, as they were given."""
        number = self._numbers[pack]
        begin, end = (self._ends[number - 1] if number else 0), self._ends[number]
        if begin == end:
            return b""
        last = self._starts.values[end - 1] + self._entries.values["deps"][end - 1]
        return self._raw_bases(int(self._starts.values[begin]), int(last))

    def _raw_bases(self, begin: int, end: int) -> bytes:
        """Returns the digests of bases by their places among all."""
        known = self._bases.size
        numbers = self._bases[begin : min(end, known)]
        raws = np.empty(numbers.size, "V32")
        loose = numbers >= _LOOSE
        raws[loose] = self._loose[numbers[loose] - _LOOSE]
        raws[~loose] = self._entries.values["digest"][numbers[~loose]]
        fresh = self._fresh_bases[32 * max(0, begin - known) : 32 * max(0, end - known)]
        return raws.tobytes() + bytes(fresh)

    def hide(self, digest: Digest, pack: str) -> None:
        """Makes an entry that turned out damaged be found no more."""
        raw = raw_of(digest)
        if (raw, pack) in self._hidden:
            return
        self._hidden.add((raw, pack))

    def _sort(self) -> None:
        entries = self._entries.values
        keys = _keys(entries["digest"])
        self._order = np.argsort(keys, kind="stable").astype(np.uint32)
        self._keys = keys[self._order]
        self._recent, self._noted = {}, self._entries.size
        fresh, self._fresh_bases = np.frombuffer(self._fresh_bases, "V32"), bytearray()
        found = np.empty(fresh.size, np.uint32)
        for begin in range(0, fresh.size, _OVERLAY):  # part by part: it makes copies of digests
            part = slice(begin, begin + _OVERLAY)
            found[part] = self._numbers_of(fresh[part])
        absent = found == _LOOSE
        found[absent] += np.arange(absent.sum(), dtype=np.uint32) + np.uint32(self._loose.size)
        self._loose = np.concatenate([self._loose, fresh[absent]])
        self._bases = np.concatenate([self._bases, found])

    def _numbers_of(self, raws: Raws) -> Numbers:
        """Returns the entries that have these digests, `_LOOSE` for those that none has."""
        wanted = _keys(raws)
        digests = self._entries.values["digest"]
        found = np.full(raws.size, _LOOSE, np.uint32)
        at = np.searchsorted(self._keys, wanted)
        left = np.arange(raws.size)
        while left.size:
            inside = at[left] < self._keys.size
            left = left[inside]
            left = left[self._keys[at[left]] == wanted[left]]
            numbers = self._order[at[left]]
            same = digests[numbers] == raws[left]
            found[left[same]] = numbers[same]
            left = left[~same]
            at[left] += 1
        return found

    def _note(self) -> None:
        """Makes the entries that were added since the last look be found."""
        if self._entries.size - self._order.size > _OVERLAY:
            self._sort()
            return
        entries = self._entries.values[self._noted :]
        raws = entries["digest"].tobytes()
        for row in range(len(entries)):
            self._recent[raws[32 * row : 32 * row + 32]] = self._noted + row
        self._noted = self._entries.size

    def find(self, digest: Digest) -> Place | None:
        """Returns where the object is, None when it is in no pack."""
        number = self._number_of(digest)
        if number is None:
            return None
        entry = self._entries.values[number]
        return Place(
            pack=self._pack_of(number),
            offset=int(entry["offset"]),
            length=int(entry["length"]),
            size=int(entry["size"]),
            codec=int(entry["codec"]),
            depth=int(entry["depth"]),
        )

    def _number_of(self, digest: Digest) -> int | None:
        raw = raw_of(digest)
        if self._noted < self._entries.size:
            self._note()
        recent = self._recent.get(raw)
        if recent is not None and (raw, self._pack_of(recent)) not in self._hidden:
            return recent
        if recent is not None:
            self._sort()  # another pack may have it
        key = np.frombuffer(raw, "<u4", 1)[0]
        at = int(np.searchsorted(self._keys, key))
        while at < self._keys.size and self._keys[at] == key:
            number = int(self._order[at])
            same = self._entries.values[number]["digest"].tobytes() == raw
            if same and (raw, self._pack_of(number)) not in self._hidden:
                return number
            at += 1
        return None

    def _pack_of(self, number: int) -> str:
        return self._names[bisect_right(self._ends, number)]

    def deps(self, digest: Digest) -> tuple[Digest, ...]:
        """Returns what an object's frame depends on; nothing for one that is in no pack."""
        number = self._number_of(digest)
        if number is None:
            return ()
        begin = int(self._starts.values[number])
        many = int(self._entries.values[number]["deps"])
        raws = self._raw_bases(begin, begin + many)
        return tuple(from_raw(raws[at : at + 32]) for at in range(0, len(raws), 32))

    def digests(self) -> Iterator[Digest]:
        """Yields every digest once, in order."""
        joined = self._entries.values["digest"].tobytes()
        for raw in sorted({joined[at : at + 32] for at in range(0, len(joined), 32)}):
            digest = to_digest(np.void(raw))
            if self.find(digest) is not None:
                yield digest


def _keys(raws: Raws) -> Numbers:
    """Returns the first four bytes of digests as numbers."""
    first = np.dtype({"names": ["key"], "formats": ["<u4"], "offsets": [0], "itemsize": 32})
    keys: Numbers = raws.view(first)["key"].copy()
    return keys
