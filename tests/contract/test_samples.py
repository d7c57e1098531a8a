"""The contract of the port Samples, run on every adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lockgate.core.errors import IntegrityError
from lockgate.core.traffic import Sample
from lockgate.observe.api import Kept
from lockgate.observe.memory import MemorySamples
from lockgate.observe.sqlite import SqliteSamples

AnySamples = MemorySamples | SqliteSamples


@pytest.fixture(params=["memory", "sqlite"])
def samples(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnySamples]:
    made: AnySamples = (
        MemorySamples() if request.param == "memory" else SqliteSamples(tmp_path / "samples.db")
    )
    yield made
    made.close()


def sample(at: float, route: str = "a/b@local", version: str = "one", status: int = 200) -> Sample:
    return Sample(
        at=at, route=route, version=version, propensity=0.25, revision=3, status=status,
        duration_s=0.5, first_body_s=None, tokens=7, bytes_out=10, request_id="x",
    )  # fmt: skip


def test_a_window_is_one_route_from_a_time_on_oldest_first(samples: AnySamples) -> None:
    rows = [sample(3.0), sample(1.0), sample(2.0), sample(2.5, route="a/c@local")]
    samples.record(rows)
    assert samples.window("a/b@local", since=2.0) == [sample(2.0), sample(3.0)]
    assert samples.window("a/b@local", since=0, limit=2) == [sample(2.0), sample(3.0)]
    assert list(samples.window("nobody@local", since=0)) == []


def test_totals_count_every_version_and_outlive_pruning(samples: AnySamples) -> None:
    samples.record([sample(1.0), sample(2.0, status=503), sample(3.0, version="two")])
    samples.record([sample(4.0)])
    samples.prune(before=3.5)
    found = [(t.version, t.requests, t.failed, t.bytes_out) for t in samples.totals()]
    assert found == [("one", 3, 1, 30), ("two", 1, 0, 10)]
    assert len(samples.window("a/b@local", since=0)) == 1


def test_reading_goes_on_where_it_stopped_in_the_order_of_recording(samples: AnySamples) -> None:
    start = samples.end()
    samples.record([sample(3.0), sample(9.0, route="a/c@local"), sample(1.0)])
    first, at = samples.read("a/b@local", after=start, limit=1)
    assert first == [sample(3.0)]
    samples.record([sample(2.0)])
    rest, end = samples.read("a/b@local", after=at)
    assert rest == [sample(1.0), sample(2.0)]
    assert samples.read("a/b@local", after=end) == ([], end)
    assert samples.end() >= end > at > start


def test_positions_are_never_given_twice(samples: AnySamples) -> None:
    samples.record([sample(1.0), sample(2.0)])
    _, end = samples.read("a/b@local", after=0)
    samples.prune(before=100.0)
    samples.record([sample(200.0)])
    assert samples.read("a/b@local", after=end)[0] == [sample(200.0)]


def test_a_sample_keeps_its_unit_and_its_scores(samples: AnySamples) -> None:
    whole = replace(sample(1.0), unit=2**64 - 1, scores={"quality": 0.5}, mirrored=True)
    samples.record([whole, replace(sample(2.0), unit=0)])
    assert samples.read("a/b@local", after=0)[0] == [whole, replace(sample(2.0), unit=0)]
    assert [t.requests for t in samples.totals()] == [1]  # a score is no request


def test_a_case_is_replaced_found_and_forgotten(samples: AnySamples) -> None:
    assert samples.find("rel-1") is None
    samples.keep("rel-1", Kept(position=3, state={"a": [1.5]}))
    samples.keep("rel-1", Kept(position=4, state={"a": [2.5]}))
    assert samples.find("rel-1") == Kept(position=4, state={"a": [2.5]})
    samples.forget("rel-1")
    assert samples.find("rel-1") is None


def test_cases_of_releases_that_ended_unseen_go(samples: AnySamples) -> None:
    for name in ("rel-1", "rel-2", "rel-3"):
        samples.keep(name, Kept(position=1, state={}))
    samples.keep_only({"rel-2", "rel-9"})
    assert [samples.find(f"rel-{i}") is not None for i in (1, 2, 3)] == [False, True, False]


def test_samples_outlive_the_process(tmp_path: Path) -> None:
    first = SqliteSamples(tmp_path / "samples.db")
    first.record([sample(1.0)])
    second = SqliteSamples(tmp_path / "samples.db")  # the first was never closed
    assert second.window("a/b@local", since=0) == [sample(1.0)]
    first.close()
    second.close()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples.db").write_bytes(b"garbage, " * 999)
    with pytest.raises(IntegrityError, match=r"samples\.db are damaged"):
        SqliteSamples(tmp_path / "samples.db")
