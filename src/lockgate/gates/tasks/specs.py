"""What a suite asks: YAML with tasks by name. Data are JSON lines, one row a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lockgate.core import document
from lockgate.core.document import ours
from lockgate.core.errors import UsageError
from lockgate.core.units import parse_duration

Duration = Annotated[float, BeforeValidator(ours(parse_duration)), Field(gt=0, le=604_800)]
Limit = Annotated[int, Field(ge=1, le=1_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ChatTask(_Strict):
    """Questions to a language model; a scorer says what each answer is worth."""

    kind: Literal["chat"]
    data: str = Field(description="JSON lines: a file beside the suite, or owner/name:v1/path")
    question: str = Field(default="question", description="the field with the question")
    answer: str | None = Field(default="answer", description="the field with the known answer")
    scorer: dict[str, Any] = Field(
        default_factory=lambda: {"kind": "known"}, description="as in a release spec"
    )
    system: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 128
    limit: Limit | None = None


class TableTask(_Strict):
    """Rows to a yes-or-no classifier over the Open Inference Protocol."""

    kind: Literal["table"]
    data: str
    features: str = Field(default="features", description="the field with a row's numbers")
    label: str = Field(default="label", description="the field with what was true, 0 or 1")
    group: str | None = Field(default=None, description="the field with the group, for fairness")
    input: str = Field(default="features", description="the model's input tensor")
    output: str = Field(default="probabilities", description="its output tensor")
    column: int = Field(default=-1, description="which column is the chance of 1")
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    limit: Limit | None = None


class RankTask(_Strict):
    """Callers to a recommender that scores every item."""

    kind: Literal["rank"]
    data: str
    features: str = "features"
    relevant: str = Field(default="relevant", description="the field with the right items' numbers")
    seen: str | None = Field(default=None, description="the field with items to leave out")
    input: str = "features"
    output: str = "scores"
    integers: bool = Field(default=False, description="the input tensor is of integers")
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    limit: Limit | None = None


class ClassifyTask(_Strict):
    """Texts to a classifier over the Open Inference Protocol."""

    kind: Literal["classify"]
    data: str
    text: str = Field(default="text", description="the field with a row's text")
    label: str = Field(default="label", description="the field with the right class")
    classes: tuple[str, ...] = Field(
        min_length=2, max_length=10_000, description="in the order of the model's output"
    )
    group: str | None = Field(default=None, description="the field with the group, for fairness")
    positive: str | None = Field(
        default=None, description="for fairness: the class that is a yes; none: the last one"
    )
    input: str = Field(default="text", description="the model's input tensor")
    output: str = Field(default="probabilities", description="its output tensor")
    limit: Limit | None = None

    @model_validator(mode="after")
    def _known(self) -> ClassifyTask:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is named twice")
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"positive is {self.positive!r}, which is none of the classes")
        return self


class PerplexityTask(_Strict):
    """Texts to a language model that says how likely it holds them (completions with echo)."""

    kind: Literal["perplexity"]
    data: str
    text: str = Field(default="text", description="the field with a row's text")
    prompt: str | None = Field(
        default=None, description="a field with what comes before it, and is not counted"
    )
    limit: Limit | None = None


class LmEvalTask(_Strict):
    """One task of lm-evaluation-harness, in a folder beside the suite: its YAML, data and code."""

    kind: Literal["lm_eval"]
    include: str = Field(description="the folder; its Python is code that is run")
    task: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
    shots: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None, description="examples before each question; none: as the task says"
    )
    chat_template: bool = Field(default=False, description="put prompts as a chat")
    max_length: Annotated[int, Field(ge=2, le=10_000_000)] | None = Field(
        default=None, description="tokens of a prompt; none: the version's context"
    )
    at_once: Annotated[int, Field(ge=1, le=256)] = 8
    timeout: Duration = 3600.0
    limit: Limit | None = None


class InspectTask(_Strict):
    """One task of Inspect, in a folder beside the suite: its Python file and its data."""

    kind: Literal["inspect"]
    include: str = Field(description="the folder; its Python is code that is run")
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}\.py$")]
    task: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    at_once: Annotated[int, Field(ge=1, le=256)] = 8
    timeout: Duration = 3600.0
    limit: Limit | None = None


RowsTask = ChatTask | TableTask | RankTask | ClassifyTask | PerplexityTask
HarnessTask = LmEvalTask | InspectTask
Task = RowsTask | HarnessTask
TaskSpec = Annotated[Task, Field(discriminator="kind")]


class SuiteSpec(_Strict):
    """Tasks by name."""

    suite: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    tasks: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")], TaskSpec] = Field(
        min_length=1, max_length=100
    )


def read_suite(path: Path) -> SuiteSpec:
    """Reads a suite; raises SpecError with every mistake, UsageError when it can't be read."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the suite {path} can't be read: {error}") from error
    return document.parse(text, SuiteSpec, hint="docs/gates.md describes suites")
