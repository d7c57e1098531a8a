"""Tasks of lm-evaluation-harness, asked of a served version, and measured row by row.

The harness (EleutherAI, `lm_eval`) asks `/v1/completions`: answers to questions, and with `echo`
and `logprobs` how likely each choice is. It counts tokens with the version's own tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lockgate.core.errors import UsageError
from lockgate.gates.api import Served
from lockgate.gates.measure.metrics import Metric, computed, mean_of
from lockgate.gates.tasks.harness import Harness, read_json, run, workshop, written
from lockgate.gates.tasks.questions import Answered, Json, read_rows
from lockgate.gates.tasks.specs import LmEvalTask

HARNESS = Harness(
    distribution="lm_eval", module="lm_eval", extra="lm-eval",
    needs=("transformers", "aiohttp", "tenacity", "requests"),
)  # fmt: skip
_LENGTHS = {
    "config.json": ("max_position_embeddings", "n_positions"),
    "tokenizer_config.json": ("model_max_length",),
}
_LENGTH = 2048
_LONGEST = 10_000_000
Rows = NDArray[np.float64]


def read_by_lm_eval(folder: Path) -> Sequence[Path]:
    """See `lockgate.gates.tasks.ask.read_outside`."""
    return HARNESS.reads(folder)


def answer_lm_eval(task: LmEvalTask, folder: Path, served: Served, model: str) -> Answered:
    """See `lockgate.gates.tasks.ask.answer_outside`."""
    HARNESS.check()
    version = served.folder()
    with workshop(folder) as place:
        (place / "version").symlink_to(version.resolve(), target_is_directory=True)
        arguments = _arguments(task, place, version, f"{served.url}/v1/completions", model)
        env = {"LMEVAL_LOG_LEVEL": "WARNING", "OPENAI_API_KEY": "none"}
        run(HARNESS, arguments, place, env=env, seconds=task.timeout)
        results = read_json(written(place, "results_*.json"))
        told = _part(results, "results").get(task.task)
        if not isinstance(told, dict) or f"samples_{task.task}" not in _names(place):
            raise UsageError(
                f"{task.task!r} is a group of tasks, or left no samples",
                hint=f"name one task: {', '.join(sorted(_part(results, 'configs')))}",
            )
        samples = read_rows(written(place, f"samples_{task.task}_2*.jsonl"))
    higher = _part(_part(results, "higher_is_better"), task.task)
    return Answered(metrics=tuple(_metrics(samples, told, higher)), lost=0)


def _names(place: Path) -> set[str]:
    return {path.stem.rpartition("_")[0] for path in (place / "out").rglob("samples_*.jsonl")}


def _part(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = of.get(name)
    return found if isinstance(found, dict) else {}


def _arguments(task: LmEvalTask, place: Path, version: Path, url: str, model: str) -> list[str]:
    about = {
        "model": model, "base_url": url, "num_concurrent": task.at_once, "max_retries": 3,
        "max_length": task.max_length or context_of(version), "timeout": 300,
    }  # fmt: skip
    if any(version.glob("tokenizer*")):
        about |= {"tokenizer": place / "version", "tokenizer_backend": "huggingface"}
    else:  # answers only: how likely a choice is can't be told without counting tokens
        about |= {"tokenizer_backend": "none", "tokenized_requests": False}
    found = ["--model", "local-completions", "--tasks", task.task, "--include_path", ".",
             "--model_args", ",".join(f"{key}={value}" for key, value in about.items()),
             "--log_samples", "--output_path", str(place / "out")]  # fmt: skip
    if task.shots is not None:
        found += ["--num_fewshot", str(task.shots)]
    if task.limit is not None:
        found += ["--limit", str(task.limit)]
    return [*found, "--apply_chat_template"] if task.chat_template else found


def context_of(version: Path) -> int:
    """Returns how many tokens the version's files say it takes, 2,048 where they say nothing."""
    for name, keys in _LENGTHS.items():
        try:
            about = read_json(version / name)
        except (OSError, UsageError):
            continue
        for part in (about, _part(about, "text_config")):
            for key in keys:
                length = part.get(key)
                if isinstance(length, int) and 2 <= length <= _LONGEST:
                    return length
    return _LENGTH


def _metrics(samples: Sequence[Json], told: Json, higher: Json) -> Iterator[Metric]:
    """Yields each metric that is made of rows, named as the harness names it.

    A metric's rows are those of one filter; its name has the filter when it is not `none`.
    """
    for filtered in dict.fromkeys(str(sample.get("filter")) for sample in samples):
        rows = _in_order([s for s in samples if str(s.get("filter")) == filtered])
        for name in dict.fromkeys(str(n) for row in rows for n in row.get("metrics") or ()):
            better: Literal["higher", "lower"] = "lower" if higher.get(name) is False else "higher"
            title = name if filtered == "none" else f"{name},{filtered}"
            values = [row.get(name) for row in rows]
            metric = _metric(title, values, told.get(f"{name},{filtered}"), better)
            if metric is not None:
                yield metric


def _in_order(samples: Sequence[Json]) -> list[Json]:
    """Returns samples by the number of their question, so that versions are compared by row."""
    numbers = [sample.get("doc_id") for sample in samples]
    if not all(isinstance(n, int) for n in numbers) or len(set(numbers)) != len(numbers):
        raise UsageError("the harness numbers its questions in a strange way")
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def _metric(
    name: str, values: Sequence[Any], told: Any, better: Literal["higher", "lower"]
) -> Metric | None:
    """Returns what rows make of a metric, when it is what the harness made of them; else None.

    Means, e to the minus mean, and for pairs of a logarithm and a weight e, or 2 in bits, to the
    minus weighted mean: the harness's `mean`, `perplexity`, `weighted_perplexity`, `bits_per_byte`.
    """
    try:
        rows = np.array(values, dtype=float)
        wanted = float(told)
    except (TypeError, ValueError):
        return None
    if not np.isfinite(rows).all() or rows.ndim not in (1, 2) or rows.shape[1:] not in ((), (2,)):
        return None
    plain = rows.ndim == 1
    if plain and np.isclose(rows.mean(), wanted) and ((rows >= 0) & (rows <= 1)).all():
        return mean_of(name, rows, better)
    for make in (_mean, _perplexity) if plain else (_weighted, _weighted_perplexity, _bits):
        if np.isclose(make(rows), wanted):
            return computed(name, len(rows), lambda i, make=make: make(rows[i]), better)  # type: ignore[misc]
    return None


def _mean(rows: Rows) -> float:
    return float(rows.mean())


def _perplexity(rows: Rows) -> float:
    return float(np.exp(-rows.mean()))


def _weighted(rows: Rows) -> float:
    return float(rows[:, 0].sum() / rows[:, 1].sum())


def _weighted_perplexity(rows: Rows) -> float:
    return float(np.exp(-_weighted(rows)))


def _bits(rows: Rows) -> float:
    return -_weighted(rows) / log(2)
