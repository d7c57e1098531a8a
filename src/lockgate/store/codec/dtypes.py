"""Elements, tensors and objects: how wide, how the kernel reads them, how a tensor is cut."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from lockgate.core.digests import Digest

Buffer = bytes | bytearray | memoryview

PIECE_BYTES = 4 * 1024 * 1024
"""The most bytes of a piece: what is hashed, encoded and read as one."""

KINDS = {
    "U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 2, "F8_E4M3FNUZ": 2, "F8_E5M2": 3,
    "F8_E5M2FNUZ": 3, "F16": 4, "BF16": 5, "F32": 6, "I16": 7, "U16": 7, "I32": 8, "U32": 8,
}  # fmt: skip
"""The kernel's kinds of elements, by the names that safetensors gives types."""

WIDTHS = {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 2, 8: 4}
_WIDE = {"F64": 8, "I64": 8, "U64": 8, "C64": 8}
_LEAST_GROUP = 64
_MOST_GROUP = 4096
_GROUP = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The type and shape of a tensor, outermost dimension first."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def kind(self) -> int | None:
        """The kernel's kind, None for types that it does not know."""
        return KINDS.get(self.dtype)

    @property
    def width(self) -> int:
        """Bytes an element; 1 for types packed in some other way."""
        return WIDTHS[self.kind] if self.kind else _WIDE.get(self.dtype, 1)

    @property
    def _elements(self) -> int:
        return prod(self.shape, start=1)

    @property
    def columns(self) -> int:
        """The elements of a row: the last dimension, 1 for scalars and empty tensors."""
        return self.shape[-1] if self.shape and self._elements else 1

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        if self.dtype == "GGML_Q8_0":
            return max(self.columns // 32 * 34, 1)
        return self.columns * self.width

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self._elements // self.columns

    @property
    def group(self) -> int:
        """The elements that share one scale: a row, or a run of a long row or a vector."""
        inside = _LEAST_GROUP <= self.columns <= _MOST_GROUP and len(self.shape) > 1
        return self.columns if inside else _GROUP


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A stored tensor that a new one may be made from: its pieces in order, with their bytes."""

    grid: Grid
    pieces: tuple[tuple[Digest, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """Bytes to store, and what is known of them.

    `grid`: the tensor that they are a piece of, from its byte `begin` on; None for other bytes.
    `sources`: stored tensors it may be like, the likeliest first. `hashed`: this process computed
    the digest from these very bytes.
    """

    digest: Digest
    data: Buffer
    grid: Grid | None = None
    begin: int = 0
    sources: tuple[Source, ...] = ()
    hashed: bool = False


def piece_bytes(grid: Grid) -> int:
    """Returns how many bytes each piece but the last of a tensor has: whole rows if they fit."""
    row = grid.row_bytes
    if row > PIECE_BYTES:
        return PIECE_BYTES // grid.width * grid.width
    return PIECE_BYTES // row * row
