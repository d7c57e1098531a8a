"""Writes a model folder as a stream: the sizes first, then the bytes, the same for the same input.

One `model.safetensors`, or, above a size, `model-00001-of-0000N.safetensors` and their index.
Within a file wider types come first and then names, as the safetensors project writes them, so that
every tensor is aligned.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from lockgate.derive.steps.weights.floats import WIDTHS, Raw
from lockgate.derive.steps.weights.reader import INDEX, SINGLE, Model, Tensor

SHARD_BYTES = 5_000_000_000
LEAST_SHARD = 1_000
OTHER_WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "*.pt", "*.pth", "*.ckpt",
    "*.gguf", "*.onnx", "*.onnx.data", "*.onnx_data", "*.h5", "*.msgpack", "genai_config.json",
)  # fmt: skip
"""Files that hold the same weights in another form, or need such a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A tensor to be written; `size` is its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


def slot(name: str, dtype: str, shape: Sequence[int]) -> Slot:
    """Returns the slot of a tensor whose elements are of whole bytes."""
    size = prod(shape) * WIDTHS.get(dtype, 1)
    return Slot(name=name, dtype=dtype, shape=tuple(shape), size=size)


def same(tensor: Tensor) -> Slot:
    """Returns the slot of a tensor that is written as it was read."""
    return Slot(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, size=tensor.size)


class ModelWriter:
    """Takes the tensors' bytes in any order of tensors, each tensor's in order; a context.

    `slots` say everything that will come. Leaving the context checks that all came.
    """

    def __init__(self, out: Path, slots: Iterable[Slot], shard_bytes: int = SHARD_BYTES) -> None:
        shards = list(_shards(sorted(slots, key=lambda item: item.name), shard_bytes))
        self.size = sum(item.size for shard in shards for item in shard)
        self._next: dict[str, tuple[BinaryIO, int, int]] = {}
        self._files: list[BinaryIO] = []
        placed: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            file = SINGLE if len(shards) == 1 else file
            placed |= {item.name: file for item in shard}
            self._begin(out / file, shard)
        if len(shards) > 1:
            index = {"metadata": {"total_size": self.size}, "weight_map": placed}
            write_object(out, INDEX, index)

    def _begin(self, path: Path, shard: Sequence[Slot]) -> None:
        ordered = sorted(shard, key=lambda item: (-WIDTHS.get(item.dtype, 1), item.name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for item in ordered:
            place = [at, at + item.size]
            header[item.name] = {
                "dtype": item.dtype, "shape": list(item.shape), "data_offsets": place,
            }  # fmt: skip
            at += item.size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        file = path.open("wb")
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        file.truncate(8 + len(text) + at)
        for item in ordered:
            begin = 8 + len(text) + header[item.name]["data_offsets"][0]
            self._next[item.name] = (file, begin, begin + item.size)

    def append(self, name: str, data: bytes | Raw) -> None:
        """Adds the next bytes of tensor `name`; more than its slot holds is a ValueError."""
        file, at, end = self._next[name]
        view = memoryview(data if isinstance(data, bytes) else data.data)
        if at + len(view) > end:
            raise ValueError(f"tensor {name} got more bytes than its slot holds")
        while view:
            written = os.pwrite(file.fileno(), view, at)
            view, at = view[written:], at + written
        self._next[name] = (file, at, end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()
        lacking = [name for name, (_, at, end) in self._next.items() if at != end]
        if lacking and kind is None:
            raise ValueError(f"tensor {lacking[0]} did not get all of its bytes")


def _shards(slots: Sequence[Slot], most: int) -> Iterator[list[Slot]]:
    """Yields runs of slots of at most `most` bytes each, a larger tensor alone."""
    shard: list[Slot] = []
    size = 0
    for item in slots:
        if shard and size + item.size > most:
            yield shard
            shard, size = [], 0
        shard.append(item)
        size += item.size
    yield shard


def write_object(out: Path, name: str, value: Mapping[str, Any]) -> None:
    """Writes a JSON object as `transformers` does: two spaces, keys in order, a line's end."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    (out / name).write_text(text + "\n", "utf-8")


def copy_rest(
    model: Model, out: Path, *, keep_other_weights: bool, skip: frozenset[str] = frozenset()
) -> list[str]:
    """Copies what is no weight of `model`; returns the names of what was left behind as stale.

    Files that hold the same weights in another form (ONNX, GGUF, …) no longer fit the new ones, and
    are left behind unless `keep_other_weights`. `skip` are names that the step writes itself.
    """
    left: list[str] = []
    for path in sorted(model.folder.rglob("*")):
        name = path.relative_to(model.folder).as_posix()
        if not path.is_file() or name in model.files or name in skip:
            continue
        if not keep_other_weights and any(
            fnmatch.fnmatchcase(path.name, form) for form in OTHER_WEIGHTS
        ):
            left.append(name)
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
    return left
