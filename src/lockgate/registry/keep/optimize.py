"""Better frames for old versions: bases that were not known when they were published.

An object may be made from objects of earlier versions only, so chains can't close on themselves.
What it was stands until the new frame is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lockgate.core.digests import Digest
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.registry.bases import Bases, manifest_shapes
from lockgate.registry.catalog import Version
from lockgate.registry.manifest import Manifest
from lockgate.registry.service import Registry
from lockgate.store.api import Grid, Object, Piece, Source
from lockgate.store.codec.dtypes import piece_bytes
from lockgate.store.codec.frame import DELTA, PLANES, RAW, ZSTD
from lockgate.store.collect import repack
from lockgate.store.packs import PackStore

Report = Callable[[int, int], None]
_WORTH = 0.9
_NEAR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimized:
    """Objects looked at and encoded anew, bytes saved (given back by the next gc), packs joined."""

    looked: int
    encoded: int
    saved: int
    packs: int


def optimize(registry: Registry, store: PackStore, report: Report | None = None) -> Optimized:
    """Encodes anew what pays by a tenth or more, then joins small packs."""
    tell = report or (lambda _done, _total: None)
    versions = sorted(_versions(registry), key=lambda version: version.at)
    seen: set[Digest] = set()
    looked = encoded = saved = 0
    for count, version in enumerate(versions):
        tell(count, len(versions))
        try:
            manifest = registry.manifest(version.digest)
        except (NotFoundError, IntegrityError):
            continue
        bases = Bases(list(_earlier(registry, version, versions[:count], manifest)))
        for given in _objects(manifest, bases, store):
            if given.digest in seen:
                continue
            seen.add(given.digest)
            looked += 1
            gain = store.encode_anew(given, _WORTH)
            encoded += gain > 0
            saved += gain
        seen |= set(manifest.objects())
    store.flush(())
    tell(len(versions), len(versions))
    return Optimized(looked=looked, encoded=encoded, saved=saved, packs=repack(store, tell))


def _versions(registry: Registry) -> Iterator[Version]:
    for model in registry.models().values():
        yield from model.versions


def _earlier(
    registry: Registry, version: Version, before: list[Version], manifest: Manifest
) -> Iterator[Manifest]:
    """Yields the manifests of the versions before this one that it is likeliest made from."""
    parents = {edge.digest for edge in version.lineage}
    model = version.published.model
    ranked = sorted(
        before,
        key=lambda v: (v.digest not in parents, v.published.model != model, -v.at),
    )
    found = 0
    shapes = set(manifest_shapes(manifest))
    for other in ranked:
        if found == _NEAR:
            return
        try:
            text = registry.manifest(other.digest)
        except (NotFoundError, IntegrityError):
            continue
        if shapes & set(manifest_shapes(text)):
            found += 1
            yield text


def _objects(manifest: Manifest, bases: Bases, store: PackStore) -> Iterator[Object]:
    """Yields the weights that may gain, with what they may be made from; their bytes are empty."""
    for artifact in manifest.artifacts:
        sources: tuple[Source, ...] = ()
        for piece in artifact.pieces:
            if piece.tensor is None:
                continue
            grid = Grid(dtype=piece.tensor.dtype, shape=piece.tensor.shape)
            if piece.tensor.part == 0:
                sources = bases.like(piece.tensor.name, grid)
            place = store.place(Digest(piece.digest))
            if place is not None and sources and place.codec in (RAW, ZSTD, PLANES, DELTA):
                yield _object(piece, grid, sources)


def _object(piece: Piece, grid: Grid, sources: tuple[Source, ...]) -> Object:
    part = piece.tensor.part if piece.tensor else 0
    return Object(
        digest=Digest(piece.digest), data=b"", grid=grid, begin=part * piece_bytes(grid),
        sources=sources,
    )  # fmt: skip
