"""Folders that somebody else filled: walked and removed, however deep and odd they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def walk(folder: str | Path) -> Iterator[tuple[int, os.DirEntry[str]]]:
    """Yields all that is below `folder`, each with its depth from 1; links are not followed.

    What can't be listed is left out; nothing is recursive, so depth costs no stack.
    """
    waiting = [(1, os.fspath(folder))]
    while waiting:
        depth, path = waiting.pop()
        with suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                yield depth, entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((depth + 1, entry.path))


def taken_bytes(folder: str | Path) -> int:
    """Returns the bytes that the files below `folder` take on disk."""
    taken = 0
    for _, entry in walk(folder):
        with suppress(OSError):
            if not entry.is_dir(follow_symlinks=False):
                taken += entry.stat(follow_symlinks=False).st_blocks * 512
    return taken


def remove(folder: Path) -> None:
    """Removes `folder`, or what is there in its place; what can't be removed stays.

    A folder in a folder is moved up before its parent goes, so that no path gets long.
    """
    with suppress(OSError):
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink(missing_ok=True)
            return
        moved = 0
        while inner := _emptied(folder):
            for path in inner:
                for deeper in _emptied(path):
                    os.rename(deeper, folder / f".moved-{moved}")  # noqa: PTH104
                    moved += 1
                path.rmdir()
        folder.rmdir()


def _emptied(folder: Path) -> list[Path]:
    """Removes the files in `folder`; returns the folders in it."""
    with suppress(OSError):
        folder.chmod(0o700)
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)  # noqa: PTH108
    return [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]
