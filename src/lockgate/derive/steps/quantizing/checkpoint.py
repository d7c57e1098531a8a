"""A quantized layer in a checkpoint of compressed-tensors: which tensors, in which types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockgate.derive.steps.packing import pack_columns, pack_rows, words
from lockgate.derive.steps.quantizing.levels import Scales
from lockgate.derive.steps.quantizing.scheme import Scheme
from lockgate.derive.steps.weights.floats import narrow
from lockgate.derive.steps.weights.layers import HEAD, module_of
from lockgate.derive.steps.weights.reader import Model, Tensor
from lockgate.derive.steps.weights.writer import ModelWriter, Slot, slot

ROWS = 8
"""Rows come in multiples of this, so that packed zeros fill whole words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some rows of a layer, quantized: `codes` [rows, columns] as stored, and their scales."""

    codes: NDArray[Any]
    scales: Scales


def slots_of(tensor: Tensor, scheme: Scheme) -> Iterator[Slot]:
    """Yields the tensors that take the place of a weight [rows, columns]."""
    rows, columns = tensor.shape
    groups, name = scheme.groups(tensor), tensor.name
    if scheme.packed:
        yield slot(f"{name}_packed", "I32", (rows, words(columns, scheme.bits)))
        yield slot(f"{name}_shape", "I64", (2,))
    else:
        yield slot(name, "I8" if scheme.kind == "int" else "F8_E4M3", (rows, columns))
    shape = (1,) if scheme.strategy == "tensor" else (rows, groups)
    yield slot(f"{name}_scale", tensor.dtype, shape)
    if not scheme.symmetric:
        yield slot(f"{name}_zero_point", "I32", (words(rows, scheme.bits), groups))


def write_layer(writer: ModelWriter, tensor: Tensor, scheme: Scheme, parts: Iterable[Part]) -> None:
    """Writes a layer's parts, in order, each of a multiple of `ROWS` rows but the last."""
    name = tensor.name
    if scheme.packed:
        writer.append(f"{name}_shape", np.array(tensor.shape, "<i8").tobytes())
    for number, part in enumerate(parts):
        if scheme.packed:
            packed = pack_rows(part.codes, scheme.bits)
            writer.append(f"{name}_packed", packed.astype("<i4").tobytes())
        else:
            writer.append(name, part.codes.tobytes())
        if scheme.strategy != "tensor" or number == 0:
            scale = part.scales.scale
            kept = scale.reshape(-1)[:1] if scheme.strategy == "tensor" else scale
            writer.append(f"{name}_scale", narrow(kept, tensor.dtype))
        if not scheme.symmetric:
            zeros = pack_columns(part.scales.zero.astype(np.int8), scheme.bits)
            writer.append(f"{name}_zero_point", zeros.astype("<i4").tobytes())


def ignored(model: Model, layers: Iterable[Tensor]) -> list[str]:
    """Returns the modules with a matrix that are not quantized: loaders must leave them be."""
    done = {tensor.name for tensor in layers}
    names = {HEAD} | {
        module_of(name)
        for name, tensor in model.tensors.items()
        if len(tensor.shape) == 2 and name.endswith(".weight") and "embed" not in name
    }
    return sorted(names - {module_of(name) for name in done})
