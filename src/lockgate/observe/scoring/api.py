"""What a scorer sees and says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its answer: the last thing that the caller said, and what came back.

    `request` and `response` are the whole bodies, as JSON.
    """

    question: str
    answer: str
    request: Mapping[str, Any]
    response: Mapping[str, Any]


class Scorer(Protocol):
    """Says how good an answer is."""

    def score(self, exchange: Exchange) -> float | None:
        """Returns a number from 0 (bad) to 1 (good); None where it has nothing to say.

        Raises TemporaryError when it can't be asked just now.
        """
        ...


def exchange(request: Mapping[str, Any], response: Mapping[str, Any]) -> Exchange:
    """Returns what an OpenAI request and its answer say; texts are empty where there are none."""
    return Exchange(
        question=_question(request), answer=_answer(response), request=request, response=response
    )


def _question(request: Mapping[str, Any]) -> str:
    messages = request.get("messages")
    if isinstance(messages, list):
        for message in reversed(messages):
            if isinstance(message, Mapping) and message.get("role") == "user":
                return _text(message.get("content"))
        return ""
    return _text(request.get("prompt"))


def _answer(response: Mapping[str, Any]) -> str:
    choices = response.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(first, Mapping):
        return ""
    message = first.get("message")
    return _text(message.get("content") if isinstance(message, Mapping) else first.get("text"))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # parts, of which some are text
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(part for part in parts if isinstance(part, str))
    return ""
