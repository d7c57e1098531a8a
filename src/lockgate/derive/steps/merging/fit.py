"""Whether models can be merged: the same names, the same shapes, the same words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lockgate.core.errors import UsageError
from lockgate.derive.steps.weights.options import refuse_quantized
from lockgate.derive.steps.weights.reader import Model, Tensor, raw_bytes

_SHOWN = 3
_WORDS = "tokenizer.json"


def check_fit(base: Model, other: Model, log: Callable[[str], None]) -> None:
    """Raises UsageError, naming the first tensors, when two models can't be merged.

    Logs when their tokenizers differ: the same token may then stand for different words.
    """
    for model in (base, other):
        refuse_quantized(model)
    here, there = base.tensors, other.tensors
    lacking = [name for name in here if name not in there]
    strange = [name for name in there if name not in here]
    if lacking or strange:
        said = [f"lacks {_some(lacking)}"] if lacking else []
        said += [f"has also {_some(strange)}"] if strange else []
        raise UsageError(
            f"{other.folder.name} does not fit the base: it {' and '.join(said)}",
            hint="merge models of one architecture, tuned from one base",
        )
    odd = [name for name in here if here[name].shape != there[name].shape]
    if odd:
        shown = "; ".join(
            f"{name} {list(here[name].shape)} against {list(there[name].shape)}"
            for name in odd[:_SHOWN]
        )
        raise UsageError(
            f"{other.folder.name} does not fit the base,"
            f" {len(odd)} tensors differ in shape: {shown}",
            hint="merge models of one size and vocabulary",
        )
    if _words(base) != _words(other):
        log(f"{other.folder.name} has another {_WORDS} than the base; the base's is kept")


def same_bytes(together: Sequence[Tensor]) -> None:
    """Raises UsageError unless a tensor that holds no floats is the same in all models."""
    first = raw_bytes(together[0], 0, together[0].size)
    for other in together[1:]:
        if other.dtype != together[0].dtype or (raw_bytes(other, 0, other.size) != first).any():
            raise UsageError(
                f"tensor {other.name} holds {other.dtype}, no floats, and differs between models",
                hint="such a tensor can't be merged; give models that agree on it",
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:80] for name in names[:_SHOWN]) + more


def _words(model: Model) -> bytes:
    path = model.folder / _WORDS
    return path.read_bytes() if path.is_file() else b""
