"""Which tensors are weights of linear layers: by the names that `transformers` gives them."""

from __future__ import annotations

from lockgate.core.errors import UsageError
from lockgate.derive.steps.weights.reader import Model, Tensor

_LINEAR = frozenset((
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "gate_proj", "up_proj",
    "down_proj", "gate_up_proj", "fc1", "fc2", "fc_in", "fc_out", "query_key_value", "dense",
    "dense_h_to_4h", "dense_4h_to_h", "q_a_proj", "q_b_proj", "kv_b_proj", "w1", "w2", "w3",
))  # fmt: skip
HEAD = "lm_head"


def module_of(name: str) -> str:
    """Returns the module of a weight: `model.layers.0.mlp.up_proj` of `….up_proj.weight`."""
    return name.removesuffix(".weight")


def is_linear(tensor: Tensor) -> bool:
    """Says whether a tensor is the weight of a linear layer in a block: no embedding, no head."""
    parts = tensor.name.split(".")
    return (
        len(tensor.shape) == 2
        and tensor.elements > 0
        and parts[-1] == "weight"
        and len(parts) > 2
        and parts[-2] in _LINEAR
        and any(part.isdigit() for part in parts)
    )


def linear_layers(model: Model, *, head: bool) -> list[Tensor]:
    """Returns the weights of a model's linear layers, and of `lm_head` when `head`, by name.

    Raises UsageError when it has none by these names, or no head of its own.
    """
    found = [tensor for tensor in model.tensors.values() if is_linear(tensor)]
    if not found:
        raise UsageError(
            "the model has no linear layers by the names known (q_proj, up_proj, fc1, dense, …)",
            hint="models of the llama, mistral, qwen, gemma, opt, phi and neox kinds have",
        )
    if head and f"{HEAD}.weight" not in model.tensors:
        raise UsageError(
            "the model has no lm_head.weight: its head is its embedding",
            hint="leave lm_head out: tied weights can't be changed for the head alone",
        )
    return sorted([*found, model.tensors[f"{HEAD}.weight"]], key=_name) if head else found


def _name(tensor: Tensor) -> str:
    return tensor.name
