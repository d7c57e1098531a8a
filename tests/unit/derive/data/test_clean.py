"""What is cleaned is counted, and duplicates are dropped exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.unit.derive.data.bench import WHY, Room, profile_of, rows_of

from lockgate.core.errors import UsageError
from lockgate.derive.steps.data.clean import Clean

pa = pytest.importorskip("pyarrow", reason=WHY)
pq = pytest.importorskip("pyarrow.parquet", reason=WHY)
CLEAN = Clean()


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def clean(room: Room, columns: Mapping[str, Any], **asked: Any) -> Path:
    pq.write_table(pa.table(dict(columns)), room.raw / "rows.parquet", row_group_size=1000)
    return room.run(CLEAN, {"data": room.raw}, **asked)


def changes(out: Path) -> Any:
    return json.loads((out / "changes.json").read_text())


def test_cells_are_changed_and_counted(room: Room) -> None:
    out = clean(
        room,
        {"age": ["10", "200", None, "-1"], "kind": ["m", "F", "f", None], "x": [1.5, None, 9.0, 2],
         "gone": [1, 2, 3, 4]},
        drop_columns=["gone"], cast={"age": "int64"}, map={"kind": {"m": "male", "F": None}},
        fill={"kind": "other", "x": 0}, clip={"age": [0, 150], "x": [0, 5]}, drop_nulls=["age"],
    )  # fmt: skip
    assert rows_of(out) == [
        {"age": 10, "kind": "male", "x": 1.5}, {"age": 150, "kind": "other", "x": 0.0},
        {"age": 0, "kind": "other", "x": 2.0},
    ]  # fmt: skip
    assert changes(out) == {
        "cells": {
            "cast": {"age": 3}, "made_null": {"age": 0}, "clipped": {"age": 2, "x": 1},
            "mapped": {"kind": 2}, "filled": {"kind": 2, "x": 1},
        },
        "dropped_rows": {"null": 1, "duplicate": 0},
    }  # fmt: skip
    assert room.metrics == {
        "rows": 3, "cast": 3, "made_null": 0, "clipped": 3, "mapped": 2, "filled": 3,
        "dropped_null": 1, "dropped_duplicate": 0,
    }  # fmt: skip
    assert profile_of(out)["columns"]["age"]["type"] == "int64"


def test_a_bad_cast_names_row_and_column(room: Room) -> None:
    columns = {"n": ["1"] * 1500 + ["x"]}
    with pytest.raises(UsageError, match="row 1501, column 'n': 'x' is not an int64"):
        clean(room, columns, cast={"n": "int64"})
    out = clean(room, columns, cast={"n": "int64"}, bad_casts="null")
    assert rows_of(out)[1500] == {"n": None}
    assert room.metrics["made_null"] == 1
    with pytest.raises(UsageError, match=r"row 2, column 'x': 1\.5 is not an int64"):
        clean(room, {"x": [1.0, 1.5]}, cast={"x": "int64"})
    assert rows_of(clean(room, {"n": [1, None]}, cast={"n": "string"}))[0] == {"n": "1"}


def test_duplicates_are_dropped_by_key_and_by_row(room: Room) -> None:
    columns = {"k": ["a", "b", "a", None, None, "b"], "n": [1, 2, 1, 4, 4, 3]}
    by_key = rows_of(clean(room, columns, drop_duplicates=["k"]))
    assert [row["n"] for row in by_key] == [1, 2, 4, 4]
    assert room.metrics["dropped_duplicate"] == 2
    by_row = rows_of(clean(room, columns, drop_duplicates="row"))
    assert [row["n"] for row in by_row] == [1, 2, 4, 3]
    assert not any(path.name == "keys" for path in room.root.rglob("*"))


def test_duplicates_are_those_after_the_other_changes(room: Room) -> None:
    out = clean(room, {"s": ["a", "A", "b"]}, map={"s": {"A": "a"}}, drop_duplicates=["s"])
    assert [row["s"] for row in rows_of(out)] == ["a", "b"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.none() | st.sampled_from(["", "a", "b"])), min_size=1,
        max_size=80,
    )
)  # fmt: skip
def test_no_duplicate_stays_and_nothing_else_goes(
    tmp_path_factory: pytest.TempPathFactory, rows: Any
) -> None:
    room = Room(tmp_path_factory.mktemp("same"))
    columns = {"n": [n for n, _ in rows], "s": pa.array([s for _, s in rows], pa.string())}
    found = rows_of(clean(room, columns, drop_duplicates="row"))
    assert [(row["n"], row["s"]) for row in found] == list(dict.fromkeys(rows))


def test_many_rows_give_the_same_bytes_twice(room: Room) -> None:
    rng = np.random.default_rng(1)
    columns = {"k": rng.integers(0, 40_000, 100_000), "x": rng.normal(size=100_000)}
    one = clean(room, columns, drop_duplicates=["k"], clip={"x": [-1, 1]})
    assert room.metrics["rows"] == len(np.unique(columns["k"]))
    two = clean(room, columns, drop_duplicates=["k"], clip={"x": [-1, 1]})
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"fill": {"m": 1}}, "'m', which is not there"),
        ({"fill": {"n": "a"}}, "column 'n' is int64, which fill can't change"),
        ({"fill": {"n": 1.5}}, "column 'n' is int64, which fill can't change"),
        ({"fill": {"s": 1}}, "column 's' is string, which fill can't change"),
        ({"clip": {"s": [0, 1]}}, "column 's' is string, which clip can't change"),
        ({"clip": {"n": [0.5, 1]}}, "column 'n' is int64, which clip can't change"),
        ({"map": {"n": {"1": "2"}}}, "column 'n' is int64, which map can't change"),
        ({"drop_duplicates": ["m"]}, "'m', which is not there"),
        ({"drop_duplicates": ["n"], "drop_columns": ["n"]}, "'n', which is not there"),
        ({"drop_nulls": ["n"], "drop_columns": ["n"]}, "'n', which is not there"),
        ({"drop_nulls": ["z"]}, "no row is left"),
        ({"drop_columns": ["n", "s", "z"]}, "no column is left"),
    ],
)
def test_what_makes_no_sense_is_refused(room: Room, asked: dict[str, Any], said: str) -> None:
    columns = {"n": [1, 2], "s": ["a", "b"], "z": pa.array([None, None], pa.string())}
    with pytest.raises(UsageError) as caught:
        clean(room, columns, **asked)
    assert said in caught.value.message


def test_a_span_is_in_order(room: Room) -> None:
    with pytest.raises(ValidationError):
        clean(room, {"n": [1]}, clip={"n": [2, 1]})
