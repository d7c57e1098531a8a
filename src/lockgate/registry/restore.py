"""A version → a folder, bit for bit; and the check that every byte of it is still sound."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lockgate.core.digests import Digest
from lockgate.core.errors import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    PermanentError,
    UsageError,
)
from lockgate.registry.manifest import Manifest
from lockgate.store.api import Artifact, Objects, Piece, Progress, Report
from lockgate.store.codec.dtypes import Buffer
from lockgate.store.durable import sync_folder

_MAX_WORKERS = 4
_AHEAD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """An artifact that can't be restored, and why."""

    path: str
    message: str


def restore(
    manifest: Manifest, folder: Path, objects: Objects, report: Report | None = None,
    links: Mapping[str, Path] | None = None,
) -> None:  # fmt: skip
    """Writes the version to `folder`, which appears whole or not at all, every byte checked.

    `links`: files that are known to have the content of a path of the version; they are linked or
    cloned instead of written.

    Raises ConflictError when `folder` has something in it, IntegrityError or NotFoundError, naming
    the file, when the store lost a byte of it, UsageError on a full disk.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(f"{folder} is there already", hint="name a folder that is new or empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name[:40]}.{uuid.uuid4().hex[:12]}.part"
    try:
        draft.mkdir()
        _write_all(manifest, draft, objects, Teller(manifest, "restore", report), links or {})
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = UsageError if full else PermanentError
        raise kind(
            f"{folder} can't be written: {error.strerror or error}",
            hint=f"it needs {manifest.size} bytes" if full else None,
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class Teller:
    """Counts artifacts and bytes of a manifest, and reports them."""

    def __init__(self, manifest: Manifest, phase: str, report: Report | None) -> None:
        self._manifest = manifest
        self._phase = phase
        self._report = report
        self._lock = threading.Lock()
        self._bytes = self._files = 0

    def more(self, count: int, path: str, *, file_done: bool = False) -> None:
        """Adds `count` bytes of the file `path`."""
        with self._lock:
            self._bytes += count
            self._files += file_done
        if self._report:
            self._report(
                Progress(
                    phase="restore" if self._phase == "restore" else "verify",
                    done_bytes=self._bytes,
                    total_bytes=self._manifest.size,
                    done_files=self._files,
                    total_files=len(self._manifest.artifacts),
                    current=path,
                )
            )


def _write_all(
    manifest: Manifest, draft: Path, objects: Objects, teller: Teller, links: Mapping[str, Path]
) -> None:
    for name in manifest.folders:
        (draft / name).mkdir(parents=True)
    with ThreadPoolExecutor(max(2, min(_MAX_WORKERS, os.cpu_count() or 1))) as pool:
        try:
            for artifact in manifest.artifacts:
                if not _link(links.get(artifact.path), draft / artifact.path):
                    _write_file(artifact, draft / artifact.path, objects, teller, pool)
                    continue
                teller.more(artifact.size, artifact.path, file_done=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _link(source: Path | None, path: Path) -> bool:
    """Makes `path` a hard link to `source`; says whether that could be done."""
    if source is None:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(source)
    except OSError:
        return False
    return True


def _write_file(
    artifact: Artifact, path: Path, objects: Objects, teller: Teller, pool: ThreadPoolExecutor
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if artifact.size:
            os.posix_fallocate(handle, 0, artifact.size)
        waiting: deque[Future[Buffer]] = deque()
        for piece in artifact.pieces:  # many decode, one writes: a file has one lock
            waiting.append(pool.submit(read_piece, artifact, piece, objects))
            if len(waiting) > _AHEAD:
                _write(handle, waiting.popleft().result(), artifact, teller)
        while waiting:
            _write(handle, waiting.popleft().result(), artifact, teller)
        os.fsync(handle)
        if artifact.executable:
            os.fchmod(handle, 0o755)
    finally:
        os.close(handle)
    teller.more(0, artifact.path, file_done=True)


def _write(handle: int, data: Buffer, artifact: Artifact, teller: Teller) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    teller.more(len(data), artifact.path)


def read_piece(artifact: Artifact, piece: Piece, objects: Objects) -> Buffer:
    """Returns a piece's bytes, checked; raises IntegrityError, naming the file."""
    try:
        data = objects.get(Digest(piece.digest))
    except NotFoundError as error:
        raise IntegrityError(
            f"{artifact.path}: {error.message}",
            hint="publish the same files again: what is missing will be stored anew",
        ) from error
    except IntegrityError as error:
        raise IntegrityError(f"{artifact.path}: {error.message}", hint=error.hint) from error
    if len(data) != piece.size:
        raise IntegrityError(f"{artifact.path}: a piece has {len(data)} bytes, not {piece.size}")
    return data


def verify(manifest: Manifest, objects: Objects, report: Report | None = None) -> list[Damage]:
    """Reads every byte of the version; returns the artifacts that are hurt, empty when sound."""
    teller = Teller(manifest, "verify", report)
    damages: list[Damage] = []
    for artifact in manifest.artifacts:
        try:
            for piece in artifact.pieces:
                teller.more(len(read_piece(artifact, piece, objects)), artifact.path)
        except IntegrityError as error:
            damages.append(Damage(path=artifact.path, message=error.message))
        teller.more(0, artifact.path, file_done=True)
    return damages
