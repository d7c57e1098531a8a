"""Objects of a store (S3, GCS, Azure, a folder) → files as they are, all of one moment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from lockgate.core.digests import Hasher, digest_of_value, hex_of
from lockgate.core.errors import (
    ConflictError,
    DeniedError,
    LockgateError,
    PermanentError,
    TemporaryError,
    UsageError,
)
from lockgate.derive.api import Advance, Work
from lockgate.derive.connections import NAME, options, shown
from lockgate.derive.steps.data.outside.taken import Taken, check_scheme, missing_package

ABOUT = "snapshot.json"
_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "file")
_PART = 1 << 22
_THREADS = 4
_TEMPORARY = ("status code: 408", "status code: 429", "status code: 5", "sending request",
              "timed out", "timeout", "HTTP error")  # fmt: skip


class StoredObjects(BaseModel):
    """The objects below a prefix."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["objects"]
    connection: Annotated[str, Field(pattern=NAME)] = Field(
        description="of the environment variable LOCKGATE_CONNECTION_…: s3://…, gs://…, az://…"
    )
    prefix: Annotated[str, Field(max_length=1024)] = Field(
        default="", description="a folder below the connection's; names of files begin after it"
    )
    files: tuple[str, ...] = Field(default=(), description="globs over those names; empty: all")
    most_files: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=10_000, description="that may be asked for"
    )
    most_bytes: Annotated[int, Field(ge=1)] = Field(
        default=100_000_000_000, description="of all of them"
    )

    def pinned(self) -> bool:
        """Objects are overwritten: says no."""
        return False

    def take(self, address: str, work: Work) -> Taken:
        """Writes each object as a file of its name; one that is here already is not read again.

        Raises UsageError for a name that is no file's, or for too much; ConflictError when an
        object was changed meanwhile; DeniedError or TemporaryError when the store says no or can't
        be reached.
        """
        check_scheme(address, _SCHEMES, self.connection)
        store = _Store(address, self.prefix.strip("/"))
        listed = self._chosen(store)
        fetch = _Fetching(store, work, listed)
        digests = fetch.all()
        if self._chosen(store) != listed:
            raise ConflictError(
                "objects were changed while they were copied", hint="ask again; what stayed is kept"
            )
        fetch.hand_over()
        content = [[o.name, o.size, d] for o, d in zip(listed, digests, strict=True)]
        size = sum(found.size for found in listed)
        about = {"prefix": self.prefix, "files": list(self.files), "objects": len(listed),
                 "bytes": size}  # fmt: skip
        metrics = {"objects": float(len(listed)), "bytes": float(size)}
        return Taken(about=about, digest=digest_of_value(content), metrics=metrics)

    def _chosen(self, store: _Store) -> list[Found]:
        """Returns the objects that are asked for, by name; raises UsageError for unfit ones."""
        found: list[Found] = []
        size = 0
        for one in store.list():
            if self.files and not any(fnmatch(one.name, pattern) for pattern in self.files):
                continue
            check_name(one.name)
            found.append(one)
            size += one.size
            if len(found) > self.most_files or size > self.most_bytes:
                raise UsageError(
                    f"there are more than {self.most_files} objects or {self.most_bytes} bytes",
                    hint="narrow prefix or files, or raise most_files or most_bytes",
                )
        if not found:
            raise UsageError("there is no object that was asked for", hint="look at the prefix")
        found.sort(key=lambda one: one.name)
        check_folders([one.name for one in found])
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object: its name below the prefix, its size in bytes, and what changes when it does."""

    name: str
    path: str
    size: int
    mark: str

    @property
    def key(self) -> str:
        """A file name for these very bytes."""
        return hex_of(digest_of_value([self.path, self.size, self.mark]))


def check_name(name: str) -> None:
    """Raises UsageError for an object whose name can't be a file's, or leaves the folder."""
    parts = name.split("/")
    bad = any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
    if bad or "\\" in name or not name.isprintable() or len(name) > 1024:
        raise UsageError(
            f"an object has a name that is no file's: {ascii(name)[:300]}",
            hint="leave it out by 'files' or 'prefix', or rename it",
        )
    if name == ABOUT:
        raise UsageError(f"an object is named {ABOUT}, as what describes the snapshot is",
                         hint="leave it out by 'files'")  # fmt: skip


def check_folders(names: Sequence[str]) -> None:
    """Raises UsageError when one name is a file, and a folder in another one."""
    known = set(names)
    for name in names:
        parent = name
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in known:
                raise UsageError(
                    f"{parent!r} is an object, and a folder in {name!r}: both can't be files",
                    hint="leave one out by 'files'",
                )


class _Store:
    """An object store below a prefix."""

    def __init__(self, address: str, prefix: str) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise missing_package("obstore") from error
        self._obstore = obstore
        self._where = shown(address)
        self._prefix = prefix
        base = urlsplit(address)
        with self.errors("it can't be opened"):
            plain = f"{base.scheme}://{base.netloc.rpartition('@')[2]}{base.path}"
            self._store = from_url(plain, **_settings(address))

    def list(self) -> Iterator[Found]:
        """Yields the objects."""
        begin = len(self._prefix) + 1 if self._prefix else 0
        with self.errors("objects can't be listed"):
            pages = self._obstore.list(self._store, self._prefix or None, chunk_size=1000)
            for meta in chain.from_iterable(pages):
                yield Found(
                    name=meta["path"][begin:], path=meta["path"], size=meta["size"],
                    mark=_mark(meta),
                )  # fmt: skip

    def read(self, found: Found) -> Iterator[bytes]:
        """Yields an object's bytes; raises ConflictError when it is not the one that was listed."""
        with self.errors(f"{found.name!r} can't be read"):
            got = self._obstore.get(self._store, found.path)
            if got.meta["size"] != found.size or _mark(got.meta) != found.mark:
                raise _changed(found)
            for part in got.stream(min_chunk_size=_PART):
                yield bytes(part)

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turns the client's errors into ours."""
        try:
            yield
        except LockgateError:
            raise
        except FileNotFoundError:
            raise TemporaryError(f"{what}: it is gone, or {self._where} is") from None
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise self._ours(what, error) from None

    def _ours(self, what: str, error: Exception) -> LockgateError:
        known = self._obstore.exceptions
        said = str(error).partition("\n")[0].partition("<?xml")[0][:300]
        refused = ("status code: 401", "status code: 403", "169.254.169.254")
        denials = known.PermissionDeniedError | known.UnauthenticatedError
        if isinstance(error, denials) or any(word in said for word in refused):
            return DeniedError(
                f"{self._where}: {what}: the store refuses, or has no credentials: {said}",
                hint="give them in the connection, as s3://bucket?region=…&access_key_id=…"
                "&secret_access_key=…",
            )
        if isinstance(error, ValueError | known.UnknownConfigurationKeyError):
            return UsageError(f"{self._where}: {what}: {said}")
        if any(word in said for word in _TEMPORARY):
            return TemporaryError(f"{self._where}: {what}: {said}")
        return PermanentError(f"{self._where}: {what}: {said}")


def _mark(meta: Any) -> str:
    """Returns what tells an object from what was there under its name before."""
    return str(meta["e_tag"] or meta["version"] or meta["last_modified"])


def _changed(found: Found) -> ConflictError:
    return ConflictError(
        f"{found.name!r} was changed while it was copied", hint="ask again; what stayed is kept"
    )


def _settings(address: str) -> dict[str, Any]:
    """Returns what obstore is told; the options of the address are its configuration."""
    given = options(address)
    plain = given.pop("allow_http", "") == "true" or given.get("endpoint", "").startswith("http://")
    if address.startswith("file:"):
        return {}
    client = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "1h"}
    return {
        "config": given,
        "client_options": client | ({"allow_http": True} if plain else {}),
        "retry_config": {"max_retries": 5, "retry_timeout": timedelta(seconds=120),
                         "backoff": {"init_backoff": timedelta(milliseconds=200)}},
    }  # fmt: skip


class _Fetching:
    """Objects into the scratch folder, a few at a time; whole ones survive a kill."""

    def __init__(self, store: _Store, work: Work, listed: Sequence[Found]) -> None:
        self._store = store
        self._work = work
        self._listed = listed
        self._folder = work.scratch / "objects"
        self._total = sum(found.size for found in listed)
        self._done = 0
        self._lock = Lock()

    def all(self) -> list[str]:
        """Fetches what is not here; returns the digests of all, in order."""
        self._folder.mkdir(exist_ok=True)
        wanted = {found.key for found in self._listed}
        for path in self._folder.iterdir():
            if path.name not in wanted:
                path.unlink()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="objects") as pool:
            return list(pool.map(self._one, self._listed))

    def _one(self, found: Found) -> str:
        path = self._folder / found.key
        hasher = Hasher()
        if path.is_file() and path.stat().st_size == found.size:
            with path.open("rb") as file:
                while part := file.read(_PART):
                    hasher.update(part)
                    self._tell(len(part))
            return hasher.digest()
        draft, size = path.with_suffix(".part"), 0
        with draft.open("wb") as file:
            for part in self._store.read(found):
                size += len(part)
                if size > found.size:
                    raise _changed(found)
                file.write(part)
                hasher.update(part)
                self._tell(len(part))
            file.flush()
            os.fsync(file.fileno())
        if size != found.size:
            raise TemporaryError(f"{found.name!r} ended after {size} of {found.size} bytes")
        draft.replace(path)
        return hasher.digest()

    def _tell(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._work.report(Advance(done=self._done, total=self._total, unit="bytes"))

    def hand_over(self) -> None:
        """Moves what was fetched to where it becomes the version."""
        for found in self._listed:
            target: Path = self._work.out / found.name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self._folder / found.key).replace(target)
