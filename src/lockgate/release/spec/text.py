"""YAML from a stranger → a checked spec: all mistakes at once, each with its path and line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from lockgate.core.errors import Problem, SpecError
from lockgate.release.spec.shape import ReleaseSpec

_MAX_BYTES = 1_000_000


def parse_spec(text: str) -> ReleaseSpec:
    """Reads a spec; raises SpecError with every mistake, each with its path and line."""
    data = load(text, documents=1)
    if len(data) != 1 or not isinstance(data[0], dict):
        raise _error([Problem(path="spec", message="it is not a mapping of names to values")])
    return _validate(data[0], next(iter(yaml.compose_all(text, Loader=yaml.SafeLoader))))


def load(text: str, *, documents: int = 100) -> list[Any]:
    """Returns the documents of a stranger's YAML; raises SpecError for what is none, or a trick."""
    if len(text) > _MAX_BYTES:
        raise _error([Problem(path="spec", message=f"it is longer than {_MAX_BYTES} bytes")])
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        for node in nodes:
            _refuse_tricks(node, set())
        if len(nodes) > documents:
            raise _error([Problem(path="spec", message=f"it holds {len(nodes)} documents")])
        return list(yaml.safe_load_all(text))
    except SpecError:
        raise
    except (yaml.YAMLError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError,
            AttributeError) as error:  # fmt: skip
        mark = getattr(error, "problem_mark", None)
        said = str(getattr(error, "problem", None) or error)
        raise _error(
            [Problem(path="spec", message=f"it is not YAML: {said}", line=mark and mark.line + 1)]
        ) from error


def _refuse_tricks(node: yaml.Node | None, seen: set[int]) -> None:
    """Raises SpecError for an alias (`*x`, which can grow without end) or a key that stands twice.

    PyYAML would expand the first, and of the second take the last without a word.
    """
    line = node.start_mark.line + 1 if node else None
    if id(node) in seen:
        raise _error([Problem(path="spec", message="aliases ('*name') can't be used", line=line)])
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_tricks(item, seen)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            where = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _error([Problem(path="spec", message="a name is a plain text", line=where)])
            if key.value in keys:
                message = f"{key.value!r} stands here twice"
                raise _error([Problem(path=str(key.value), message=message, line=where)])
            keys.add(str(key.value))
            _refuse_tricks(value, seen)


def check_spec(data: Mapping[str, Any]) -> ReleaseSpec:
    """Returns the spec of already parsed values; raises SpecError with every mistake."""
    return _validate(dict(data), None)


def _validate(data: dict[str, Any], node: yaml.Node | None) -> ReleaseSpec:
    try:
        return ReleaseSpec.model_validate(data)
    except (RecursionError, OverflowError) as error:
        message = "it is nested too deep, or holds a number that is too large"
        raise _error([Problem(path="spec", message=message)]) from error
    except ValidationError as error:
        problems = [
            Problem(
                path=".".join(str(part) for part in item["loc"]) or "spec",
                message=_say(item),
                line=_line(node, item["loc"]),
            )
            for item in error.errors()
        ]
        unique = list(dict.fromkeys(problems))
        raise _error(sorted(unique, key=lambda problem: problem.line or 0)) from error


def _say(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "there is no such setting"
    if item["type"] == "missing":
        return "it is missing"
    message: str = item["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _line(node: yaml.Node | None, location: Sequence[str | int]) -> int | None:
    """Returns the line of the deepest part of `location` that stands in the text."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in location:
        found = _child(node, part)
        if found is None:
            break
        node, line = found
    return line


def _child(node: yaml.Node, part: str | int) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part].start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value, key.start_mark.line + 1
    return None


def _error(problems: Sequence[Problem]) -> SpecError:
    return SpecError(problems, hint="docs/release-spec.md describes every setting")
