"""Likeness in meaning: the cosine between embeddings of the answer and of the known one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockgate.core.errors import UsageError
from lockgate.observe.scoring.api import Exchange

_TOKENS = 256


class Similar:
    """Embeds with a small local encoder: a folder with `model.onnx` and `tokenizer.json`.

    The embedding is the mean over tokens of the last hidden state, as sentence encoders have it
    (Reimers, Gurevych 2019). Loaded when first asked; needs the package `tokenizers`.
    """

    def __init__(self, *, folder: Path, answers: Mapping[str, str]) -> None:
        for name in ("model.onnx", "tokenizer.json"):
            if not (folder / name).is_file():
                raise UsageError(f"the encoder's folder {folder} has no {name}")
        self._folder = folder
        self._answers = answers

    def score(self, exchange: Exchange) -> float | None:
        """See `Scorer.score`; None where no answer is known for the question."""
        known = self._answers.get(exchange.question.strip())
        if known is None:
            return None
        one, other = self.embed([exchange.answer, known])
        return float(np.clip(one @ other, 0.0, 1.0))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns unit vectors of `texts`, shape (n, width)."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([item.ids for item in encoded], np.int64)
        mask = np.array([item.attention_mask for item in encoded], np.int64)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        names = {given.name for given in self._session.get_inputs()}
        fed = {name: value for name, value in inputs.items() if name in names}
        hidden = self._session.run(None, fed)[0]
        weights = mask[:, :, None].astype(np.float32)
        means = (hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1.0)
        length = np.linalg.norm(means, axis=1, keepdims=True)
        found: NDArray[np.float32] = (means / np.maximum(length, 1e-12)).astype(np.float32)
        return found

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        made = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        made.enable_truncation(_TOKENS)
        made.enable_padding()
        return made

    @cached_property
    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = str(self._folder / "model.onnx")
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
