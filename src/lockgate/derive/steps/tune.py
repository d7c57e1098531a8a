"""The step `tune`: trains a transformers model on a dataset, all of it or low-rank adapters."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError
from lockgate.derive.api import Input, Metrics, Work
from lockgate.derive.steps.tuning import adapters
from lockgate.derive.steps.tuning.loop import mean_loss, perplexity, settle, train
from lockgate.derive.steps.tuning.rows import Row, class_names, encode, padded
from lockgate.derive.steps.tuning.settings import TuneParameters, read_sides


class Tune:
    """Fine-tuning, and training from nothing."""

    name = "tune"
    summary = "Train a transformers model on a dataset: all weights, or LoRA."
    inputs: tuple[Input, ...] = (
        Input(name="base", relation="trained-from"),
        Input(name="data", relation="trained-on"),
    )
    parameters = TuneParameters
    libraries: tuple[str, ...] = ("torch", "transformers", "tokenizers", "safetensors")
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes a folder that transformers loads; see `TuneParameters`.

        Rows of `data` (see `Training.files`) have `text`, `messages`, or `question` and `answer`;
        with `label` for a classifier. Metrics: `loss` of the last epoch, `holdout_loss`,
        `perplexity` or `accuracy`.
        """
        asked: TuneParameters = work.parameters
        settle(work.seed)
        sides = read_sides(work.one("data"), asked, work.seed)
        names = class_names([*sides[0], *sides[1]]) if asked.task == "classify" else ()
        tokenizer = load_tokenizer(work.one("base"))
        learn, hold = (encode(part, tokenizer, asked.longest, classes=names) for part in sides)
        model = _load(work.one("base"), asked, names)
        layers: list[str] = []
        if asked.method == "lora":
            layers = adapters.attach(model, asked.targets, asked.rank, asked.alpha)
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        work.log(f"{len(learn)} rows to learn, {len(hold)} held out; {count:,} weights learn")
        pad = tokenizer.pad_token_id or 0
        loss = _loss_of(model)

        def measure(held: Sequence[Row]) -> dict[str, float]:
            value = mean_loss(held, loss, pad)
            if names:
                return {"holdout_loss": value, "accuracy": _accuracy(model, held, pad)}
            return {"holdout_loss": value, "perplexity": perplexity(value)}

        metrics = train(work, model, learn, hold, asked, loss, pad, measure)
        _save(work, asked, model, layers)
        return {**metrics, "rows": float(len(learn)), "weights": float(count)}


def load_tokenizer(folder: Path) -> Any:
    """Returns the folder's tokenizer; raises UsageError without one, or without transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UsageError("transformers is not installed", hint="pip install lockgate[derive]") \
            from error  # fmt: skip
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"the base has no tokenizer that can be loaded: {error}") from error


def _load(folder: Path, asked: TuneParameters, names: Sequence[str]) -> Any:
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    kind: Any = AutoModelForSequenceClassification if names else AutoModelForCausalLM
    more: dict[str, Any] = {}
    if names:
        more = {"num_labels": len(names), "id2label": dict(enumerate(names)),
                "label2id": {name: i for i, name in enumerate(names)}}  # fmt: skip
    config = AutoConfig.from_pretrained(folder, local_files_only=True, **more)
    if asked.from_scratch:
        return kind.from_config(config, dtype=torch.float32)
    try:
        return kind.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"the base has no weights that can be loaded: {error}") from error


def _loss_of(model: Any) -> Any:
    def loss(ids: Any, mask: Any, labels: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    return loss


def _accuracy(model: Any, rows: Sequence[Row], pad: int, size: int = 32) -> float:
    right = 0
    for begin in range(0, len(rows), size):
        ids, mask, labels = padded(rows[begin : begin + size], pad)
        said = model(input_ids=ids, attention_mask=mask).logits.argmax(-1)
        right += int((said == labels).sum())
    return right / len(rows)


def _save(work: Work, asked: TuneParameters, model: Any, layers: Sequence[str]) -> None:
    if asked.output == "adapter":
        adapters.save(model, work.out, layers, asked.rank, asked.alpha)
        return
    if layers:
        adapters.merge(model, asked.alpha / asked.rank)
    save_model(model, work.one("base"), work.out)


def save_model(model: Any, base: Path, out: Path) -> None:
    """Writes the model in its base's float type, and base's tokenizer files beside it."""
    from transformers import AutoConfig

    kept = AutoConfig.from_pretrained(base, local_files_only=True).dtype
    if kept is not None:
        model.to(kept)
    model.save_pretrained(out)
    for file in sorted(base.iterdir()):
        ours = file.name.startswith(("tokenizer", "special_tokens", "vocab", "merges", "chat_temp"))
        if ours and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
