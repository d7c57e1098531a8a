"""Whatever a body says, it is checked into a request or refused; nothing else can happen."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lockgate
from lockgate.fleet.runtimes.serve import openai
from lockgate.fleet.runtimes.serve.exchange import Refused, encode_json, read_json
from lockgate.fleet.runtimes.serve.tensors.oip import OnnxModel

CREDIT = Path(lockgate.__file__).parent / "demo" / "models" / "credit-v1"
NAMES = (
    *("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature"),
    *("top_p", "top_k", "seed", "stop", "stream", "stream_options", "n", "logprobs", "tools"),
    *("role", "content", "type", "text", "user", "include_usage", "response_format"),
    *("inputs", "outputs", "name", "shape", "datatype", "data", "features", "FP32", "score"),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(NAMES)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=20,
)
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8)


@contextmanager
def fine_or_refused():
    """Lets a refusal with 400 pass; everything else is a failure of the test."""
    try:
        yield
    except Refused as refused:
        encode_json(openai.error(refused))
        if refused.status != 400:
            raise


@given(BODIES, st.booleans())
@settings(max_examples=150, deadline=None)
def test_an_openai_body_is_checked_or_refused(body, chat):
    whole = {"messages": [{"role": "user", "content": "a"}], "prompt": "a"} | body
    for candidate in (body, whole):
        with fine_or_refused():
            ask = openai.parse(candidate, chat=chat, temperature=1.0)
            assert 0 <= ask.sampling.temperature <= 2
            assert ask.sampling.max_tokens >= 0


@pytest.fixture(scope="module")
def credit():
    return OnnxModel(CREDIT, threads=1)


@given(body=BODIES, part=BODIES)
@settings(max_examples=150, deadline=None)
def test_a_tensor_body_is_answered_or_refused(credit, body, part):
    tensor = {"name": "features", "shape": [1, 10], "datatype": "FP32", "data": [0] * 10}
    for candidate in (body, {"inputs": [tensor | part]}, {"inputs": [tensor], **body}):
        with fine_or_refused():
            encode_json(credit.infer(candidate))


@given(st.binary(max_size=40))
def test_bytes_are_an_object_or_refused(data):
    with fine_or_refused():
        assert isinstance(read_json(data), dict)


@given(st.dictionaries(st.text(max_size=4), st.text(max_size=4)))
def test_json_goes_out_and_comes_back(value):
    clean = json.loads(json.dumps(value).encode("utf-8", "replace"))
    with fine_or_refused():
        assert read_json(encode_json(clean)) == clean
