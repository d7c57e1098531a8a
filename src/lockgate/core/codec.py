"""Plain dataclasses ⇄ JSON values, driven by their type hints.

Unknown fields are ignored and missing ones take their defaults, so that yesterday's records are
read by today's code and today's by yesterday's.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lockgate.core.errors import IntegrityError

T = TypeVar("T")


def to_json(value: object) -> Any:
    """Returns `value` (dataclasses, tuples and mappings, nested) as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], data: object) -> T:
    """Returns the `kind` that `data` (JSON values) describes.

    Raises IntegrityError when a field is missing or has another type.
    """
    result: T = _read(kind, data, kind.__name__)
    return result


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, data: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _read_optional(kind, data, where)
    if origin is Literal:
        return _expect(data in get_args(kind), data, kind, where)
    if origin is tuple:
        _expect(isinstance(data, list), data, kind, where)
        item = get_args(kind)[0]
        return tuple(_read(item, value, f"{where}[{i}]") for i, value in enumerate(data))
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(data, Mapping), data, kind, where)
        item = get_args(kind)[1]
        return {key: _read(item, value, f"{where}.{key}") for key, value in data.items()}
    if is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind in (str, int, float, bool):
        same = isinstance(data, kind) and (kind is bool or not isinstance(data, bool))
        return _expect(same, data, kind, where)
    return data


def _read_optional(kind: Any, data: Any, where: str) -> Any:
    choices = [choice for choice in get_args(kind) if choice is not type(None)]
    return None if data is None else _read(choices[0], data, where)


def _read_dataclass(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, Mapping), data, kind, where)
    hints = _hints(kind)
    values = {}
    for f in fields(kind):
        if f.name in data:
            values[f.name] = _read(hints[f.name], data[f.name], f"{where}.{f.name}")
        elif f.default is MISSING and f.default_factory is MISSING:
            raise IntegrityError(f"{where} has no field {f.name!r}")
    return kind(**values)


def _expect(right: bool, data: Any, kind: Any, where: str) -> Any:
    if not right:
        shown = repr(data)[:80]
        raise IntegrityError(f"{where} should be {getattr(kind, '__name__', kind)}, not {shown}")
    return data
