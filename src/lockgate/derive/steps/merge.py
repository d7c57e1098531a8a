"""Merges models of one shape, or an adapter into its base, tensor by tensor, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lockgate.core.errors import UsageError
from lockgate.derive.api import Input, Metrics, Work
from lockgate.derive.steps.merging import formulas
from lockgate.derive.steps.merging.adapter import open_adapter
from lockgate.derive.steps.merging.fit import check_fit, same_bytes
from lockgate.derive.steps.merging.lora import add_change
from lockgate.derive.steps.weights.floats import FLOATS, Wide, squares, stored
from lockgate.derive.steps.weights.options import (
    KeepOthers,
    Progress,
    ShardBytes,
    refuse_quantized,
    refuse_unused,
    say_left,
)
from lockgate.derive.steps.weights.reader import (
    Tensor,
    chunks,
    open_model,
    raw_bytes,
    values,
)
from lockgate.derive.steps.weights.select import Cut, cut
from lockgate.derive.steps.weights.writer import SHARD_BYTES, ModelWriter, copy_rest, same

_PART = 1 << 24
Method = Literal["linear", "slerp", "task_arithmetic", "ties", "dare"]
Weight = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
Formula = Callable[[Sequence[Wide]], Wide]
"""The same part of a tensor of every model, base first → the merged part."""

_USES = {
    "linear": frozenset(("weights",)),
    "slerp": frozenset(("t",)),
    "task_arithmetic": frozenset(("weights",)),
    "ties": frozenset(("weights", "density", "scale")),
    "dare": frozenset(("weights", "drop")),
}


class MergeParameters(BaseModel):
    """How to merge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = Field(description="the formula")
    weights: tuple[Weight, ...] = Field(
        default=(),
        description="one per model: for linear base first and then the others, divided by their"
        " sum; for the rest the others only, as they are; empty: all 1",
    )
    t: float = Field(default=0.5, ge=0, le=1, description="slerp: 0 is base, 1 the other")
    density: float = Field(
        default=0.2, gt=0, le=1, description="ties: the share of each difference that is kept"
    )
    scale: float = Field(
        default=1.0, gt=0, le=10, description="ties: what the merged difference is multiplied with"
    )
    drop: float = Field(
        default=0.9, ge=0, lt=1, description="dare: the share of each difference that is dropped"
    )
    shard_bytes: ShardBytes = SHARD_BYTES
    keep_other_weights: KeepOthers = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        refuse_unused(self, "method", _USES)
        if self.method == "linear" and self.weights and sum(self.weights) <= 0:
            raise ValueError("the weights of linear must have a sum above 0")
        if self.method == "ties" and any(weight < 0 for weight in self.weights):
            raise ValueError("the weights of ties may not be negative")
        return self


class Merge:
    """Merges a base and others."""

    name = "merge"
    summary = "Merge models of one shape: linear, slerp, task arithmetic, TIES or DARE."
    inputs: tuple[Input, ...] = (
        Input(name="base", relation="merged-from"),
        Input(name="others", relation="merged-from", many=True),
    )
    parameters: type[MergeParameters] = MergeParameters
    libraries: tuple[str, ...] = ("numpy",)
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes base's folder with merged weights, in base's types; sums are float32.

        Returns the relative change: the length of merged - base over that of base. Raises
        UsageError, naming the first tensors, for models that do not fit.
        """
        asked: MergeParameters = work.parameters
        base = open_model(work.one("base"))
        others = [open_model(folder) for folder in work.inputs["others"]]
        weights = _weights(asked, len(others))
        for other in others:
            check_fit(base, other, work.log)
        progress = Progress(work, base.size)
        slots = [same(tensor) for tensor in base.tensors.values()]
        moved, length = 0.0, 0.0
        with ModelWriter(work.out, slots, asked.shard_bytes) as writer:
            for name, tensor in base.tensors.items():
                together = [tensor, *(other.tensors[name] for other in others)]
                for part in _merged(together, asked, weights, work.seed):
                    writer.append(name, part.data)
                    moved, length = moved + part.moved, length + part.length
                    progress.add(len(part.data))
        say_left(work, copy_rest(base, work.out, keep_other_weights=asked.keep_other_weights))
        change = sqrt(moved / length) if length else 0.0
        return {"tensors": len(slots), "bytes": base.size, "relative_change": change}


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
                    change = add_change(writer, tensor, (pair.down, pair.up), scale)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Merged bytes, and the squared lengths of their change and of base."""

    data: bytes
    moved: float = 0.0
    length: float = 0.0


def _weights(asked: MergeParameters, others: int) -> tuple[float, ...]:
    """Returns a weight for each model; raises UsageError when there are more or fewer models."""
    if not others or (asked.method == "slerp" and others != 1):
        raise UsageError(
            f"{asked.method} merges {'two models' if asked.method == 'slerp' else 'several models'}"
            f", base and others, and was given {others + 1}",
            hint="give `others` as often as there are models besides base",
        )
    count = others + (asked.method == "linear")
    if asked.weights and len(asked.weights) != count:
        raise UsageError(
            f"{asked.method} takes {count} weights here and was given {len(asked.weights)}",
            hint="linear has one for base too; leave weights out for all alike",
        )
    return asked.weights or (1.0,) * count


def _merged(
    together: Sequence[Tensor], asked: MergeParameters, weights: Sequence[float], seed: int
) -> Iterator[_Part]:
    """Yields one tensor merged, part by part; what is no float must be the same in all."""
    base = together[0]
    if base.dtype not in FLOATS:
        same_bytes(together)
        yield _Part(data=raw_bytes(base, 0, base.size).tobytes())
        return
    formula = _formula(together, asked, weights, seed)
    for begin, end in chunks(base):
        parts = [values(tensor, begin, end) for tensor in together]
        with np.errstate(over="ignore", invalid="ignore"):
            merged = formula(parts)
            data, kept = stored(merged, base.dtype)
        if not np.isfinite(kept).all():
            raise UsageError(
                f"the merged tensor {base.name} is too large for {base.dtype}",
                hint="use smaller weights, or a base in BF16 or F32",
            )
        yield _Part(data=data, moved=squares(kept - parts[0]), length=squares(parts[0]))


def _formula(
    together: Sequence[Tensor], asked: MergeParameters, weights: Sequence[float], seed: int
) -> Formula:
    if asked.method == "linear":
        return lambda parts: formulas.linear(parts, weights)
    if asked.method == "slerp":
        left, right = _arc(together[0], together[1], asked.t)
        return lambda parts: np.float32(left) * parts[0] + np.float32(right) * parts[1]
    if asked.method == "task_arithmetic":
        return lambda parts: formulas.task_arithmetic(parts[0], parts[1:], weights)
    if asked.method == "ties":
        trim = formulas.Trim([_cut(together[0], other, asked.density) for other in together[1:]])
        return lambda parts: formulas.ties(parts[0], list(_each(trim, parts)), weights, asked.scale)
    drop = formulas.Dropout(seed, together[0].name, len(together) - 1, asked.drop)
    return lambda parts: formulas.dare(parts[0], _each(drop, parts), weights)


def _each(change: Callable[[int, Wide], Wide], parts: Sequence[Wide]) -> Iterator[Wide]:
    for index, part in enumerate(parts[1:]):
        yield change(index, part - parts[0])


def _cut(base: Tensor, other: Tensor, density: float) -> Cut:
    """Returns what parts the differences that TIES drops from those that it keeps."""

    def differences() -> Iterable[Wide]:
        for begin, end in chunks(base):
            yield values(other, begin, end) - values(base, begin, end)

    kept = max(round(density * base.elements), 1)
    return cut(differences, base.elements - kept)


def _arc(left: Tensor, right: Tensor, t: float) -> tuple[float, float]:
    dot = first = second = 0.0
    for begin, end in chunks(left):
        one = values(left, begin, end).astype(np.float64)
        two = values(right, begin, end).astype(np.float64)
        dot += float(np.dot(one, two))
        first, second = first + float(np.dot(one, one)), second + float(np.dot(two, two))
    return formulas.slerp_weights(dot, first, second, t)
