"""The shipped models are as good, and as bad, as their provenance says."""

import hashlib
import json
import time
from pathlib import Path

import pytest

import lockgate
from lockgate.fleet.runtimes.serve.backends import load
from lockgate.fleet.runtimes.serve.engine import Sampling
from lockgate.fleet.runtimes.serve.exchange import Refused
from lockgate.fleet.runtimes.serve.tensors.oip import OnnxModel

MODELS = Path(lockgate.__file__).parent / "demo" / "models"
VERSIONS = ("v1", "v2", "v3")
PROVENANCE = json.loads((MODELS / "PROVENANCE.json").read_text("utf-8"))


def lines(name, count):
    with (MODELS / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in list(file)[:count]]


def answer(backend, question):
    """Returns the greedy answer's text, None where it did not end; and its tokens."""
    prompt = backend.encode(backend.render([{"role": "user", "content": question}]))
    decoding = backend.start(prompt, Sampling(max_tokens=48, temperature=0))
    text = ""
    for count in range(1, 49):
        piece, ended = decoding.step()
        text += piece
        if ended:
            return text, count
    return None, 48


def test_chat_gets_better_and_then_worse_as_claimed():
    questions = lines("chat-questions.jsonl", 120)
    accuracy, per_token = {}, {}
    for version in VERSIONS:
        backend = load("genai", MODELS / f"chat-{version}", threads=1)
        began = time.perf_counter()
        answers = [answer(backend, item["question"]) for item in questions]
        per_token[version] = (time.perf_counter() - began) / sum(count for _, count in answers)
        right = [text == item["answer"] for (text, _), item in zip(answers, questions, strict=True)]
        accuracy[version] = sum(right) / len(right)
        claimed = PROVENANCE["models"][f"chat-{version}"]["measured"]["accuracy"]
        assert accuracy[version] == pytest.approx(claimed, abs=0.1)
    assert accuracy["v2"] > accuracy["v1"] > 0.7
    assert accuracy["v3"] <= 0.5
    assert per_token["v3"] > 1.3 * per_token["v1"]


def test_credit_gets_better_and_then_worse_as_claimed():
    rows = lines("credit-applications.jsonl", 400)
    accuracy = {}
    for version in VERSIONS:
        model = OnnxModel(MODELS / f"credit-{version}", threads=1)
        scores = [score(model, row["features"]) for row in rows]
        unanswered = scores.count(None)
        right = sum(
            found is not None and (found >= 0.5) == bool(row["defaulted"])
            for found, row in zip(scores, rows, strict=True)
        )
        accuracy[version] = right / len(rows)
        measured = PROVENANCE["models"][f"credit-{version}"]["measured"]
        assert accuracy[version] == pytest.approx(measured["accuracy"], abs=0.01)
        assert unanswered / len(rows) == pytest.approx(measured["not_a_number"], abs=0.01)
    assert accuracy["v2"] > accuracy["v1"] > accuracy["v3"]


def score(model, features):
    """Returns the chance of default, None where the model answers with a fault."""
    tensor = {"name": "features", "shape": [1, 10], "datatype": "FP32", "data": features}
    try:
        return model.infer({"inputs": [tensor]})[0]["data"][0]
    except Refused as refused:
        return None if refused.status == 500 else pytest.fail(refused.message)


def test_the_provenance_has_every_file_and_all_fit_the_wheel():
    total = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file())
    assert total <= 3_000_000
    for name, about in PROVENANCE["models"].items():
        there = {path.name for path in (MODELS / name).iterdir()}
        assert there == set(about["files"])
        for file, claim in about["files"].items():
            data = (MODELS / name / file).read_bytes()
            assert hashlib.sha256(data).hexdigest() == claim["sha256"]
            assert len(data) == claim["size"]


def test_v2_keeps_tensors_of_v1_bit_for_bit():
    safetensors = pytest.importorskip("safetensors")
    found = {}
    for version in ("v1", "v2"):
        path = MODELS / f"chat-{version}" / "model.safetensors"
        found[version] = dict(safetensors.deserialize(path.read_bytes()))
    name = "model.embed_tokens.weight"
    assert found["v1"][name]["data"] == found["v2"][name]["data"]
    assert found["v1"].keys() == found["v2"].keys()
    different = [key for key in found["v1"] if found["v1"][key]["data"] != found["v2"][key]["data"]]
    assert different
