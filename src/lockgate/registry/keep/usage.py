"""What each version costs, alone and shared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from lockgate.core.digests import Digest
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.registry.service import Registry
from lockgate.store.codec.frame import NAMES
from lockgate.store.pack import FOLDER
from lockgate.store.packs import PackStore


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionUsage:
    """A version's bytes: as files, and stored.

    `alone`: frames that no other version needs, which removing it would give back; `shared`:
    frames that others need too, bases included. `codecs`: stored bytes by codec.
    """

    model: str
    number: int
    digest: str
    size: int
    alone: int
    shared: int
    codecs: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """All versions, and the whole store. `stored`: bytes of all packs; `loose`: of no version."""

    versions: tuple[VersionUsage, ...]
    size: int
    stored: int
    loose: int
    packs: int
    objects: int


def usage(registry: Registry, store: PackStore) -> Usage:
    """Returns what every version costs; reads manifests and indexes, no weights."""
    store.refresh()
    needs: dict[tuple[str, int], set[Digest]] = {}
    owners: Counter[Digest] = Counter()
    sizes: dict[tuple[str, int], int] = {}
    for model, number, digest in _versions(registry):
        try:
            manifest = registry.manifest(digest)
        except (NotFoundError, IntegrityError):
            continue  # `verify` tells of it
        found = store.closure([digest, *manifest.objects()])
        needs[model, number] = found
        sizes[model, number] = manifest.size
        owners.update(found)
    lengths = {digest: place for digest in owners if (place := store.place(digest)) is not None}
    rows = []
    for model, number, digest in _versions(registry):
        if (model, number) not in needs:
            continue
        codecs: defaultdict[str, int] = defaultdict(int)
        alone = shared = 0
        for needed in needs[model, number]:
            place = lengths.get(needed)
            if place is None:
                continue
            codecs[NAMES[place.codec]] += place.length
            if owners[needed] == 1:
                alone += place.length
            else:
                shared += place.length
        rows.append(
            VersionUsage(model=model, number=number, digest=digest, size=sizes[model, number],
                         alone=alone, shared=shared, codecs=dict(codecs))
        )  # fmt: skip
    packs = [blob.size for blob in store.blobs.list(FOLDER)]
    used = sum(place.length for place in lengths.values())
    return Usage(
        versions=tuple(rows),
        size=sum(sizes.values()),
        stored=sum(packs),
        loose=max(sum(packs) - used, 0),
        packs=len(packs),
        objects=len(owners),
    )


def _versions(registry: Registry) -> Iterator[tuple[str, int, Digest]]:
    for name, model in sorted(registry.models().items()):
        for version in model.versions:
            yield name, version.number, Digest(version.digest)
