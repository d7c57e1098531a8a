"""Garbage: mark what nothing names, wait, sweep. Safe beside publishes, in this process and others.

Marking writes the list `condemned`. From then on those objects are missing to who wants to build on
them, and can still be read. A publish that counted on one before is told so when it commits, and
sends it again, into a new pack; so an entry that was condemned in an old pack can go. Whoever marks
and whoever commits must exclude each other: both are done by the registry, under its lock.

Sweeping writes what lives of a pack into a new one before it removes the old; a process killed at
any point leaves more than is needed, never less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lockgate.core.digests import Digest, from_raw
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.store.pack import FOLDER, Entries, to_digest
from lockgate.store.packs import CONDEMNED, PackStore
from lockgate.store.writing import PACK_BYTES

_DAMAGED = "damaged/"
_KEEP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did: objects condemned and swept, bytes given back, packs written anew.

    `waiting`: bytes of condemned objects that a later collection will sweep.
    """

    condemned: int = 0
    swept: int = 0
    freed: int = 0
    rewritten: int = 0
    waiting: int = 0


def mark(store: PackStore, named: Iterable[Digest], *, now: float, grace_s: float) -> int:
    """Condemns what is older than `grace_s` seconds and neither named nor part of what is.

    Returns how many objects. The clock is the backend's: `now` in seconds since the epoch.
    """
    store.flush(())
    live = set(named)
    blobs = {blob.name: blob for blob in store.blobs.list(FOLDER)}
    for name in store.packs():
        if name in blobs and blobs[name].modified > now - grace_s:
            live.update(digests_of(store.entries(name)))
    live = store.closure(live)
    dead = [
        (digest, name)
        for name in sorted(store.packs())
        for digest in digests_of(store.entries(name))
        if digest not in live or _elsewhere(store, digest, name)
    ]
    if dead:
        lines = [f"{now!r}\n", *(f"{digest} {name}\n" for digest, name in dead)]
        store.blobs.write(CONDEMNED, [line.encode() for line in lines])
    else:
        store.blobs.remove([CONDEMNED])
    store.condemned()
    return len(dead)


def _elsewhere(store: PackStore, digest: Digest, pack: str) -> bool:
    """Says whether the object is found in another pack, so that this copy of it is not needed."""
    place = store.place(digest)
    return place is not None and place.pack != pack


def marked_at(store: PackStore) -> float | None:
    """Returns when the waiting condemnation was made, None when there is none."""
    try:
        return float(store.blobs.read(CONDEMNED).split(b"\n", 1)[0])
    except (NotFoundError, ValueError):
        return None


def sweep(
    store: PackStore, named: Iterable[Digest], report: Callable[[int, int], None]
) -> Collected:
    """Removes what is condemned and still not named nor part of what is.

    Large packs that would shrink by less than a tenth are left. `report` gets packs done and all.
    """
    store.refresh()
    condemned = store.condemned()
    live = store.closure(named)
    doomed: dict[str, set[Digest]] = {}
    for digest, name in condemned:
        if name in store.packs() and (digest not in live or _elsewhere(store, digest, name)):
            doomed.setdefault(name, set()).add(digest)
    done = Collected()
    for count, (name, dead) in enumerate(sorted(doomed.items())):
        report(count, len(doomed))
        done = _sweep_pack(store, name, dead, done)
    store.flush(())
    store.blobs.remove([CONDEMNED])
    _forget_damage(store)
    store.refresh()
    report(len(doomed), len(doomed))
    return done


def _sweep_pack(store: PackStore, name: str, dead: set[Digest], done: Collected) -> Collected:
    entries = store.entries(name)
    sizes = {to_digest(entry["digest"]): int(entry["length"]) for entry in entries}
    loss = sum(sizes[digest] for digest in dead)
    whole = sum(sizes.values())
    if whole > PACK_BYTES // 2 and loss < _KEEP * whole:
        return Collected(
            swept=done.swept, freed=done.freed, rewritten=done.rewritten,
            waiting=done.waiting + loss,
        )  # fmt: skip
    kept = [digest for digest in sizes if digest not in dead]
    try:
        store.move(kept, name)
    except IntegrityError:
        return done  # left as it is for `verify` and `repair`
    store.remove_packs([name])
    return Collected(
        swept=done.swept + len(dead),
        freed=done.freed + loss,
        rewritten=done.rewritten + bool(kept),
        waiting=done.waiting,
    )


def _forget_damage(store: PackStore) -> None:
    """Removes the notes on damaged entries of packs that are gone."""
    there = {name.rsplit("/", 1)[1].removesuffix(".pack") for name in store.packs()}
    notes = [blob.name for blob in store.blobs.list(_DAMAGED)]
    store.blobs.remove([note for note in notes if note.rpartition(".")[2] not in there])


def repack(store: PackStore, report: Callable[[int, int], None]) -> int:
    """Joins packs that are less than half full; returns how many are gone."""
    store.flush(())
    sizes = {blob.name: blob.size for blob in store.blobs.list(FOLDER)}
    small = sorted(name for name, size in sizes.items() if size < PACK_BYTES // 2)
    small = [name for name in small if name in store.packs()]
    if len(small) < 2:
        return 0
    before = len(store.packs())
    for count, name in enumerate(small):
        report(count, len(small))
        kept = [d for d in digests_of(store.entries(name)) if not _elsewhere(store, d, name)]
        store.move(kept, name, wait=True)
    store.flush(())
    store.remove_packs(small)
    report(len(small), len(small))
    return before - len(store.packs())


def digests_of(entries: Entries) -> list[Digest]:
    """Returns the digests of a pack's entries."""
    joined = entries["digest"].tobytes()
    return [from_raw(joined[at : at + 32]) for at in range(0, len(joined), 32)]
