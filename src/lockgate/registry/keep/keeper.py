"""The verbs that keep a store: one at a time, and never between a publish and its commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lockgate.core.clock import Clock
from lockgate.core.digests import Digest
from lockgate.core.errors import ConflictError
from lockgate.registry.keep import backup as backups
from lockgate.registry.keep import care, optimize
from lockgate.registry.keep.sums import sums
from lockgate.registry.keep.usage import Usage, usage
from lockgate.registry.service import Registry
from lockgate.store import collect
from lockgate.store.api import Objects
from lockgate.store.blobs.api import Blobs
from lockgate.store.collect import Collected
from lockgate.store.packs import PackStore

Report = Callable[[int, int], None]
GRACE_S = 86_400.0
"""How long garbage stays by default, in seconds: longer than a publish takes."""


class Keeper:
    """Garbage collection, verification, optimisation and backup over one registry and store.

    `ledger_copy` returns the ledger as bytes, and its last position.
    """

    def __init__(
        self, registry: Registry, store: PackStore, clock: Clock,
        ledger_copy: Callable[[], tuple[bytes, int]],
    ) -> None:  # fmt: skip
        self.registry = registry
        self.store = store
        self._clock = clock
        self._ledger_copy = ledger_copy
        self._lock = threading.Lock()

    @contextmanager
    def _alone(self, verb: str) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise ConflictError(f"{verb} has to wait: the store is being looked after already")
        try:
            yield
        finally:
            self._lock.release()

    def usage(self) -> Usage:
        """Returns what every version costs."""
        return usage(self.registry, self.store)

    def sums(self, model: str, version: str, report: Report) -> dict[str, str]:
        """Returns the SHA-256 of each file of a version, by path; computed once."""
        found = self.registry.version(model, version)
        manifest = self.registry.manifest(found.digest)
        return sums(Digest(found.digest), manifest, self.store, report)

    def gc(self, report: Report, *, grace_s: float = GRACE_S) -> Collected:
        """Sweeps what was condemned at least `grace_s` seconds ago, then condemns what is garbage.

        With a grace of 0 both happen at once. Raises NotFoundError or IntegrityError when a
        version's manifest can't be read, for it might name anything: nothing is removed then.
        """
        with self._alone("gc"):
            swept = Collected()
            now = self._clock.now()
            marked = collect.marked_at(self.store)
            if grace_s > 0 and marked is not None and marked <= now - grace_s:
                swept = collect.sweep(self.store, self.registry.named(), report)
            with self.registry.quiet():
                named = self.registry.named()
                found = collect.mark(self.store, named, now=now, grace_s=grace_s)
            if grace_s <= 0 and found:
                swept = collect.sweep(self.store, self.registry.named(), report)
                found = 0
            return Collected(
                condemned=found, swept=swept.swept, freed=swept.freed,
                rewritten=swept.rewritten, waiting=swept.waiting,
            )  # fmt: skip

    def verify(self, report: Report, *, sample: float = 1.0, seed: int = 0) -> care.Health:
        """Decodes every object that a version names, or a sample; see `care.verify_store`."""
        return care.verify_store(self.registry, sample=sample, seed=seed, report=report)

    def repair(self, replica: Objects, report: Report) -> care.Repaired:
        """Takes from `replica` what is missing or damaged here; see `care.repair`."""
        with self._alone("repair"):
            return care.repair(self.registry, self.store, replica, report)

    def optimize(self, report: Report) -> optimize.Optimized:
        """Encodes anew what pays, joins small packs; see `optimize.optimize`."""
        with self._alone("optimize"):
            return optimize.optimize(self.registry, self.store, report)

    def backup(self, target: Blobs, report: Report, *, keep: int = 7) -> backups.Backup:
        """Copies store and ledger to `target`; see `backup.backup`."""
        with self._alone("backup"):
            return backups.backup(
                self.store, self._ledger_copy(), target,
                now=self._clock.now(), keep=keep, report=report,
            )  # fmt: skip
