"""The manifest: what a version is made of. Its digest *is* the version.

Canonical JSON with nothing in it but content (paths, sizes, digests, tensors), so that the same
content published twice, by anyone at any time, is the same version. How the bytes are stored is not
in it: they may be encoded anew without becoming another version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from lockgate.core import canonical
from lockgate.core.codec import from_json
from lockgate.core.digests import Digest, digest_of, hex_of, is_digest
from lockgate.core.errors import IntegrityError, UsageError
from lockgate.store.api import Artifact, Piece, TensorPart

FORMAT = "lockgate/manifest@2"
_MAX_PATH = 4096
_MAX_NAME = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The artifacts of a version by path, and the folders that are empty."""

    artifacts: tuple[Artifact, ...]
    folders: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The bytes of all artifacts together."""
        return sum(artifact.size for artifact in self.artifacts)

    @property
    def tensors(self) -> int:
        """How many tensors the artifacts hold."""
        parts = (p.tensor for artifact in self.artifacts for p in artifact.pieces)
        return sum(1 for part in parts if part is not None and part.part == 0)

    def objects(self) -> dict[Digest, int]:
        """Returns the digest of every object that the artifacts need, with its size in bytes."""
        return {
            Digest(piece.digest): piece.size
            for artifact in self.artifacts
            for piece in artifact.pieces
        }


def encode(manifest: Manifest) -> bytes:
    """Returns the one text of `manifest`, sorted by path."""
    artifacts = sorted(manifest.artifacts, key=lambda artifact: artifact.path)
    return canonical.encode(
        {
            "format": FORMAT,
            "artifacts": [_artifact(artifact) for artifact in artifacts],
            "folders": sorted(manifest.folders),
        }
    )


def _artifact(artifact: Artifact) -> dict[str, object]:
    return {
        "path": artifact.path,
        "size": artifact.size,
        "executable": artifact.executable,
        "runs": [_run(tensor, list(pieces)) for tensor, pieces in _runs(artifact.pieces)],
    }


def _runs(
    pieces: Iterable[Piece],
) -> Iterator[tuple[TensorPart | None, Iterable[Piece]]]:
    """Yields runs of pieces of one tensor, or of none; each tensor's own begins at part 0."""
    run: list[Piece] = []
    for piece in pieces:
        if run and not _continues(run[-1].tensor, piece.tensor):
            yield run[0].tensor, run
            run = []
        run.append(piece)
    if run:
        yield run[0].tensor, run


def _continues(before: TensorPart | None, now: TensorPart | None) -> bool:
    return (
        before == now
        if now is None or before is None
        else before == replace(now, part=now.part - 1)
    )


def _run(tensor: TensorPart | None, pieces: list[Piece]) -> dict[str, object]:
    body: dict[str, object] = {
        "pieces": [hex_of(piece.digest) for piece in pieces],
        "sizes": _sizes([piece.size for piece in pieces]),
    }
    if tensor is not None:
        body["tensor"] = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    return body


def _sizes(sizes: list[int]) -> list[int]:
    """Returns `[first, last]` where all sizes between are the first; else all of them."""
    if len(sizes) > 2 and set(sizes[:-1]) == {sizes[0]}:
        return [sizes[0], sizes[-1]]
    return sizes


def digest_of_manifest(manifest: Manifest) -> Digest:
    """Returns the digest of the version that `manifest` describes."""
    return digest_of(encode(manifest))


def parse(text: bytes) -> Manifest:
    """Reads a manifest as a stranger's.

    Raises IntegrityError when it is not a sound manifest in its one canonical text.
    """
    try:
        body = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _unsound(f"it is not JSON: {str(error)[:120]}") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise _unsound(f"its format is not {FORMAT!r}")
    try:
        manifest = _manifest(body)
        _check(manifest)
    except (UsageError, IntegrityError) as error:
        raise _unsound(error.message) from error
    if encode(manifest) != text:
        raise _unsound("it is not in canonical form")
    return manifest


def _manifest(body: Mapping[str, Any]) -> Manifest:
    stated = from_json(_Stated, {key: body[key] for key in body if key != "format"})
    return Manifest(
        artifacts=tuple(
            Artifact(
                path=artifact.path,
                size=artifact.size,
                executable=artifact.executable,
                pieces=tuple(piece for run in artifact.runs for piece in run.read()),
            )
            for artifact in stated.artifacts
        ),
        folders=stated.folders,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run as the text has it: digests without their prefix, sizes without repeats."""

    pieces: tuple[str, ...]
    sizes: tuple[int, ...]
    tensor: _Tensor | None = None

    def read(self) -> Iterator[Piece]:
        """Yields the pieces; raises UsageError when there are not as many sizes."""
        sizes = self.sizes
        if len(sizes) == 2 and len(self.pieces) > 2:
            sizes = (sizes[0],) * (len(self.pieces) - 1) + sizes[1:]
        if len(sizes) != len(self.pieces) or not sizes:
            raise UsageError(f"a run has {len(self.pieces)} pieces and {len(sizes)} sizes")
        for part, (raw, size) in enumerate(zip(self.pieces, sizes, strict=True)):
            yield Piece(digest="blake3:" + raw, size=size, tensor=self._part(part))

    def _part(self, part: int) -> TensorPart | None:
        if self.tensor is None:
            return None
        return TensorPart(
            name=self.tensor.name, dtype=self.tensor.dtype, shape=self.tensor.shape, part=part
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    path: str
    size: int
    executable: bool
    runs: tuple[_Run, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stated:
    artifacts: tuple[_File, ...]
    folders: tuple[str, ...]


def _check(manifest: Manifest) -> None:
    check_paths([artifact.path for artifact in manifest.artifacts], manifest.folders)
    for artifact in manifest.artifacts:
        sizes = [piece.size for piece in artifact.pieces]
        if any(size <= 0 for size in sizes) or sum(sizes) != artifact.size:
            raise UsageError(f"the pieces of {artifact.path!r} do not add up to its size")
        for piece in artifact.pieces:
            if not is_digest(piece.digest):
                raise UsageError(
                    f"{artifact.path!r} names {piece.digest[:80]!r}, which is no digest"
                )


def check_paths(files: Iterable[str], folders: Iterable[str]) -> None:
    """Raises UsageError when a path leaves its folder, is no clean name, or stands for two things.

    `files` must not be above one another or in `folders`; all are POSIX paths, relative.
    """
    names = [(path, True) for path in files] + [(path, False) for path in folders]
    for path, _ in names:
        _check_path(path)
    ordered = sorted((path.split("/"), is_file) for path, is_file in names)
    for (first, is_file), (second, _) in pairwise(ordered):
        if first == second or (is_file and second[: len(first)] == first):
            raise UsageError(f"the path {'/'.join(first)!r} stands for two things")


def _check_path(path: str) -> None:
    parts = path.split("/")
    try:
        sizes = [len(part.encode("utf-8")) for part in parts]
    except UnicodeEncodeError:
        raise UsageError(f"the path {path!r} is not valid Unicode") from None
    bad = any(part in ("", ".", "..") or "\0" in part for part in parts)
    if bad or max(sizes) > _MAX_NAME or sum(sizes) + len(parts) > _MAX_PATH:
        raise UsageError(
            f"the path {path[:200]!r} can't be in a version",
            hint="paths are relative, stay in the folder, and have names of at most 255 bytes",
        )


def _unsound(what: str) -> IntegrityError:
    return IntegrityError(f"this is not a sound manifest: {what}")


def iter_tensors(manifest: Manifest) -> Iterator[tuple[str, str, str, int]]:
    """Yields (file, tensor, content, size): `content` is one digest text for equal tensors."""
    for artifact in manifest.artifacts:
        grouped: dict[str, list[tuple[str, int]]] = {}
        for piece in artifact.pieces:
            if piece.tensor:
                kind = f"{piece.tensor.dtype}{list(piece.tensor.shape)}"
                grouped.setdefault(piece.tensor.name, [(kind, 0)]).append(
                    (piece.digest, piece.size)
                )
        for name, parts in grouped.items():
            yield artifact.path, name, "+".join(p for p, _ in parts), sum(s for _, s in parts)
