"""Removes neurons between the two halves of an MLP of the llama kind: the model gets smaller.

A neuron is a row of gate_proj, one of up_proj and a column of down_proj, and goes as a whole (the
coupled structures of Ma et al. 2023, *LLM-Pruner*). Its score is a norm of all three together (Li
et al. 2017, *Pruning filters for efficient ConvNets*).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lockgate.core.errors import UsageError
from lockgate.derive.steps.weights.floats import WIDTHS, Raw, Wide
from lockgate.derive.steps.weights.reader import Model, Tensor, raw, row_chunks, rows_of
from lockgate.derive.steps.weights.writer import Slot, same, slot

Norm = Literal["l1", "l2"]
FAMILY = ("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo2", "granite", "smollm3")
_PART = re.compile(r"^(?P<mlp>.+\.mlp)\.(?P<half>gate|up|down)_proj\.(?P<kind>weight|bias)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The neurons kept of each MLP (`model.layers.0.mlp`), in order, as many in each."""

    kept: Mapping[str, NDArray[np.int64]]

    def slot(self, tensor: Tensor) -> Slot:
        """Returns the slot of a tensor as it will be."""
        side = self._side(tensor)
        if side is None:
            return same(tensor)
        shape = list(tensor.shape)
        shape[side[0]] = len(side[1])
        return slot(tensor.name, tensor.dtype, shape)

    def cut(self, tensor: Tensor, begin: int, end: int) -> Raw:
        """Returns the bytes of rows `begin` to `end` (of a vector: elements) that are kept."""
        side = self._side(tensor)
        columns = 1 if len(tensor.shape) < 2 else tensor.columns
        data = raw(tensor, begin * columns, end * columns)
        if side is None:
            return data
        axis, kept = side
        cells = data.reshape(end - begin, columns, WIDTHS[tensor.dtype])
        if axis == 0:
            rows = kept[(kept >= begin) & (kept < end)] - begin
            return np.ascontiguousarray(cells[rows]).reshape(-1)
        return np.ascontiguousarray(cells[:, kept]).reshape(-1)

    def _side(self, tensor: Tensor) -> tuple[int, NDArray[np.int64]] | None:
        """Returns the dimension that gets shorter and what is kept of it."""
        found = _PART.match(tensor.name)
        if found is None or found["mlp"] not in self.kept:
            return None
        if found["half"] != "down":
            return 0, self.kept[found["mlp"]]
        return None if found["kind"] == "bias" else (1, self.kept[found["mlp"]])


def check_kind(model: Model, settings: Mapping[str, Any]) -> int:
    """Returns the neurons of each MLP; raises UsageError for another architecture."""
    size = settings.get("intermediate_size")
    kind = settings.get("model_type")
    if kind not in FAMILY or not isinstance(size, int):
        raise UsageError(
            f"neurons can be removed from models of the kinds {', '.join(FAMILY)}, this is"
            f" {str(kind)[:40]}",
            hint="use the method magnitude, which any model with linear layers can take",
        )
    for tensor in model.tensors.values():
        found = _PART.match(tensor.name)
        if found is None:
            continue
        side = tensor.shape[-1] if found["half"] == "down" else tensor.shape[0]
        bias_out = found["half"] == "down" and found["kind"] == "bias"
        if side != size and not bias_out:
            raise UsageError(
                f"{tensor.name} {list(tensor.shape)} does not have the {size} neurons that"
                " config.json says",
                hint="is config.json that of these weights?",
            )
    return size


def choose(model: Model, size: int, kept: int, norm: Norm) -> Plan:
    """Returns the plan that keeps, in each MLP, the `kept` of `size` neurons of largest norm."""
    scores: dict[str, NDArray[np.float64]] = {}
    halves: dict[str, int] = {}
    for tensor in model.tensors.values():
        found = _PART.match(tensor.name)
        if found is None or found["kind"] != "weight":
            continue
        total = scores.setdefault(found["mlp"], np.zeros(size))
        halves[found["mlp"]] = halves.get(found["mlp"], 0) + 1
        for begin, end in row_chunks(tensor):
            part = _powers(rows_of(tensor, begin, end), norm)
            if found["half"] == "down":
                total += part.sum(axis=0)
            else:
                total[begin:end] += part.sum(axis=1)
    odd = sorted(mlp for mlp, count in halves.items() if count != 3)
    if odd or not scores:
        raise UsageError(
            f"{odd[0] if odd else 'the model'} has not gate_proj, up_proj and down_proj",
            hint="models with experts or other MLPs can't be cut by neurons",
        )
    best = {mlp: np.argsort(-score, kind="stable")[:kept] for mlp, score in scores.items()}
    return Plan(kept={mlp: np.sort(order) for mlp, order in best.items()})


def _powers(rows: Wide, norm: Norm) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.abs(wide) if norm == "l1" else np.square(wide)
