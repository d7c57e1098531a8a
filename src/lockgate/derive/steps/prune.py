"""Prunes a model: small weights become zero, or whole neurons go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lockgate.core.errors import UsageError
from lockgate.derive.api import Input, Metrics, Work
from lockgate.derive.steps.pruning import neurons
from lockgate.derive.steps.pruning.masks import (
    ByMagnitude,
    Masked,
    check_columns,
    n_of_m,
    smallest,
)
from lockgate.derive.steps.weights.floats import narrow
from lockgate.derive.steps.weights.layers import linear_layers
from lockgate.derive.steps.weights.options import (
    KeepOthers,
    Progress,
    ShardBytes,
    refuse_quantized,
    refuse_unused,
    say_left,
)
from lockgate.derive.steps.weights.reader import (
    Model,
    Tensor,
    open_model,
    raw_bytes,
    read_object,
    row_chunks,
    rows_of,
)
from lockgate.derive.steps.weights.writer import (
    SHARD_BYTES,
    ModelWriter,
    copy_rest,
    same,
    write_object,
)

_PART = 1 << 24
_CONFIG = "config.json"
_USES = {
    "magnitude": frozenset(("sparsity", "scope", "lm_head")),
    "n:m": frozenset(("n", "m", "lm_head")),
    "structured": frozenset(("sparsity", "norm", "multiple_of")),
}


class PruneParameters(BaseModel):
    """What to remove."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["magnitude", "n:m", "structured"] = Field(
        description="single weights by size; n of every m; whole MLP neurons"
    )
    sparsity: float = Field(
        default=0.5, gt=0, lt=1, description="the share of weights, or of neurons, removed"
    )
    scope: Literal["tensor", "global"] = Field(
        default="tensor", description="magnitude: the same share of each tensor, or of all as one"
    )
    n: int = Field(default=2, ge=1, le=31, description="n:m: how many of m weights stay")
    m: int = Field(default=4, ge=2, le=32, description="n:m: the weights of a group, along a row")
    norm: neurons.Norm = Field(default="l2", description="structured: how neurons are scored")
    multiple_of: int = Field(
        default=1, ge=1, le=1024, description="structured: neurons left are a multiple of this"
    )
    lm_head: bool = Field(default=False, description="prune the head too, where it has its own")
    shard_bytes: ShardBytes = SHARD_BYTES
    keep_other_weights: KeepOthers = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        refuse_unused(self, "method", _USES)
        if self.n >= self.m:
            raise ValueError("n must be below m: of m weights n stay")
        return self


class Prune:
    """Prunes the linear layers of a model: not its embeddings, norms or, unless asked, its head."""

    name = "prune"
    summary = "Prune a model: magnitude, 2:4, or whole MLP neurons, which makes it smaller."
    inputs: tuple[Input, ...] = (Input(name="base", relation="pruned-from"),)
    parameters: type[PruneParameters] = PruneParameters
    libraries: tuple[str, ...] = ("numpy",)
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes base's folder, pruned.

        Returns bytes before and after, and the sparsity: zeros among the weights pruned, or the
        share of neurons removed. Raises UsageError for a model that the method can't work on.
        """
        asked: PruneParameters = work.parameters
        base = open_model(work.one("base"))
        refuse_quantized(base)
        if asked.method == "structured":
            return _by_neurons(work, base, asked)
        return _by_weights(work, base, asked)


def _by_weights(work: Work, base: Model, asked: PruneParameters) -> Metrics:
    pruned = linear_layers(base, head=asked.lm_head)
    if asked.method == "n:m":
        check_columns(pruned, asked.m)
    masks = dict(_masks(pruned, asked))
    progress = Progress(work, base.size)
    zeros = 0
    slots = [same(tensor) for tensor in base.tensors.values()]
    with ModelWriter(work.out, slots, asked.shard_bytes) as writer:
        for tensor in base.tensors.values():
            if tensor.name in masks:
                zeros += _mask(writer, tensor, masks[tensor.name])
            else:
                _copy(writer, tensor)
            progress.add(tensor.size)
    say_left(work, copy_rest(base, work.out, keep_other_weights=asked.keep_other_weights))
    weights = sum(tensor.elements for tensor in pruned)
    return {
        "sparsity": zeros / weights,
        "weights": weights,
        "layers": len(pruned),
        "bytes_before": base.size,
        "bytes_after": base.size,
    }


def _masks(pruned: list[Tensor], asked: PruneParameters) -> Iterator[tuple[str, Masked]]:
    """Yields what each tensor is pruned by; a global cut is one, met in the order of `pruned`."""
    together = None
    if asked.method == "magnitude" and asked.scope == "global":
        together = ByMagnitude(smallest(pruned, asked.sparsity))
    for tensor in pruned:
        if asked.method == "n:m":
            yield tensor.name, lambda rows: n_of_m(rows, asked.n, asked.m)
        else:
            yield tensor.name, together or ByMagnitude(smallest([tensor], asked.sparsity))


def _mask(writer: ModelWriter, tensor: Tensor, mask: Masked) -> int:
    """Writes a tensor pruned; returns how many of its weights are zero."""
    zeros = 0
    for begin, end in row_chunks(tensor):
        rows = mask(rows_of(tensor, begin, end))
        writer.append(tensor.name, narrow(rows, tensor.dtype))
        zeros += int(np.count_nonzero(rows == 0))
    return zeros


def _copy(writer: ModelWriter, tensor: Tensor) -> None:
    for begin in range(0, tensor.size, _PART):
        writer.append(tensor.name, raw_bytes(tensor, begin, min(begin + _PART, tensor.size)))


def _by_neurons(work: Work, base: Model, asked: PruneParameters) -> Metrics:
    settings = read_object(base.folder, _CONFIG)
    size = neurons.check_kind(base, settings)
    kept = round(size * (1 - asked.sparsity)) // asked.multiple_of * asked.multiple_of
    if not 0 < kept < size:
        raise UsageError(
            f"of {size} neurons {kept} would stay",
            hint="choose another sparsity, or a smaller multiple_of",
        )
    plan = neurons.choose(base, size, kept, asked.norm)
    slots = [plan.slot(tensor) for tensor in base.tensors.values()]
    progress = Progress(work, base.size)
    with ModelWriter(work.out, slots, asked.shard_bytes) as writer:
        for tensor in base.tensors.values():
            for begin, end in _parts(tensor):
                writer.append(tensor.name, plan.cut(tensor, begin, end))
            progress.add(tensor.size)
    skip = frozenset((_CONFIG,))
    left = copy_rest(base, work.out, keep_other_weights=asked.keep_other_weights, skip=skip)
    say_left(work, left)
    write_object(work.out, _CONFIG, {**settings, "intermediate_size": kept})
    return {
        "sparsity": 1 - kept / size,
        "neurons": kept,
        "layers": len(plan.kept),
        "bytes_before": base.size,
        "bytes_after": writer.size,
    }


def _parts(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Yields (begin, end) of rows; of a vector, all its elements at once."""
    if len(tensor.shape) < 2:
        yield 0, tensor.elements
    else:
        yield from row_chunks(tensor)
