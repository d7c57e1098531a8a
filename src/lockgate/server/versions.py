"""Restored versions on this machine, one folder each, ready to be served."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from lockgate.core.digests import hex_of
from lockgate.registry.restore import restore
from lockgate.registry.service import Registry


class Versions:
    """Folders of restored versions below `root`; a folder is there whole or not at all."""

    def __init__(self, root: Path, registry: Registry) -> None:
        self._root = root
        self._registry = registry
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*.part"):
            shutil.rmtree(leftover, ignore_errors=True)

    def folder(self, version: str) -> Path:
        """Returns the folder of `version`, restored and checked if it was not there.

        Raises what `restore` raises.
        """
        path = self._root / hex_of(version)
        with self._guard:
            lock = self._locks.setdefault(version, threading.Lock())
        with lock:
            if not path.exists():
                restore(self._registry.manifest(version), path, self._registry.objects)
        return path

    def drop(self, version: str) -> None:
        """Removes the folder of `version`; the store keeps the version."""
        with self._guard:
            lock = self._locks.setdefault(version, threading.Lock())
        with lock:
            shutil.rmtree(self._root / hex_of(version), ignore_errors=True)
