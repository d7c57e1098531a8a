"""Texts to an encoder that was exported to ONNX: its tokenizer lies beside it and runs here.

A model whose inputs are token ids gets one more way in, the tensor `text` (BYTES, one text a row).
Callers that make tokens themselves still can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lockgate.core.errors import UsageError
from lockgate.fleet.runtimes.serve.exchange import Refused
from lockgate.fleet.runtimes.serve.tensors.oip import (
    OnnxModel,
    Predictive,
    flat_values,
    is_text,
    objects,
)

INPUT = "text"
_MADE = frozenset(("input_ids", "attention_mask", "token_type_ids"))
_MOST_TEXTS = 1024
_LONGEST = 1_000_000
_NO_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    type: str
    shape: tuple[object, ...]


def with_texts(model: OnnxModel, folder: Path) -> Predictive:
    """Returns `model`, taking texts too where it takes token ids and its tokenizer is there.

    Raises UsageError for a tokenizer that can't be read.
    """
    takes = "input_ids" in model.inputs and set(model.inputs) <= _MADE
    if not takes or not (folder / "tokenizer.json").is_file():
        return model
    try:
        import tokenizers
    except ImportError:
        return WithoutTokenizer(model)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise UsageError(
            f"the tokenizer in {folder} can't be read: {error}",
            hint="save it again with the tokenizers library",
        ) from error
    longest = _longest(folder)
    if tokenizer.truncation is None and longest < _NO_LIMIT:
        tokenizer.enable_truncation(longest)
    if tokenizer.padding is None:
        tokenizer.enable_padding(**_padding(tokenizer, folder))
    return TextModel(model, tokenizer)


def _longest(folder: Path) -> int:
    """Returns how many tokens the model takes at most, as its configuration says."""
    limits = [_NO_LIMIT]
    for name, key in (("tokenizer_config.json", "model_max_length"),
                      ("config.json", "max_position_embeddings")):  # fmt: skip
        value = _settings(folder / name).get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1:
            limits.append(int(min(value, _NO_LIMIT)))
    return min(limits)


def _padding(tokenizer: Any, folder: Path) -> dict[str, Any]:
    token = _settings(folder / "tokenizer_config.json").get("pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    number = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return {} if number is None else {"pad_id": number, "pad_token": token}


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class WithoutTokenizer:
    """A model that would take texts if the tokenizers library were installed: it says so."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self.inputs = model.inputs
        self.outputs = model.outputs
        self.warm = model.warm
        self.describe = model.describe

    def infer(self, body: Mapping[str, object]) -> list[dict[str, object]]:
        """Returns the outputs asked for; raises Refused."""
        if any(tensor.get("name") == INPUT for tensor in objects(body, "inputs")):
            raise Refused(501, "texts need tokenizers: pip install 'lockgate[text]' on the server")
        return self._model.infer(body)


class TextModel:
    """An encoder and its tokenizer; `infer` may be called from several threads."""

    def __init__(self, model: OnnxModel, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        item = _Item(type="tensor(string)", shape=(None,))
        self.inputs: Mapping[str, Any] = {INPUT: item, **model.inputs}
        self.outputs = model.outputs
        self.describe = model.describe

    def warm(self) -> None:
        """Runs once on a word."""
        self._model.run({}, self._feed(["warm"]))

    def infer(self, body: Mapping[str, object]) -> list[dict[str, object]]:
        """Returns the outputs asked for; Refused 400 for bad tensors, 500 for a bad answer."""
        tensors = objects(body, "inputs")
        if all(tensor.get("name") != INPUT for tensor in tensors):
            return self._model.infer(body)
        if len(tensors) != 1:
            raise Refused(400, f"{INPUT!r} is the only input of a request that has it")
        return self._model.run(body, self._feed(_texts(tensors[0])))

    def _feed(self, texts: list[str]) -> dict[str, Any]:
        found = self._tokenizer.encode_batch(texts)
        made = {"input_ids": "ids", "attention_mask": "attention_mask",
                "token_type_ids": "type_ids"}  # fmt: skip
        feed = {
            name: np.array([getattr(row, made[name]) for row in found], dtype=np.int64)
            for name in self._model.inputs
        }
        if feed["input_ids"].size == 0:
            raise Refused(400, f"{INPUT}: no text has a token in it")
        return feed


def _texts(tensor: Mapping[str, object]) -> list[str]:
    if tensor.get("datatype") != "BYTES":
        raise Refused(400, f"{INPUT}: datatype is {tensor.get('datatype')!r}, must be BYTES")
    found = list(flat_values(tensor.get("data"), INPUT))
    if not 0 < len(found) <= _MOST_TEXTS:
        raise Refused(400, f"{INPUT}: 1 to {_MOST_TEXTS} texts are taken at a time")
    if tensor.get("shape") not in ([len(found)], [len(found), 1]):
        raise Refused(400, f"{INPUT}: {len(found)} texts do not fill {tensor.get('shape')!r}")
    for value in found:
        if not isinstance(value, str) or len(value) > _LONGEST or not is_text(value):
            raise Refused(400, f"{INPUT}: {value!r:.40} is not a text of {_LONGEST} characters")
    return [str(value) for value in found]
