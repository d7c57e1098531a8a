"""One verb over a home folder, for a tester of power failures to watch; and what must hold after.

    python tests/crash/verbs.py seed HOME FOLDER     # three versions, garbage, a backup
    python tests/crash/verbs.py publish|gc|optimize|backup HOME FOLDER   # prints DONE when durable
    python tests/crash/verbs.py check HOME FOLDER    # exit 0: every version is whole
    python tests/crash/verbs.py durable VERB HOME FOLDER   # exit 0: what DONE promised holds

HOME is the folder that is watched; FOLDER holds the models to publish and is not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from lockgate.core.clock import SystemClock
from lockgate.core.digests import digest_of
from lockgate.ledger.sqlite import SqliteLedger
from lockgate.registry.keep.backup import backups, recover
from lockgate.registry.keep.keeper import Keeper
from lockgate.registry.publish import publish
from lockgate.registry.restore import verify
from lockgate.registry.service import Details, Registry
from lockgate.store.api import Object
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.blobs.memory import MemoryBlobs
from lockgate.store.packs import PackStore

JUNK = b"junk" * 3000


def quiet(_done: int, _total: int) -> None:
    """Nobody watches."""


class Home:
    """A ledger, a store and a place for backups in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = SqliteLedger(folder / "ledger.db")
        self.store = PackStore(LocalBlobs(folder / "store"))
        self.registry = Registry(self.ledger, self.store, SystemClock())
        self.keeper = Keeper(self.registry, self.store, SystemClock(), self.ledger.copy)
        self.target = LocalBlobs(folder / "backup")

    def publish(self, folder: Path) -> None:
        """Publishes a folder."""
        publish(
            folder, "a/b", objects=self.store, shelf=self.registry, details=Details(), actor="x"
        )

    def versions(self) -> int:
        """Reads every version; returns how many there are."""
        models = self.registry.models()
        versions = models["a/b"].versions if "a/b" in models else ()
        for version in versions:
            hurt = verify(self.registry.manifest(version.digest), self.store)
            if hurt:
                sys.exit(f"v{version.number} is hurt: {hurt}")
        return len(versions)


def models(folder: Path) -> None:
    """Writes four small models, each near the one before."""
    from safetensors.numpy import save_file

    base = np.random.default_rng(0).standard_normal((64, 512), np.float32) / 32
    for seed in range(4):
        noise = np.random.default_rng(seed + 1).standard_normal(base.shape, np.float32)
        target = folder / f"m{seed}"
        target.mkdir(parents=True, exist_ok=True)
        values = (base + noise * np.float32(1e-4 * seed)).astype(np.float16)
        save_file({"w": values}, target / "model.safetensors")
        (target / "note.txt").write_text(f"model {seed}\n")


def seed(home: Path, folder: Path) -> None:
    """Makes what the verbs work on."""
    models(folder)
    made = Home(home)
    for number in range(3):
        made.publish(folder / f"m{number}")
    made.keeper.backup(made.target, quiet)
    made.store.put([Object(digest=digest_of(JUNK), data=JUNK)])
    made.store.flush(())


def check(home: Path) -> None:
    """Ends with 1 when a version that the ledger names is hurt, or a backup can't be recovered."""
    made = Home(home)
    if made.versions() < 3:
        sys.exit("a version is lost")
    for mark in backups(made.target):
        for pack, size in mark.packs.items():
            if len(made.target.read(pack)) != size:
                sys.exit(f"the backup {mark.name} lacks {pack}")
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            recover(made.target, Path(scratch) / "new", MemoryBlobs(), name=mark.name)


def durable(verb: str, home: Path) -> None:
    """Ends with 1 when what the verb acknowledged is not so."""
    made = Home(home)
    if verb == "publish" and made.versions() != 4:
        sys.exit("the version that was acknowledged is lost")
    if verb == "gc" and digest_of(JUNK) in set(made.store.digests()):
        made.keeper.gc(quiet, grace_s=0.0)  # a removal may come back: then it goes again
        if digest_of(JUNK) in set(made.store.digests()):
            sys.exit("garbage can't be collected")
    if verb == "backup" and len(backups(made.target)) < 1:
        sys.exit("the backup that was acknowledged is lost")


def main() -> None:
    verb, *rest = sys.argv[1:]
    home, folder = Path(rest[-2]), Path(rest[-1])
    if verb == "seed":
        seed(home, folder)
    elif verb == "check":
        check(home)
    elif verb == "durable":
        durable(rest[0], home)
    else:
        made = Home(home)
        work = {
            "publish": lambda: made.publish(folder / "m3"),
            "gc": lambda: made.keeper.gc(quiet, grace_s=0.0),
            "optimize": lambda: made.keeper.optimize(quiet),
            "backup": lambda: made.keeper.backup(made.target, quiet, keep=1),
        }[verb]
        work()
        print("DONE", flush=True)


if __name__ == "__main__":
    main()
