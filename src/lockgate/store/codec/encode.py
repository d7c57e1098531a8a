"""An object → its frame: what pays is found by trying it on a sample, and proved by decoding."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from lockgate.core.digests import Digest, digest_of
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.store.codec import drift, lowrank, recipes
from lockgate.store.codec.decode import DRIFT, LOW_RANK, PLAIN, holds
from lockgate.store.codec.dtypes import Buffer, Grid, Object, Source

from lockgate.store.codec.frame import (  # isort: skip
    CAST, COPY, DELTA, MAX_DEPTH, MAX_SOURCE, PLANES, QUANTIZE, RAW, ZSTD, Fetch, Frame, Part,
    check_limits, gather, same,
)  # fmt: skip
from lockgate.store.codec.kernel import Kernel

_RECIPE_DEPTH = MAX_DEPTH + 1
_TINY = 128
_SAMPLE = 131_072
_GAIN = 0.97
_PROBE = 4096
_ZSTD_LEVEL = 3
_RANKED = 0.06
_REMEMBERED = 64
_LAST = 1.2
_PLACES = 256
_ALIKE, _SURELY = 0.2, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An object's frame, and what must be stored beside it (shared factors), before it."""

    frame: Frame
    beside: tuple[Object, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A candidate: its source's bytes, and the frame without its payload.

    `first`: the first piece of the tensor that the source is of.
    """

    source: Buffer
    frame: Frame
    grid: Grid
    first: Digest


class Encoder:
    """Chooses codecs. Safe for threads, as what it is given is.

    `fetch` gives stored bytes, `depth` the length of a stored object's chain (None where it is not
    stored), `bases` what a stored object depends on.
    """

    def __init__(
        self,
        kernel: Kernel,
        fetch: Fetch,
        depth: Callable[[Digest], int | None],
        bases: Callable[[Digest], tuple[Digest, ...]],
    ) -> None:
        self.kernel = kernel
        self.fetch = fetch
        self.depth = depth
        self.bases = bases
        self._factors: dict[tuple[Digest, tuple[int, ...]], bytes | None] = {}

    def encode(self, given: Object) -> Encoded:
        """Returns the smallest frame found; it was decoded again and gave the same bytes."""
        for encoded in self._candidates(given):
            if len(encoded.frame.payload) < len(given.data) and self._sound(encoded, given):
                return encoded
        return Encoded(frame=_raw(given.data))

    def _sound(self, encoded: Encoded, given: Object) -> bool:
        known = {extra.digest: bytes(extra.data) for extra in encoded.beside}

        def fetch(digest: Digest) -> Buffer:
            return known[digest] if digest in known else self.fetch(digest)

        if any(self._rests_on(base, given.digest) for base in encoded.frame.deps):
            return False
        try:
            check_limits(encoded.frame)
            return holds(encoded.frame, given.data, fetch, self.kernel)
        except (IntegrityError, NotFoundError):
            return False

    def _rests_on(self, digest: Digest, other: Digest) -> bool:
        """Says whether `other` is needed for `digest`, as when a damaged base is stored anew."""
        return digest == other or any(self._rests_on(base, other) for base in self.bases(digest))

    def _candidates(self, given: Object) -> Iterator[Encoded]:
        """Yields frames, each better than what a later one would be."""
        grid, size = given.grid, len(given.data)
        if size <= _TINY:
            return
        made: list[_Made] = []
        if grid is not None and size <= MAX_SOURCE:
            for source in given.sources:
                for candidate in self._from_source(given, grid, source):
                    if isinstance(candidate, _Made):
                        made.append(candidate)
                    else:
                        yield candidate
        if grid is None or grid.kind is None or size % grid.width or size > MAX_SOURCE:
            yield from _generic(given.data)
            return
        alone, deltas = self._estimate(given.data, grid, made)
        if deltas:
            best = min(range(len(made)), key=lambda i: deltas[i] * _weight(made[i]))
            if deltas[best] < min(alone, size * _GAIN):
                yield self._delta(given, made[best], deltas[best])
        if alone < size * _GAIN:
            payload = self.kernel.planes_encode(given.data, grid.kind)
            if len(payload) < size * _GAIN:
                yield Encoded(frame=Frame(codec=PLANES, size=size, payload=payload))
        yield from _generic(given.data)

    def _estimate(self, data: Buffer, grid: Grid, made: list[_Made]) -> tuple[float, list[float]]:
        """Returns the bytes that it would take alone, and as a difference from each candidate."""
        kind = grid.kind or 0
        sample = _sample(data, grid)
        scale = len(data) / max(len(sample), 1)
        deltas = [
            scale * len(self.kernel.delta_encode(sample, _sample(m.source, grid), kind, grid.group))
            for m in made
        ]
        if deltas and min(deltas) < len(data) * 0.4:  # no solo code of weights comes near it
            return float(len(data)), deltas
        return scale * len(self.kernel.planes_encode(sample, kind)), deltas

    def _from_source(self, given: Object, grid: Grid, source: Source) -> Iterator[Encoded | _Made]:
        """Yields recipes that hold exactly, and a base to take differences from.

        Where the chain is full, two: its nearest ancestor with room, and one that leaves some.
        """
        size = len(given.data)
        if source.grid.dtype != grid.dtype:
            yield from self._recipes(given, grid, source)
            return
        nearest, roomy, likeness = None, None, _ALIKE
        for begin, block, stride in islice(_places(given, grid, source.grid), _PLACES):
            made = self._make(source, begin, block, stride, size, grid, _RECIPE_DEPTH)
            if made is not None and same(made.source, given.data):
                yield Encoded(frame=replace(made.frame, codec=COPY))
                return
            above = None
            if made is not None and made.frame.depth > MAX_DEPTH:
                made = self._make(source, begin, block, stride, size, grid)
                above = self._make(source, begin, block, stride, size, grid, MAX_DEPTH - 1)
            if made is None or len(made.source) != size:
                continue
            found = _likeness(given.data, made.source, grid) if grid.kind else 0
            if found > likeness:
                nearest, roomy, likeness = made, above, found
            if likeness > _SURELY:
                break
        if nearest is not None:
            yield nearest
        if roomy is not None and len(roomy.source) == size:
            yield roomy

    def _make(
        self, source: Source, begin: int, block: int, stride: int, size: int, grid: Grid,
        most: int = MAX_DEPTH,
    ) -> _Made | None:  # fmt: skip
        """Returns the bytes of `source` from `begin` on, and the frame that names them."""
        found = _parts(source, begin, block, stride, size)
        if found is None:
            return None
        named, parts = found
        deps = self._shallow(named, most)
        if deps is None:
            return None
        try:
            joined = self.fetch(deps[0])
            whole = len(deps) == 1 and parts[0].begin == 0 and len(joined) == size
            if not whole:
                joined = gather(deps, parts, self.fetch)
        except (NotFoundError, IntegrityError):
            return None
        depth = 1 + max(self.depth(digest) or 0 for digest in deps)
        frame = Frame(codec=DELTA, size=size, payload=b"", depth=depth, deps=deps,
                      parts=() if whole else parts)  # fmt: skip
        return _Made(source=joined, frame=frame, grid=grid, first=source.pieces[0][0])

    def _shallow(self, deps: tuple[Digest, ...], most: int) -> tuple[Digest, ...] | None:
        """Returns bases with chains shorter than `most`, going up those that are not."""
        found = []
        for digest in deps:
            base, depth = digest, self.depth(digest)
            while depth is not None and depth >= most:
                above = self.bases(base)
                if not above:
                    return None
                base = above[0]
                depth = self.depth(base)
            if depth is None:
                return None
            found.append(base)
        return tuple(found)

    def _recipes(self, given: Object, grid: Grid, source: Source) -> Iterator[Encoded]:
        size = len(given.data)
        columns = source.grid.columns
        rules: list[tuple[int, bytes, int, int]] = []
        if source.grid.kind in recipes.FLOATS and grid.kind in recipes.FLOATS:
            rules.append((CAST, bytes((source.grid.kind or 0, grid.kind or 0)), grid.width, 1))
        rules += [
            (QUANTIZE, payload, out, into)
            for payload, kind, out, into in recipes.quantizations(grid.dtype, columns)
            if kind == source.grid.kind
        ]
        for codec, payload, out, into in rules:
            if given.begin % out or size % out:
                continue
            width = source.grid.width * into
            begin, span = given.begin // out * width, size // out * width
            probe = self._probe(codec, payload, source, begin, span, width, out, given)
            if probe:
                made = self._make(source, begin, span, span, span, source.grid, _RECIPE_DEPTH)
                if made:
                    frame = replace(made.frame, codec=codec, size=size, payload=payload)
                    yield Encoded(frame=frame)

    def _probe(
        self, codec: int, payload: bytes, source: Source, begin: int, span: int, width: int,
        out: int, given: Object,
    ) -> bool:  # fmt: skip
        """Says whether the rule holds for the first bytes."""
        row = source.grid.row_bytes
        few = min(span, max(_PROBE // max(row, 1), 1) * max(row, width))
        made = self._make(source, begin, few, few, few, source.grid, _RECIPE_DEPTH)
        if made is None:
            return False
        try:
            run = recipes.cast if codec == CAST else recipes.quantize
            first = run(bytes(made.source), payload)
        except (IntegrityError, ValueError):
            return False
        whole = bool(first) and len(first) == few // width * out
        return whole and first == given.data[: len(first)]

    def _delta(self, given: Object, made: _Made, estimate: float) -> Encoded:
        kind, group = made.grid.kind or 0, made.grid.group
        predictor, parameters, source = PLAIN, b"", made.source
        beside: tuple[Object, ...] = ()
        frame = made.frame
        drifted = drift.fit(given.data, source, kind, group)
        if drifted is not None:
            predictor, parameters = DRIFT, drifted
            source = drift.predict(source, kind, drifted)
        elif estimate > _RANKED * len(given.data):
            found = self._low_rank(given, made, estimate)
            if found is not None:
                predictor = LOW_RANK
                parameters, source, beside = found
                frame = replace(frame, deps=(*frame.deps, beside[0].digest),
                                parts=frame.parts)  # fmt: skip
        body = self.kernel.delta_encode(given.data, source, kind, group)
        payload = struct.pack("<BI", predictor, len(parameters)) + parameters + body
        return Encoded(frame=replace(frame, payload=payload), beside=beside)

    def _low_rank(
        self, given: Object, made: _Made, estimate: float
    ) -> tuple[bytes, Buffer, tuple[Object, ...]] | None:
        kind, columns = made.grid.kind or 0, made.grid.columns
        row = columns * made.grid.width
        if kind not in recipes.FLOATS or len(given.data) % row or len(made.grid.shape) != 2:
            return None
        key = (made.first, made.grid.shape)
        if given.begin == 0 or key not in self._factors:  # a tensor's first piece, most often
            if len(self._factors) >= _REMEMBERED:
                self._factors.clear()
            self._factors[key] = lowrank.fit(given.data, made.source, kind, columns)
        factors = self._factors.get(key)
        if factors is None:
            return None
        own = lowrank.project(given.data, made.source, kind, columns, factors, self.kernel)
        if own is None:
            return None
        source = lowrank.predict(made.source, kind, own, factors, self.kernel)
        body = self.kernel.delta_encode(given.data, source, kind, made.grid.group)
        if len(body) + len(own) > estimate * 0.8:
            return None
        rank = len(factors) // (2 * columns)
        shared = Object(digest=digest_of(factors), data=factors,
                        grid=Grid(dtype="I16", shape=(rank, columns)))  # fmt: skip
        return own, source, (shared,)


def _weight(made: _Made) -> float:
    """Returns how much dearer a difference counts: the end of a chain has no room for the next."""
    return _LAST if made.frame.depth >= MAX_DEPTH else 1.0


def _raw(data: Buffer) -> Frame:
    return Frame(codec=RAW, size=len(data), payload=bytes(data))


def _generic(data: Buffer) -> Iterator[Encoded]:
    """Yields a zstd frame where that is smaller."""
    import zstandard

    payload = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data)
    if len(payload) < len(data) * _GAIN:
        yield Encoded(frame=Frame(codec=ZSTD, size=len(data), payload=payload))


def _sample(data: Buffer, grid: Grid) -> Buffer:
    """Returns four runs of whole groups, evenly spaced; everything when it is small."""
    step = grid.group * grid.width
    run = _SAMPLE // 4 // step * step
    if len(data) <= 2 * _SAMPLE or not run:
        return data
    view = memoryview(data)
    starts = [(len(data) - run) * i // 3 // step * step for i in range(4)]
    return b"".join(view[start : start + run] for start in starts)


def _likeness(data: Buffer, source: Buffer, grid: Grid) -> float:
    """Returns how many of a few elements, out of one, have the same leading bits."""
    width = grid.width
    count = len(data) // width
    at = np.linspace(0, count - 1, min(count, 256), dtype=np.int64)
    a = np.frombuffer(data, np.uint8)[: count * width].reshape(count, width)[at]
    b = np.frombuffer(source, np.uint8)[: count * width].reshape(count, width)[at]
    return float((a[:, -1] == b[:, -1]).mean())


def _places(given: Object, grid: Grid, source: Grid) -> Iterator[tuple[int, int, int]]:
    """Yields (begin, block, stride) of where the piece may lie in a tensor of the same type."""
    size = len(given.data)
    if source.shape == grid.shape:
        yield given.begin, size, size
        return
    row, whole = grid.row_bytes, source.row_bytes
    if len(source.shape) != len(grid.shape) or not row or not whole or given.begin % row:
        return
    if grid.columns == source.columns and grid.rows < source.rows:
        for offset in range(0, source.rows - grid.rows + 1, max(grid.rows, 1)):
            yield offset * whole + given.begin, size, size
    elif grid.rows == source.rows and grid.columns < source.columns and size % row == 0:
        first = given.begin // row
        for offset in range(0, source.columns - grid.columns + 1, grid.columns):
            yield first * whole + offset * grid.width, row, whole


def _parts(
    source: Source, begin: int, block: int, stride: int, size: int
) -> tuple[tuple[Digest, ...], tuple[Part, ...]] | None:
    """Returns the pieces and their parts that hold the bytes, None when they are not all there."""
    if size > MAX_SOURCE:
        return None
    if block != stride:
        return _strided(source, begin, block, stride, size // block)
    deps: list[Digest] = []
    parts: list[Part] = []
    at, end = 0, begin + size
    for digest, length in source.pieces:
        low, high = max(begin, at), min(end, at + length)
        if low < high:
            span = high - low
            parts.append(Part(dep=len(deps), begin=low - at, block=span, stride=span, count=1))
            deps.append(digest)
        at += length
    return (tuple(deps), tuple(parts)) if deps and at >= end else None


def _strided(
    source: Source, begin: int, block: int, stride: int, count: int
) -> tuple[tuple[Digest, ...], tuple[Part, ...]] | None:
    deps: list[Digest] = []
    parts: list[Part] = []
    at = done = 0
    for digest, length in source.pieces:  # pieces hold whole rows
        inside = 0
        while done + inside < count and at <= begin + (done + inside) * stride < at + length:
            inside += 1
        if inside:
            start = begin + done * stride - at
            parts.append(Part(dep=len(deps), begin=start, block=block, stride=stride, count=inside))
            deps.append(digest)
            done += inside
        at += length
    return (tuple(deps), tuple(parts)) if done == count and deps else None
