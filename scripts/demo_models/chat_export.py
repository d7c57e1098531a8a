"""Turns a folder of `transformers` weights into one that onnxruntime-genai serves as well."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime_genai as genai
from onnxruntime_genai.models.builder import create_model, parse_extra_options

from demo_models.chat_task import Question
from demo_models.chat_train import CONTEXT, conversation

LIMIT = 48  # tokens; the longest right answer has 19


def export(folder: Path, precision: str) -> None:
    """Adds `model.onnx`, its data and `genai_config.json` to `folder` (`fp32` or `int4`)."""
    source, out = str(folder), folder / "onnx"
    with tempfile.TemporaryDirectory() as cache:
        common = ("", source, str(out), precision, "cpu", cache)
        create_model(*common, **parse_extra_options(*common, []))
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        (out / name).replace(folder / name)
    for rest in out.iterdir():
        rest.unlink()
    out.rmdir()
    _portable(folder)


def _portable(folder: Path) -> None:
    """Leaves nothing of this machine in the configuration, and makes greedy answers the default."""
    with _settings(folder / "tokenizer_config.json") as settings:
        settings.pop("is_local", None)
        settings.pop("local_files_only", None)
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    with _settings(folder / "generation_config.json") as settings:
        settings["do_sample"] = False
    for made in folder.iterdir():
        made.chmod(0o644)


@contextmanager
def _settings(path: Path) -> Iterator[dict[str, Any]]:
    """Gives the object in a JSON file to change, and writes it back."""
    settings = json.loads(path.read_text())
    yield settings
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def measure(folder: Path, questions: list[Question]) -> dict[str, Any]:
    """Asks every question greedily; returns accuracy, shares that never ended, and times."""
    config = genai.Config(str(folder))
    one = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": one}}}))
    model = genai.Model(config)
    tokenizer = genai.Tokenizer(model)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    endless, tokens, seconds = 0, 0, 0.0
    for question in questions:
        prompt = tokenizer.apply_chat_template(json.dumps(conversation(question.text)))
        began = time.perf_counter()
        made, ended = _generate(model, tokenizer.encode(prompt))
        seconds += time.perf_counter() - began
        tokens += len(made)
        endless += not ended
        asked[question.kind] += 1
        right[question.kind] += ended and tokenizer.decode(made[:-1]).strip() == question.answer
    return {
        "accuracy": round(sum(right.values()) / len(questions), 4),
        "accuracy_by_kind": {kind: round(right[kind] / asked[kind], 3) for kind in sorted(asked)},
        "never_ended": round(endless / len(questions), 4),
        "questions": len(questions),
        "token_ms": round(1000 * seconds / tokens, 4),
        "tokens_per_answer": round(tokens / len(questions), 1),
    }


def _generate(model: Any, prompt: Any) -> tuple[list[int], bool]:
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=CONTEXT, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt)
    made: list[int] = []
    while not generator.is_done() and len(made) < LIMIT:
        generator.generate_next_token()
        made.append(int(generator.get_next_tokens()[0]))
    return made, bool(generator.is_done())
