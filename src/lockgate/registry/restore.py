"""A version → a folder, bit for bit; and the check that every byte of it is still sound."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lockgate.core.errors import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    PermanentError,
    UsageError,
)
from lockgate.registry.manifest import Manifest
from lockgate.store.api import Artifact, Objects, Progress, Report
from lockgate.store.durable import sync_folder
from lockgate.store.split import join_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """An artifact that can't be restored, and why."""

    path: str
    message: str


def restore(
    manifest: Manifest, folder: Path, objects: Objects, report: Report | None = None
) -> None:
    """Writes the version to `folder`, which appears whole or not at all, every byte checked.

    Raises ConflictError when `folder` has something in it, IntegrityError or NotFoundError, naming
    the file, when the store lost a byte of it, UsageError on a full disk.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(f"{folder} is there already", hint="name a folder that is new or empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name[:40]}.{uuid.uuid4().hex[:12]}.part"
    try:
        draft.mkdir()
        _write_all(manifest, draft, objects, Teller(manifest, "restore", report))
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
        self._bytes = self._files = 0

    def more(self, count: int, path: str, *, file_done: bool = False) -> None:
        """Adds `count` bytes of the file `path`."""
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


def _write_all(manifest: Manifest, draft: Path, objects: Objects, teller: Teller) -> None:
    for name in manifest.folders:
        (draft / name).mkdir(parents=True)
    for artifact in manifest.artifacts:
        path = draft / artifact.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for data in join_file(artifact, _named(objects, artifact)):
                file.write(data)
                teller.more(len(data), artifact.path)
            file.flush()
            os.fsync(file.fileno())
        if artifact.executable:
            path.chmod(path.stat().st_mode | 0o111)
        teller.more(0, artifact.path, file_done=True)


def _named(objects: Objects, artifact: Artifact) -> Callable[[object], bytes]:
    """Returns `objects.get` whose errors name the file."""

    def get(digest: object) -> bytes:
        try:
            return objects.get(digest)  # type: ignore[arg-type]
        except NotFoundError as error:
            raise IntegrityError(
                f"{artifact.path}: {error.message}",
                hint="publish the same files again: what is missing will be stored anew",
            ) from error

    return get


def verify(manifest: Manifest, objects: Objects, report: Report | None = None) -> list[Damage]:
    """Reads every byte of the version; returns the artifacts that are hurt, empty when sound."""
    teller = Teller(manifest, "verify", report)
    damages: list[Damage] = []
    for artifact in manifest.artifacts:
        try:
            for data in join_file(artifact, _named(objects, artifact)):
                teller.more(len(data), artifact.path)
        except IntegrityError as error:
            damages.append(Damage(path=artifact.path, message=error.message))
        teller.more(0, artifact.path, file_done=True)
    return damages
