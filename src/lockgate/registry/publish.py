"""The recipe of `publish`: scan → store what is missing → manifest → commit.

Runs where the folder is. `Objects` and the `Shelf` may be this machine's or a server's, over HTTP.
A publish that was killed goes on where it was: bytes that arrived are not sent again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from lockgate.core.digests import Digest
from lockgate.core.errors import LockgateError, PortError
from lockgate.registry.manifest import Manifest, encode
from lockgate.registry.scan import FolderPlan, scan
from lockgate.registry.service import Details, Published
from lockgate.store.api import PIECE_BYTES, Artifact, Objects, Progress, Report
from lockgate.store.split import FilePlan, store_file

_BATCH_OBJECTS = 512
_MAX_WORKERS = 4


class Shelf(Protocol):
    """Where a version becomes true: `Registry`, or a client of one."""

    def commit(self, model: str, manifest: bytes, details: Details, *, actor: str) -> Published:
        """See `Registry.commit`."""
        ...

    def discard(self, digests: Iterable[Digest]) -> int:
        """See `Registry.discard`."""
        ...


def publish(
    folder: Path,
    model: str,
    *,
    objects: Objects,
    shelf: Shelf,
    details: Details,
    actor: str,
    exclude: Sequence[str] = (),
    report: Report | None = None,
) -> Published:
    """Publishes `folder` as the next version of `model`; the same content is the same version.

    Raises what `scan` raises before anything is stored; when a file or the disk fails later, what
    was stored is taken back. An adapter's failure leaves it for the next try.
    """
    plan = scan(folder, exclude)
    sender = Sender(objects, plan, report)
    try:
        artifacts = _store(plan, sender)
        text = encode(Manifest(artifacts=artifacts, folders=plan.folders))
        return shelf.commit(model, text, sender.counted(details), actor=actor)
    except PortError:
        raise
    except LockgateError:
        shelf.discard(sender.sent)
        raise


def _store(plan: FolderPlan, sender: Sender) -> tuple[Artifact, ...]:
    workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="publish") as pool:
        futures = [pool.submit(sender.store, file) for file in plan.files]
        try:
            artifacts = tuple(future.result() for future in futures)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    sender.flush()
    return artifacts


class Sender:
    """Sends pieces in batches, each digest once, only those that are missing; counts and reports.

    Holds at most one batch (16 MiB or 512 objects) and one piece per worker.
    """

    def __init__(self, objects: Objects, plan: FolderPlan, report: Report | None) -> None:
        self.sent: list[Digest] = []
        self._objects = objects
        self._plan = plan
        self._report = report
        self._lock = threading.Lock()
        self._batch: dict[Digest, bytes] = {}
        self._batch_bytes = 0
        self._seen: set[Digest] = set()
        self._done = self._files = self._new = 0
        self._tell("")

    def store(self, file: FilePlan) -> Artifact:
        """Stores one file and returns its artifact."""
        artifact = store_file(file, self._add)
        with self._lock:
            self._files += 1
        self._tell(file.path)
        return artifact

    def _add(self, digest: Digest, data: bytes) -> None:
        full: dict[Digest, bytes] = {}
        with self._lock:
            self._done += len(data)
            if digest not in self._seen:
                self._seen.add(digest)
                self._batch[digest] = data
                self._batch_bytes += len(data)
            if self._batch_bytes >= PIECE_BYTES or len(self._batch) >= _BATCH_OBJECTS:
                full, self._batch, self._batch_bytes = self._batch, {}, 0
        self._send(full)
        self._tell("")

    def flush(self) -> None:
        """Sends what is left."""
        batch, self._batch, self._batch_bytes = self._batch, {}, 0
        self._send(batch)
        self._tell("")

    def _send(self, batch: dict[Digest, bytes]) -> None:
        if not batch:
            return
        absent = self._objects.missing({digest: len(data) for digest, data in batch.items()})
        with self._lock:
            self.sent.extend(absent)
        self._objects.put(self._pick(batch, absent))

    def _pick(
        self, batch: dict[Digest, bytes], absent: set[Digest]
    ) -> Iterator[tuple[Digest, bytes]]:
        for digest in sorted(absent):
            yield digest, batch[digest]
            with self._lock:
                self._new += len(batch[digest])

    def counted(self, details: Details) -> Details:
        """Returns `details` with the number of bytes that were new."""
        return Details(
            environment=details.environment,
            dependencies=details.dependencies,
            source_revision=details.source_revision,
            labels=details.labels,
            lineage=details.lineage,
            bytes_new=self._new,
        )

    def _tell(self, current: str) -> None:
        if self._report:
            self._report(
                Progress(
                    phase="store",
                    done_bytes=self._done,
                    total_bytes=self._plan.size,
                    done_files=self._files,
                    total_files=len(self._plan.files),
                    new_bytes=self._new,
                    current=current,
                )
            )
