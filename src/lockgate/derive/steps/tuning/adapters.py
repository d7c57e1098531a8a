"""Low-rank adapters (Hu et al. 2021): y = W x + (alpha / rank) · B A x, and only A and B learn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError


def attach(model: Any, targets: Sequence[str], rank: int, alpha: float) -> list[str]:
    """Freezes `model` and gives each linear layer of `targets` (ends of names) an A and a B.

    Without targets every linear layer but the output's gets them. Returns the layers' names.
    Raises UsageError when there is none.
    """
    import torch

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    names = [name for name, _ in _layers(model, targets)]
    if not names:
        known = sorted({name.rpartition(".")[2] for name, _ in _layers(model, ())})
        raise UsageError(f"no layer ends with {', '.join(targets)}", hint=f"there are {known}")
    for _, layer in list(_layers(model, targets)):
        down = torch.empty(rank, layer.in_features)
        torch.nn.init.kaiming_uniform_(down, a=5**0.5)
        layer.register_parameter("lora_A", torch.nn.Parameter(down))
        up = torch.zeros(layer.out_features, rank)
        layer.register_parameter("lora_B", torch.nn.Parameter(up))
        layer.register_forward_hook(_forward(alpha / rank))
    return names


def _forward(scale: float) -> Any:
    def add(layer: Any, inputs: Any, output: Any) -> Any:
        return output + scale * (inputs[0] @ layer.lora_A.T) @ layer.lora_B.T

    return add


def _layers(model: Any, targets: Sequence[str]) -> Iterator[tuple[str, Any]]:
    import torch

    for name, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear) or "lm_head" in name or "classifier" in name:
            continue
        if not targets or any(name.endswith(end) for end in targets):
            yield name, layer


def merge(model: Any, scale: float) -> None:
    """Adds each B A to its W, and takes the adapters off."""
    import torch

    with torch.no_grad():
        for _, layer in _layers(model, ()):
            if hasattr(layer, "lora_A"):
                layer.weight += scale * (layer.lora_B @ layer.lora_A)
                del layer.lora_A, layer.lora_B
                layer._forward_hooks.clear()  # noqa: SLF001 - torch's only way to take all off


def save(model: Any, folder: Path, names: Sequence[str], rank: int, alpha: float) -> None:
    """Writes the adapters in PEFT's format, which PEFT and vLLM load."""
    from safetensors.torch import save_file

    found = dict(model.named_modules())
    tensors = {}
    for name in names:
        for part in ("lora_A", "lora_B"):
            key = f"base_model.model.{name}.{part}.weight"
            tensors[key] = getattr(found[name], part).detach().clone().contiguous()
    save_file(dict(sorted(tensors.items())), folder / "adapter_model.safetensors")
    ends = sorted({name.rpartition(".")[2] for name in names})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha,
        "lora_dropout": 0.0, "bias": "none", "target_modules": ends, "inference_mode": True,
        "base_model_name_or_path": None, "fan_in_fan_out": False, "use_rslora": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
