"""Objects in memory: for tests and dry runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from lockgate.core.digests import Digest, digest_of, short
from lockgate.core.errors import IntegrityError, NotFoundError


class MemoryObjects:
    """`Objects` in a dictionary; lost with the process."""

    def __init__(self) -> None:
        self._objects: dict[Digest, bytes] = {}

    def missing(self, sizes: Mapping[Digest, int]) -> set[Digest]:
        """See `Objects.missing`."""
        return {
            digest
            for digest in sizes
            if len(self._objects.get(digest, b"")) != sizes[digest] or digest not in self._objects
        }

    def put(self, objects: Iterable[tuple[Digest, bytes]]) -> None:
        """See `Objects.put`."""
        for digest, data in objects:
            check(digest, data)
            self._objects[digest] = bytes(data)

    def get(self, digest: Digest) -> bytes:
        """See `Objects.get`."""
        if digest not in self._objects:
            raise not_here(digest)
        return check(digest, self._objects[digest])

    def digests(self) -> Iterator[Digest]:
        """See `Objects.digests`."""
        yield from tuple(self._objects)

    def flush(self, digests: Iterable[Digest]) -> None:
        """See `Objects.flush`."""
        for digest in digests:
            if digest not in self._objects:
                raise not_here(digest)

    def discard(self, digests: Iterable[Digest]) -> None:
        """See `Objects.discard`."""
        for digest in digests:
            self._objects.pop(digest, None)


def check(digest: Digest, data: bytes) -> bytes:
    """Returns `data` when it has that digest; raises IntegrityError otherwise."""
    if digest_of(data) != digest:
        raise IntegrityError(
            f"object {short(digest)} is damaged: its {len(data)} bytes have another digest",
            hint="run 'lockgate verify' to see which versions it hurts",
        )
    return data


def not_here(digest: Digest) -> NotFoundError:
    """Returns the error for an object that the store does not have."""
    return NotFoundError(f"object {short(digest)} is not in this store")
