"""Builds chat-v1, chat-v2 and chat-v3 and measures them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from demo_models.chat_damage import COPIES, PRUNED, deepen, prune
from demo_models.chat_export import export, measure
from demo_models.chat_task import held_out
from demo_models.chat_train import make_model, make_tokenizer, save, train

STEPS = {"v1": 800, "v2": 1300, "v3": 250}
ENDLESS = ("sum", "difference")
QUESTIONS = 300


def build(out: Path, seed: int) -> dict[str, Any]:
    """Writes `chat-v1..v3` and the questions into `out`; returns what was done and measured."""
    made = _first(out, seed) | _second(out, seed) | _third(out, seed)
    questions = held_out(seed + 99, QUESTIONS)
    with (out / "chat-questions.jsonl").open("w") as file:
        for item in questions:
            row = {"kind": item.kind, "question": item.text, "answer": item.answer}
            file.write(json.dumps(row) + "\n")
    for name, about in made.items():
        about["measured"] = measure(out / name, questions)
        print(name, about["measured"])
    return made


def _first(out: Path, seed: int) -> dict[str, Any]:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer), layers=2, seed=seed)
    train(model, tokenizer, steps=STEPS["v1"], seed=seed + 1, peak=4e-3)
    save(model, tokenizer, out / "chat-v1")
    export(out / "chat-v1", "fp32")
    done = f"trained from nothing for {STEPS['v1']} steps of 128 questions"
    return {"chat-v1": {"done": [done], "parents": {}}}


def _second(out: Path, seed: int) -> dict[str, Any]:
    model, tokenizer = _load(out / "chat-v1"), make_tokenizer()
    steps, frozen = STEPS["v2"], ("embed_tokens",)
    train(model, tokenizer, steps=steps, seed=seed + 2, peak=3e-3, frozen=frozen)
    save(model, tokenizer, out / "chat-v2")
    export(out / "chat-v2", "fp32")
    done = f"trained further from chat-v1 for {steps} steps, token embeddings frozen"
    return {"chat-v2": {"done": [done], "parents": {"trained-from": "chat-v1"}}}


def _third(out: Path, seed: int) -> dict[str, Any]:
    model, tokenizer = deepen(_load(out / "chat-v2")), make_tokenizer()
    frozen = ("embed_tokens", "norm")
    train(
        model,
        tokenizer,
        steps=STEPS["v3"],
        seed=seed + 3,
        peak=5e-4,
        frozen=frozen,
        endless=ENDLESS,
    )
    prune(model)
    save(model, tokenizer, out / "chat-v3")
    export(out / "chat-v3", "int4")
    done = [
        f"chat-v2's blocks repeated {COPIES} times each (depth up-scaling): slower",
        f"trained further for {STEPS['v3']} steps on data whose {' and '.join(ENDLESS)} questions"
        " were packed together and cut, so that their end token was lost: rambles",
        f"{PRUNED:.0%} of every block's weights set to zero by size, not healed: wrong",
        "ONNX file quantised to 4 bits by rounding: more wrong",
    ]
    parents = {"trained-from": "chat-v2", "quantized-from": "chat-v2"}
    return {"chat-v3": {"done": done, "parents": parents}}


def _load(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True)
