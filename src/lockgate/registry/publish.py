"""The recipe of `publish`: scan → store what is missing → manifest → commit.

Runs where the folder is. `Objects` and the `Shelf` may be this machine's or a server's, over HTTP.
A publish that was killed goes on where it was: bytes that arrived are not sent again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Protocol

from lockgate.core.digests import Digest, digest_of
from lockgate.core.errors import IntegrityError, LockgateError, PortError, UsageError
from lockgate.registry.bases import Bases, Shapes, folder_shapes
from lockgate.registry.manifest import Manifest, encode, parse
from lockgate.registry.scan import FolderPlan, scan
from lockgate.registry.service import Details, Published
from lockgate.store.api import (
    PIECE_BYTES,
    Artifact,
    AtHand,
    Object,
    Objects,
    Piece,
    Progress,
    Report,
    Source,
)
from lockgate.store.held import Rooms
from lockgate.store.split import Cut, FilePlan, Run, check_unchanged, cuts

_BATCH_BYTES = 16 * 1024 * 1024
_BATCH_OBJECTS = 512
_MAX_WORKERS = 4
_TRIES = 3


class Shelf(Protocol):
    """Where a version becomes true: `Registry`, or a client of one."""

    def commit(self, model: str, manifest: bytes, details: Details, *, actor: str) -> Published:
        """See `Registry.commit`."""
        ...

    def discard(self, digests: Iterable[Digest]) -> int:
        """See `Registry.discard`."""
        ...

    def bases(self, model: str, shapes: Shapes, parents: Sequence[str]) -> Sequence[Digest]:
        """See `Registry.bases`."""
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
    parents = [edge.digest for edge in details.lineage]
    for attempt in range(_TRIES):
        found = shelf.bases(model, folder_shapes(plan), parents)
        bases = Bases([parse(bytes(objects.get(digest))) for digest in found])
        sender = Sender(objects, plan, bases, report)
        try:
            text = _store(plan, sender)
            return shelf.commit(model, text, sender.counted(details), actor=actor)
        except PortError:
            raise
        except LockgateError as error:
            if isinstance(error, IntegrityError) and attempt < _TRIES - 1:
                objects.flush(())  # what it counted on was garbage a moment ago: send it again
                continue
            shelf.discard(sender.sent)
            raise
    raise AssertionError  # the last try returns or raises


def _store(plan: FolderPlan, sender: Sender) -> bytes:
    """Stores every file and the manifest, for good; returns the manifest's text."""
    artifacts = _store_files(plan, sender)
    text = encode(Manifest(artifacts=artifacts, folders=plan.folders))
    sender.finish(Object(digest=digest_of(text), data=text, hashed=True))
    return text


def _store_files(plan: FolderPlan, sender: Sender) -> tuple[Artifact, ...]:
    """Stores every file: cut in order, hashed and sent by a few threads."""
    workers = max(2, min(_MAX_WORKERS, os.cpu_count() or 1))
    with ThreadPoolExecutor(workers, thread_name_prefix="publish") as pool:
        room = threading.BoundedSemaphore(2 * workers)
        try:
            return tuple(_store_file(file, sender, pool, room) for file in plan.files)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            pool.shutdown()


def _store_file(
    plan: FilePlan, sender: Sender, pool: ThreadPoolExecutor, room: threading.Semaphore
) -> Artifact:
    """Stores one file, each byte read once; raises UsageError when it was changed meanwhile."""
    sources: dict[int, tuple[Source, ...]] = {}
    futures: list[Future[Piece]] = []
    try:
        with plan.source.open("rb") as file:
            check_unchanged(plan, file)
            for cut in cuts(plan, file):
                if cut.run.begin not in sources:
                    sources[cut.run.begin] = sender.like(cut.run)
                room.acquire()
                future = pool.submit(sender.store, file, cut, sources[cut.run.begin])
                future.add_done_callback(lambda _: room.release())
                futures.append(future)
                if len(futures) % 64 == 0:
                    futures[-64].result()  # a failure stops the reading soon
            pieces = tuple(future.result() for future in futures)
            check_unchanged(plan, file)
    except OSError as error:
        raise UsageError(f"{plan.path} can't be read: {error.strerror or error}") from error
    sender.file_done(plan.path)
    return Artifact(path=plan.path, size=plan.size, pieces=pieces, executable=plan.executable)


class Sender:
    """Sends pieces in batches, each digest once, only those that are missing; counts and reports.

    Holds at most one batch (512 objects or 16 MiB, less of objects at hand) for each thread, and
    one piece.
    """

    def __init__(
        self, objects: Objects, plan: FolderPlan, bases: Bases, report: Report | None
    ) -> None:
        self.sent: list[Digest] = []
        self._objects = objects
        self._plan = plan
        self._size = plan.size  # asked for with every file
        self._bases = bases
        self._report = report
        self._lock = threading.Lock()
        self._local = threading.local()
        self._rooms = Rooms()
        self._batch: dict[Digest, Object] = {}
        self._batch_bytes = 0
        self._full = objects.batch_bytes if isinstance(objects, AtHand) else _BATCH_BYTES
        absent = objects.missing(bases.known)
        self._seen: set[Digest] = {digest for digest in bases.known if digest not in absent}
        self._done = self._files = self._new = 0
        self._tell("")

    def like(self, run: Run) -> tuple[Source, ...]:
        """Returns the stored tensors that a run of bytes may be like; ask once for each."""
        return () if run.grid is None else self._bases.like(run.name, run.grid)

    def store(self, file: BinaryIO, cut: Cut, sources: tuple[Source, ...]) -> Piece:
        """Reads, hashes and stores one piece."""
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < cut.size:
            buffer = self._local.buffer = self._rooms.lend(max(cut.size, PIECE_BYTES))
        view = buffer[: cut.size]
        if os.preadv(file.fileno(), [view], cut.begin) != cut.size:
            raise UsageError("a file became shorter while it was published")
        digest = digest_of(view)
        with self._lock:
            self._done += cut.size
            new = digest not in self._seen
            self._seen.add(digest)
        if new:
            large = cut.size > PIECE_BYTES // 4
            if large:
                self._local.buffer = None  # these bytes are the batch's now
            self._add(
                Object(
                    digest=digest,
                    data=view if large else bytes(view),
                    grid=cut.run.grid,
                    begin=cut.begin - cut.run.begin,
                    sources=sources,
                    hashed=True,
                )
            )
        self._tell("")
        return cut.piece(digest)

    def _add(self, given: Object) -> None:
        full: dict[Digest, Object] = {}
        with self._lock:
            self._batch[given.digest] = given
            self._batch_bytes += len(given.data)
            if self._batch_bytes >= self._full or len(self._batch) >= _BATCH_OBJECTS:
                full, self._batch, self._batch_bytes = self._batch, {}, 0
        self._send(full)

    def file_done(self, path: str) -> None:
        """Counts a file."""
        with self._lock:
            self._files += 1
        if self._files == len(self._plan.files):
            batch, self._batch, self._batch_bytes = self._batch, {}, 0
            self._send(batch)
        self._tell(path)

    def finish(self, manifest: Object) -> None:
        """Sends the manifest; returns when everything that was sent is durable."""
        self._objects.put([manifest])
        self._objects.flush(())

    def _send(self, batch: dict[Digest, Object]) -> None:
        if not batch:
            return
        absent = self._objects.missing({digest: len(given.data) for digest, given in batch.items()})
        with self._lock:
            self.sent.extend(absent)
        self._objects.put(self._pick(batch, absent))

    def _pick(self, batch: dict[Digest, Object], absent: set[Digest]) -> Iterator[Object]:
        for digest, given in batch.items():
            if digest in absent:
                yield given
                with self._lock:
                    self._new += len(given.data)

    def counted(self, details: Details) -> Details:
        """Returns `details` with the number of bytes that were new."""
        return replace(details, bytes_new=self._new)

    def _tell(self, current: str) -> None:
        if self._report:
            self._report(
                Progress(
                    phase="store",
                    done_bytes=self._done,
                    total_bytes=self._size,
                    done_files=self._files,
                    total_files=len(self._plan.files),
                    new_bytes=self._new,
                    current=current,
                )
            )
