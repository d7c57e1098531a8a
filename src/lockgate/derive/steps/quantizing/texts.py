"""Calibration texts: `.jsonl` files whose lines have a "text" or "messages"."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError

_MOST_LINES = 1_000_000
_MOST_LINE = 1 << 22


def texts_in(folder: Path, count: int, seed: int) -> list[Any]:
    """Returns up to `count` texts, str or lists of messages, chosen by `seed` in file order.

    Raises UsageError for a folder without lines, or with a line that is neither.
    """
    found = list(_lines(folder))
    if not found:
        raise UsageError(
            f"the calibration input {folder.name} has no .jsonl file with lines",
            hint='give a dataset whose lines have a "text" or "messages"',
        )
    chosen = sorted(random.Random(seed).sample(range(len(found)), min(count, len(found))))  # noqa: S311
    return [_text(*found[index]) for index in chosen]


def _lines(folder: Path) -> Iterator[tuple[str, str]]:
    left = _MOST_LINES
    for path in sorted(folder.rglob("*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as file:
            number = 0
            while left and (line := file.readline(_MOST_LINE)):
                number, left = number + 1, left - 1
                if line.strip():
                    yield f"{path.name}, line {number}", line


def _text(where: str, line: str) -> Any:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON", hint="mend the line") from error
    if isinstance(value, dict):
        text, messages = value.get("text"), value.get("messages")
        if isinstance(text, str) and text:
            return text
        if isinstance(messages, list) and messages:
            return messages
    raise UsageError(
        f'{where} has neither a "text" nor "messages"', hint="one of both is what is calibrated on"
    )
