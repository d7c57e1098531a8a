"""Objects of a server, by way of a store on this machine: only frames that it lacks travel.

A node that holds one version fetches the next as differences from it. What comes is decoded and
checked before it is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping

from lockgate.client.client import Client, RemoteObjects
from lockgate.core.digests import Digest
from lockgate.core.errors import IntegrityError, NotFoundError
from lockgate.store.api import Object
from lockgate.store.codec.decode import decode_checked
from lockgate.store.codec.dtypes import Buffer
from lockgate.store.codec.frame import parse
from lockgate.store.packs import PackStore


class PulledObjects:
    """`Objects` of a server that are read through `cache`; writes go to the server.

    `travelled` counts the bytes of the frames that came.
    """

    def __init__(self, client: Client, cache: PackStore) -> None:
        self.travelled = 0
        self._client = client
        self._remote = RemoteObjects(client)
        self._cache = cache
        self._lock = threading.Lock()
        self._locks: dict[Digest, threading.Lock] = {}

    def get(self, digest: Digest) -> Buffer:
        """See `Objects.get`."""
        try:
            return self._cache.get(digest)
        except (NotFoundError, IntegrityError):
            self._pull(digest)
            return self._cache.get(digest)

    def _pull(self, digest: Digest) -> None:
        """Fetches an object's frame, after those that it is made from."""
        with self._lock:
            lock = self._locks.setdefault(digest, threading.Lock())
        with lock:
            if self._cache.depth(digest) is not None:
                return
            data = self._client.request("GET", f"/frames/{digest}").content
            frame = parse(data)
            for base in frame.deps:
                if self._cache.depth(base) is None:
                    self._pull(base)
            decode_checked(digest, frame, self._cache.get, self._cache.kernel)
            self._cache.put_frame(digest, frame)
            with self._lock:
                self.travelled += len(data)

    def missing(self, sizes: Mapping[Digest, int]) -> set[Digest]:
        """See `Objects.missing`."""
        return self._remote.missing(sizes)

    def put(self, objects: Iterable[Object]) -> None:
        """See `Objects.put`."""
        self._remote.put(objects)

    def digests(self) -> Iterator[Digest]:
        """See `Objects.digests`."""
        return self._remote.digests()

    def flush(self, digests: Iterable[Digest]) -> None:
        """See `Objects.flush`; what came is kept for the next time too."""
        self._cache.flush(())
        self._remote.flush(digests)

    def discard(self, digests: Iterable[Digest]) -> None:
        """See `Objects.discard`."""
        self._remote.discard(digests)

    def close(self) -> None:
        """Keeps what came, and closes the cache."""
        self._cache.close()
