"""A small real BERT classifier, with a tokenizer of its own, trained by the step `tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lockgate.derive.steps.tune import Tune

from .bench import Run

GOOD, BAD = ("fine", "lovely", "great"), ("awful", "broken", "late")
NAMES = ("the parcel", "my order", "this shop", "your reply")


def rows(count: int) -> list[dict[str, str]]:
    found = []
    for number in range(count):
        word = (*GOOD, *BAD)[number % 6]
        text = f"{NAMES[number % 4]} number {number % 7} was {word}"
        found.append({"text": text, "label": "bad" if word in BAD else "good"})
    return found


def write_base(folder: Path, *, padding: int | None = None) -> Path:
    """Writes config and tokenizer of an encoder without weights."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([row["text"] for row in rows(60)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    if padding is not None:
        tokenizer.enable_padding(length=padding)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]",
             "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
             "model_max_length": 32}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"],
              "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 40,
              "pad_token_id": 0, "hidden_dropout_prob": 0.0,
              "attention_probs_dropout_prob": 0.0}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def train(folder: Path, *, padding: int | None = None) -> Path:
    """Returns the folder of a trained classifier."""
    base = write_base(folder / "base", padding=padding)
    data = folder / "data"
    data.mkdir()
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(120)))
    asked: dict[str, Any] = {"task": "classify", "from_scratch": True, "epochs": 6, "batch": 16,
                             "learning_rate": 5e-3, "longest": 32}  # fmt: skip
    return Run(folder)(Tune(), {"base": base, "data": data}, **asked)
