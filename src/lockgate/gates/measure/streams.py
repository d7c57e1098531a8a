"""Answers that come token by token: server-sent events, and when their tokens came.

Events are read as the HTML standard has it (section 9.2.6): lines end with CR, LF or both, a
comment begins with a colon, an event ends with an empty line, and what the end cuts off is dropped.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lockgate.core.errors import TemporaryError

_MOST = 1 << 22  # characters of one event
_SAYING = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A whole streamed answer: when its first and last tokens came, and how many there were.

    `first` and `last` are times of the clock; None for an answer that said nothing.
    """

    first: float | None = None
    last: float | None = None
    tokens: int = 0

    @property
    def between(self) -> float | None:
        """The mean seconds from a token to the next; None for fewer than two, or all at once."""
        if self.first is None or self.last is None or self.tokens < 2 or self.first == self.last:
            return None
        return (self.last - self.first) / (self.tokens - 1)


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yields the data of each event, wherever the chunks are cut.

    Raises TemporaryError for bytes that are no UTF-8, and for an event without end.
    """
    data: list[str] = []
    size = 0
    for line in _lines(chunks):
        if not line:
            if data:
                yield "\n".join(data)
            data, size = [], 0
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))
                size += len(value) + 1
            if size > _MOST:
                raise TemporaryError(f"an event of the stream has more than {_MOST} characters")


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    rest = ""
    after_return = False  # the last line ended with CR: an LF that comes next belongs to it
    for chunk in chunks:
        try:
            text = decode(chunk)
        except UnicodeDecodeError as error:
            raise TemporaryError("the stream is no UTF-8") from error
        if after_return and text:
            text = text.removeprefix("\n")
            after_return = False
        if text.endswith("\r"):
            after_return = True
        *whole, rest = (rest + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
        yield from whole
        if len(rest) > _MOST:
            raise TemporaryError(f"a line of the stream has more than {_MOST} characters")


def listen(chunks: Iterable[bytes], clock: Callable[[], float]) -> Heard:
    """Returns when the tokens of a streamed answer came, in the shape that OpenAI's API has.

    Tokens are those that the answer says it used (`usage`), else the pieces that said something.
    Raises TemporaryError for an error in the stream, for events that are no JSON, and for a stream
    that ends before its answer does.
    """
    first = last = None
    pieces, used, ended = 0, None, False
    for data in events(chunks):
        if data.strip() == "[DONE]":
            ended = True
            break
        said = _object(data)
        now = clock()
        used = _used(said) or used
        choices = said.get("choices") or ()
        for choice in choices if isinstance(choices, list) else ():
            ended = ended or bool(choice.get("finish_reason"))
            if _says(choice):
                first, last, pieces = now if first is None else first, now, pieces + 1
    if not ended:
        raise TemporaryError("the stream ended before the answer did")
    return Heard(first=first, last=last, tokens=used or pieces)


def _object(data: str) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TemporaryError(f"an event of the stream is no JSON: {data[:80]}") from error
    if not isinstance(found, dict) or found.get("error"):
        raise TemporaryError(f"the stream broke off: {data[:200]}")
    choices = found.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
        raise TemporaryError(f"an event of the stream has no choices: {data[:80]}")
    return found


def _used(said: Mapping[str, Any]) -> int | None:
    usage = said.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count > 0 else None


def _says(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(delta.get(name) for name in _SAYING)
    return bool(choice.get("text"))
