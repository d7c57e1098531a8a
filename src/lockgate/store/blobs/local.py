"""Blobs in a folder of the local file system.

    <root>/packs/ab/abcd…    a blob's name is its path
    <root>/.tmp/             what is being written; whole files move from here by rename

A blob is written beside, fsynced and renamed, then the folders are fsynced: its name never stands
for half of it, and once `write` returned it survives a power failure.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lockgate.core.clock import Clock, SystemClock
from lockgate.core.errors import PermanentError, PortError, UsageError
from lockgate.store.blobs.api import (
    Blob,
    absent,
    check_name,
    check_ranges,
    is_name,
    is_prefix,
    too_short,
)
from lockgate.store.durable import stream_durably, sync_folder

_STALE_S = 3600.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OPEN_FILES = 128


class LocalBlobs:
    """`Blobs` below the folder `root`, made if it is not there; safe for many processes.

    `root` may be on a file system that can only be read. Up to 128 files stay open for reading.
    """

    def __init__(self, root: Path, clock: Clock | None = None) -> None:
        self._root = root
        self._tmp = root / ".tmp"
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._durable = {root}
        try:
            if not root.is_dir():
                root.mkdir(parents=True, exist_ok=True)
                sync_folder(root.parent)
            self._sweep()
        except OSError as error:
            raise _cannot(f"the store {root} can't be opened", error) from error

    def _sweep(self) -> None:
        """Removes what a killed writer left in .tmp more than an hour ago."""
        if not self._tmp.is_dir():
            return
        for path in self._tmp.iterdir():
            with suppress(OSError):
                if self._clock.now() - path.stat().st_mtime > _STALE_S:
                    path.unlink()

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """See `Blobs.write`."""
        path = self._root / check_name(name)
        try:
            self._tmp.mkdir(exist_ok=True)
            self._make(path.parent)
            size = stream_durably(path, parts, self._tmp)
        except OSError as error:
            raise _cannot(f"blob {name} can't be written", error) from error
        with self._lock:
            self._open.pop(name, None)
        return size

    def _make(self, folder: Path) -> None:
        """Makes a folder whose name survives a power failure, whoever made it first."""
        if folder not in self._durable:
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
            self._durable.add(folder)

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        """See `Blobs.read`."""
        check_ranges([(begin, size or 0)])
        try:
            file, total = self._file(check_name(name))
            wanted = total - begin if size is None else size
            data = _pread(file.handle, begin, wanted) if 0 <= wanted <= total - begin else None
        except (FileNotFoundError, NotADirectoryError):
            raise absent(name) from None
        except OSError as error:
            raise _cannot(f"blob {name} can't be read", error) from error
        if data is None or len(data) != wanted:
            raise too_short(name, begin, size)
        return data

    def _file(self, name: str) -> tuple[_File, int]:
        """Returns a blob's open file, opened anew if the name stands for another, and its size."""
        with self._lock:
            file = self._open.get(name)
            if file is not None:
                self._open.move_to_end(name)
        if file is not None and (found := os.fstat(file.handle)).st_nlink:
            return file, found.st_size
        file = _File(os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC))
        found = os.fstat(file.handle)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(name)
        with self._lock:
            self._open[name] = file
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return file, found.st_size

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Blobs.read_ranges`: one after the other, the page cache is the parallel part."""
        return [self.read(name, begin, size) for begin, size in ranges]

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """See `Blobs.list`. Files with other names, and links, are not blobs."""
        if not is_prefix(prefix):
            return
        above = prefix.rpartition("/")[0]
        try:
            if is_name(prefix):
                yield from self._stat(prefix)
            for blob in self._walk(above + "/" if above else "", prefix):
                if blob.name != prefix:
                    yield blob
        except OSError as error:
            raise _cannot(f"the store {self._root} can't be listed", error) from error

    def _walk(self, at: str, prefix: str) -> Iterator[Blob]:
        """Yields the blobs below `at` by name: a folder stands where its slash puts it."""
        try:
            with os.scandir(self._root / at) as entries:
                found = sorted(
                    entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "")
                    for entry in entries
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in found:
            full = at + name
            if not full.startswith(prefix) or not is_name(full.removesuffix("/")):
                continue
            yield from self._walk(full, prefix) if name.endswith("/") else self._stat(full)

    def _stat(self, name: str) -> Iterator[Blob]:
        with suppress(FileNotFoundError, NotADirectoryError):
            path = self._root / name
            if path.is_file() and not path.is_symlink():
                found = path.stat()
                yield Blob(name=name, size=found.st_size, modified=found.st_mtime)

    def remove(self, names: Iterable[str]) -> None:
        """See `Blobs.remove`."""
        folders: set[Path] = set()
        for name in names:
            path = self._root / check_name(name)
            with self._lock:
                self._open.pop(name, None)
            try:
                path.unlink()
                folders.add(path.parent)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            except OSError as error:
                raise _cannot(f"blob {name} can't be removed", error) from error
        try:
            for folder in sorted(folders):
                sync_folder(folder)
        except OSError as error:
            raise _cannot("a removal can't be made durable", error) from error

    def close(self) -> None:
        """See `Blobs.close`."""
        with self._lock:
            self._open.clear()


class _File:
    """An open file; closed when the last reader lets go of it."""

    __slots__ = ("handle",)

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __del__(self) -> None:
        os.close(self.handle)


def _pread(handle: int, begin: int, size: int) -> bytes:
    """Returns up to `size` bytes; fewer only where the file ends."""
    data = os.pread(handle, size, begin)
    if len(data) == size or not data:
        return data
    pieces = [data]  # one call returns 2 GiB at most
    done = len(data)
    while done < size and (data := os.pread(handle, size - done, begin + done)):
        pieces.append(data)
        done += len(data)
    return b"".join(pieces)


def _cannot(what: str, error: OSError) -> UsageError | PortError:
    if error.errno in _FULL:
        return UsageError(
            f"{what}: the disk is full", hint="free some space, then run the same command again"
        )
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
        return UsageError(f"{what}: a part of the name is another blob, or a folder of blobs")
    return PermanentError(f"{what}: {error.strerror or error}")
