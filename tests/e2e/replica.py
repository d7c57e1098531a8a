"""A small real model server for release stories: it does sums, and is as good as its version says.

python replica.py FOLDER PORT; FOLDER/behaviour.json: {"base_ms", "errors", "tail", "slower",
"wrong", "crash_after", "leak_kb"}. Answers OpenAI chat requests; drains on SIGTERM.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOW = json.loads((Path(sys.argv[1]) / "behaviour.json").read_text())
LEAKED: list[bytes] = []
SERVED = 0
IN_FLIGHT = 0
LOCK = threading.Lock()
DRAW = random.Random(os.getpid())


def answer(question: str) -> str:
    """The sum that was asked for; a version may be wrong now and then."""
    numbers = [int(n) for n in re.findall(r"-?\d+", question)]
    right = sum(numbers)
    return f"It is {right + (DRAW.random() < HOW.get('wrong', 0.0))}."


def misbehave() -> float:
    """Leaks, crashes or slows down as the version does; returns the time to take in s."""
    global SERVED
    SERVED += 1
    if HOW.get("leak_kb"):
        LEAKED.append(os.urandom(1024) * HOW["leak_kb"])
    if HOW.get("crash_after") == SERVED:
        os._exit(1)
    took = DRAW.lognormvariate(0.0, 0.35) * HOW.get("base_ms", 4.0) / 1000
    took *= HOW.get("slower", 1.0)
    tail = HOW.get("tail")
    if tail and DRAW.random() < tail[0]:
        took *= tail[1]
    return float(took)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self.reply(200, {"ok": True})

    def do_POST(self) -> None:
        global IN_FLIGHT
        with LOCK:
            IN_FLIGHT += 1
        try:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            time.sleep(misbehave())
            if DRAW.random() < HOW.get("errors", 0.0):
                self.reply(500, {"error": "out of luck"})
                return
            text = answer(body["messages"][-1]["content"])
            choice = {"index": 0, "message": {"role": "assistant", "content": text}}
            self.reply(200, {"object": "chat.completion", "choices": [choice],
                             "usage": {"completion_tokens": len(text) // 2}})  # fmt: skip
        finally:
            with LOCK:
                IN_FLIGHT -= 1

    def reply(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exc_info()[1], MemoryError):
            os._exit(137)  # as the kernel would


def drain(server: Server) -> None:
    """Answers what has come, waits until nothing more does, and ends."""
    quiet = time.monotonic()
    while time.monotonic() - quiet < 0.5:
        if IN_FLIGHT:
            quiet = time.monotonic()
        time.sleep(0.02)
    os._exit(0)


def main() -> None:
    if HOW.get("limit_mb"):
        limit = HOW["limit_mb"] << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    server = Server(("127.0.0.1", int(sys.argv[2])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=drain, args=(server,)).start())
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
