"""Objects in a folder of the local file system.

    <root>/format              which layout this is
    <root>/objects/ab/abcd…    one file an object, named by its digest's hexadecimal digits
    <root>/tmp/                what is being written; whole files move from here by rename
    <root>/quarantine/         objects that were found damaged

An object is written beside, fsynced, then renamed, so that its name never stands for half of it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from lockgate.core.digests import Digest, hex_of, is_digest
from lockgate.core.errors import IntegrityError, PermanentError, PortError, UsageError
from lockgate.store.durable import sync_folder, write_durably
from lockgate.store.memory import check, not_here

FORMAT = "lockgate/store@1\n"
_STALE_S = 3600.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalObjects:
    """`Objects` below the folder `root`, made if it is not there; safe for many processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects = root / "objects"
        self._tmp = root / "tmp"
        try:
            self._objects.mkdir(parents=True, exist_ok=True)
            self._tmp.mkdir(exist_ok=True)
            self._check_format(root / "format")
            self._sweep()
        except OSError as error:
            raise _cannot(f"the store {root} can't be opened", error) from error

    def _check_format(self, path: Path) -> None:
        if not path.exists():
            write_durably(path, FORMAT.encode(), self._tmp)
        found = path.read_text("utf-8", errors="replace")
        if found != FORMAT:
            raise IntegrityError(
                f"the store {self._root} has the format {found.strip()!r}, not {FORMAT.strip()!r}",
                hint="a newer lockgate wrote it; use that one",
            )

    def _sweep(self) -> None:
        """Removes what a killed writer left in tmp/ more than an hour ago."""
        for path in self._tmp.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()

    def _path(self, digest: Digest) -> Path:
        name = hex_of(digest)
        return self._objects / name[:2] / name

    def missing(self, sizes: Mapping[Digest, int]) -> set[Digest]:
        """See `Objects.missing`."""
        return {digest for digest, size in sizes.items() if self._size(digest) != size}

    def _size(self, digest: Digest) -> int:
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return -1

    def put(self, objects: Iterable[tuple[Digest, bytes]]) -> None:
        """See `Objects.put`."""
        for digest, data in objects:
            check(digest, data)
            if self._size(digest) == len(data):
                continue
            path = self._path(digest)
            try:
                path.parent.mkdir(exist_ok=True)
                write_durably(path, data, self._tmp, name_too=False)
            except OSError as error:
                raise _cannot(f"an object of {len(data)} bytes can't be stored", error) from error

    def get(self, digest: Digest) -> bytes:
        """See `Objects.get`."""
        try:
            return check(digest, self._path(digest).read_bytes())
        except FileNotFoundError:
            raise not_here(digest) from None
        except OSError as error:
            raise _cannot(f"object {digest} can't be read", error) from error
        except IntegrityError:
            return self._second_look(digest)

    def _second_look(self, digest: Digest) -> bytes:
        """Reads a damaged object once more; if it stays so, puts it aside, so that a put heals it.

        Raises IntegrityError when it is still damaged.
        """
        path = self._path(digest)
        try:
            return check(digest, path.read_bytes())
        except OSError as error:
            raise _cannot(f"object {digest} can't be read", error) from error
        except IntegrityError:
            aside = self._root / "quarantine"
            with suppress(OSError):  # a store that can't be written still says what is wrong
                aside.mkdir(exist_ok=True)
                path.replace(aside / path.name)
            raise

    def digests(self) -> Iterator[Digest]:
        """See `Objects.digests`."""
        for folder in sorted(self._objects.iterdir()):
            for path in sorted(folder.iterdir() if folder.is_dir() else ()):
                digest = "blake3:" + path.name
                if is_digest(digest):
                    yield Digest(digest)

    def flush(self, digests: Iterable[Digest]) -> None:
        """See `Objects.flush`: the files were fsynced by put; here it is the folders' turn."""
        wanted = set(digests)
        for digest in wanted:
            if self._size(digest) < 0:
                raise not_here(digest)
        folders = {self._path(digest).parent for digest in wanted}
        try:
            for folder in (self._objects, *sorted(folders)):
                sync_folder(folder)
        except OSError as error:
            raise _cannot(f"the store {self._root} can't be made durable", error) from error

    def discard(self, digests: Iterable[Digest]) -> None:
        """See `Objects.discard`."""
        for digest in digests:
            self._path(digest).unlink(missing_ok=True)


def _cannot(what: str, error: OSError) -> UsageError | PortError:
    if error.errno in _FULL:
        return UsageError(
            f"{what}: the disk is full", hint="free some space, then run the same command again"
        )
    return PermanentError(f"{what}: {error.strerror or error}")
