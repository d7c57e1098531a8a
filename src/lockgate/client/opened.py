"""A version's tensors without its files: read what is asked for, when it is asked for.

import lockgate
with lockgate.open("acme/chat:champion") as version:
rows = version["model.embed_tokens.weight"][:100]     # NumPy; only these rows are read
whole = version["lm_head.weight"].torch()
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lockgate.client.client import Client, connect
from lockgate.core.digests import Digest
from lockgate.core.errors import IntegrityError, NotFoundError, UsageError
from lockgate.core.names import split_reference
from lockgate.registry.manifest import Manifest, parse
from lockgate.registry.restore import restore
from lockgate.store.api import Grid, Objects, Report
from lockgate.store.held import Held

_HELD_BYTES = 64 * 1024 * 1024
_WORKERS = 4
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
    "C64": "<c8",
}  # fmt: skip
_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


class Tensor:
    """A tensor of an open version. Nothing is read until it is indexed or asked for whole.

    `dtype` is the safetensors project's name, `shape` is outermost first. In NumPy a type that it
    lacks (BF16, the F8s) comes as unsigned integers with the same bits; `torch` has them.
    """

    def __init__(
        self, name: str, grid: Grid, pieces: tuple[tuple[Digest, int, int], ...], held: _Reader
    ) -> None:
        self.name = name
        self.dtype = grid.dtype
        self.shape = grid.shape
        self._grid = grid
        self._pieces = pieces
        self._held = held

    @property
    def nbytes(self) -> int:
        """The tensor's bytes."""
        return sum(size for _, _, size in self._pieces)

    def __repr__(self) -> str:
        return f"<Tensor {self.name} {self.dtype} {list(self.shape)}>"

    def __len__(self) -> int:
        if not self.shape:
            raise UsageError(f"{self.name} has no dimensions")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """Returns that part as NumPy has it; reads only the rows (first dimension) it needs."""
        key = index if isinstance(index, tuple) else (index,)
        if not self.shape or not key or key[0] is Ellipsis or not isinstance(key[0], int | slice):
            return self.numpy()[index]
        first = key[0]
        if isinstance(first, int):
            if not -self.shape[0] <= first < self.shape[0]:
                raise IndexError(f"row {first} of {self.shape[0]}")
            row = first % self.shape[0]
            return self._rows(row, row + 1)[0][key[1:]]
        begin, end, step = first.indices(self.shape[0])
        if step < 0:
            return self.numpy()[index]
        return self._rows(begin, max(begin, end))[(slice(None, None, step), *key[1:])]

    def numpy(self) -> NDArray[Any]:
        """Returns the whole tensor."""
        found = np.frombuffer(self._read(0, self.nbytes), self._numpy_dtype())
        return found.reshape(self.shape)

    def torch(self) -> Any:
        """Returns the whole tensor as torch has it; raises UsageError without torch."""
        try:
            import torch
        except ImportError as error:
            raise UsageError("torch is not installed", hint="pip install torch") from error
        name = _TORCH.get(self.dtype)
        if name is None or not hasattr(torch, name):
            raise UsageError(f"torch has no type for {self.dtype}", hint="numpy() gives its bits")
        raw = bytearray(self._read(0, self.nbytes))
        if not raw:
            return torch.empty(self.shape, dtype=getattr(torch, name))
        return torch.frombuffer(raw, dtype=getattr(torch, name)).reshape(self.shape)

    def _numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(_DTYPES.get(self.dtype, f"<u{self._grid.width}"))

    def _rows(self, begin: int, end: int) -> NDArray[Any]:
        size = self.nbytes // self.shape[0] if self.shape[0] else 0
        data = self._read(begin * size, end * size)
        width = self._numpy_dtype().itemsize
        if len(data) != (end - begin) * prod(self.shape[1:]) * width:
            raise UsageError(
                f"{self.dtype} tensors have no rows in NumPy", hint="read the whole tensor"
            )
        found = np.frombuffer(data, self._numpy_dtype())
        return found.reshape((end - begin, *self.shape[1:]))

    def _read(self, begin: int, end: int) -> bytes:
        wanted = [
            (digest, max(begin - at, 0), min(end - at, size))
            for digest, at, size in self._pieces
            if at < end and at + size > begin
        ]
        return self._held.join(wanted)


class _Reader:
    """Reads pieces in parallel, each checked; keeps the last at hand."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._held = Held(_HELD_BYTES)
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="read")

    def join(self, wanted: list[tuple[Digest, int, int]]) -> bytes:
        """Returns the ranges of pieces, one after the other."""

        def one(item: tuple[Digest, int, int]) -> memoryview:
            digest, begin, end = item
            return memoryview(self._held.get(digest, self._get, checked=True))[begin:end]

        if len(wanted) == 1:
            return bytes(one(wanted[0]))
        return b"".join(self._pool.map(one, wanted))

    def _get(self, digest: Digest) -> bytes | bytearray | memoryview:
        return self._objects.get(digest)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)


class OpenVersion:
    """A version's tensors by name, and its files. Use as a context manager, or `close` it."""

    def __init__(self, client: Client, objects: Objects, digest: str, manifest: Manifest) -> None:
        self.digest = digest
        self.manifest = manifest
        self._client = client
        self._objects = objects
        self._reader = _Reader(objects)
        self._tensors = dict(self._all())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def _all(self) -> Iterator[tuple[str, Tensor]]:
        for artifact in self.manifest.artifacts:
            found: dict[str, tuple[Grid, list[tuple[Digest, int, int]]]] = {}
            for piece in artifact.pieces:
                if piece.tensor is None:
                    continue
                grid = Grid(dtype=piece.tensor.dtype, shape=piece.tensor.shape)
                pieces = found.setdefault(piece.tensor.name, (grid, []))[1]
                at = pieces[-1][1] + pieces[-1][2] if pieces else 0
                pieces.append((Digest(piece.digest), at, piece.size))
            for name, (grid, pieces) in found.items():
                yield name, Tensor(name, grid, tuple(pieces), self._reader)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise NotFoundError(f"the version has no tensor {name!r}")
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def keys(self) -> list[str]:
        """Returns the names of the tensors, in the order of the files."""
        return list(self._tensors)

    def read(self, path: str) -> bytes:
        """Returns a file of the version, whole; raises NotFoundError."""
        for artifact in self.manifest.artifacts:
            if artifact.path == path:
                wanted = [(Digest(p.digest), 0, p.size) for p in artifact.pieces]
                data = self._reader.join(wanted) if wanted else b""
                if len(data) != artifact.size:
                    raise IntegrityError(f"{path} has {len(data)} bytes, not {artifact.size}")
                return data
        raise NotFoundError(f"the version has no file {path!r}")

    def materialize(self, folder: str | Path, report: Report | None = None) -> Path:
        """Writes the version's files to `folder` (new or empty), decoded in parallel and checked.

        Raises what `restore` raises.
        """
        restore(self.manifest, Path(folder), self._objects, report)
        return Path(folder)

    def close(self) -> None:
        """Ends threads and closes the connection."""
        self._reader.close()
        self._client.close()


def open_version(
    reference: str, *, home: Path | str | None = None, server: str | None = None
) -> OpenVersion:
    """Opens `owner/name:version` (a number, an alias or a digest) of the server of `home`.

    Without `home` and `server` it is found as the command line finds it. Raises NotFoundError,
    UsageError, and TemporaryError when the server does not answer.
    """
    model, version = split_reference(reference)
    if version is None:
        raise UsageError(f"which version of {model}?", hint=f"write it as {model}:champion")
    client = connect(Path(home) if home else None, server)
    try:
        digest = Digest(client.get(f"/models/{model}/versions/{version}")["digest"])
        objects = client.objects()
        return OpenVersion(client, objects, digest, parse(bytes(objects.get(digest))))
    except BaseException:
        client.close()
        raise
