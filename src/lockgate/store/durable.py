"""Files that are whole or not there, whatever kills the process or the power."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_durably(path: Path, data: bytes, tmp: Path, *, name_too: bool = True) -> None:
    """Makes `path` hold `data`, whole or not at all; leaves nothing in `tmp` when it fails.

    `tmp` is a folder of the same file system. Without `name_too` the name itself may be lost in a
    power failure until `sync_folder`. Raises OSError.
    """
    draft = tmp / f"{path.name[:32]}.{uuid.uuid4().hex}"
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if name_too:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
