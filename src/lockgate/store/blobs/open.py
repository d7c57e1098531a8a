"""From an address to a backend, with what its options put before it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from lockgate.core.errors import UsageError
from lockgate.store.blobs.api import BackendOptions, Blobs
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.blobs.memory import MemoryBlobs

_REMOTE = ("s3", "s3a", "gs", "az")


def open_blobs(where: str, options: BackendOptions | None = None) -> Blobs:
    """Returns the blobs at a path, `file://…`, `memory:`, `s3://bucket/prefix`, `gs://…`, `az://…`.

    In order from the outside: encryption, cache, retries, rate limit, the backend. So the cache
    holds what the backend holds, encrypted if that is, and a retry is paid for as any request.
    Raises UsageError for another address, or when a package that it needs is not installed.
    """
    options = options or BackendOptions()
    blobs, is_remote = _backend(where, options)
    if options.bytes_per_second is not None:
        from lockgate.store.blobs.limited import RateLimitedBlobs

        blobs = RateLimitedBlobs(blobs, options.bytes_per_second)
    if is_remote:
        from lockgate.store.blobs.retry import RetryBlobs

        blobs = RetryBlobs(blobs, attempts=options.attempts)
    if options.cache_folder is not None:
        from lockgate.store.blobs.cached import CachedBlobs

        blobs = CachedBlobs(
            blobs, options.cache_folder, options.cache_bytes, only=options.cache_only
        )
    if options.key_file is not None:
        from lockgate.store.blobs.encrypted import EncryptedBlobs
        from lockgate.store.blobs.keys import load

        blobs = EncryptedBlobs(blobs, load(options.key_file))
    return blobs


def _backend(where: str, options: BackendOptions) -> tuple[Blobs, bool]:
    """Returns the bare backend, and whether it is across a network."""
    scheme, separator, _ = where.partition(":")
    if where == "memory:":
        return MemoryBlobs(), False
    if separator and scheme in _REMOTE:
        from lockgate.store.blobs.s3 import S3Blobs

        return S3Blobs(where, options), True
    if where.startswith("file://"):
        return LocalBlobs(Path(unquote(urlsplit(where).path))), False
    if not where or "://" in where:
        raise UsageError(
            f"{where!r} is no place for a store",
            hint="a folder, file://…, memory:, s3://bucket/prefix, gs://… or az://…",
        )
    return LocalBlobs(Path(where)), False
