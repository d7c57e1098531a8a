"""Adds an adapter's change to a weight, some rows at a time."""

from __future__ import annotations

import numpy as np

from lockgate.core.errors import UsageError
from lockgate.derive.steps.weights.floats import FLOATS, squares, stored
from lockgate.derive.steps.weights.reader import Tensor, row_chunks, rows_of
from lockgate.derive.steps.weights.writer import ModelWriter


def add_change(
    writer: ModelWriter, tensor: Tensor, factors: tuple[Tensor, Tensor], scale: float
) -> tuple[float, float]:
    """Writes W + scale · B @ A, from float32; returns the squared lengths of the change and of W.

    `factors` are A [rank, in] and B [out, rank]. Raises UsageError for what is no float or
    overflows.
    """
    if tensor.dtype not in FLOATS:
        raise UsageError(f"tensor {tensor.name} holds {tensor.dtype}, which has no LoRA")
    down = rows_of(factors[0])
    moved = length = 0.0
    for begin, end in row_chunks(tensor):
        rows = rows_of(tensor, begin, end)
        with np.errstate(over="ignore", invalid="ignore"):
            sums = rows + np.float32(scale) * (rows_of(factors[1], begin, end) @ down)
            data, kept = stored(sums, tensor.dtype)
        if not np.isfinite(kept).all():
            raise UsageError(
                f"the merged tensor {tensor.name} is too large for {tensor.dtype}",
                hint="use a smaller weight",
            )
        writer.append(tensor.name, data)
        moved += squares(kept - rows)
        length += squares(rows)
    return moved, length
