"""A text is scored token by token, the same by both of our language runtimes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import lockgate
from lockgate.fleet.runtimes.serve import openai
from lockgate.fleet.runtimes.serve.backends import load
from lockgate.fleet.runtimes.serve.engine import Sampling
from lockgate.fleet.runtimes.serve.exchange import Refused
from lockgate.fleet.runtimes.serve.scored import score

FOLDER = Path(lockgate.__file__).parent / "demo" / "models" / "chat-v1"
TEXT = "What is 3 + 4? The sum of 3 and 4 is 7."
KINDS = ["genai", pytest.param("transformers", marks=pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"))]  # fmt: skip


def sampling(*, score: int = 1, answer: int = 0) -> Sampling:
    return Sampling(max_tokens=answer, temperature=0, score=score)


def test_scores_are_logarithms_of_a_softmax() -> None:
    logits = np.array([[0.0, 0.0], [1.0, 3.0], [9.0, 0.0]], np.float32)
    found = score(logits, [0, 1, 1], str, best=1, answer=True)
    assert found.tokens == ("0", "1", "1", "0")
    assert found.chances[0] is None
    assert found.chances[1] == pytest.approx(np.log(0.5))
    assert found.chances[2] == pytest.approx(np.log(1 / (1 + np.exp(-2))), abs=1e-6)
    assert found.best[2] == {"1": pytest.approx(found.chances[2])}
    assert found.body()["text_offset"] == [0, 1, 2, 3]


def test_scores_that_are_no_numbers_are_a_fault_of_the_model() -> None:
    with pytest.raises(ArithmeticError):
        score(np.array([[np.nan, 0.0]]), [0], str, best=0, answer=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_scores_what_it_would_say_as_likely(kind: str) -> None:
    backend = load(kind, FOLDER, threads=1)
    ids = backend.encode(TEXT)
    found = backend.start(ids, sampling(answer=1))
    assert len(found.tokens) == len(ids) + 1 == len(found.chances) == len(found.best)
    assert all(chance <= 0 for chance in found.chances[1:])
    assert [next(iter(best.values())) for best in found.best[1:]] >= list(found.chances[1:])
    assert next(iter(found.best[-1])) == found.tokens[-1]  # the answer is the likeliest


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_told_by_their_names(kind: str) -> None:
    backend = load(kind, FOLDER, threads=1)
    found = backend.start(backend.encode("<|start|><|user|>Hello<|end|>"), sampling())
    assert found.tokens[:2] == ("<|start|>", "<|user|>")
    assert found.tokens[-1] == "<|end|>"
    assert "".join(found.tokens) == "<|start|><|user|>Hello<|end|>"


def test_a_prompt_as_long_as_the_context_is_scored() -> None:
    backend = load("genai", FOLDER, threads=1)
    ids = (backend.encode(TEXT) * backend.context)[: backend.context]
    assert len(backend.start(ids, sampling()).tokens) == backend.context


def test_both_runtimes_find_the_same() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    one, other = (load(kind, FOLDER, threads=1) for kind in ("genai", "transformers"))
    ids = one.encode(TEXT)
    assert list(ids) == list(other.encode(TEXT))
    a, b = (np.array(x.start(ids, sampling()).chances[1:]) for x in (one, other))
    np.testing.assert_allclose(a, b, atol=0.2)  # the demo's ONNX is float32, its safetensors bf16


@pytest.mark.parametrize(
    "body",
    [
        {"echo": True},
        {"logprobs": 1},
        {"echo": True, "logprobs": 1},
        {"echo": True, "logprobs": 1, "max_tokens": 2},
        {"echo": True, "logprobs": 1, "max_tokens": 1, "stream": True},
        {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0.5},
        {"echo": True, "logprobs": 21, "max_tokens": 1},
        {"echo": True, "logprobs": True, "max_tokens": 1},
    ],
)
def test_what_is_not_scored_is_refused(body: dict) -> None:
    with pytest.raises(Refused):
        openai.parse({"prompt": "a", **body}, chat=False, temperature=0.0)


def test_a_chat_is_not_scored() -> None:
    message = {"role": "user", "content": "a"}
    body = {"messages": [message], "echo": True, "logprobs": 1, "max_tokens": 0}
    with pytest.raises(Refused):
        openai.parse(body, chat=True, temperature=0.0)


def test_a_prompt_is_scored_without_an_answer() -> None:
    body = {"prompt": "a", "echo": True, "logprobs": 0, "max_tokens": 0}
    ask = openai.parse(body, chat=False, temperature=1.0)
    assert ask.sampling.score == 0
    assert ask.sampling.max_tokens == 0
