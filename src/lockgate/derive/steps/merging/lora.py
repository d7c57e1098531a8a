"""Merges a LoRA adapter into the model that it was trained on."""

from __future__ import annotations

from math import sqrt

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lockgate.core.errors import UsageError
from lockgate.derive.api import Input, Metrics, Work
from lockgate.derive.steps.merging.adapter import open_adapter
from lockgate.derive.steps.weights.floats import FLOATS, squares, stored
from lockgate.derive.steps.weights.options import (
    KeepOthers,
    Progress,
    ShardBytes,
    refuse_quantized,
    say_left,
)
from lockgate.derive.steps.weights.reader import (
    Tensor,
    open_model,
    raw_bytes,
    row_chunks,
    rows_of,
)
from lockgate.derive.steps.weights.writer import SHARD_BYTES, ModelWriter, copy_rest, same

_PART = 1 << 24


class MergeLoraParameters(BaseModel):
    """How much of the adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(
        default=1.0, ge=-10, le=10, allow_inf_nan=False, description="times the adapter's change"
    )
    shard_bytes: ShardBytes = SHARD_BYTES
    keep_other_weights: KeepOthers = False


class MergeLora:
    """Adds an adapter's change to the weights, so that serving needs no adapter."""

    name = "merge-lora"
    summary = "Merge a LoRA or rsLoRA adapter (PEFT) into its base."
    inputs: tuple[Input, ...] = (
        Input(name="base", relation="merged-from"),
        Input(name="adapter", relation="merged-from"),
    )
    parameters: type[MergeLoraParameters] = MergeLoraParameters
    libraries: tuple[str, ...] = ("numpy",)
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes base's folder with W + weight · alpha/r · B @ A, in base's types, from float32.

        Raises UsageError for an adapter that is not understood or not of this base.
        """
        asked: MergeLoraParameters = work.parameters
        base = open_model(work.one("base"))
        refuse_quantized(base)
        adapter = open_adapter(work.one("adapter"), base)
        progress = Progress(work, base.size)
        moved, length = 0.0, 0.0
        slots = [same(tensor) for tensor in base.tensors.values()]
        with ModelWriter(work.out, slots, asked.shard_bytes) as writer:
            for name, tensor in base.tensors.items():
                if name in adapter.pairs:
                    pair = adapter.pairs[name]
                    scale = adapter.scale * asked.weight
                    change = _add(writer, tensor, (pair.down, pair.up), scale)
                    moved, length = moved + change[0], length + change[1]
                else:
                    for begin in range(0, tensor.size, _PART):
                        end = min(begin + _PART, tensor.size)
                        writer.append(name, raw_bytes(tensor, begin, end))
                progress.add(tensor.size)
        say_left(work, copy_rest(base, work.out, keep_other_weights=asked.keep_other_weights))
        change_by = sqrt(moved / length) if length else 0.0
        return {
            "tensors": len(slots),
            "changed": len(adapter.pairs),
            "bytes": base.size,
            "relative_change": change_by,
        }


def _add(
    writer: ModelWriter, tensor: Tensor, factors: tuple[Tensor, Tensor], scale: float
) -> tuple[float, float]:
    """Writes W + scale · B @ A; returns the squared lengths of the change and of W."""
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
