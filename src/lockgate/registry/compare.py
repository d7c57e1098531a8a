"""What changed between two versions: files and tensors, and how many bytes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lockgate.registry.manifest import Manifest, iter_tensors

Change = Literal["added", "removed", "changed", "same"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """A file in either version. Sizes in bytes; `shared` bytes stand in both."""

    path: str
    change: Change
    size_before: int = 0
    size_after: int = 0
    shared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """A tensor that is not the same in both versions; `size` is its bytes after (or before)."""

    path: str
    name: str
    change: Change
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """All changes; `bytes_new` is what the second has and the first, anywhere in it, has not."""

    files: tuple[FileChange, ...]
    tensors: tuple[TensorChange, ...]
    tensors_same: int
    bytes_new: int
    bytes_after: int


def diff(before: Manifest, after: Manifest) -> Difference:
    """Returns what publishing `after` changed from `before`."""
    old, new = before.objects(), after.objects()
    tensors, same = _tensors(before, after)
    return Difference(
        files=_files(before, after),
        tensors=tensors,
        tensors_same=same,
        bytes_new=sum(size for digest, size in new.items() if digest not in old),
        bytes_after=after.size,
    )


def _files(before: Manifest, after: Manifest) -> tuple[FileChange, ...]:
    old = {artifact.path: artifact for artifact in before.artifacts}
    new = {artifact.path: artifact for artifact in after.artifacts}
    known = before.objects()
    changes = []
    for path in sorted(old | new):
        a, b = old.get(path), new.get(path)
        shared = sum(p.size for p in b.pieces if p.digest in known) if b else 0
        changes.append(
            FileChange(
                path=path,
                change=_change(a.digest if a else None, b.digest if b else None),
                size_before=a.size if a else 0,
                size_after=b.size if b else 0,
                shared=shared,
            )
        )
    return tuple(changes)


def _tensors(before: Manifest, after: Manifest) -> tuple[tuple[TensorChange, ...], int]:
    old = {(path, name): (content, size) for path, name, content, size in iter_tensors(before)}
    new = {(path, name): (content, size) for path, name, content, size in iter_tensors(after)}
    changes = []
    same = 0
    for key in sorted(old | new):
        a, b = old.get(key), new.get(key)
        change = _change(a[0] if a else None, b[0] if b else None)
        if change == "same":
            same += 1
            continue
        size = (b or a or ("", 0))[1]
        changes.append(TensorChange(path=key[0], name=key[1], change=change, size=size))
    return tuple(changes), same


def _change(before: str | None, after: str | None) -> Change:
    if before is None:
        return "added"
    if after is None:
        return "removed"
    return "same" if before == after else "changed"
