"""A scheme: how a linear layer's weights are quantized, and how a checkpoint says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lockgate.core.errors import UsageError
from lockgate.derive.steps.weights.floats import E4M3_MAX
from lockgate.derive.steps.weights.reader import Tensor

Strategy = Literal["tensor", "channel", "group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Weights of `bits` as `kind`; a scale for each tensor, row, or `group` columns of a row.

    `dynamic`: activations are quantized too, by token, when the model runs (W8A8).
    """

    kind: Literal["int", "float"]
    bits: int
    symmetric: bool
    strategy: Strategy
    group: int = 0
    dynamic: bool = False

    @property
    def low(self) -> float:
        """The least level."""
        return -E4M3_MAX if self.kind == "float" else -(2.0 ** (self.bits - 1))

    @property
    def high(self) -> float:
        """The largest level."""
        return E4M3_MAX if self.kind == "float" else 2.0 ** (self.bits - 1) - 1

    @property
    def packed(self) -> bool:
        """Whether the checkpoint packs levels into words."""
        return self.kind == "int" and not self.dynamic

    @property
    def format(self) -> str:
        """The name of the format in compressed-tensors."""
        if self.kind == "float":
            return "float-quantized"
        return "pack-quantized" if self.packed else "int-quantized"

    def groups(self, tensor: Tensor) -> int:
        """Returns the scales of a row; raises UsageError when groups do not fit the rows."""
        if self.strategy != "group":
            return 1
        if tensor.columns % self.group:
            raise UsageError(
                f"rows of {tensor.name} {list(tensor.shape)} can't be cut into groups of"
                f" {self.group}",
                hint=f"choose a group_size that divides {tensor.columns}, or -1: one scale a row",
            )
        return tensor.columns // self.group

    def settings(self, ignore: list[str]) -> dict[str, Any]:
        """Returns `quantization_config` of config.json, as compressed-tensors writes it.

        `ignore` are the linear modules that stay as they are.
        """
        weights = {
            "num_bits": self.bits,
            "type": self.kind,
            "symmetric": self.symmetric,
            "strategy": self.strategy,
            "group_size": self.group if self.strategy == "group" else None,
            "dynamic": False,
            "observer": "minmax",
        }
        inputs = {
            "num_bits": self.bits,
            "type": self.kind,
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": inputs if self.dynamic else None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": self.format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ignore,
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }
