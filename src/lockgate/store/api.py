"""The port of the store, `Objects`, and the values that it speaks in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from lockgate.core.digests import Digest, digest_of, raw_of
from lockgate.store.codec.dtypes import PIECE_BYTES, Grid, Object, Source

__all__ = [
    "PIECE_BYTES", "Artifact", "AtHand", "Grid", "Object", "Objects", "Piece", "Progress", "Report",
    "Source", "TensorPart",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPart:
    """Which tensor a piece belongs to; `part` counts the pieces of one tensor from 0."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    part: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of bytes of an artifact; `tensor` is set when they are weights. Sizes in bytes."""

    digest: str
    size: int
    tensor: TensorPart | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One file of a version: its path in the folder and its pieces, in order."""

    path: str
    size: int
    pieces: tuple[Piece, ...]
    executable: bool = False

    @property
    def digest(self) -> Digest:
        """One name for the content: its piece's digest, or the digest of its pieces' digests."""
        if len(self.pieces) == 1:
            return Digest(self.pieces[0].digest)
        return digest_of(b"".join(raw_of(piece.digest) for piece in self.pieces))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far long work is. Totals are known from the first report on; sizes in bytes."""

    phase: Literal["scan", "store", "restore", "verify"]
    done_bytes: int
    total_bytes: int
    done_files: int
    total_files: int
    new_bytes: int = 0
    current: str = ""


Report = Callable[[Progress], None]


@runtime_checkable
class AtHand(Protocol):
    """`Objects` of this process: `batch_bytes` at a time are sent, while they are in the cache."""

    batch_bytes: int


class Objects(Protocol):
    """Immutable bytes by digest. Every call may be repeated; a put of known bytes costs nothing."""

    def missing(self, sizes: Mapping[Digest, int]) -> set[Digest]:
        """Returns which of the digests are not here whole, that is with that size in bytes."""
        ...

    def put(self, objects: Iterable[Object]) -> None:
        """Stores the objects; each is here whole, or not at all, at any moment.

        What an object says of its likeness to others may save space, and never changes what comes
        back. Raises IntegrityError when bytes do not have their digest, UsageError on a full disk.
        """
        ...

    def get(self, digest: Digest) -> bytes | bytearray | memoryview:
        """Returns the bytes, checked against their digest; they are the caller's alone.

        Raises NotFoundError when they are not here, IntegrityError when they are damaged.
        """
        ...

    def digests(self) -> Iterator[Digest]:
        """Yields the digest of every object that is here."""
        ...

    def flush(self, digests: Iterable[Digest]) -> None:
        """Returns when the objects survive a power failure; must come before what names them.

        Raises NotFoundError when one of them is not here.
        """
        ...

    def discard(self, digests: Iterable[Digest]) -> None:
        """Removes the objects, which nothing names, where that is cheap.

        What shares a pack with others stays until garbage is collected.
        """
        ...
