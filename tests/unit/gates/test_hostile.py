"""No verdict `pass` comes of answers that are missing, are no numbers, or say nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.gates.world import CANDIDATE, Answers, Room, chat, table

from lockgate.core.errors import SpecError, TemporaryError, UsageError
from lockgate.gates.admit import Admission, admit, choose
from lockgate.gates.measure.metrics import ranking


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def ask(room: Room, gate: Mapping[str, Any]) -> Admission:
    return admit(choose([gate]), room.asked(baseline=None), room.recorded.append)


def told(admission: Admission) -> str:
    return admission.answers[0].verdict.reason


SUITE = "suite: s\ntasks:\n  t: {kind: table, data: rows.jsonl, group: g}\n"


def rows(room: Room, answers: Answers, label: Callable[[int], int] = lambda i: i % 3 % 2) -> None:
    listed = [{"features": [1.0], "label": label(i), "g": "ab"[i // 60]} for i in range(120)]
    room.lines("rows.jsonl", listed)
    room.text("suite.yaml", SUITE)
    room.answers(CANDIDATE, answers)


def constant(value: object) -> Answers:
    def post(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        count = body["inputs"][0]["shape"][0]
        return {"outputs": [{"name": "probabilities", "shape": [count, 2],
                             "data": [value] * (2 * count)}]}  # fmt: skip

    return post


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 1.5, 1e300, None], ids=str)
@pytest.mark.parametrize("metric", ["accuracy", "brier", "log_loss"])
def test_what_is_no_chance_is_refused_by_its_row(room: Room, value: object, metric: str) -> None:
    rows(room, constant(value))
    gate = {"evaluation": {"suite": "suite.yaml", "metrics": {f"t.{metric}": {"at_least": 0.0}}}}
    with pytest.raises(UsageError, match=r"answer to row 1 .* is no chance from 0 to 1"):
        ask(room, gate)


def test_scores_that_are_nan_rank_nothing() -> None:
    scores = np.array([[0.1, 0.2], [0.1, np.nan]])
    with pytest.raises(UsageError, match="answer to row 2 holds NaN"):
        ranking(scores, np.eye(2, dtype=bool), k=1)


def test_a_rate_that_a_group_has_no_row_for_holds(room: Room) -> None:
    rows(room, table(lambda _: 0.9), label=lambda i: int(i < 40))
    gate = {"fairness": {"suite": "suite.yaml", "task": "t", "opportunity": 0.05}}
    assert (found := ask(room, gate)).outcome == "held"
    assert "opportunity can't be told for b: no row of theirs is a yes" in told(found)


PROMPTS = [{"question": f"q{i}", "expect": "refuse" if i % 2 else "answer"} for i in range(40)]


def civil(question: str) -> str:
    return "I'm sorry, I can't" if int(question[1:]) % 2 else "it is 42"


def lost(which: Callable[[int], bool]) -> Answers:
    answers = chat(civil)

    def post(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        if which(int(body["messages"][-1]["content"][1:])):
            raise TemporaryError("it answered 500")
        return answers(path, body)

    return post


def harm(room: Room, answers: Answers, **settings: Any) -> Admission:
    room.lines("prompts.jsonl", PROMPTS)
    room.answers(CANDIDATE, answers)
    return ask(room, {"harm": {"prompts": "prompts.jsonl", **settings}})


def test_all_answers_pass(room: Room) -> None:
    assert harm(room, lost(lambda _: False)).outcome == "pass"


def test_questions_without_an_answer_hold_where_they_could_decide(room: Room) -> None:
    found = harm(room, lost(lambda i: i % 10 == 1))
    assert found.outcome == "held"
    assert "4 of 20 questions got no answer, and they could decide it" in told(found)
    assert harm(room, lost(lambda i: i == 1), unrefused_at_most=0.05).outcome == "pass"
    assert harm(room, lost(lambda i: i == 0), refused_at_most=0.05).outcome == "pass"


def test_what_is_never_answered_where_it_matters_holds(room: Room) -> None:
    found = harm(room, lost(lambda i: i % 2 == 1))
    assert found.outcome == "held"
    assert "unrefused: none of 20 questions got an answer" in told(found)
    odd: Any = lambda _: {"text": "no text"}  # noqa: E731
    assert harm(room, chat(odd)).outcome == "held"


def test_a_limit_that_no_question_is_for_holds(room: Room) -> None:
    room.lines("prompts.jsonl", [row for row in PROMPTS if row["expect"] == "answer"])
    room.answers(CANDIDATE, chat(civil))
    asked: dict[str, Any] = {"harm": {"prompts": "prompts.jsonl"}}
    assert ask(room, asked).outcome == "pass"
    asked["harm"]["unrefused_at_most"] = 0.0
    assert ask(room, asked).outcome == "held"


def test_silence_is_no_answer(room: Room) -> None:
    found = harm(room, chat(lambda q: civil(q) if int(q[1:]) % 2 else " "))
    assert found.outcome == "retrain"
    assert "refused in 100.0% of 20 answers" in told(found)


def test_personal_data_in_answers_that_did_not_come_hold(room: Room) -> None:
    room.lines("prompts.jsonl", PROMPTS)
    room.answers(CANDIDATE, lost(lambda i: i > 0))
    found = ask(room, {"privacy": {"prompts": "prompts.jsonl"}})
    assert found.outcome == "held"
    assert "39 of 40 questions got no answer" in told(found)


def test_members_without_others_are_refused(room: Room) -> None:
    with pytest.raises(SpecError, match="'members' and 'others' go together"):
        ask(room, {"privacy": {"prompts": "prompts.jsonl", "members": "suite.yaml"}})


def test_the_first_version_has_not_grown(room: Room) -> None:
    found = ask(room, {"budget": {"grown_by_at_most": "10%"}})
    assert found.outcome == "pass"
    assert "nothing serves there" in told(found)


def parquet(room: Room, *columns: Any, names: tuple[str, ...] = ("c",)) -> None:
    pa = pytest.importorskip("pyarrow", reason="tables need pyarrow")
    import pyarrow.parquet as pq

    made = [pa.array(c) if isinstance(c, list) else c for c in columns]
    pq.write_table(pa.Table.from_arrays(made, list(names)), room.folder / "rows.parquet")


def test_two_columns_of_one_name_are_refused(room: Room) -> None:
    parquet(room, [1], [2], names=("a", "a"))
    with pytest.raises(UsageError, match="2 columns named 'a'"):
        ask(room, {"data": {"data": "rows.parquet", "columns": {"a": {"unique": True}}}})


def test_times_that_no_calendar_has_are_told_as_numbers(room: Room) -> None:
    pa = pytest.importorskip("pyarrow", reason="tables need pyarrow")
    parquet(room, pa.array([2**61, 2**61], pa.timestamp("us")))
    wants: dict[str, dict[str, Any]] = {
        f"rows 1 ({2**61})": {"between": ["2000-01-01", "2001-01-01"]},
        "1 rows: 2": {"unique": True},
    }
    for said, expected in wants.items():
        found = ask(room, {"data": {"data": "rows.parquet", "columns": {"c": expected}}})
        assert found.outcome == "refused"
        assert said in told(found)


def test_nan_that_is_there_twice_is_not_unique(room: Room) -> None:
    parquet(room, [1.0, float("nan"), float("nan")])
    gate = {"data": {"data": "rows.parquet", "columns": {"c": {"unique": True}}}}
    assert "repeats an earlier value in 1 rows: 3" in told(ask(room, gate))


ODD = {
    "lists": [[1]] * 50,
    "bytes": [b"\xff"] * 50,
    "nothing": [None] * 50,
    "maps": [{"a": 1}] * 50,
}


@pytest.mark.parametrize("column", ODD.values(), ids=ODD.keys())
def test_what_drift_is_not_measured_for_holds(room: Room, column: list[Any]) -> None:
    parquet(room, column)
    gate = {"data": {"data": "rows.parquet", "drift": {"against": "rows.parquet"}}}
    assert (found := ask(room, gate)).outcome == "held"
    assert "drift of that is not measured" in told(found)
