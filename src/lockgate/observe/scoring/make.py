"""From what a spec says of a scorer to the scorer."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError
from lockgate.observe.scoring.api import Scorer
from lockgate.observe.scoring.rules import Exact, Json, Known, Opposite, Pattern, Validates

NEEDS: Mapping[str, frozenset[str]] = {
    "exact": frozenset({"expected"}),
    "regex": frozenset({"pattern"}),
    "json": frozenset(),
    "known": frozenset({"answers"}),
    "similar": frozenset({"answers", "folder"}),
    "grader": frozenset({"url", "model"}),
}
"""Kind → what a spec must say of it."""
MAY: Mapping[str, frozenset[str]] = {
    "json": frozenset({"schema"}),
    "known": frozenset({"compare"}),
    "grader": frozenset({"prompt", "key_env"}),
}
"""Kind → what it may say besides; `invert` goes with every kind."""


def make_scorer(definition: Mapping[str, Any]) -> Scorer:
    """Returns the scorer that `definition` (`kind` and its options) describes.

    Raises UsageError for one that can't be made, also where a package that it needs is missing.
    """
    options = dict(definition)
    kind, inverted = str(options.pop("kind", "")), bool(options.pop("invert", False))
    if kind not in NEEDS:
        raise UsageError(f"{kind!r} is no kind of scorer: {', '.join(NEEDS)}")
    if lacking := NEEDS[kind] - options.keys():
        raise UsageError(f"a scorer of kind {kind} needs {', '.join(sorted(lacking))}")
    if extra := options.keys() - NEEDS[kind] - MAY.get(kind, frozenset()):
        raise UsageError(f"a scorer of kind {kind} takes no {', '.join(sorted(extra))}")
    made = _made(kind, options)
    return Opposite(scorer=made) if inverted else made


def _made(kind: str, options: Mapping[str, Any]) -> Scorer:
    match kind:
        case "exact":
            return Exact(expected=options["expected"])
        case "regex":
            return Pattern(pattern=_pattern(options["pattern"]))
        case "json":
            return Json(schema=_schema(options.get("schema")))
        case "known":
            answers = _stripped(options["answers"])
            return Known(answers=answers, compare=options.get("compare", "equal"))
        case "similar":
            return _similar(options)
    return _grader(options)


def _stripped(answers: Mapping[str, str]) -> dict[str, str]:
    return {question.strip(): answer for question, answer in answers.items()}


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{text!r} is not a regular expression: {error}") from error


def _schema(schema: Mapping[str, Any] | None) -> Validates | None:
    if schema is None:
        return None
    if outside := sorted(_outside(schema)):
        raise UsageError(f"a schema refers to itself only ('#/…'), not to {outside[0]!r}")
    _need("jsonschema", "json with a schema")
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UsageError(f"it is not a JSON schema: {error.message}") from error
    made: Validates = Draft202012Validator(schema)
    return made


def _outside(schema: Any) -> set[str]:
    """Returns the references that would have to be fetched."""
    if isinstance(schema, list):
        return {found for item in schema for found in _outside(item)}
    if not isinstance(schema, Mapping):
        return set()
    said = schema.get("$ref"), schema.get("$dynamicRef"), schema.get("$id")
    mine = {text for text in said if isinstance(text, str) and not text.startswith("#")}
    return mine.union(*(_outside(item) for item in schema.values()))


def _similar(options: Mapping[str, Any]) -> Scorer:
    _need("tokenizers", "similar")
    from lockgate.observe.scoring.similar import Similar

    return Similar(folder=Path(options["folder"]), answers=_stripped(options["answers"]))


def _grader(options: Mapping[str, Any]) -> Scorer:
    from lockgate.observe.scoring.grader import PROMPT, Grader

    url, prompt = options["url"], options.get("prompt", PROMPT)
    if not re.fullmatch(r"https?://\S+", url):
        raise UsageError(f"{url!r} is not the address of an OpenAI endpoint")
    if "{answer}" not in prompt:
        raise UsageError("the prompt of a grader has '{answer}' in it, and best '{question}'")
    key = ""
    if name := options.get("key_env"):
        key = os.environ.get(name, "")
        if not key:
            raise UsageError(f"the environment of the server has no {name} for the grader")
    return Grader(url=url, model=options["model"], prompt=prompt, key=key)


def _need(package: str, kind: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"a scorer of kind {kind} needs the package {package}",
            hint="pip install 'lockgate[scoring]' where the server runs",
        )
