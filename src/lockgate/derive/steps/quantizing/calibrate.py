"""Runs a model block by block on calibration texts and quantizes each block by GPTQ.

Needs torch and transformers. A block is quantized with the inputs that the quantized blocks before
it give. Each block's layers are kept in the scratch folder, so that a run that was killed goes on
after the last whole block. Memory: the model in float32, the texts' activations twice, and
8 · columns² bytes for each linear layer of one block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lockgate.core.errors import UsageError
from lockgate.derive.api import Advance, Work
from lockgate.derive.steps.quantizing.checkpoint import Part
from lockgate.derive.steps.quantizing.gptq import Hessian, solve
from lockgate.derive.steps.quantizing.levels import (
    Scales,
    codes_of,
    levels_from,
    restored,
    scales_of,
)
from lockgate.derive.steps.quantizing.scheme import Scheme
from lockgate.derive.steps.quantizing.texts import texts_in
from lockgate.derive.steps.weights.layers import module_of
from lockgate.derive.steps.weights.reader import Tensor, rows_of

_Rest = tuple[tuple[Any, ...], dict[str, Any]]
_BLOCK = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How to calibrate: `samples` texts of at most `tokens` tokens; GPTQ's `damp`."""

    samples: int
    tokens: int
    damp: float
    search: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """What blocks are called with for each text: `hidden` the first of them, `rest` each of them.

    `rest` are the arguments after the hidden states, by place and by name.
    """

    hidden: list[Any]
    rest: Mapping[str, list[_Rest]]


class Kept:
    """The layers that were quantized, in the scratch folder by their place."""

    def __init__(self, scratch: Path, layers: Sequence[Tensor]) -> None:
        self._folder = scratch / "gptq"
        self._places = {tensor.name: place for place, tensor in enumerate(layers)}
        self._folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        """Says whether a layer was quantized whole."""
        return name in self._places and self._path(name).is_file()

    def put(self, name: str, part: Part, errors: tuple[float, float]) -> None:
        """Keeps a layer, whole or not at all; `errors` are GPTQ's and plain rounding's."""
        path = self._path(name)
        beside = path.with_suffix(".part")
        with beside.open("wb") as file:
            np.savez(
                file,
                codes=part.codes,
                scale=part.scales.scale,
                zero=part.scales.zero,
                errors=np.array(errors),
            )
        beside.replace(path)

    def get(self, name: str) -> tuple[Part, tuple[float, float]]:
        """Returns a layer and its errors."""
        with np.load(self._path(name), allow_pickle=False) as found:
            scales = Scales(scale=found["scale"], zero=found["zero"])
            errors = (float(found["errors"][0]), float(found["errors"][1]))
            return Part(codes=found["codes"], scales=scales), errors

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._places[name]:05}.npz"


def calibrate(
    work: Work, folder: Path, layers: Sequence[Tensor], scheme: Scheme, how: Calibration
) -> Kept:
    """Quantizes the layers that are in blocks; the head, if asked for, is in none and is left.

    Raises UsageError without torch and transformers, and for texts or models that do not work.
    """
    torch, model, tokenizer = _load(folder)
    kept = Kept(work.scratch, layers)
    blocks = _blocks(layers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    texts = texts_in(work.one("calibration"), how.samples, work.seed)
    samples = [_tokens(tokenizer, text, how.tokens) for text in texts]
    with torch.no_grad():
        calls = _first_calls(model, list(blocks), [tokens.to(device) for tokens in samples])
        hidden = calls.hidden
        for number, (name, inside) in enumerate(blocks.items()):
            block = model.get_submodule(name)
            rest = calls.rest[name]
            if not all(kept.has(tensor.name) for tensor in inside):
                sums = _measure(model, block, inside, hidden, rest)
                for tensor in inside:
                    _quantize(kept, tensor, sums[tensor.name], scheme, how)
            for tensor in inside:
                part = kept.get(tensor.name)[0]
                weight = restored(levels_from(part.codes, scheme), part.scales)
                target = model.get_submodule(module_of(tensor.name)).weight
                target.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
            hidden = [_call(block, state, more) for state, more in zip(hidden, rest, strict=True)]
            work.report(Advance(done=number + 1, total=len(blocks), unit="blocks"))
    return kept


def _load(folder: Path) -> tuple[Any, Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UsageError(
            f"GPTQ needs {error.name}, which is not installed",
            hint="pip install 'lockgate[transformers]', or leave the calibration input out",
        ) from error
    here: dict[str, Any] = {"local_files_only": True}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **here
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **here)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UsageError(
            f"transformers can't load the model to calibrate it: {str(error)[:200]}",
            hint="leave the calibration input out: rounding needs no run of the model",
        ) from error
    return torch, model.eval(), tokenizer


def _blocks(layers: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Returns the layers of each block (`model.layers.0`), blocks in the order they run."""
    blocks: dict[str, list[Tensor]] = {}
    for tensor in layers:
        if found := _BLOCK.match(tensor.name):
            blocks.setdefault(found[1], []).append(tensor)
    return dict(sorted(blocks.items(), key=lambda item: (len(item[0]), item[0])))


def _tokens(tokenizer: Any, text: Any, most: int) -> Any:
    try:
        if not isinstance(text, str):
            text = tokenizer.apply_chat_template(text, tokenize=False)
        found = tokenizer(text, return_tensors="pt", truncation=True, max_length=most)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"the tokenizer can't read a calibration text: {str(error)[:160]}",
            hint='"messages" need a chat template, each with a "role" and "content"',
        ) from error
    if not found["input_ids"].shape[-1]:
        raise UsageError("a calibration text has no tokens", hint="leave empty texts out")
    return found["input_ids"]


def _first_calls(model: Any, names: Sequence[str], samples: Sequence[Any]) -> _Calls:
    """Runs the model once on each text and keeps what its blocks were called with."""
    calls = _Calls(hidden=[], rest={name: [] for name in names})

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, given: tuple[Any, ...], more: dict[str, Any]) -> None:
            if name == names[0]:
                calls.hidden.append(given[0] if given else more["hidden_states"])
            rest = {key: value for key, value in more.items() if key != "hidden_states"}
            calls.rest[name].append((given[1:], rest))

        return hook

    handles = []
    try:
        for name in names:
            block = model.get_submodule(name)
            handles.append(block.register_forward_pre_hook(watch(name), with_kwargs=True))
        for tokens in samples:
            model(input_ids=tokens, use_cache=False)
    except AttributeError as error:
        raise UsageError(
            f"the model that transformers builds has no module {names[0]}",
            hint="leave the calibration input out: rounding needs no run of the model",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _measure(
    model: Any, block: Any, inside: Sequence[Tensor], hidden: Sequence[Any], rest: Sequence[_Rest]
) -> dict[str, Hessian]:
    """Returns H = Σ x xᵀ [columns, columns] of each layer's inputs in one block."""
    sums = {tensor.name: np.zeros((tensor.columns,) * 2) for tensor in inside}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, given: tuple[Any, ...]) -> None:
            rows = given[0].reshape(-1, given[0].shape[-1]).float()
            sums[name] += (rows.T @ rows).double().cpu().numpy()

        return hook

    handles = [
        model.get_submodule(module_of(tensor.name)).register_forward_pre_hook(watch(tensor.name))
        for tensor in inside
    ]
    for state, more in zip(hidden, rest, strict=True):
        _call(block, state, more)
    for handle in handles:
        handle.remove()
    return sums


def _call(block: Any, state: Any, rest: _Rest) -> Any:
    found = block(state, *rest[0], **rest[1])
    return found[0] if isinstance(found, tuple) else found


def _quantize(
    kept: Kept, tensor: Tensor, hessian: Hessian, scheme: Scheme, how: Calibration
) -> None:
    weight = rows_of(tensor)
    scales = scales_of(weight, scheme, tensor.dtype, search=how.search)
    if scheme.strategy == "tensor":
        top = np.full_like(scales.scale, scales.scale.max())
        scales = Scales(scale=top, zero=scales.zero)
    solved = solve(weight, hessian, scales, scheme, how.damp)
    part = Part(codes=codes_of(solved.levels, scheme), scales=scales)
    kept.put(tensor.name, part, (solved.error, solved.plain))
