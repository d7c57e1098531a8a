"""Keeping: garbage, usage, optimisation, bundles, backup; killed and out of space at every step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lockgate.core.clock import ManualClock, SystemClock
from lockgate.core.digests import Digest, digest_of
from lockgate.core.errors import (
    ConflictError,
    IntegrityError,
    LockgateError,
    NotFoundError,
    PermanentError,
    UsageError,
)
from lockgate.ledger.sqlite import SqliteLedger
from lockgate.registry.keep.backup import backups, recover
from lockgate.registry.keep.bundle import export_bundle, import_bundle
from lockgate.registry.keep.keeper import Keeper
from lockgate.registry.publish import publish
from lockgate.registry.restore import restore, verify
from lockgate.registry.service import Details, Published, Registry
from lockgate.store import collect
from lockgate.store.api import Object
from lockgate.store.blobs.api import Blob, Blobs
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.blobs.memory import MemoryBlobs
from lockgate.store.packs import PackStore
from lockgate.store.writing import PACK_BYTES

MODEL = "acme/chat"


class Home:
    """A store and a ledger in a folder, as a server has them."""

    def __init__(self, folder: Path, blobs: Blobs | None = None) -> None:
        self.folder = folder
        self.ledger = SqliteLedger(folder / "ledger.db")
        self.store = PackStore(blobs or LocalBlobs(folder / "store"))
        self.registry = Registry(self.ledger, self.store, SystemClock())
        self.keeper = Keeper(self.registry, self.store, SystemClock(), self.ledger.copy)
        self.backups: Blobs | None = None

    def publish(self, model: Path, name: str = MODEL, **details: Any) -> Published:
        """Publishes a folder."""
        return publish(model, name, objects=self.store, shelf=self.registry,
                       details=Details(**details), actor="ann")  # fmt: skip

    def whole(self, name: str = MODEL) -> int:
        """Reads every version of a model back; returns how many there are."""
        versions = self.registry.models()[name].versions if name in self.registry.models() else ()
        for version in versions:
            assert verify(self.registry.manifest(version.digest), self.store) == []
        return len(versions)

    def target(self, tmp: Path) -> Blobs:
        """Returns where backups go."""
        return self.backups or LocalBlobs(tmp / "bk")

    def close(self) -> None:
        """Lets go of the ledger."""
        self.ledger.close()


def quiet(_done: int, _total: int) -> None:
    """Nobody watches."""


def weights(folder: Path, seed: int, moved: float = 0.0, name: str = "w") -> Path:
    """Writes a model of 64 × 1024 bf16-like weights, moved by noise from those of seed 0."""
    base = np.random.default_rng(0).standard_normal((64, 1024), np.float32) / 32
    noise = np.random.default_rng(seed).standard_normal((64, 1024), np.float32)
    values = (base + noise * np.float32(moved)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: values.astype(np.float16)}, folder / "model.safetensors")
    (folder / "note.txt").write_text(f"seed {seed}\n")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    found = Home(tmp_path / "home")
    yield found
    found.close()


def loose(home: Home, *contents: bytes) -> list[Digest]:
    """Stores bytes that no version names."""
    home.store.put(Object(digest=digest_of(data), data=data) for data in contents)
    home.store.flush(())
    return [digest_of(data) for data in contents]


# garbage


def test_garbage_goes_and_what_versions_need_stays(home: Home, tmp_path: Path) -> None:
    home.publish(weights(tmp_path / "m1", 1))
    home.publish(weights(tmp_path / "m2", 2, moved=1e-4))
    (junk,) = loose(home, b"nobody's" * 1000)
    done = home.keeper.gc(quiet, grace_s=0.0)
    assert done.swept == 1
    assert done.freed > 0
    assert junk not in set(home.store.digests())
    assert home.whole() == 2
    assert home.keeper.gc(quiet, grace_s=0.0).swept == 0


def test_garbage_waits_for_the_grace_period(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", MemoryBlobs())
    clock = ManualClock(SystemClock().now())
    keeper = Keeper(home.registry, home.store, clock, home.ledger.copy)
    home.publish(weights(tmp_path / "m1", 1))
    (junk,) = loose(home, b"nobody's" * 1000)
    assert keeper.gc(quiet, grace_s=100.0).condemned == 0  # it is young: a publish may be at work
    clock.sleep(200)
    found = keeper.gc(quiet, grace_s=100.0)
    assert (found.condemned, found.swept) == (1, 0)
    assert home.store.get(junk) == b"nobody's" * 1000  # who has its name can still read it
    assert home.store.missing({junk: 8000}) == {junk}  # and nobody builds on it any more
    clock.sleep(200)
    assert keeper.gc(quiet, grace_s=100.0).swept == 1
    with pytest.raises(NotFoundError):
        home.store.get(junk)
    home.close()


def test_a_base_that_no_version_names_stays_as_long_as_something_is_made_from_it(
    home: Home, tmp_path: Path
) -> None:
    first = home.publish(weights(tmp_path / "m1", 1)).version
    home.publish(weights(tmp_path / "m2", 2, moved=1e-4))
    base = next(
        Digest(piece.digest)
        for artifact in home.registry.manifest(first.digest).artifacts
        for piece in artifact.pieces
        if piece.tensor
    )
    second = home.registry.models()[MODEL].versions[1]
    named = {Digest(second.digest), *home.registry.manifest(second.digest).objects()}
    assert base not in named
    assert base in home.store.closure(named)
    collect.mark(home.store, named, now=1e12, grace_s=0)
    collect.sweep(home.store, named, quiet)
    assert verify(home.registry.manifest(second.digest), home.store) == []


def test_a_publish_that_counted_on_condemned_bytes_sends_them_again(
    home: Home, tmp_path: Path
) -> None:
    model = weights(tmp_path / "m1", 1)
    other = PackStore(LocalBlobs(home.folder / "store"))  # another process that has stored
    version = home.publish(model).version
    needed = home.registry.manifest(version.digest).objects()
    collect.mark(home.store, (), now=1e12, grace_s=0)  # as if nothing were named
    assert home.store.missing(needed) == set(needed)
    other.refresh()
    assert other.missing(needed) == set(needed)
    home.publish(model)  # the same content once more, into a new pack
    assert home.store.missing(needed) == set()
    collect.sweep(home.store, (), quiet)
    assert home.whole() == 1


def test_an_object_whose_base_is_gone_is_missing_however_long_ago_one_looked(
    home: Home, tmp_path: Path
) -> None:
    home.publish(weights(tmp_path / "m1", 1))
    second = home.publish(weights(tmp_path / "m2", 2, moved=1e-4)).version
    needed = home.registry.manifest(second.digest).objects()
    base = next(b for digest in needed for b in home.store.bases(digest))
    (pack,) = {place.pack for place in (home.store.place(base),) if place}
    home.store.remove_packs([pack])
    absent = home.store.missing(needed)
    assert absent
    home.store._looked = 0.0  # so that it looks again what others stored
    assert home.store.missing(needed) == absent


def test_a_publish_is_not_disturbed_by_a_collection_without_grace(
    home: Home, tmp_path: Path
) -> None:
    model = weights(tmp_path / "m1", 1)
    client = PackStore(LocalBlobs(home.folder / "store"))  # a process of its own
    collections = []

    class Shelf:
        """The server's, where somebody collects garbage just before the commit."""

        discard, bases = home.registry.discard, home.registry.bases

        def commit(self, *given: Any, actor: str) -> Published:
            if not collections:
                collections.append(home.keeper.gc(quiet, grace_s=0.0))
            return home.registry.commit(*given, actor=actor)

    done = publish(model, MODEL, objects=client, shelf=Shelf(), details=Details(), actor="x")
    assert collections[0].swept > 0  # all that had been sent
    assert done.created
    assert home.whole() == 1


def test_gc_removes_nothing_while_a_manifest_can_not_be_read(home: Home, tmp_path: Path) -> None:
    version = home.publish(weights(tmp_path / "m1", 1)).version
    loose(home, b"x" * 1000)
    place = home.store.place(Digest(version.digest))
    assert place
    pack = home.folder / "store" / place.pack
    raw = bytearray(pack.read_bytes())
    raw[place.offset + place.length - 1] ^= 1
    pack.write_bytes(raw)
    before = set(home.store.packs())
    with pytest.raises((IntegrityError, NotFoundError)):
        home.keeper.gc(quiet, grace_s=0.0)
    assert set(home.store.packs()) == before


def test_two_collections_at_once_are_refused(home: Home) -> None:
    def meanwhile(_done: int, _total: int) -> None:
        with pytest.raises(ConflictError, match="looked after"):
            home.keeper.optimize(quiet)

    loose(home, b"x" * 1000)
    assert home.keeper.gc(meanwhile, grace_s=0.0).swept == 1


# usage and optimisation


def test_usage_tells_what_is_shared_and_what_is_alone(home: Home, tmp_path: Path) -> None:
    home.publish(weights(tmp_path / "m1", 1))
    home.publish(weights(tmp_path / "m2", 2, moved=1e-5))
    found = home.keeper.usage()
    first, second = found.versions
    assert first.size == second.size
    assert second.codecs["delta"] < first.codecs["planes"] / 2
    assert second.shared >= first.codecs["planes"]  # it stands on the first
    assert found.stored < found.size
    assert sum(v.alone for v in found.versions) < found.stored


def test_optimize_finds_bases_that_were_not_known_and_joins_packs(
    home: Home, tmp_path: Path
) -> None:
    late = home.publish(weights(tmp_path / "m1", 1, name="a")).version
    store = PackStore(LocalBlobs(home.folder / "store"))

    class Blind:
        """A shelf that knows no bases."""

        commit, discard = home.registry.commit, home.registry.discard

        def bases(self, *_: object) -> list[Digest]:
            return []

    for seed in (2, 3):
        folder = weights(tmp_path / f"m{seed}", seed, moved=1e-5, name="a")
        publish(folder, MODEL, objects=store, shelf=Blind(), details=Details(), actor="x")
    before = home.keeper.usage().stored
    done = home.keeper.optimize(quiet)
    assert done.encoded >= 2
    assert done.saved > 0
    home.keeper.gc(quiet, grace_s=0.0)
    after = home.keeper.usage()
    assert after.stored < before * 0.7
    assert after.packs < 3
    assert home.whole() == 3
    assert home.keeper.optimize(quiet).encoded == 0
    assert home.registry.manifest(late.digest)


# bundles


def test_a_bundle_makes_the_version_elsewhere(home: Home, tmp_path: Path) -> None:
    home.publish(weights(tmp_path / "m1", 1))
    version = home.publish(weights(tmp_path / "m2", 2, moved=1e-4), labels={"a": "b"}).version
    path = tmp_path / "v2.bundle"
    bundle_of(home, version.digest, path)
    away = Home(tmp_path / "away")
    done = import_bundle(path, away.registry, away.store, actor="eve")
    assert done.version.digest == version.digest
    assert done.version.published.labels == {"a": "b"}
    restore(away.registry.manifest(version.digest), tmp_path / "out", away.store)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        tmp_path / "m2/model.safetensors"
    ).read_bytes()
    again = import_bundle(path, away.registry, away.store, actor="eve", model="acme/other")
    assert again.version.published.model == "acme/other"
    with pytest.raises(ConflictError):
        bundle_of(home, version.digest, path)
    away.close()


def bundle_of(home: Home, digest: str, path: Path) -> None:
    version = home.registry.version(MODEL, digest)
    text = bytes(home.store.get(Digest(digest)))
    export_bundle(version, home.registry.manifest(digest), text, home.store, path)


def test_a_bundle_with_any_byte_changed_brings_nothing_wrong(home: Home, tmp_path: Path) -> None:
    version = home.publish(weights(tmp_path / "m1", 1)).version
    path = tmp_path / "b"
    bundle_of(home, version.digest, path)
    raw = path.read_bytes()
    rng = np.random.default_rng(5)
    for case in range(60):
        bad = bytearray(raw)
        if case % 3 == 2:
            bad = bad[: int(rng.integers(0, len(bad)))]
        else:
            at = int(rng.integers(0, len(bad) if case % 3 else 4096))
            bad[at] ^= 1 << int(rng.integers(0, 8))
        (tmp_path / "bad").write_bytes(bad)
        away = Home(tmp_path / f"away{case}", MemoryBlobs())
        try:
            done = import_bundle(tmp_path / "bad", away.registry, away.store, actor="eve")
        except LockgateError:
            assert away.registry.models() == {}
        else:
            assert done.version.digest == version.digest
            assert away.whole(done.version.published.model) == 1
        away.close()


# backup


def test_a_backup_is_incremental_and_brings_a_lost_disk_back(home: Home, tmp_path: Path) -> None:
    target = LocalBlobs(tmp_path / "backup")
    home.publish(weights(tmp_path / "m1", 1))
    first = home.keeper.backup(target, quiet)
    assert first.copied > 0
    assert home.keeper.backup(target, quiet).copied == 0
    home.publish(weights(tmp_path / "m2", 2, moved=1e-4))
    third = home.keeper.backup(target, quiet)
    assert 0 < third.copied < first.copied
    assert len(backups(target)) == 3
    recover(target, tmp_path / "new", LocalBlobs(tmp_path / "new/store"))
    back = Home(tmp_path / "new")
    assert back.whole() == 2
    assert back.ledger.head() == home.ledger.head()
    with pytest.raises(ConflictError):
        recover(target, tmp_path / "new", LocalBlobs(tmp_path / "new/store"))
    old = Home(tmp_path / "older")
    old.close()
    (tmp_path / "older/ledger.db").unlink()
    recover(target, tmp_path / "older", LocalBlobs(tmp_path / "older/store"), name=first.name)
    older = Home(tmp_path / "older")
    assert older.whole() == 1
    older.close()
    back.close()


def test_old_backups_go_with_what_only_they_need(home: Home, tmp_path: Path) -> None:
    target = LocalBlobs(tmp_path / "backup")
    for seed in range(4):
        home.publish(weights(tmp_path / f"m{seed}", seed, moved=1e-4))
        home.keeper.optimize(quiet)
        home.keeper.gc(quiet, grace_s=0.0)
        home.keeper.backup(target, quiet, keep=2)
    marks = backups(target)
    assert len(marks) == 2
    there = {blob.name for blob in target.list("packs/")}
    assert there == {pack for mark in marks for pack in mark.packs}


def test_what_is_damaged_is_named_and_repaired_from_a_backup(home: Home, tmp_path: Path) -> None:
    home.publish(weights(tmp_path / "m1", 1))
    home.publish(weights(tmp_path / "m2", 2, moved=1e-4))
    target = LocalBlobs(tmp_path / "backup")
    home.keeper.backup(target, quiet)
    pack = max((home.folder / "store/packs").glob("*/*"), key=lambda p: p.stat().st_size)
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 2] ^= 1
    pack.write_bytes(raw)
    fresh = Home(home.folder)
    health = fresh.keeper.verify(quiet)
    assert {(h.number, h.path) for h in health.hurt} == {
        (1, "model.safetensors"), (2, "model.safetensors"),
    }  # fmt: skip
    replica = PackStore(LocalBlobs(tmp_path / "backup"), writes=False)
    done = fresh.keeper.repair(replica, quiet)
    assert done.healed
    assert not done.lost
    assert fresh.keeper.verify(quiet).hurt == ()
    again = Home(home.folder)
    assert again.keeper.verify(quiet, sample=0.5, seed=3).hurt == ()
    again.close()
    fresh.close()


# killed, and out of space, at every step


class Stop(BaseException):
    """The process is gone."""


class Mortal:
    """Blobs that end, or find the disk full, before or after the n-th change."""

    def __init__(self, inner: Blobs, at: int, error: Callable[[], BaseException]) -> None:
        self._inner = inner
        self._at = at
        self._error = error
        self.changes = 0

    def _change(self, act: Callable[[], Any]) -> Any:
        self.changes += 1
        if self.changes == self._at:
            raise self._error()
        found = act()
        self.changes += 1
        if self.changes == self._at:
            raise self._error()
        return found

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        found: int = self._change(lambda: self._inner.write(name, parts))
        return found

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._change(lambda name=name: self._inner.remove([name]))

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        return self._inner.read(name, begin, size)

    def read_ranges(self, name: str, ranges: Any) -> list[bytes]:
        return self._inner.read_ranges(name, ranges)

    def list(self, prefix: str = "") -> Iterator[Blob]:
        return self._inner.list(prefix)

    def close(self) -> None:
        self._inner.close()


def gone() -> BaseException:
    return Stop()


def full() -> BaseException:
    return UsageError("the disk is full")


VERBS: dict[str, Callable[[Home, Path], object]] = {
    "publish": lambda home, tmp: home.publish(tmp / "m3"),
    "gc": lambda home, _: home.keeper.gc(quiet, grace_s=0.0),
    "optimize": lambda home, _: home.keeper.optimize(quiet),
    "backup": lambda home, tmp: home.keeper.backup(home.target(tmp), quiet, keep=1),
}


@pytest.mark.parametrize("error", [gone, full], ids=["killed", "out of space"])
@pytest.mark.parametrize("verb", list(VERBS))
def test_every_step_may_be_the_last(tmp_path: Path, verb: str, error: Any) -> None:
    for seed in range(3):
        weights(tmp_path / f"m{seed}", seed, moved=1e-4 * seed)
    weights(tmp_path / "m3", 9, moved=3e-4)
    at = 0
    while True:
        at += 1
        inner = MemoryBlobs()
        folder = tmp_path / f"{verb}-{at}"
        seeded = Home(folder, inner)
        for seed in range(3):
            seeded.publish(tmp_path / f"m{seed}")
        loose(seeded, b"junk" * 3000)
        seeded.close()
        home = Home(folder, inner if verb == "backup" else Mortal(inner, at, error))
        kept = MemoryBlobs()
        if verb == "backup":
            home.keeper.backup(kept, quiet)  # the one before, which this one is to replace
            home.publish(tmp_path / "m3", "acme/other")
            home.backups = Mortal(kept, at, error)
        try:
            VERBS[verb](home, tmp_path)
            ended = True
        except (Stop, UsageError, PermanentError):
            ended = False
        home.close()
        if verb == "backup":
            recover(kept, tmp_path / f"back-{at}", MemoryBlobs())
        after = Home(folder, inner)  # the next process
        after.backups = kept
        assert after.whole() in ((3, 4) if verb == "publish" else (3,))
        VERBS[verb](after, tmp_path)
        after.keeper.gc(quiet, grace_s=0.0)
        assert after.whole() == (4 if verb == "publish" else 3)
        assert digest_of(b"junk" * 3000) not in set(after.store.digests())
        after.close()
        if ended:
            break
    assert at >= 2


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from test_keep import VERBS, Home
home, verb, stop = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
made = Home(home)
count = 0
def audit(event, args):
    global count
    durable = event in ("os.rename", "os.mkdir", "os.remove", "sqlite3.connect") or (
        event == "open" and isinstance(args[1], str) and args[1] != "r" and "b" in args[1])
    count += durable
    if durable and count == stop:
        os.kill(os.getpid(), 9)
sys.addaudithook(audit)
VERBS[verb](made, home.parent)
"""


@pytest.mark.parametrize("verb", ["gc", "optimize", "backup"])
def test_killed_by_the_system_at_every_durable_step(tmp_path: Path, verb: str) -> None:
    for seed in range(3):
        weights(tmp_path / f"m{seed}", seed, moved=1e-4 * seed)
    home = Home(tmp_path / "home")
    for seed in range(3):
        home.publish(tmp_path / f"m{seed}")
    loose(home, b"junk" * 3000)
    home.close()
    stop = 0
    while True:
        stop += 1
        script = [sys.executable, "-c", KILLED, str(tmp_path / "home"), verb, str(stop)]
        done = subprocess.run([*script, str(Path(__file__).parent)], capture_output=True, text=True)
        after = Home(tmp_path / "home")
        assert after.whole() == 3
        after.close()
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    assert stop >= 2


def test_a_pack_is_written_before_it_grows_beyond_its_size(tmp_path: Path) -> None:
    store = PackStore(MemoryBlobs())
    rng = np.random.default_rng(1)
    for _ in range(20):
        data = rng.bytes(4 << 20)
        store.put([Object(digest=digest_of(data), data=data)])
    sizes = [blob.size for blob in store.blobs.list("packs/")]
    assert len(sizes) == 1
    assert PACK_BYTES <= sizes[0] < PACK_BYTES + (5 << 20)
