"""What every training step is told, and which rows of its dataset it learns from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import cos, pi
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lockgate.core.errors import UsageError
from lockgate.derive.steps.data.ingest import need_pyarrow
from lockgate.derive.steps.data.rows import FILE, read_file
from lockgate.derive.steps.tuning.rows import split

TRAIN, HELD = "train.parquet", "validation.parquet"
Rows = list[Mapping[str, Any]]
Positive = Annotated[float, Field(gt=0)]


class Training(BaseModel):
    """How long, how fast, on what."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    batch: Annotated[int, Field(ge=1, le=65_536)] = 16
    learning_rate: Positive = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warm_up: Annotated[float, Field(ge=0, le=1)] = Field(default=0.05, description="share of steps")
    longest: Annotated[int, Field(ge=2, le=1_000_000)] = Field(
        default=512, description="tokens of a row; what is more is cut off"
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of rows that are measured, not learned"
    )
    files: tuple[str, ...] = Field(
        default=(),
        description="what to learn, *.jsonl or *.parquet; none: all *.jsonl beside each other, "
        "else train.parquet, else rows.parquet",
    )
    held: str | None = Field(
        default=None,
        description="a file that is measured instead of a share; none: validation.parquet, where "
        "train.parquet is learned",
    )
    keep_every: Annotated[int, Field(ge=1)] = Field(
        default=200, description="steps after which the state is kept, to go on from"
    )

    def rate(self, step: int, steps: int) -> float:
        """Returns the learning rate of `step`: up to its height, then a cosine down to a tenth."""
        first = max(1, round(self.warm_up * steps))
        if step < first:
            return self.learning_rate * (step + 1) / first
        far = (step - first) / max(1, steps - first)
        return self.learning_rate * (0.1 + 0.45 * (1 + cos(pi * far)))


class TuneParameters(Training):
    """What to train, how long, how fast."""

    task: Literal["language", "classify"] = Field(
        default="language", description="next tokens, or a class for each text"
    )
    method: Literal["full", "lora"] = Field(default="full", description="all weights, or adapters")
    from_scratch: bool = Field(
        default=False, description="begin with chance weights; base has config and tokenizer"
    )
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(default=8, description="lora: of A and B")
    alpha: Positive = Field(default=16.0, description="lora: B A counts alpha / rank")
    targets: tuple[str, ...] = Field(
        default=(), description="lora: ends of layers' names; none: all linear ones"
    )
    output: Literal["merged", "adapter"] = Field(
        default="merged", description="lora: whole weights, or the adapter in PEFT's format"
    )

    @model_validator(mode="after")
    def _fits(self) -> TuneParameters:
        if self.output == "adapter" and (self.method != "lora" or self.task != "language"):
            raise ValueError("an adapter is the output of 'method: lora' on a language model")
        if self.from_scratch and self.method == "lora":
            raise ValueError("there is nothing to adapt from scratch")
        return self


class DistilParameters(Training):
    """What the student is like, and how it learns."""

    student: dict[str, int | float | str | bool] = Field(
        min_length=1, description="what differs from the teacher's config, as num_hidden_layers: 1"
    )
    from_teacher: bool = Field(
        default=True, description="begin with the teacher's weights of the same shape"
    )
    temperature: Positive = 2.0
    soft: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.7, description="how much the teacher's words count, against the rows' own"
    )
    learning_rate: Positive = 1e-3


def read_sides(folder: Path, asked: Training, seed: int) -> tuple[Rows, Rows]:
    """Returns the rows of a dataset to learn from, and those to measure with.

    Raises UsageError for files that are not there, and names the line of a row that is none.
    """
    names, held = asked.files, asked.held
    if not names:
        names = tuple(sorted(path.name for path in folder.glob("*.jsonl")))
    if not names and (folder / TRAIN).is_file():
        names = (TRAIN,)
        held = HELD if held is None and (folder / HELD).is_file() else held
    if not names and (folder / FILE).is_file():
        names = (FILE,)
    if not names:
        raise UsageError(
            f"the dataset {folder.name} has no *.jsonl, {TRAIN} or {FILE}",
            hint="name the files to learn from in 'files'",
        )
    if held is not None:
        found = _read(folder, [name for name in names if name != held])
        return found, _read(folder, [held])
    return split(_read(folder, names), asked.holdout, seed)


def _read(folder: Path, names: Sequence[str]) -> Rows:
    return [row for name in names for row in _rows(folder, name)]


def _rows(folder: Path, name: str) -> Iterator[Mapping[str, Any]]:
    path = folder / name
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or not path.is_file():
        raise UsageError(f"the dataset {folder.name} has no file {name}")
    if path.suffix == ".parquet":
        need_pyarrow()
        for table in read_file(path):
            for row in table.to_pylist():
                yield {name: value for name, value in row.items() if value is not None}
        return
    with path.open("r", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            yield _object(line, f"{name}, line {number}")


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UsageError(f"{where} is no JSON object")
    return row
