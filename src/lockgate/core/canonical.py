"""Canonical JSON: one text for one value, so that its digest can be its name.

Keys sorted by code point, no white space, UTF-8, no NaN or infinity. Integers are written in
full; a float that holds a whole number keeps its `.0`, as Python's shortest repr writes it.
"""

from __future__ import annotations

import json

from lockgate.core.errors import UsageError


def dumps(value: object) -> str:
    """Returns the canonical JSON text of `value`.

    Raises UsageError for NaN, infinity, or a type that JSON does not have.
    """
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"this value has no canonical JSON form: {error}") from error


def encode(value: object) -> bytes:
    """Returns the canonical JSON of `value` as UTF-8 bytes.

    Raises UsageError for a value with no canonical form, lone surrogates included.
    """
    try:
        return dumps(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"this text is not valid Unicode: {error}") from error
