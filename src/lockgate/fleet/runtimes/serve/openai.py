"""OpenAI's API: what a request may say, and the shapes of answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lockgate.fleet.runtimes.serve.engine import Reason, Sampling
from lockgate.fleet.runtimes.serve.exchange import Refused
from lockgate.fleet.runtimes.serve.scored import Scored

Body = Mapping[str, object]
_ROLES = ("system", "developer", "user", "assistant", "tool")
_UNSUPPORTED = {"n": 1, "best_of": 1, "suffix": None}
_MOST_BEST = 20
_NOT_HERE = ("tools", "functions", "logit_bias", "audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A checked request. Exactly one of `messages`, `text` and `tokens` is set."""

    sampling: Sampling
    explicit_limit: bool
    stream: bool
    include_usage: bool
    messages: tuple[dict[str, str], ...] | None = None
    text: str | None = None
    tokens: tuple[int, ...] | None = None


def parse(body: Body, *, chat: bool, temperature: float) -> Ask:
    """Checks a request to `/v1/chat/completions` (`chat`) or `/v1/completions`.

    Unknown fields are ignored, as OpenAI-compatible servers do; a known field that would change
    the answer and is not served here is Refused (400), as is a value of a wrong type or range.
    """
    _refuse_unsupported(body)
    score = _score(body, chat=chat)
    limit = _limit(body, low=1 if score is None else 0)
    stream = _flag(body, "stream")
    if score is not None and (stream or limit not in (0, 1) or body.get("temperature")):
        raise _bad("echo", "the prompt is scored with max_tokens 0 or 1, temperature 0, no stream")
    source = {"messages": _messages(body)} if chat else _prompt(body)
    return Ask(
        sampling=Sampling(
            max_tokens=limit or 0,
            temperature=_number(body, "temperature", temperature, low=0, high=2),
            top_p=_number(body, "top_p", 1.0, low=0, high=1),
            top_k=_integer(body, "top_k", 0, low=-1) or 0,
            seed=_integer(body, "seed", None, low=-(2**63), high=2**63 - 1),
            stop=_stops(body),
            score=score,
        ),
        explicit_limit=limit is not None,
        stream=stream,
        include_usage=_include_usage(body, stream=stream),
        **source,
    )


def limited(ask: Ask, room: int) -> Sampling:
    """Returns the sampling of `ask`, its answer limited to `room` where it named no limit."""
    return ask.sampling if ask.explicit_limit else replace(ask.sampling, max_tokens=room)


def _bad(param: str, message: str) -> Refused:
    return Refused(400, f"{param}: {message}", param=param, code="invalid_value")


def _refuse_unsupported(body: Body) -> None:
    for name, only in _UNSUPPORTED.items():
        value = body.get(name)
        if value is not None and value is not False and value != only:
            raise _bad(name, "this server does not serve it; leave it out")
    for name in _NOT_HERE:
        if body.get(name):
            raise _bad(name, "this server does not serve it; leave it out")
    form = body.get("response_format")
    if form is not None and form != {"type": "text"}:
        raise _bad("response_format", "this server answers with text only")


def _score(body: Body, *, chat: bool) -> int | None:
    """Returns how many of the likeliest tokens to tell, when the prompt is to be scored."""
    echo, wanted = _flag(body, "echo"), body.get("logprobs")
    if not echo and (wanted is None or wanted is False):
        return None
    if chat or not echo or wanted is None or isinstance(wanted, bool):
        raise _bad("logprobs", "served in /v1/completions only, a number together with 'echo'")
    return _integer(body, "logprobs", None, low=0, high=_MOST_BEST)


def _limit(body: Body, *, low: int) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if body.get(name) is not None:
            return _integer(body, name, None, low=low, high=2**31 - 1)
    return None


def _flag(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _bad(name, "must be true or false")
    return value


def _number(body: Body, name: str, default: float, *, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _bad(name, f"must be a number from {low:g} to {high:g}")
    if not math.isfinite(value):
        raise _bad(name, "must be finite")
    return float(value)


def _integer(
    body: Body, name: str, default: int | None, *, low: int, high: int = 2**31 - 1
) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(name, "must be a whole number")
    if not low <= value <= high:
        raise _bad(name, f"must be from {low} to {high}")
    return value


def _stops(body: Body) -> tuple[str, ...]:
    value = body.get("stop")
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or len(stops) > 16:
        raise _bad("stop", "must be a text or a list of at most 16 texts")
    if not all(isinstance(stop, str) and 0 < len(stop) <= 1000 for stop in stops):
        raise _bad("stop", "each must be a text of 1 to 1000 characters")
    return tuple(stops)


def _include_usage(body: Body, *, stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict):
        raise _bad("stream_options", "must be an object, and only when 'stream' is true")
    return _flag(options, "include_usage")


def _text(value: object, param: str) -> str:
    """Returns `value` when it is text that can be encoded; lone surrogates and NUL can't."""
    if not isinstance(value, str):
        raise _bad(param, "must be a text")
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise _bad(param, "has a NUL or half a surrogate pair, which is not text")
    return value


def _messages(body: Body) -> tuple[dict[str, str], ...]:
    value = body.get("messages")
    if not isinstance(value, list) or not value:
        raise _bad("messages", "must be a list with at least one message")
    return tuple(_message(item, f"messages[{at}]") for at, item in enumerate(value))


def _message(item: object, param: str) -> dict[str, str]:
    if not isinstance(item, dict):
        raise _bad(param, "must be an object with 'role' and 'content'")
    role = item.get("role")
    if role not in _ROLES:
        raise _bad(f"{param}.role", f"must be one of {', '.join(_ROLES)}")
    content = item.get("content")
    if isinstance(content, list):
        return {"role": str(role), "content": "".join(_part(part, param) for part in content)}
    return {"role": str(role), "content": _text(content, f"{param}.content")}


def _part(part: object, param: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise _bad(f"{param}.content", "may hold parts of type 'text' only")
    return _text(part.get("text"), f"{param}.content")


def _prompt(body: Body) -> dict[str, object]:
    value = body.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return {"text": _text(value, "prompt")}
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        if not all(0 <= token < 2**31 for token in value):
            raise _bad("prompt", "has a token that is no token")
        return {"tokens": tuple(value)}
    raise _bad("prompt", "must be one text, or one list of tokens")


def error(refused: Refused) -> dict[str, object]:
    """Returns the body of an error answer."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    about = {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}
    return {"error": about}


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Returns the count of tokens in OpenAI's shape."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Makes the bodies of one answer; `head` has what all of them repeat."""

    chat: bool
    head: Mapping[str, object]

    def whole(self, text: str, reason: Reason, counts: dict[str, int]) -> dict[str, object]:
        """Returns a plain answer."""
        return {**self._head("chat.completion"), "choices": self._whole(text, reason)} | {
            "usage": counts
        }

    def scored(self, found: Scored, counts: dict[str, int]) -> dict[str, object]:
        """Returns the answer to a prompt that was to be scored: its text again, and how likely."""
        choice = {"index": 0, "text": "".join(found.tokens), "logprobs": found.body(),
                  "finish_reason": "length"}  # fmt: skip
        return {**self._head("text_completion"), "choices": [choice], "usage": counts}

    def _whole(self, text: str, reason: Reason) -> Sequence[dict[str, object]]:
        said: dict[str, object] = {"text": text}
        if self.chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return [{"index": 0, **said, "logprobs": None, "finish_reason": reason}]

    def chunk(self, text: str, reason: Reason | None, *, first: bool) -> dict[str, object]:
        """Returns one event of a stream; the first one of a chat names the role."""
        said: dict[str, object] = {"text": text}
        if self.chat:
            delta: dict[str, object] = {"role": "assistant"} if first else {}
            said = {"delta": delta | ({"content": text} if text or first else {})}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def tail(self, counts: dict[str, int]) -> dict[str, object]:
        """Returns the last event of a stream that was asked to include usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": counts}

    def _head(self, kind: str) -> dict[str, object]:
        return {**self.head, "object": kind if self.chat else "text_completion"}
