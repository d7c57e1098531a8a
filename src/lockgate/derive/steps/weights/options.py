"""What the parameters of several steps share, and how far a step is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import BaseModel, Field

from lockgate.core.errors import UsageError
from lockgate.derive.api import Advance, Work
from lockgate.derive.steps.weights.reader import Model, read_object
from lockgate.derive.steps.weights.writer import LEAST_SHARD

ShardBytes = Annotated[
    int, Field(ge=LEAST_SHARD, description="the most bytes of a file of weights; more are sharded")
]
KeepOthers = Annotated[
    bool,
    Field(
        description="keep the input's weights in other forms (ONNX, GGUF, …) though they are those"
        " of before"
    ),
]


def refuse_unused(given: BaseModel, choice: str, uses: Mapping[str, frozenset[str]]) -> None:
    """Raises ValueError for parameters that are set but that the method chosen has no use for.

    `choice` is the field that chooses; `uses` says which fields each of its values reads. Fields
    that none names are read by all. Set is what is not the default: recipes may spell defaults out.
    """
    chosen = str(getattr(given, choice))
    special = frozenset().union(*uses.values())
    if odd := changed(given, special - uses[chosen]):
        raise ValueError(f"{choice} {chosen} has no use for {', '.join(odd)}")


def changed(given: BaseModel, fields: Iterable[str]) -> list[str]:
    """Returns those of `fields` that are not their defaults, by name."""
    known = type(given).model_fields
    return sorted(name for name in fields if getattr(given, name) != known[name].default)


class Progress:
    """Counts bytes of weights done and reports them."""

    def __init__(self, work: Work, total: int) -> None:
        self._work = work
        self._total = total
        self._done = 0

    def add(self, size: int) -> None:
        """Says that `size` more bytes are done."""
        self._done += size
        self._work.report(Advance(done=self._done, total=self._total, unit="bytes"))


def say_left(work: Work, left: list[str]) -> None:
    """Logs the files that were not copied because they hold the weights of before."""
    if left:
        work.log(f"left behind, made from the weights of before: {', '.join(left)}")


def refuse_quantized(model: Model) -> None:
    """Raises UsageError for a model whose weights are quantized already."""
    if not (model.folder / "config.json").is_file():
        return
    settings = read_object(model.folder, "config.json").get("quantization_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise UsageError(
            f"the input {model.folder.name} is quantized already ({str(method)[:40]})",
            hint="start from the version that it was quantized from; `lineage` names it",
        )
