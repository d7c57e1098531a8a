"""A LoRA adapter as PEFT saves it: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError
from lockgate.derive.steps.weights.reader import Model, Tensor, read_object, tensors_in

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_READ = frozenset(("peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights", "bias"))
_INERT = frozenset((
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
))  # fmt: skip
"""Keys that say what was trained and how, which the tensors show; no other may be set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two factors of a change: `down` is A [rank, in], `up` is B [out, rank]."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter: the change of the weight `name` is `scale` · B @ A of its pair."""

    scale: float
    pairs: Mapping[str, Pair]


def open_adapter(folder: Path, base: Model) -> Adapter:
    """Returns the adapter in `folder` for `base`.

    Raises UsageError for one that is not understood, or that does not fit the base.
    """
    settings = read_object(folder, CONFIG)
    rank, scale = _scale(settings)
    if not (folder / WEIGHTS).is_file():
        raise UsageError(f"the adapter has no {WEIGHTS}", hint="save it with safetensors")
    found = {tensor.name: tensor for tensor in tensors_in(folder / WEIGHTS)}
    pairs: dict[str, Pair] = {}
    for name in sorted(found):
        if name.endswith(_A) and name.startswith(_PREFIX):
            other = name.removesuffix(_A) + _B
            if other in found:
                target = name.removeprefix(_PREFIX).removesuffix(_A) + ".weight"
                pairs[target] = Pair(down=found[name], up=found[other])
    _refuse_rest(found, pairs)
    for target, pair in pairs.items():
        _check_pair(target, pair, base, rank)
    return Adapter(scale=scale, pairs=pairs)


def _scale(settings: Mapping[str, Any]) -> tuple[int, float]:
    """Returns the rank, and alpha / r, or alpha / √r for rsLoRA.

    Hu et al. 2021, *LoRA*; Kalajdzievski 2023, *A rank stabilization scaling factor for
    fine-tuning with LoRA*.
    """
    odd = sorted(
        key for key, value in settings.items() if value and key not in _READ and key not in _INERT
    )
    if str(settings.get("peft_type", "")).upper() != "LORA":
        odd.insert(0, "peft_type")
    if settings.get("bias", "none") != "none":
        odd.append("bias")
    if settings.get("init_lora_weights", True) not in (True, False, "gaussian"):
        odd.append("init_lora_weights")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1:
        odd.append("r")
    if not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        odd.append("lora_alpha")
    if odd or not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise UsageError(
            f"the adapter is none that can be merged here: {CONFIG} says"
            f" {', '.join(f'{key}={str(settings.get(key))[:40]}' for key in odd[:4])}",
            hint="plain LoRA and rsLoRA can; for others use PEFT's merge_and_unload in a script",
        )
    return rank, alpha / (sqrt(rank) if settings.get("use_rslora") else rank)


def _refuse_rest(found: Mapping[str, Tensor], pairs: Mapping[str, Pair]) -> None:
    used = {tensor.name for pair in pairs.values() for tensor in (pair.down, pair.up)}
    rest = sorted(set(found) - used)
    if rest or not pairs:
        raise UsageError(
            f"{WEIGHTS} has tensors that are no LoRA pairs: {', '.join(rest[:3]) or 'none at all'}",
            hint="only lora_A and lora_B of linear layers can be merged here",
        )


def _check_pair(target: str, pair: Pair, base: Model, rank: int) -> None:
    if target not in base.tensors:
        raise UsageError(
            f"the adapter changes {target[:80]}, which the base does not have",
            hint="merge it into the model that it was trained on",
        )
    shape = base.tensors[target].shape
    ranks = (rank, rank) == (pair.down.shape[:1] + pair.up.shape[1:])
    if not ranks or len(shape) != 2 or (pair.up.shape[0], pair.down.shape[-1]) != shape:
        raise UsageError(
            f"the adapter does not fit {target[:80]} {list(shape)}: its A is"
            f" {list(pair.down.shape)}, its B {list(pair.up.shape)}, its rank {rank}",
            hint="merge it into the model that it was trained on",
        )
