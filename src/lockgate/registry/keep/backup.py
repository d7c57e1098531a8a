"""Backup of the store and the ledger to another backend, incremental, and the way back.

Packs never change, so a backup copies those that the target does not have. `backups/TIME` names
what belongs together: the ledger's copy, taken first, and the packs, which hold at least all that
it names. It is written last: a backup that was killed is none, and the next goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lockgate.core import canonical
from lockgate.core.digests import digest_of
from lockgate.core.errors import ConflictError, IntegrityError, NotFoundError
from lockgate.store.blobs.api import Blobs
from lockgate.store.durable import write_durably
from lockgate.store.pack import FOLDER
from lockgate.store.packs import PackStore

FORMAT = "lockgate/backup@1"
_MARKS = "backups/"
_PART = 16 * 1024 * 1024
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup: its name, its time, its packs with their sizes, the ledger's copy and digest."""

    name: str
    at: float
    packs: dict[str, int]
    ledger: str
    ledger_digest: str
    position: int
    copied: int = 0


def backup(
    store: PackStore, ledger: tuple[bytes, int], target: Blobs, *, now: float, keep: int = 7,
    report: Report | None = None,
) -> Backup:  # fmt: skip
    """Copies what `target` does not have; `ledger` is its copy and its last position.

    The newest `keep` backups stay. `report` gets bytes done and in all. Sizes in bytes.
    """
    data, position = ledger
    stamp = f"{int(now * 1000):015}"
    store.flush(())
    store.refresh()
    wanted = {blob.name: blob.size for blob in store.blobs.list(FOLDER)}
    there = {blob.name: blob.size for blob in target.list(FOLDER)}
    lacking = [name for name, size in sorted(wanted.items()) if there.get(name) != size]
    total, done = sum(wanted[name] for name in lacking), 0
    for name in lacking:
        if report:
            report(done, total)
        try:
            target.write(name, _Parts(store.blobs, name, wanted[name]))
        except NotFoundError:  # collected meanwhile: what lived of it is in a pack that is newer
            del wanted[name]
            continue
        done += wanted[name]
    late = {blob.name: blob.size for blob in store.blobs.list(FOLDER) if blob.name not in wanted}
    for name, size in late.items():
        target.write(name, _Parts(store.blobs, name, size))
        wanted[name] = size
        done += size
    target.write("format", [store.blobs.read("format")])
    copy = f"ledger/{stamp}.db"
    target.write(copy, [data])
    found = Backup(name=stamp, at=now, packs=wanted, ledger=copy, ledger_digest=digest_of(data),
                   position=position, copied=done)  # fmt: skip
    target.write(_MARKS + stamp, [_encode(found)])
    _prune(target, keep)
    if report:
        report(total, total)
    return found


class _Parts:
    """A blob in parts; may be read again, for a write that is tried again."""

    def __init__(self, blobs: Blobs, name: str, size: int) -> None:
        self._blobs, self._name, self._size = blobs, name, size

    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, self._size, _PART):
            yield self._blobs.read(self._name, at, min(_PART, self._size - at))


def _encode(found: Backup) -> bytes:
    return canonical.encode(
        {"format": FORMAT, "at": found.at, "packs": found.packs, "ledger": found.ledger,
         "ledger_digest": found.ledger_digest, "position": found.position}
    )  # fmt: skip


def backups(target: Blobs) -> list[Backup]:
    """Returns the backups there are, oldest first; raises IntegrityError for one that is broken."""
    return [_decode(blob.name, target.read(blob.name)) for blob in target.list(_MARKS)]


def _decode(name: str, text: bytes) -> Backup:
    try:
        body = json.loads(text)
        _check_format(body["format"])
        return Backup(
            name=name.removeprefix(_MARKS), at=float(body["at"]),
            packs={str(pack): int(size) for pack, size in body["packs"].items()},
            ledger=str(body["ledger"]), ledger_digest=str(body["ledger_digest"]),
            position=int(body["position"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"the backup {name} can't be read: {error}") from error


def _check_format(stated: object) -> None:
    if stated != FORMAT:
        raise ValueError(f"its format is {str(stated)[:40]!r}")


def _prune(target: Blobs, keep: int) -> None:
    """Removes old marks, then what no mark names."""
    marks = backups(target)
    old = marks[: max(len(marks) - max(keep, 1), 0)]
    target.remove([_MARKS + mark.name for mark in old])
    kept = marks[len(old) :]
    packs = {pack for mark in kept for pack in mark.packs}
    copies = {mark.ledger for mark in kept}
    target.remove([b.name for b in target.list(FOLDER) if b.name not in packs])
    target.remove([b.name for b in target.list("ledger/") if b.name not in copies])


def recover(
    source: Blobs, home: Path, store: Blobs, *, name: str | None = None,
    report: Report | None = None,
) -> Backup:  # fmt: skip
    """Brings a backup (the newest without `name`) to an empty home: packs first, the ledger last.

    Until the ledger is there, no version is; a recovery that was killed goes on. Raises
    NotFoundError for no backup, ConflictError for a home that has a ledger.
    """
    if (home / "ledger.db").exists():
        raise ConflictError(f"{home} has a ledger", hint="recover into an empty folder")
    found = [mark for mark in backups(source) if name in (None, mark.name)]
    if not found:
        raise NotFoundError("there is no such backup", hint="lockgate backup --list shows them")
    chosen = found[-1]
    there = {blob.name: blob.size for blob in store.list(FOLDER)}
    lacking = [pack for pack, size in sorted(chosen.packs.items()) if there.get(pack) != size]
    total, done = sum(chosen.packs[pack] for pack in lacking), 0
    for pack in lacking:
        if report:
            report(done, total)
        done += store.write(pack, _Parts(source, pack, chosen.packs[pack]))
    store.write("format", [source.read("format")])
    data = source.read(chosen.ledger)
    if digest_of(data) != chosen.ledger_digest:
        raise IntegrityError(f"the ledger of the backup {chosen.name} is damaged")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(home / "ledger.db", data, home)
    if report:
        report(total, total)
    return chosen
