"""Tasks of Inspect (UK AI Security Institute, `inspect_ai`), asked of a served version.

Inspect asks `/v1/chat/completions`; a metric of ours is the mean of one scorer's scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lockgate.core.errors import UsageError
from lockgate.gates.api import Served
from lockgate.gates.measure.metrics import Metric, computed, mean_of
from lockgate.gates.tasks.harness import Harness, read_json, run, workshop, written
from lockgate.gates.tasks.questions import Answered
from lockgate.gates.tasks.specs import InspectTask

HARNESS = Harness(
    distribution="inspect_ai", module="inspect_ai", extra="inspect", needs=("openai",)
)
_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # correct, partial, incorrect, no answer


def read_by_inspect(folder: Path) -> Sequence[Path]:
    """See `lockgate.gates.tasks.ask.read_outside`."""
    return HARNESS.reads(folder)


def answer_inspect(task: InspectTask, folder: Path, served: Served, model: str) -> Answered:
    """See `lockgate.gates.tasks.ask.answer_outside`."""
    HARNESS.check()
    if (folder / task.file).resolve() not in {path.resolve() for path in HARNESS.reads(folder)}:
        raise UsageError(f"{folder} has no file {task.file}")
    with workshop(folder) as place:
        env = {"LOCKGATE_BASE_URL": f"{served.url}/v1", "LOCKGATE_API_KEY": "none"}
        run(HARNESS, _arguments(task, place, model), place, env=env, seconds=task.timeout)
        found = read_json(written(place, "*.json"))
    if found.get("status") != "success":
        error = found.get("error")
        said = str(error.get("message", "")) if isinstance(error, dict) else ""
        raise UsageError(f"inspect_ai gave no answer: {said[:300] or found.get('status')}")
    return Answered(metrics=tuple(_metrics(_samples(found))), lost=0)


def _arguments(task: InspectTask, place: Path, model: str) -> list[str]:
    found = ["eval", f"{task.file}@{task.task}", "--model", f"openai-api/lockgate/{model}",
             "--log-dir", str(place / "out"), "--log-format", "json", "--display", "none",
             "--epochs", "1", "--temperature", str(task.temperature), "--timeout", "300",
             "--max-retries", "3", "--max-connections", str(task.at_once)]  # fmt: skip
    if task.max_tokens is not None:
        found += ["--max-tokens", str(task.max_tokens)]
    return found if task.limit is None else [*found, "--limit", str(task.limit)]


def _samples(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the samples by their names, so that versions are compared by row."""
    samples = [one for one in found.get("samples") or () if isinstance(one, dict)]
    names = {str(sample.get("id")) for sample in samples}
    if not samples or len(names) != len(samples):
        raise UsageError("inspect_ai left no samples, or two of one name")
    return sorted(samples, key=lambda sample: str(sample.get("id")))


def _metrics(samples: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Yields the mean of each scorer's scores; one with several values has each by its name."""
    rows = [dict(_scores(sample)) for sample in samples]
    for name in dict.fromkeys(name for row in rows for name in row):
        values = np.array([row.get(name, np.nan) for row in rows], dtype=float)
        if not np.isfinite(values).all():
            continue  # scores of some samples only, or no numbers
        if ((values >= 0) & (values <= 1)).all():
            yield mean_of(name, values)
        else:
            yield computed(name, len(values), lambda i, v=values: float(v[i].mean()))  # type: ignore[misc]


def _scores(sample: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for scorer, score in (sample.get("scores") or {}).items():
        value = score.get("value") if isinstance(score, dict) else None
        if isinstance(value, dict):
            for name, one in value.items():
                yield f"{scorer}.{name}", _number(one)
        else:
            yield str(scorer), _number(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    return _LETTERS.get(str(value), float("nan"))
