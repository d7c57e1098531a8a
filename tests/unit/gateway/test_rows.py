"""What a real Envoy says of every request: exact, complete, and fair to the version."""

import time

import pytest

ROUTE, MODEL = "acme/chat@local", "acme/chat"
pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("mode", ["ads", "files"])
def test_every_request_gives_one_exact_sample(bench, load, mode):
    bench.two_versions(mode=mode)
    revision = bench.weights(a=7_500, b=2_500)
    with load(bench, threads=4) as running:
        while len(running.served) < 300:
            time.sleep(0.02)
    rows = bench.wait_rows(len(running.served))
    assert len(rows) == len(running.served)
    assert {row.version: row.propensity for row in rows} == {"a": 0.75, "b": 0.25}
    assert {(row.route, row.revision, row.status) for row in rows} == {(ROUTE, revision, 200)}
    assert sorted(row.version for row in rows) == sorted(running.served)
    assert len({row.request_id for row in rows}) == len(rows)
    assert abs(rows[0].at - time.time()) < 60
    assert {row.tokens for row in rows} == {5}


@pytest.mark.parametrize("mode", ["ads", "files"])
def test_first_body_byte_is_the_first_token_and_tokens_are_counted(bench, mode):
    bench.two_versions(mode=mode)
    headers = {"x-first-ms": "150", "x-gap-ms": "5", "x-tokens": "12"}
    bench.ask(body={"stream": True}, headers=headers)
    bench.ask(body={}, headers={"x-status": "500"})
    stream, broken = sorted(bench.wait_rows(2), key=lambda row: row.at)
    assert 0.150 <= stream.first_body_s < stream.duration_s
    assert stream.duration_s >= 0.150 + 12 * 0.005
    assert (stream.tokens, stream.failed) == (12, False)
    assert (broken.status, broken.failed) == (500, True)


def test_a_caller_that_goes_away_is_no_failure_of_the_version(bench):
    bench.two_versions()
    for headers in ({"x-first-ms": "3000"}, {"x-tokens": "100", "x-gap-ms": "50"}):
        connection = bench.client()
        connection.request("POST", "/acme/chat/v1/completions", '{"stream": true}', headers)
        time.sleep(0.2)
        connection.close()
    rows = bench.wait_rows(2)
    assert [(row.status, row.flags, row.failed) for row in rows] == [(499, "", False)] * 2


def test_a_replica_that_dies_in_a_stream_is_a_failure(bench):
    a, _ = bench.two_versions()
    connection = bench.client()
    headers = {"x-tokens": "100", "x-gap-ms": "50"}
    connection.request("POST", "/acme/chat/v1/completions", '{"stream": true}', headers)
    time.sleep(0.2)
    bench.replicas.kill(a)
    (row,) = bench.wait_rows(1)
    assert row.version == "a"
    assert row.failed
    connection.close()


def test_the_row_file_is_rotated_without_a_loss(bench, load):
    bench.two_versions(mode="files")
    bench.gateway._transport._rotate_at = 20_000
    with load(bench, threads=3) as running:
        time.sleep(3.0)
    rows = bench.wait_rows(len(running.served))
    assert len(rows) == len(running.served)
    assert len({row.request_id for row in rows}) == len(rows)
    assert bench.gateway._transport._tail.offset < sum(300 for _ in rows)
