"""Files that are whole or not there, whatever kills the process or the power."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_durably(path: Path, data: bytes, tmp: Path) -> None:
    """Makes `path` hold `data`, whole or not at all; leaves nothing in `tmp` when it fails.

    `tmp` is a folder of the same file system. Raises OSError.
    """
    stream_durably(path, [data], tmp)


def stream_durably(path: Path, parts: Iterable[bytes | memoryview], tmp: Path) -> int:
    """As `write_durably`, part by part; returns the bytes written.

    When `parts` is a sequence, its room is taken first, so that a full disk is met at once.
    Raises OSError, and whatever `parts` raises.
    """
    draft = tmp / f"{path.name[:32]}.{uuid.uuid4().hex}"
    try:
        with draft.open("xb") as file:
            if isinstance(parts, Sequence):
                _reserve(file.fileno(), sum(memoryview(part).nbytes for part in parts))
            size = sum(file.write(part) for part in parts)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return size


def _reserve(handle: int, size: int) -> None:
    """Takes room for `size` bytes, where the file system can; raises OSError when there is none."""
    try:
        if size:
            os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
