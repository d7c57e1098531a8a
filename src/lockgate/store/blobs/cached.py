"""Blobs whose ranges are kept on the local disk once they were read.

    <folder>/lock                         held by the one process that adds and evicts
    <folder>/ranges/<name>/@<begin>-<size>  BLAKE3 of name, range and bytes; then the bytes
    <folder>/tmp/                         what is being written

A range is kept as it was asked for, so the size is predictable and no byte is fetched that nobody
wanted. Nothing is fsynced: a range that a crash left damaged fails its checksum, and is fetched
anew.
"""

from __future__ import annotations

import fcntl
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from lockgate.core.errors import UsageError
from lockgate.store.blobs.api import Blob, Blobs, check_name, check_ranges

_SUM_BYTES = 32
_DISK_BLOCK = 4096
_Range = tuple[int, int | None]
_Entry = tuple[str, str]


class CachedBlobs:
    """`Blobs` with a cache of at most `limit_bytes` in `folder`, least recently used out first.

    For blobs that are never replaced, as those that are named by their content: what another
    process replaces is not noticed. Only names that begin with one of `only` are kept. Of the
    processes that share a folder one fills it; the others read what is there. A file counts with
    whole disk blocks of 4 KiB; folders are not counted. Raises UsageError when `folder` can't be
    used.
    """

    def __init__(
        self, inner: Blobs, folder: Path, limit_bytes: int, *, only: tuple[str, ...] = ("",)
    ) -> None:
        self._inner = inner
        self._ranges = folder / "ranges"
        self._tmp = folder / "tmp"
        self._limit = limit_bytes
        self._only = only
        self._lock = threading.Lock()
        self._sizes: OrderedDict[_Entry, int] = OrderedDict()
        self._used = 0
        self._changes = 0
        self._pins: set[str] = set()
        try:
            self._ranges.mkdir(parents=True, exist_ok=True)
            self._tmp.mkdir(exist_ok=True)
            self._handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._fills = _take(self._handle)
            if self._fills:
                self._remember()
        except OSError as error:
            raise UsageError(
                f"the cache {folder} can't be used: {error.strerror}", hint="choose another folder"
            ) from error

    def _remember(self) -> None:
        """Finds what an earlier process kept, oldest use first, and sweeps its drafts away."""
        for draft in self._tmp.iterdir():
            draft.unlink(missing_ok=True)
        found = []
        for path in self._ranges.rglob("@*"):
            stat = path.stat()
            entry = (path.parent.relative_to(self._ranges).as_posix(), path.name)
            found.append((stat.st_mtime_ns, entry, _on_disk(stat.st_size)))
        for _, entry, size in sorted(found):
            self._sizes[entry] = size
            self._used += size
        with self._lock:
            self._evict(0)

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        """See `Blobs.read`."""
        check_ranges([(begin, size or 0)])
        data = self._kept(check_name(name), (begin, size))
        if data is None:
            changes = self._changes
            data = self._inner.read(name, begin, size)
            self._keep(name, (begin, size), data, changes)
        return data

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Blobs.read_ranges`: what is not kept is fetched together."""
        check_ranges(ranges)
        check_name(name)
        found = {item: self._kept(name, item) for item in set(ranges)}
        missing = sorted(item for item, data in found.items() if data is None)
        if missing:
            changes = self._changes
            for item, data in zip(missing, self._inner.read_ranges(name, missing), strict=True):
                found[item] = data
                self._keep(name, item, data, changes)
        return [found[item] or b"" for item in ranges]

    def _kept(self, name: str, wanted: _Range) -> bytes | None:
        """Returns a range from the disk; None when it is not there or fails its checksum."""
        if not name.startswith(self._only):
            return None
        entry = (name, _file(wanted))
        path = self._ranges / name / entry[1]
        try:
            with path.open("rb", buffering=0) as file:
                raw = file.readall()
                with suppress(PermissionError):
                    os.utime(file.fileno())
        except OSError:
            return None
        if raw[:_SUM_BYTES] != _checksum(entry, memoryview(raw)[_SUM_BYTES:]):
            with self._lock:
                self._drop(entry)
            return None
        with self._lock:
            if entry in self._sizes:
                self._sizes.move_to_end(entry)
        return raw[_SUM_BYTES:]

    def _keep(self, name: str, wanted: _Range, data: bytes, changes: int) -> None:
        """Puts a range on the disk, if there is room for it; a disk that refuses is no error.

        Not if a blob was written or removed since `changes` was read: it may be of another one.
        """
        entry = (name, _file(wanted))
        size = _on_disk(_SUM_BYTES + len(data))
        if not self._fills or not name.startswith(self._only) or size > self._limit:
            return
        draft = self._tmp / uuid.uuid4().hex
        with self._lock:
            known = entry in self._sizes or changes != self._changes
            if known or not self._evict(size):
                return
            self._sizes[entry] = size
            self._used += size
        try:
            with draft.open("xb", buffering=0) as file:
                for part in (_checksum(entry, data), data):
                    if file.write(part) != len(part):
                        raise OSError("cut")  # noqa: TRY301 (a full disk may take a part)
            path = self._ranges / name / entry[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            with self._lock:
                self._drop(entry)
            return
        with self._lock:
            if entry not in self._sizes:  # forgotten while it was written
                path.unlink(missing_ok=True)

    def _evict(self, needed: int) -> bool:
        """Makes room for `needed` bytes; False when what is pinned leaves too little."""
        pins = tuple(self._pins)
        excess = self._used + needed - self._limit
        out = []
        for entry, size in self._sizes.items():
            if excess <= 0:
                break
            if not entry[0].startswith(pins):
                out.append(entry)
                excess -= size
        if excess > 0:
            return False
        for entry in out:
            self._drop(entry)
        return True

    def _drop(self, entry: _Entry) -> None:
        """Forgets one range; call it under the lock."""
        self._used -= self._sizes.pop(entry, 0)
        if self._fills:
            with suppress(OSError):
                (self._ranges / entry[0] / entry[1]).unlink()

    def _forget(self, names: Iterable[str]) -> None:
        """Forgets all ranges of the blobs."""
        gone = set(names)
        with self._lock:
            self._changes += 1
            for entry in [entry for entry in self._sizes if entry[0] in gone]:
                self._drop(entry)

    def pin(self, prefix: str) -> None:
        """Keeps the ranges of the blobs whose names begin with `prefix`, now and to come.

        Pins are of this process: after a restart set them again, before the first read. When
        pinned ranges fill the cache, others are read past it.
        """
        with self._lock:
            self._pins.add(prefix)

    def unpin(self, prefix: str) -> None:
        """Takes a pin back; one that is not there is fine."""
        with self._lock:
            self._pins.discard(prefix)

    @property
    def used_bytes(self) -> int:
        """What the cache takes on the disk, in bytes; 0 in a process that does not fill it."""
        return self._used

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """See `Blobs.write`; what was kept of that name is forgotten, nothing is kept."""
        size = self._inner.write(name, parts)
        self._forget([name])
        return size

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """See `Blobs.list`; never from the cache."""
        return self._inner.list(prefix)

    def remove(self, names: Iterable[str]) -> None:
        """See `Blobs.remove`."""
        wanted = [*names]
        self._inner.remove(wanted)
        self._forget(wanted)

    def close(self) -> None:
        """See `Blobs.close`; another process may fill the cache then."""
        self._fills = False
        os.close(self._handle)
        self._inner.close()


def _take(handle: int) -> bool:
    """Takes the lock of a cache; False when another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _on_disk(size: int) -> int:
    return -(-size // _DISK_BLOCK) * _DISK_BLOCK


def _file(wanted: _Range) -> str:
    begin, size = wanted
    return f"@{begin}-{'end' if size is None else size}"


def _checksum(entry: _Entry, data: bytes | memoryview) -> bytes:
    state = blake3("\0".join(entry).encode("ascii"))
    state.update(b"\0")
    state.update(data)
    return state.digest()
