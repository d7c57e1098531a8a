"""YAML from a stranger → a checked value: all mistakes at once, each with its path and line.

Pure: text in, a pydantic model out. Every file that people write for lockgate is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lockgate.core.errors import LockgateError, Problem, SpecError

_MAX_BYTES = 1_000_000
M = TypeVar("M", bound=BaseModel)


def parse(text: str, kind: type[M], *, hint: str | None = None) -> M:
    """Reads one YAML document; raises SpecError with every mistake, each with its path and line."""
    data = load(text, documents=1, hint=hint)
    if len(data) != 1 or not isinstance(data[0], dict):
        raise SpecError([Problem(path="spec", message="it is not a mapping of names to values")],
                        hint=hint)  # fmt: skip
    node = next(iter(yaml.compose_all(text, Loader=yaml.SafeLoader)))
    return validate(data[0], kind, node, hint=hint)


def load(text: str, *, documents: int = 100, hint: str | None = None) -> list[Any]:
    """Returns the documents of a stranger's YAML; raises SpecError for what is none, or a trick."""
    if len(text) > _MAX_BYTES:
        problem = Problem(path="spec", message=f"it is longer than {_MAX_BYTES} bytes")
        raise SpecError([problem], hint=hint)
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        for node in nodes:
            _refuse_tricks(node, set())
        if len(nodes) > documents:
            raise _error([Problem(path="spec", message=f"it holds {len(nodes)} documents")])
        return list(yaml.safe_load_all(text))
    except SpecError as error:
        raise SpecError(error.problems, hint=hint) from None
    except (yaml.YAMLError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError,
            AttributeError) as error:  # fmt: skip
        mark = getattr(error, "problem_mark", None)
        said = str(getattr(error, "problem", None) or error)
        problem = Problem(
            path="spec", message=f"it is not YAML: {said}", line=mark and mark.line + 1
        )
        raise SpecError([problem], hint=hint) from error


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


def validate(
    data: Mapping[str, Any], kind: type[M], node: yaml.Node | None = None, *,
    hint: str | None = None,
) -> M:  # fmt: skip
    """Returns the `kind` of already parsed values; raises SpecError with every mistake.

    `node`: the text that they were parsed from, for line numbers.
    """
    try:
        return kind.model_validate(dict(data))
    except (RecursionError, OverflowError) as error:
        message = "it is nested too deep, or holds a number that is too large"
        raise SpecError([Problem(path="spec", message=message)], hint=hint) from error
    except ValidationError as error:
        problems = [
            Problem(
                path=".".join(str(part) for part in item["loc"]) or "spec",
                message=say(item),
                line=_line(node, item["loc"]),
            )
            for item in error.errors()
        ]
        unique = sorted(dict.fromkeys(problems), key=lambda problem: problem.line or 0)
        raise SpecError(unique, hint=hint) from error


def ours(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wraps one of our parsers, so that its error is one that pydantic collects."""

    def wrapped(value: Any) -> Any:
        try:
            return function(value)
        except LockgateError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise ValueError(error.message + hint) from error
        except OverflowError as error:
            raise ValueError("it is too large") from error

    return wrapped


def say(item: Any) -> str:
    """Returns one of pydantic's findings in our words."""
    if item["type"] == "extra_forbidden":
        return "there is no such setting"
    if item["type"] == "missing":
        return "it is missing"
    message: str = item["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def line_of(text: str, location: Sequence[str | int]) -> int | None:
    """Returns the line of the deepest part of `location` in YAML that `parse` has read."""
    return _line(next(iter(yaml.compose_all(text, Loader=yaml.SafeLoader))), location)


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
    return SpecError(problems)
