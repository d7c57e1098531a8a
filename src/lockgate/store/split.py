"""A file ⇄ its pieces: tensors by themselves, in whole rows; everything else by its content.

Planning reads headers only. A tensor is cut in pieces of up to 4 MiB (`dtypes.piece_bytes`);
runs of other bytes where their content says (`formats.chunks`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from lockgate.core.errors import UsageError
from lockgate.store.api import Piece, TensorPart
from lockgate.store.codec.dtypes import Grid, piece_bytes
from lockgate.store.formats.api import TensorSpan, named_elsewhere, tensors_of
from lockgate.store.formats.chunks import cut

_READ = 1024 * 1024
Siblings = Mapping[str, Sequence[TensorSpan]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Bytes of a file from `begin` on: all of one tensor, or what lies between two."""

    begin: int
    size: int
    name: str = ""
    grid: Grid | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Bytes of a file that become one piece; `run` is what they are cut from."""

    begin: int
    size: int
    run: Run

    def piece(self, digest: str) -> Piece:
        """Returns the piece, once its digest is known."""
        run = self.run
        if run.grid is None:
            return Piece(digest=digest, size=self.size)
        part = (self.begin - run.begin) // piece_bytes(run.grid)
        tensor = TensorPart(name=run.name, dtype=run.grid.dtype, shape=run.grid.shape, part=part)
        return Piece(digest=digest, size=self.size, tensor=tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """A file that was looked at: what it holds, and `stamp`, by which a change is noticed."""

    path: str
    source: Path
    size: int
    executable: bool
    stamp: tuple[int, ...]
    runs: tuple[Run, ...] = field(repr=False)


def look_elsewhere(source: Path, path: str) -> Siblings:
    """Returns what the file says of tensors in other files of its folder."""
    if not path.endswith(".onnx"):
        return {}
    try:
        with source.open("rb") as file:
            return named_elsewhere(file, os.fstat(file.fileno()).st_size, path)
    except OSError as error:
        raise _unreadable(path, error) from error


def plan_file(source: Path, path: str, siblings: Siblings | None = None) -> FilePlan:
    """Returns what the file at `source`, called `path` in its folder, is made of.

    Raises IntegrityError for a corrupt safetensors or GGUF file, UsageError when it can't be read.
    """
    try:
        with source.open("rb") as file:
            stats = os.fstat(file.fileno())
            spans = tensors_of(file, stats.st_size, path, siblings or {})
    except OSError as error:
        raise _unreadable(path, error) from error
    return FilePlan(
        path=path,
        source=source,
        size=stats.st_size,
        executable=bool(stats.st_mode & stat.S_IXUSR),
        stamp=_stamp(stats),
        runs=tuple(_runs(spans, stats.st_size)),
    )


def _stamp(stats: os.stat_result) -> tuple[int, ...]:
    return (stats.st_ino, stats.st_size, stats.st_mtime_ns)


def _runs(spans: Sequence[TensorSpan], size: int) -> Iterator[Run]:
    at = 0
    for span in spans:
        if span.begin > at:
            yield Run(begin=at, size=span.begin - at)
        if span.end > span.begin:
            grid = Grid(dtype=span.dtype, shape=span.shape)
            yield Run(begin=span.begin, size=span.end - span.begin, name=span.name, grid=grid)
        at = max(at, span.end)
    if at < size:
        yield Run(begin=at, size=size - at)


def cuts(plan: FilePlan, file: BinaryIO) -> Iterator[Cut]:
    """Yields how the file is cut, in order; reads what is no tensor from `file`."""
    for run in plan.runs:
        if run.grid is not None:
            step = piece_bytes(run.grid)
            for at in range(0, run.size, step):
                yield Cut(begin=run.begin + at, size=min(step, run.size - at), run=run)
            continue
        at = run.begin
        for size in cut(_blocks(file, run), run.size):
            yield Cut(begin=at, size=size, run=run)
            at += size


def _blocks(file: BinaryIO, run: Run) -> Iterator[bytes]:
    for at in range(run.begin, run.begin + run.size, _READ):
        yield os.pread(file.fileno(), min(_READ, run.begin + run.size - at), at)


def check_unchanged(plan: FilePlan, file: BinaryIO) -> None:
    """Raises UsageError when the file is not as it was when it was planned."""
    if _stamp(os.fstat(file.fileno())) != plan.stamp:
        raise UsageError(
            f"{plan.path} was changed while it was published",
            hint="publish again when whatever writes it is done",
        )


def _unreadable(path: str, error: OSError) -> UsageError:
    return UsageError(f"{path} can't be read: {error.strerror or error}")
