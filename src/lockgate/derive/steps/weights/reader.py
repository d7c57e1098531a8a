"""A model folder's tensors: where each is, and its values a part at a time.

The folder is one as `transformers` saves it: `model.safetensors`, or shards and
`model.safetensors.index.json`, `{"weight_map": {tensor: file}}`. Headers are read as a stranger's;
of files only the parts asked for are mapped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lockgate.core.errors import UsageError
from lockgate.derive.steps.weights.floats import WIDTHS, Raw, Wide, widen
from lockgate.store.formats import safetensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHUNK = 1 << 22
"""Elements of a part: 16 MB of float32."""

_MOST_JSON = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor and where it is: bytes `begin` to `end` of `file`; `shape` outermost first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    @property
    def columns(self) -> int:
        """Elements of a row: the last dimension."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model folder: its tensors in the order of their names, and the files that hold them."""

    folder: Path
    tensors: Mapping[str, Tensor]
    files: frozenset[str]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())


def open_model(folder: Path) -> Model:
    """Returns the model in `folder`, having read headers only.

    Raises UsageError when it has none or its index is not of its files; IntegrityError for a file
    that is not sound.
    """
    if (folder / INDEX).is_file():
        return _sharded(folder)
    if (folder / SINGLE).is_file():
        found = sorted(tensors_in(folder / SINGLE), key=lambda tensor: tensor.name)
        tensors = {tensor.name: tensor for tensor in found}
        return Model(folder=folder, tensors=tensors, files=frozenset((SINGLE,)))
    raise UsageError(
        f"the input {folder.name} has neither {SINGLE} nor {INDEX}",
        hint="this step works on the safetensors of a transformers folder; convert others first",
    )


def tensors_in(file: Path) -> Iterator[Tensor]:
    """Yields the tensors of one safetensors file; raises IntegrityError if it is not sound."""
    with file.open("rb") as source:
        spans = safetensors.tensors(source, file.stat().st_size, file.name)
    for span in spans:
        yield Tensor(
            name=span.name,
            dtype=span.dtype,
            shape=span.shape,
            file=file,
            begin=span.begin,
            end=span.end,
        )


def _sharded(folder: Path) -> Model:
    wanted = read_object(folder, INDEX).get("weight_map")
    if not isinstance(wanted, dict) or not all(_is_name(file) for file in wanted.values()):
        raise UsageError(
            f"the weight_map of {INDEX} does not map tensors to files of the same folder",
            hint="each value is a name like model-00001-of-00002.safetensors, without folders",
        )
    files = sorted(set(wanted.values()))
    absent = [file for file in files if not (folder / file).is_file()]
    if absent or not files:
        raise UsageError(
            f"{INDEX} names {absent[0] if absent else 'no file at all'}, which is not there",
            hint="was the folder copied whole?",
        )
    found: dict[str, Tensor] = {}
    for file in files:
        for tensor in tensors_in(folder / file):
            if wanted.get(tensor.name) != file:
                raise _stray(tensor.name, file, "which the index does not say")
            found[tensor.name] = tensor
    for name, file in wanted.items():
        if name not in found:
            raise _stray(name, file, "which has no such tensor")
    ordered = {name: found[name] for name in sorted(found)}
    return Model(folder=folder, tensors=ordered, files=frozenset((INDEX, *wanted.values())))


def _is_name(file: object) -> bool:
    return isinstance(file, str) and file.endswith(".safetensors") and Path(file).name == file


def _stray(tensor: str, file: str, why: str) -> UsageError:
    return UsageError(
        f"{INDEX} does not fit its files: tensor {tensor[:80]!r} in {file}, {why}",
        hint="was the folder copied whole, and from one version?",
    )


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Returns the object in a JSON file of `folder`; raises UsageError if there is none."""
    path = folder / name
    if not path.is_file() or path.stat().st_size > _MOST_JSON:
        raise UsageError(
            f"the input {folder.name} has no {name}", hint="give a whole transformers folder"
        )
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {str(error)[:120]}", hint="mend the file") from error
    if not isinstance(value, dict):
        raise UsageError(f"{name} is not a JSON object", hint="mend the file")
    return value


def raw(tensor: Tensor, begin: int = 0, end: int | None = None) -> Raw:
    """Returns the bytes of elements `begin` to `end` of a tensor, mapped from its file."""
    width = WIDTHS.get(tensor.dtype, 1)
    last = tensor.size if end is None else end * width
    return raw_bytes(tensor, begin * width, last)


def raw_bytes(tensor: Tensor, begin: int, end: int) -> Raw:
    """Returns bytes `begin` to `end` of a tensor, mapped from its file."""
    if begin >= end:
        return np.empty(0, np.uint8)
    return np.memmap(tensor.file, np.uint8, "r", tensor.begin + begin, (end - begin,))


def values(tensor: Tensor, begin: int = 0, end: int | None = None) -> Wide:
    """Returns elements `begin` to `end` of a tensor, flat, as float32.

    Raises UsageError for a tensor that holds no floats, or NaN or infinity among them.
    """
    found = widen(raw(tensor, begin, end), tensor.dtype)
    if not np.isfinite(found).all():
        raise UsageError(
            f"tensor {tensor.name} holds NaN or infinity",
            hint="its version is broken: start from the checkpoint before",
        )
    return found


def chunks(tensor: Tensor, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Yields (begin, end) of parts of at most `size` elements that cover a tensor in order."""
    for begin in range(0, tensor.elements, size):
        yield begin, min(begin + size, tensor.elements)


def row_chunks(tensor: Tensor, multiple: int = 1, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Yields (begin, end) of rows, about `size` elements each, a multiple of `multiple` rows."""
    rows = tensor.elements // max(tensor.columns, 1)
    step = max(size // max(tensor.columns, 1) // multiple, 1) * multiple
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)


def rows_of(tensor: Tensor, begin: int = 0, end: int | None = None) -> Wide:
    """Returns rows `begin` to `end` as float32 [rows, columns]; raises UsageError like `values`."""
    last = None if end is None else end * tensor.columns
    return values(tensor, begin * tensor.columns, last).reshape(-1, tensor.columns)
