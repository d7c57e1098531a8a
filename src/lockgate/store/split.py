"""A file ⇄ its pieces: safetensors by tensor, everything else in chunks of 16 MiB.

Planning reads the header only; storing reads every byte once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from lockgate.core.digests import Digest, Hasher, digest_of
from lockgate.core.errors import IntegrityError, UsageError
from lockgate.store.api import PIECE_BYTES, Artifact, Piece, TensorPart
from lockgate.store.formats.safetensors import header_length, parse_header
from lockgate.store.formats.spans import TensorSpan

Put = Callable[[Digest, bytes], None]
Get = Callable[[Digest], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of bytes of a file that becomes one piece."""

    size: int
    tensor: TensorPart | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """A file that was looked at: how it will be cut, and `stamp`, by which a change is noticed."""

    path: str
    source: Path
    size: int
    executable: bool
    stamp: tuple[int, ...]
    spans: tuple[Span, ...] = field(repr=False)


def plan_file(source: Path, path: str) -> FilePlan:
    """Returns how the file at `source`, called `path` in its folder, is cut.

    Raises IntegrityError for a corrupt safetensors header, UsageError when it can't be read.
    """
    try:
        with source.open("rb") as file:
            stats = os.fstat(file.fileno())
            spans = _spans(file, stats.st_size, path)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}") from error
    return FilePlan(
        path=path,
        source=source,
        size=stats.st_size,
        executable=bool(stats.st_mode & stat.S_IXUSR),
        stamp=_stamp(stats),
        spans=tuple(spans),
    )


def _stamp(stats: os.stat_result) -> tuple[int, ...]:
    return (stats.st_ino, stats.st_size, stats.st_mtime_ns)


def _spans(file: BinaryIO, size: int, path: str) -> Iterator[Span]:
    if not path.endswith(".safetensors"):
        return _chunks(size)
    length = header_length(file.read(8), size, path)
    tensors = parse_header(file.read(length), size - 8 - length, path)
    return _tensor_spans(8 + length, tensors)


def _chunks(size: int, tensor: TensorSpan | None = None) -> Iterator[Span]:
    for part, at in enumerate(range(0, size, PIECE_BYTES)):
        yield Span(size=min(PIECE_BYTES, size - at), tensor=_part(tensor, part))


def _part(tensor: TensorSpan | None, part: int) -> TensorPart | None:
    if tensor is None:
        return None
    return TensorPart(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, part=part)


def _tensor_spans(header: int, tensors: tuple[TensorSpan, ...]) -> Iterator[Span]:
    yield from _chunks(header)
    for tensor in tensors:
        yield from _chunks(tensor.end - tensor.begin, tensor)


def store_file(plan: FilePlan, put: Put) -> Artifact:
    """Reads the file once, hands each piece to `put`, and returns the artifact.

    Raises UsageError when the file was changed since it was planned.
    """
    pieces: list[Piece] = []
    whole = Hasher()
    try:
        with plan.source.open("rb") as file:
            _check_unchanged(plan, os.fstat(file.fileno()))
            for span in plan.spans:
                data = file.read(span.size)
                digest = digest_of(data)
                whole.update(data)
                if len(data) == span.size:
                    put(digest, data)
                pieces.append(Piece(digest=digest, size=len(data), tensor=span.tensor))
            _check_unchanged(plan, os.fstat(file.fileno()))
    except OSError as error:
        raise UsageError(f"{plan.path} can't be read: {error.strerror or error}") from error
    return Artifact(
        path=plan.path,
        size=plan.size,
        digest=whole.digest(),
        pieces=tuple(pieces),
        executable=plan.executable,
    )


def _check_unchanged(plan: FilePlan, stats: os.stat_result) -> None:
    if _stamp(stats) != plan.stamp:
        raise UsageError(
            f"{plan.path} was changed while it was published",
            hint="publish again when whatever writes it is done",
        )


def join_file(artifact: Artifact, get: Get) -> Iterator[bytes]:
    """Yields the artifact's bytes piece by piece; each piece was checked by `get`.

    Raises IntegrityError, naming the file, when a piece or the whole is not what it should be.
    """
    whole = Hasher()
    for piece in artifact.pieces:
        try:
            data = get(Digest(piece.digest))
        except IntegrityError as error:
            raise IntegrityError(f"{artifact.path}: {error.message}", hint=error.hint) from error
        if len(data) != piece.size:
            raise IntegrityError(
                f"{artifact.path}: a piece has {len(data)} bytes, not {piece.size}"
            )
        whole.update(data)
        yield data
    if whole.digest() != artifact.digest:
        raise IntegrityError(f"{artifact.path}: its pieces do not make the file that was published")
