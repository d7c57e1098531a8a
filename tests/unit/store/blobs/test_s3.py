"""What an object store's answers become, without a real one; the real one is in the contract."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lockgate.core.errors import (
    DeniedError,
    IntegrityError,
    LockgateError,
    NotFoundError,
    PermanentError,
    TemporaryError,
    UsageError,
)
from lockgate.store.blobs.api import BackendOptions
from lockgate.store.blobs.s3 import S3Blobs

SECRET = "do-not-show-me"


class Answers(BaseHTTPRequestHandler):
    """Answers everything with the server's `status` and `body`."""

    def answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self.rfile.read(length)
        self.server.asked.append((self.command, self.path))  # type: ignore[attr-defined]
        status, body = self.server.says  # type: ignore[attr-defined]
        if not status:
            self.connection.close()
            return
        self.send_response(status)
        self.send_header("etag", '"x"')
        self.send_header("last-modified", "Sat, 21 Nov 2026 12:00:00 GMT")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    """Says one thing to everybody and remembers what it was asked."""

    says: tuple[int, bytes] = (200, b"")
    asked: list[tuple[str, str]]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Answers) as made:
        made.asked = []
        made.daemon_threads = True
        thread = threading.Thread(target=lambda: made.serve_forever(0.01))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def blobs_of(server: Server) -> S3Blobs:
    address = f"http://127.0.0.1:{server.server_address[1]}"
    keys = BackendOptions(endpoint=address, access_key="key", secret_key=SECRET)
    return S3Blobs("s3://bucket/x", keys)


def error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Key>{SECRET}</Key></Error>'.encode()


@pytest.mark.parametrize(
    ("status", "code", "kind", "tries"),
    [
        (503, "SlowDown", TemporaryError, 4),
        (500, "InternalError", TemporaryError, 4),
        (0, "", TemporaryError, 4),
        (403, "AccessDenied", DeniedError, 1),
        (403, "RequestTimeTooSkewed", DeniedError, 1),
        (401, "Unauthorized", DeniedError, 1),
        (404, "NoSuchBucket", UsageError, 1),
        (400, "InvalidArgument", PermanentError, 1),
        (501, "NotImplemented", TemporaryError, 4),
    ],
)
def test_answers_become_our_errors(
    server: Server, status: int, code: str, kind: type[LockgateError], tries: int
) -> None:
    blobs = blobs_of(server)
    server.says = status, error(code)
    calls = [lambda: blobs.read("a"), lambda: blobs.write("a", [b"x"])]
    calls += [lambda: blobs.remove(["a"])] if status in (403, 503) else []
    for call in calls:
        server.asked.clear()
        with pytest.raises(kind) as caught:
            call()
        assert code in caught.value.message or kind is UsageError
        assert SECRET not in caught.value.message
        assert len(server.asked) == tries
    blobs.close()


def test_a_missing_blob(server: Server) -> None:
    blobs = blobs_of(server)
    server.says = 404, error("NoSuchKey")
    with pytest.raises(NotFoundError, match="blob a is not in this store"):
        blobs.read("a")
    blobs.close()


def test_no_more_bytes_than_there_are(server: Server) -> None:
    blobs = blobs_of(server)
    server.says = 416, error("InvalidRange")
    with pytest.raises(IntegrityError, match="ends before byte 12"):
        blobs.read("a", 10, 2)
    blobs.close()


def test_a_blob_replaced_while_it_is_read_is_no_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = S3Blobs("s3://bucket", BackendOptions(access_key="a", secret_key="b"))
    answers = [("first", memoryview(b"1")), ("second", memoryview(b"2"))]
    monkeypatch.setattr(blobs, "_piece", lambda name, begin, end: answers.pop(0))
    with pytest.raises(TemporaryError, match="replaced while it was read"):
        blobs.read_ranges("a", [(0, 1), (10_000_000, 1)])
    blobs.close()


def test_near_ranges_share_a_request_and_long_ones_are_cut() -> None:
    from lockgate.store.blobs.s3 import _join

    mib = 1024 * 1024
    assert _join([(0, 10), (5, 10), (200_000, 1)]) == [(0, 200_001)]
    assert _join([(mib, 1), (0, 1), (9, 0)]) == [(0, 1), (mib, mib + 1)]
    assert _join([(0, 40 * mib)]) == [(0, 16 * mib), (16 * mib, 32 * mib), (32 * mib, 40 * mib)]
    assert _join([]) == []
