"""Server-sent events wherever they are cut, and when the tokens of an answer came."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.errors import TemporaryError
from lockgate.gates.measure.streams import events, listen


def said(text: str | None = None, **more: object) -> str:
    choice = {"index": 0, "delta": {"content": text} if text is not None else {}}
    return json.dumps({"choices": [choice], **more}, ensure_ascii=False)


def stream(*data: str) -> bytes:
    return "".join(f"data: {one}\n\n" for one in data).encode()


def ticking() -> Iterator[float]:
    return map(float, count(1))


def hear(*chunks: bytes) -> tuple[float | None, float | None, int]:
    clock = ticking()
    found = listen(chunks, lambda: next(clock))
    return found.first, found.last, found.tokens


TEXT = (
    b"\xef\xbb\xbf: a comment\r\ndata: one\r\rdata:two\ndata: \xc3\xa4\xe2\x82\xac\nid: 7\n"
    b"\n\nevent: ping\ndata\n\ndata: three\r\n\r\ndata: cut off\n"
)


@given(st.lists(st.integers(0, len(TEXT)), max_size=40))
def test_events_are_the_same_wherever_chunks_end(cuts: Sequence[int]) -> None:
    places = [0, *sorted(cuts), len(TEXT)]
    chunks = [TEXT[a:b] for a, b in pairwise(places)]
    assert list(events(chunks)) == ["one", "two\nä€", "", "three"]


def test_what_is_no_text_or_has_no_end_is_refused() -> None:
    with pytest.raises(TemporaryError, match="no UTF-8"):
        list(events([b"data: \xff\n\n"]))
    for endless in (b"x" * 1_000_000, b"data: " + b"y" * 1_000_000 + b"\n"):
        with pytest.raises(TemporaryError, match="more than"):
            list(events([endless] * 6))


def test_the_first_token_is_the_first_that_says_something() -> None:
    role = json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    end = json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    whole = stream(role, said("a"), ": x", said("b"), said("c"), end, "[DONE]", "rubbish")
    with pytest.raises(TemporaryError, match="no JSON"):
        hear(whole)
    whole = stream(role, said("a"), said("b"), said("c"), end, "[DONE]", "rubbish")
    assert hear(whole) == (2.0, 4.0, 3)
    thought = json.dumps({"choices": [{"delta": {"reasoning_content": "hm"}}]})
    assert hear(stream(thought, said("b"), end)) == (1.0, 2.0, 2)
    completion = [json.dumps({"choices": [{"text": text}]}) for text in ("", "a", "b")]
    assert hear(stream(*completion, "[DONE]")) == (2.0, 3.0, 2)


def test_usage_counts_where_it_is_told() -> None:
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": 9}})
    found = listen(
        [stream(said("a b"), said(" c"), usage, "[DONE]")], iter([1.0, 5.0, 9.0]).__next__
    )
    assert (found.first, found.last, found.tokens, found.between) == (1.0, 5.0, 9, 0.5)
    none = json.dumps({"choices": [], "usage": None})
    assert hear(stream(said("a"), said("b"), none, "[DONE]")) == (1.0, 2.0, 2)


def test_what_came_at_once_has_no_time_between() -> None:
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": 9}})
    assert listen([stream(said("all of it"), usage, "[DONE]")], lambda: 1.0).between is None
    assert listen([stream("[DONE]")], lambda: 1.0).first is None


@pytest.mark.parametrize(
    "chunks",
    [
        stream(said("a")),  # cut off
        stream(said("a"), json.dumps({"error": {"message": "out of memory"}}), "[DONE]"),
        stream("[1]"), stream("nonsense"), stream('{"choices": 7}'), stream('{"choices": [7]}'),
        b"", b"<html>", stream(said("a"))[:-1],
    ],
)  # fmt: skip
def test_a_broken_stream_is_an_error(chunks: bytes) -> None:
    with pytest.raises(TemporaryError):
        hear(chunks)
