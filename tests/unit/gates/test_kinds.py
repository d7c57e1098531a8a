"""Tasks of texts: classes and perplexity, asked of versions that answer from a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.core.errors import SpecError, UsageError
from lockgate.gates.evaluation import Evaluation, EvaluationSettings
from lockgate.gates.fairness import Fairness, FairnessSettings
from lockgate.gates.measure.metrics import classes, macro_f1

from .world import CANDIDATE, Answers, Room

CLASSES = ["billing", "fault", "praise"]
CLASSIFY = """
suite: texts
tasks:
  letters:
    kind: classify
    data: letters.jsonl
    classes: [billing, fault, praise]
    group: style
    positive: fault
"""
PERPLEXITY = """
suite: texts
tasks:
  held: {kind: perplexity, data: held.jsonl, prompt: before}
"""


def sorted_by(chances: Mapping[str, Sequence[float]]) -> Answers:
    """Gives a text the chances of the first word in it that is known."""

    def post(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        (tensor,) = body["inputs"]
        assert tensor["datatype"] == "BYTES"
        rows = [next(c for word, c in chances.items() if word in text) for text in tensor["data"]]
        flat = [value for row in rows for value in row]
        shape = [len(rows), len(rows[0])]
        return {"outputs": [{"name": "probabilities", "shape": shape, "data": flat}]}

    return post


@pytest.fixture
def room(tmp_path: Path) -> Room:
    room = Room(tmp_path)
    letters = [
        {"text": f"the {word} {number}", "label": label, "style": ("curt", "kind")[number % 2]}
        for number in range(40)
        for word, label in (("invoice", "billing"), ("smoke", "fault"), ("thanks", "praise"))
    ]
    room.lines("letters.jsonl", letters)
    room.text("suite.yaml", CLASSIFY)
    return room


def judge(room: Room, metrics: dict[str, Any]) -> Any:
    settings = EvaluationSettings.model_validate({"suite": "suite.yaml", "metrics": metrics})
    return Evaluation().judge(settings, room.asked(baseline=None))


def test_a_classifier_of_texts_is_measured(room: Room) -> None:
    room.answers(CANDIDATE, sorted_by({"invoice": (0.8, 0.1, 0.1), "smoke": (0.2, 0.7, 0.1),
                                       "thanks": (0.6, 0.1, 0.3)}))  # fmt: skip
    found = judge(room, {
        "letters.accuracy": {"at_least": 0.6}, "letters.macro_f1": {"at_least": 0.5},
        "letters.log_loss": {"at_most": 1}, "letters.calibration_error": {"at_most": 0.9},
    })  # fmt: skip
    said = {check.signal: check.value for check in found.checks}
    assert found.outcome == "pass"
    assert said["letters.accuracy"] == pytest.approx(2 / 3)
    assert said["letters.macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert said["letters.log_loss"] == pytest.approx(-(log(0.8) + log(0.7) + log(0.3)) / 3)
    wrong = (abs(1 - 0.8) + abs(1 - 0.7) + abs(0 - 0.6)) / 3
    assert said["letters.calibration_error"] == pytest.approx(wrong)


def test_rows_may_be_a_table_of_the_step_split(room: Room) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    columns = {
        "text": ["the smoke 1", "thanks 2"],
        "label": ["fault", "praise"],
        "style": ["a"] * 2,
    }
    pq.write_table(pa.table(columns), room.folder / "test.parquet")
    room.text("suite.yaml", CLASSIFY.replace("letters.jsonl", "test.parquet"))
    room.answers(CANDIDATE, sorted_by({"smoke": (0.2, 0.7, 0.1), "thanks": (0.6, 0.1, 0.3)}))
    found = judge(room, {"letters.accuracy": {"at_least": 0.5}})
    assert (found.checks[0].value, found.checks[0].n) == (0.5, 2)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), room.folder / "test.parquet")
    with pytest.raises(UsageError, match="has no rows"):
        judge(room, {"letters.accuracy": {"at_least": 0.5}})


def test_two_classes_have_an_area_too() -> None:
    labels = np.array([0, 0, 1, 1])
    ones = np.array([0.1, 0.6, 0.5, 0.9])
    found = {m.name: m.value for m in classes(labels, np.column_stack([1 - ones, ones]))}
    assert found["auc"] == pytest.approx(0.75)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_macro_f1_is_what_scikit_learn_says(pairs: list[tuple[int, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    labels, said = (np.array(side) for side in zip(*pairs, strict=True))
    wanted = metrics.f1_score(labels, said, average="macro", zero_division=0)
    assert macro_f1(labels, said) == pytest.approx(wanted)


def test_fairness_looks_at_one_class_of_several(room: Room) -> None:
    def post(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        texts = body["inputs"][0]["data"]
        rows = [(0.1, 0.8, 0.1) if "smoke" in t and int(t.split()[-1]) % 2 else (0.8, 0.1, 0.1)
                for t in texts]  # fmt: skip
        flat = [value for row in rows for value in row]
        return {"outputs": [{"name": "probabilities", "shape": [len(rows), 3], "data": flat}]}

    room.answers(CANDIDATE, post)
    settings = FairnessSettings(
        suite="suite.yaml", task="letters", opportunity=0.1, smallest_group=10
    )
    found = Fairness().judge(settings, room.asked(baseline=None))
    assert found.outcome == "fail"
    assert found.checks[0].value == pytest.approx(1.0)
    assert "kind 1.000, curt 0.000" in found.reason


def test_another_number_of_classes_is_told(room: Room) -> None:
    room.answers(CANDIDATE, sorted_by({"the": (0.5, 0.5)}))
    with pytest.raises(UsageError, match="tells 2 classes apart, the task names 3"):
        judge(room, {"letters.accuracy": {"at_least": 0}})


def test_a_label_that_is_no_class_is_told_with_its_row(room: Room) -> None:
    room.answers(CANDIDATE, sorted_by({"the": (0.5, 0.3, 0.2)}))
    room.lines("letters.jsonl", [{"text": "a", "label": "love", "style": "x"}])
    with pytest.raises(UsageError, match="row 1: 'love' is none of"):
        judge(room, {"letters.accuracy": {"at_least": 0}})


@pytest.mark.parametrize("wrong", ["classes: [a, a]", "classes: [a]", "positive: nobody"])
def test_a_suite_with_strange_classes_is_refused(room: Room, wrong: str) -> None:
    key = wrong.partition(":")[0]
    text = "\n".join(
        f"    {wrong}" if line.strip().startswith(key) else line for line in CLASSIFY.splitlines()
    )
    room.text("suite.yaml", text)
    with pytest.raises(SpecError):
        judge(room, {"letters.accuracy": {"at_least": 0}})


def likely(chance: float) -> Answers:
    """Scores texts: each character is a token with this chance, but for the first."""

    def post(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        assert path == "/v1/completions"
        text = body["prompt"]
        scores = [None, *[log(chance)] * (len(text) - 1)]
        logprobs = {"token_logprobs": scores, "tokens": list(text)}
        return {"choices": [{"text": text, "logprobs": logprobs}]}

    return post


def test_perplexity_is_the_inverse_of_the_mean_chance(room: Room) -> None:
    room.text("suite.yaml", PERPLEXITY)
    rows = [{"before": "Q ", "text": "a" * n} for n in (3, 5, 8)]
    room.lines("held.jsonl", rows)
    room.answers(CANDIDATE, likely(0.25))
    found = judge(room, {"held.perplexity": {"at_most": 5}, "held.bits_per_byte": {"at_most": 3}})
    said = {check.signal: check.value for check in found.checks}
    assert said["held.perplexity"] == pytest.approx(4)
    assert said["held.bits_per_byte"] == pytest.approx(2)
    assert exp(log(4)) == pytest.approx(said["held.perplexity"])


def test_the_prompt_is_not_counted(room: Room) -> None:
    room.text("suite.yaml", PERPLEXITY)
    room.lines("held.jsonl", [{"before": "easy", "text": "hard"}])

    def post(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        tokens = list(body["prompt"])
        scores = [None, *[-0.1] * 3, *[-2.0] * 4][: len(tokens)]
        return {"choices": [{"logprobs": {"token_logprobs": scores, "tokens": tokens}}]}

    room.answers(CANDIDATE, post)
    found = judge(room, {"held.perplexity": {"at_least": 0}})
    assert found.checks[0].value == pytest.approx(exp(2))


def test_a_server_that_scores_nothing_is_told(room: Room) -> None:
    room.text("suite.yaml", PERPLEXITY)
    room.lines("held.jsonl", [{"before": "", "text": "word"}])
    room.answers(CANDIDATE, lambda *_: {"choices": [{"text": "x", "logprobs": None}]})
    with pytest.raises(UsageError, match="does not score prompts"):
        judge(room, {"held.perplexity": {"at_most": 9}})
