"""Verification of a whole store, and repair of what is hurt from a replica."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from lockgate.core.digests import Digest, short
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.registry.service import Registry
from lockgate.store.api import Object, Objects
from lockgate.store.packs import PackStore

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hurt:
    """A file of a version that can't be read back, the object that is to blame, and why."""

    model: str
    number: int
    path: str
    object: Digest
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a verification found. `checked` of `objects` were read; `hurt` is empty when sound."""

    objects: int
    checked: int
    hurt: tuple[Hurt, ...]


def verify_store(
    registry: Registry, *, sample: float = 1.0, seed: int = 0, report: Report | None = None
) -> Health:
    """Decodes every object that a version names, or a `sample` of them (0 to 1, seeded).

    Returns the files and versions that damage hurts.
    """
    users: defaultdict[Digest, list[tuple[str, int, str]]] = defaultdict(list)
    hurt: list[Hurt] = []
    for name, model in sorted(registry.models().items()):
        for version in model.versions:
            digest = Digest(version.digest)
            try:
                manifest = registry.manifest(digest)
            except (NotFoundError, IntegrityError) as error:
                hurt.append(Hurt(model=name, number=version.number, path="(manifest)",
                                 object=digest, message=error.message))  # fmt: skip
                continue
            for artifact in manifest.artifacts:
                for piece in artifact.pieces:
                    users[Digest(piece.digest)].append((name, version.number, artifact.path))
    chosen = sorted(users)
    if sample < 1.0:
        count = max(round(len(chosen) * sample), min(len(chosen), 1))
        chosen = sorted(random.Random(seed).sample(chosen, count))  # noqa: S311
    for count, digest in enumerate(chosen):
        if report:
            report(count, len(chosen))
        message = _trouble(registry.objects, digest)
        if message:
            hurt += [
                Hurt(model=name, number=number, path=path, object=digest, message=message)
                for name, number, path in dict.fromkeys(users[digest])
            ]
    if report:
        report(len(chosen), len(chosen))
    return Health(objects=len(users), checked=len(chosen), hurt=tuple(hurt))


def _trouble(objects: Objects, digest: Digest) -> str:
    try:
        objects.get(digest)
    except (NotFoundError, IntegrityError) as error:
        return error.message
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """Objects that were stored anew from the replica, and those that it does not have whole."""

    healed: tuple[Digest, ...]
    lost: tuple[Digest, ...]


def repair(
    registry: Registry, store: PackStore, replica: Objects, report: Report | None = None
) -> Repaired:
    """Takes from `replica` every object that is missing or damaged here, bases included.

    A replica is any other store: a backup, another site's. What comes is checked by its digest.
    """
    health = verify_store(registry, report=report)
    wanted = store.closure(hurt.object for hurt in health.hurt)
    healed: list[Digest] = []
    lost: list[Digest] = []
    while wanted:
        digest = wanted.pop()
        if not _trouble(store, digest):
            continue
        try:
            data = bytes(replica.get(digest))
        except (NotFoundError, IntegrityError):
            lost.append(digest)
            continue
        store.put([Object(digest=digest, data=data)])
        healed.append(digest)
    store.flush(healed)
    still = [hurt.object for hurt in health.hurt if _trouble(store, hurt.object)]
    return Repaired(healed=tuple(sorted(healed)), lost=tuple(sorted({*lost, *still})))


def describe(hurt: Hurt) -> str:
    """Returns the line that tells a person of it."""
    return f"{hurt.model} v{hurt.number}  {hurt.path}  ({short(hurt.object)}): {hurt.message}"
