"""The hot tier: versions decoded on this machine, one folder each, ready to be served.

The versions that serve or arrive are here, and those that serve no more stay, the last ones up to
`hot_bytes`; so going back is a matter of naming a folder. A file that another hot version has too
is a hard link to it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lockgate.core.digests import Digest, hex_of, is_digest
from lockgate.registry.manifest import Manifest
from lockgate.registry.restore import restore
from lockgate.registry.service import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spot:
    """Where a piece lies decoded."""

    path: Path
    begin: int
    size: int


class Versions:
    """Folders of restored versions below `root`; a folder is there whole or not at all."""

    def __init__(self, root: Path, registry: Registry, *, hot_bytes: int = 0) -> None:
        self._root = root
        self._registry = registry
        self._hot_bytes = hot_bytes
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._unused: OrderedDict[str, int] = OrderedDict()
        self._spots: dict[Digest, _Spot] = {}
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*.part"):
            shutil.rmtree(leftover, ignore_errors=True)

    def folder(self, version: str) -> Path:
        """Returns the folder of `version`, restored and checked if it was not there.

        Raises what `restore` raises.
        """
        path = self._root / hex_of(version)
        with self._lock(version):
            manifest = self._registry.manifest(version)
            if not path.exists():
                restore(manifest, path, self._registry.objects, links=self._twins(manifest))
            self._note(manifest, path)
            with self._guard:
                self._unused.pop(version, None)
        return path

    def adopt(self, used: Collection[str]) -> None:
        """Takes up the folders of an earlier run; `used` are versions that replicas still serve."""
        for path in sorted(self._root.iterdir(), key=lambda path: path.stat().st_mtime):
            version = "blake3:" + path.name
            if is_digest(version) and version not in used:
                self.drop(version)

    def _lock(self, version: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(version, threading.Lock())

    def _note(self, manifest: Manifest, path: Path) -> None:
        """Remembers where the pieces of the version's weights lie."""
        spots: dict[Digest, _Spot] = {}
        for artifact in manifest.artifacts:
            begin = 0
            for piece in artifact.pieces:
                if piece.tensor is not None:
                    spots[Digest(piece.digest)] = _Spot(
                        path=path / artifact.path, begin=begin, size=piece.size
                    )
                begin += piece.size
        with self._guard:
            self._spots |= spots

    def _twins(self, manifest: Manifest) -> dict[str, Path]:
        """Returns, by path, files of hot versions with the very content of the manifest's."""
        found: dict[str, Path] = {}
        for artifact in manifest.artifacts:
            spot = self._spots.get(Digest(artifact.pieces[-1].digest)) if artifact.pieces else None
            if (
                spot is not None
                and spot.begin + spot.size == artifact.size
                and self._same(spot.path, artifact.path, manifest)
            ):
                found[artifact.path] = spot.path
        return found

    def _same(self, path: Path, name: str, manifest: Manifest) -> bool:
        """Says whether the file of another version at `path` has the pieces of `name` here."""
        relative = path.relative_to(self._root)
        try:
            other = self._registry.manifest("blake3:" + relative.parts[0])
        except Exception:  # noqa: BLE001 - then it is decoded like any other
            return False
        mine = {artifact.path: artifact for artifact in manifest.artifacts}[name]
        theirs = {artifact.path: artifact for artifact in other.artifacts}
        there = "/".join(relative.parts[1:])
        same = there in theirs and [p.digest for p in theirs[there].pieces] == [
            p.digest for p in mine.pieces
        ]
        return same and theirs[there].executable == mine.executable and path.exists()

    def read(self, digest: Digest) -> bytes | None:
        """Returns a piece's bytes, not checked, where a hot version has them; None elsewhere."""
        with self._guard:
            spot = self._spots.get(digest)
        if spot is None:
            return None
        try:
            handle = os.open(spot.path, os.O_RDONLY)
        except OSError:
            return None
        try:
            data = os.pread(handle, spot.size, spot.begin)
        except OSError:
            return None
        finally:
            os.close(handle)
        return data if len(data) == spot.size else None

    def drop(self, version: str) -> None:
        """Says that nothing serves `version`; it stays hot while there is room for it."""
        size = _size(self._root / hex_of(version))
        with self._guard:
            self._unused[version] = size
            self._unused.move_to_end(version)
            gone = []
            while self._unused and sum(self._unused.values()) > self._hot_bytes:
                gone.append(self._unused.popitem(last=False)[0])
        for old in gone:
            self._remove(old)

    def _remove(self, version: str) -> None:
        path = self._root / hex_of(version)
        with self._lock(version):
            shutil.rmtree(path, ignore_errors=True)
            with self._guard:
                self._spots = {
                    digest: spot
                    for digest, spot in self._spots.items()
                    if not spot.path.is_relative_to(path)
                }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
