"""Which steps there are: lockgate's own, and those that other packages bring by entry point."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, cast

from pydantic import ValidationError

from lockgate.core.document import say
from lockgate.core.errors import NotFoundError, Problem, SpecError, UsageError
from lockgate.derive.api import Step

GROUP = "lockgate.steps"
_OWN = {
    "clean": "lockgate.derive.steps.data.clean:Clean",
    "command": "lockgate.derive.steps.command:Command",
    "cast": "lockgate.derive.steps.convert:Cast",
    "convert-gguf": "lockgate.derive.steps.convert:ConvertGguf",
    "convert-onnx": "lockgate.derive.steps.convert:ConvertOnnx",
    "distil": "lockgate.derive.steps.distil:Distil",
    "ingest": "lockgate.derive.steps.data.ingest:Ingest",
    "merge": "lockgate.derive.steps.merge:Merge",
    "merge-lora": "lockgate.derive.steps.merge:MergeLora",
    "prune": "lockgate.derive.steps.prune:Prune",
    "quantize": "lockgate.derive.steps.quantize:Quantize",
    "shard": "lockgate.derive.steps.shard:Shard",
    "snapshot": "lockgate.derive.steps.data.snapshot:Snapshot",
    "split": "lockgate.derive.steps.data.split:Split",
    "tune": "lockgate.derive.steps.tune:Tune",
}


def known_steps() -> dict[str, str]:
    """Returns `module:Class` by name; a package can't take the name of one of lockgate's own."""
    others = {point.name: point.value for point in metadata.entry_points(group=GROUP)}
    return {**others, **_OWN}


def find_step(name: str) -> Step:
    """Returns the step `name`; raises NotFoundError, or UsageError when it can't be loaded."""
    known = known_steps()
    if name not in known:
        raise NotFoundError(
            f"there is no step {name!r}", hint=f"there are: {', '.join(sorted(known))}"
        )
    module, _, attribute = known[name].partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except Exception as error:
        raise UsageError(
            f"the step {name!r} ({known[name]}) can't be loaded: {type(error).__name__}: {error}"
        ) from error
    return cast("Step", made)


def check_parameters(
    step: Step, given: Mapping[str, Any], where: tuple[str, ...] = ("with",)
) -> dict[str, Any]:
    """Returns the parameters of `step` that are not its defaults, checked, as JSON values.

    (Defaults stand in the step's code, whose digest is in the recipe too.)

    Raises SpecError with every mistake, each below the path `where`.
    """
    hint = f"lockgate steps {step.name} describes them"
    if odd := list(_odd(given, where)):
        raise SpecError(odd, hint=hint)
    try:
        made = step.parameters.model_validate(given)
    except ValidationError as error:
        problems = [
            Problem(path=".".join([*where, *map(str, item["loc"])]), message=say(item))
            for item in error.errors()
        ]
        raise SpecError(problems, hint=hint) from error
    return cast("dict[str, Any]", made.model_dump(mode="json", exclude_defaults=True))


def _odd(value: Any, where: tuple[str, ...]) -> Iterator[Problem]:
    """Yields what JSON, and so a recipe, can't hold: NaN, infinities, halves of characters."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _odd(name, where)
            yield from _odd(inner, (*where, str(name)))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _odd(inner, (*where, str(place)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(path=".".join(where), message=f"{value} is no number that a recipe can hold")
    elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        yield Problem(path=ascii(".".join(where))[1:-1], message=f"{value!a} is not Unicode")
