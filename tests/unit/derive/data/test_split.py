"""Sides are a matter of content and seed; what leaks is found and named."""

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
from tests.unit.derive.data.bench import WHY, Room, rows_of

from lockgate.core.errors import UsageError
from lockgate.derive.steps.data import spill
from lockgate.derive.steps.data.split import Split

pa = pytest.importorskip("pyarrow", reason=WHY)
pq = pytest.importorskip("pyarrow.parquet", reason=WHY)
SPLIT = Split()
SIDES = ("train", "validation", "test")


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def dataset(room: Room, columns: Mapping[str, Any], name: str = "data") -> Path:
    folder = room.root / name
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(dict(columns)), folder / "rows.parquet")
    return folder


def split(room: Room, data: Path, against: Path | None = None, **asked: Any) -> Path:
    inputs = {"data": data, **({"against": against} if against else {})}
    return room.run(SPLIT, inputs, **asked)


def sides(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {side: rows_of(out / f"{side}.parquet") for side in SIDES}


def test_shares_are_kept_and_nothing_is_lost(room: Room) -> None:
    data = dataset(room, {"n": np.arange(20_000), "s": [f"s{n}" for n in range(20_000)]})
    found = sides(split(room, data))
    assert sorted(row["n"] for rows in found.values() for row in rows) == list(range(20_000))
    for side, share in zip(SIDES, (0.8, 0.1, 0.1), strict=True):
        assert len(found[side]) / 20_000 == pytest.approx(share, abs=0.012)
    assert room.metrics["leaks"] == 0


def test_a_key_is_on_one_side_and_stays_there(room: Room) -> None:
    rng = np.random.default_rng(1)
    users = rng.integers(0, 500, 5000)
    data = dataset(room, {"user": users, "n": np.arange(5000)})
    first = sides(split(room, data, by=["user"]))
    homes = {row["user"]: side for side, rows in first.items() for row in rows}
    assert sum(len({r["user"] for r in rows}) for rows in first.values()) == len(homes)
    more = dataset(room, {"user": np.arange(1000), "n": np.arange(1000)}, "more")
    for side, rows in sides(split(room, more, by=["user"])).items():
        assert all(homes.get(row["user"], side) == side for row in rows)
    other = sides(split(room, data, by=["user"], seed=8))
    assert other != first


def test_the_same_seed_gives_the_same_bytes(room: Room) -> None:
    data = dataset(room, {"n": np.arange(3000), "k": ["a", "b", None] * 1000})
    one, two = (split(room, data, stratify="k") for _ in range(2))
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_strata_have_the_same_shares(room: Room) -> None:
    kinds = ["common"] * 9000 + ["rare"] * 100 + [None] * 50
    data = dataset(room, {"n": np.arange(9150), "kind": kinds})
    out = split(room, data, stratify="kind")
    told = json.loads((out / "split.json").read_text())
    assert told["strata"]["rare"] == {"train": 80, "validation": 10, "test": 10}
    assert told["strata"]["common"] == {"train": 7200, "validation": 900, "test": 900}
    assert told["strata"]["None"] == {"train": 40, "validation": 5, "test": 5}
    with pytest.raises(UsageError, match="no stratum"):
        split(room, data, stratify="n")


def test_a_value_on_two_sides_is_a_leak(room: Room) -> None:
    data = dataset(room, {"n": np.arange(9000), "user": [f"u{n % 50}" for n in range(9000)]})
    with pytest.raises(UsageError) as caught:
        split(room, data, apart=["user"])
    said = "50 values of user are on two sides: user='u0' (row 1) is in train and test"
    assert said in caught.value.message
    assert "split 'by'" in (caught.value.hint or "")
    out = split(room, data, apart=["user"], leaks="report")
    (leak,) = json.loads((out / "split.json").read_text())["leaks"]
    assert (leak["of"], leak["count"], len(leak["first"])) == ("user", 50, 5)
    split(room, data, by=["user"], apart=["user"])
    assert room.metrics["leaks"] == 0
    kinds = pa.array(["a", "b"] * 2000)
    again = dataset(room, {"n": np.arange(4000), "kind": kinds}, "again")
    told = json.loads((split(room, again, by=["n"], stratify="kind") / "split.json").read_text())
    assert sum(told["strata"]["a"].values()) == 2000


def test_a_key_in_two_strata_is_found(room: Room) -> None:
    rng = np.random.default_rng(2)
    users = rng.integers(0, 300, 3000)
    kinds = ["a" if u % 3 or n % 5 else "b" for n, u in enumerate(users)]
    data = dataset(room, {"user": users, "kind": kinds, "n": np.arange(3000)})
    with pytest.raises(UsageError, match="values of user are on two sides"):
        split(room, data, by=["user"], stratify="kind")


def test_what_another_dataset_has_too_is_a_leak(room: Room) -> None:
    data = dataset(room, {"n": np.arange(1000), "x": np.arange(1000) * 0.5})
    clean = dataset(room, {"n": np.arange(1000, 1100), "x": np.arange(100) * 0.5}, "clean")
    split(room, data, clean)
    assert room.metrics["leaks"] == 0
    dirty = dataset(room, {"x": [1.0, 3.5, -0.0], "n": [999, 7, 0]}, "dirty")
    with pytest.raises(UsageError) as caught:
        split(room, data, dirty)
    assert "2 values of whole rows are on two sides: n=0, x=0.0 (row 1)" in caught.value.message
    assert "and against" in caught.value.message
    with pytest.raises(UsageError, match="3 values of n "):
        split(room, data, dirty, by=["n"])
    with pytest.raises(UsageError, match="column 'n' is int64, and string"):
        split(room, data, dataset(room, {"n": ["1"], "x": [1.0]}, "other"))
    with pytest.raises(UsageError, match="'x', which is not there"):
        split(room, data, dataset(room, {"n": [1]}, "narrow"))


def test_nulls_are_nobody(room: Room) -> None:
    data = dataset(room, {"user": pa.array([None] * 500, pa.string()), "n": np.arange(500)})
    split(room, data, apart=["user"])
    assert room.metrics["leaks"] == 0


def test_a_running_number_can_be_ignored(room: Room) -> None:
    data = dataset(room, {"id": np.arange(2000), "x": np.arange(2000) % 100})
    found = sides(split(room, data, ignore=["id"]))
    assert sum(len({row["x"] for row in rows}) for rows in found.values()) == 100


def test_what_makes_no_sense_is_refused(room: Room) -> None:
    data = dataset(room, {"n": [1, 2, 3]})
    with pytest.raises(UsageError, match="'m', which is not there"):
        split(room, data, by=["m"])
    with pytest.raises(UsageError, match="has no rows"):
        split(room, data)
    for wrong in ({"a": 0.5, "b": 0.6}, {"../a": 0.5, "b": 0.5}, {"a": 1.0}, {"a": 0.5}):
        with pytest.raises(ValidationError):
            split(room, data, shares=wrong)
    empty = room.root / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"no \*\.parquet"):
        split(room, empty)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.none() | st.sampled_from([0.0, -0.0, float("nan"), 1.5]), st.sampled_from("abc")
        ),
        min_size=1, max_size=60,
    ),
    together=st.integers(1, 20),
)  # fmt: skip
def test_groups_are_exact(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, together: int
) -> None:
    keys = [("nan" if x is not None and x != x else x, s) for x, s in rows]
    first: dict[Any, int] = {}
    for at, key in enumerate(keys):
        first.setdefault(key, at)
    table = pa.table({"x": pa.array([x for x, _ in rows], pa.float64()), "s": [s for _, s in rows]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "_TOGETHER", together)
        with spill.Spill(tmp_path_factory.mktemp("spill"), ["x", "s"]) as made:
            for at in range(0, len(rows), 7):
                part = table.slice(at, 7)
                made.add(part, np.arange(at, at + part.num_rows), np.zeros(part.num_rows))
            found = [at for g in made.groups() for at in g.column(f"{spill.AT}_min").to_pylist()]
    assert sorted(found) == sorted(first.values())
