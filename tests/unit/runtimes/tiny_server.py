"""A small server for the `command` runtime's tests: `tiny_server.py HOST PORT MODEL`."""

import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE_S = 0.03  # between two events: long enough that a signal can come in the middle


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        draining = self.server.draining.is_set()
        self.answer(503 if draining else 200, b"{}")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.draining.is_set():
            self.answer(503, b"{}")
        elif body.get("stream"):
            self.stream(body["max_tokens"])
        else:
            text = {"choices": [{"text": "tok " * body["max_tokens"]}], "model": body["model"]}
            self.answer(200, json.dumps(text).encode())

    def answer(self, status, data):
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, count):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for _ in range(min(count, 30)):
            chunk = {"choices": [{"text": "tok "}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
            time.sleep(PIECE_S)
        self.wfile.write(b"data: [DONE]\n\n")


def main():
    server = ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
    server.daemon_threads = False
    server.draining = threading.Event()

    def stop(*_):
        server.draining.set()
        threading.Thread(target=lambda: (time.sleep(0.3), server.shutdown())).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(poll_interval=0.05)
    server.server_close()  # joins the threads that still stream


if __name__ == "__main__":
    main()
