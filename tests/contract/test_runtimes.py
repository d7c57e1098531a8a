"""One suite for the port `Runtime`, run on every one that can run here, as real processes.

The models are the demo's own. `vllm` can't run here; its command line has unit tests.
"""

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import lockgate
from lockgate.core.traffic import Endpoint
from lockgate.fleet.api import Job
from lockgate.fleet.runtimes.choose import choose

MODELS = Path(lockgate.__file__).parent / "demo" / "models"
TINY = Path(__file__).parents[1] / "unit" / "runtimes" / "tiny_server.py"
STREAMS = 12
NO_TORCH = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed (extra transformers)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One runtime with a folder it serves. `tokens`: how long its test streams are."""

    runtime: str
    folder: str
    model: str = "acme/chat"
    options: dict = field(default_factory=dict)
    tokens: int = 230
    ours: bool = True

    def __str__(self):
        return f"{self.runtime}-{self.folder}"


CHAT = Case(runtime="onnx", folder="chat-v3", options={"slots": STREAMS})
CREDIT = Case(runtime="onnx", folder="credit-v3", model="acme/credit", options={"threads": 1})
COMMAND = Case(
    runtime="command",
    folder="chat-v1",
    options={
        "argv": [sys.executable, str(TINY), "{host}", "{port}", "{model}"],
        "warmup": {"path": "/v1/completions", "body": {"model": "m", "max_tokens": 1}},
    },
    ours=False,
)
TORCH = Case(runtime="transformers", folder="chat-v2", options={"slots": STREAMS}, tokens=60)
TALKERS = [CHAT, COMMAND, pytest.param(TORCH, marks=NO_TORCH)]
OURS = [CHAT, CREDIT, pytest.param(TORCH, marks=NO_TORCH)]


class Server:
    """A replica's process, started the way the fleet starts one."""

    def __init__(self, case):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        folder = MODELS / case.folder
        runtime = choose(folder, case.runtime)
        self.launch = runtime.launch(
            Job(
                folder=folder,
                model=case.model,
                version="v1",
                endpoint=Endpoint(host="127.0.0.1", port=self.port),
                options=case.options,
            )
        )
        self.process = subprocess.Popen(
            self.launch.argv, env={**os.environ, **self.launch.env}, start_new_session=True
        )
        self._until_ready()
        for warmup in self.launch.warmups:
            assert self.call(warmup.method, warmup.path, warmup.body)[0] == 200

    def _until_ready(self):
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.call(self.launch.ready.method, self.launch.ready.path)[0] == 200:
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"not ready, exit code {self.process.poll()}")

    def call(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read(), answer
        finally:
            connection.close()

    def metric(self, name):
        lines = self.call("GET", "/metrics")[1].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def servers():
    made = {}

    def get(case):
        if str(case) not in made:
            made[str(case)] = Server(case)
        return made[str(case)]

    yield get
    for server in made.values():
        server.stop()


@pytest.fixture
def fresh():
    made = []

    def start(case):
        made.append(Server(case))
        return made[-1]

    yield start
    for server in made:
        server.stop()


class Stream(threading.Thread):
    """One streamed completion in a thread; `begun` is set with its first bytes."""

    def __init__(self, server, case, seed=0):
        super().__init__(daemon=True)
        self.begun = threading.Event()
        self.text = b""
        self._server = server
        self._body = {
            "model": case.model,
            "prompt": "Tell me more",
            "max_tokens": case.tokens,
            "stream": True,
            "temperature": 2,
            "seed": seed,
            "stream_options": {"include_usage": True},
        }
        self.start()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(self._body))
        answer = connection.getresponse()
        while data := answer.read1():
            self.text += data
            self.begun.set()
        connection.close()

    @property
    def events(self):
        return [line.removeprefix("data: ") for line in self.text.decode().splitlines() if line]


@pytest.mark.parametrize("case", TALKERS, ids=str)
def test_it_answers_a_completion(servers, case):
    body = {"model": case.model, "prompt": "What", "max_tokens": 3}
    status, data, _ = servers(case).call("POST", "/v1/completions", body)
    assert status == 200
    assert "text" in json.loads(data)["choices"][0]


@pytest.mark.parametrize("case", TALKERS, ids=str)
def test_streams_run_side_by_side_and_end_with_done(servers, case):
    streams = [Stream(servers(case), case, seed) for seed in range(4)]
    for stream in streams:
        stream.join(60)
        assert stream.events[-1] == "[DONE]"
        assert len(stream.events) > 2


@pytest.mark.parametrize("case", TALKERS, ids=str)
def test_sigterm_lets_streams_end_refuses_new_work_and_exits_with_0(fresh, case):
    server = fresh(case)
    streams = [Stream(server, case, seed) for seed in range(STREAMS)]
    for stream in streams:
        assert stream.begun.wait(60)
    server.process.send_signal(signal.SIGTERM)
    assert any("[DONE]" not in stream.text.decode() for stream in streams)
    assert_refused(server, case)
    for stream in streams:
        stream.join(60)
        assert stream.events[-1] == "[DONE]"
    assert server.process.wait(30) == 0


def assert_refused(server, case):
    deadline = time.monotonic() + 10
    body = {"model": case.model, "prompt": "x", "max_tokens": 1}
    while time.monotonic() < deadline:
        try:
            status, _, answer = server.call("POST", "/v1/completions", body)
        except OSError:
            return
        if status == 503:
            assert not case.ours or answer.getheader("connection") == "close"
            return
    raise AssertionError("it still serves new requests")


@pytest.mark.parametrize("case", OURS, ids=str)
def test_metrics_have_our_names(servers, case):
    text = servers(case).call("GET", "/metrics")[1].decode()
    for name in (
        "lockgate_requests_total",
        "lockgate_request_duration_seconds",
        "lockgate_time_to_first_token_seconds",
        "lockgate_time_per_output_token_seconds",
        'lockgate_tokens_total{kind="prompt"}',
        'lockgate_tokens_total{kind="completion"}',
        "lockgate_requests_running",
        "lockgate_requests_waiting",
    ):
        assert name in text


@pytest.mark.parametrize("case", [CHAT, pytest.param(TORCH, marks=NO_TORCH)], ids=str)
def test_chat_usage_stop_and_seed(servers, case):
    server = servers(case)
    ask = {"model": "chat", "messages": [{"role": "user", "content": "Reverse 4 8 1."}]}
    whole = json.loads(server.call("POST", "/v1/chat/completions", ask)[1])
    text = whole["choices"][0]["message"]["content"]
    assert text.startswith("Backwards that is 1 8 4.")
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    cut = json.loads(server.call("POST", "/v1/chat/completions", {**ask, "stop": ["s 1 8"]})[1])
    assert cut["choices"][0]["message"]["content"] == "Backwards that i"
    assert cut["choices"][0]["finish_reason"] == "stop"
    wild = {**ask, "temperature": 1.9, "seed": 7, "max_tokens": 20}
    said = {server.call("POST", "/v1/chat/completions", wild)[1].split(b"choices")[1] for _ in "ab"}
    assert len(said) == 1


@pytest.mark.parametrize("case", [CHAT, pytest.param(TORCH, marks=NO_TORCH)], ids=str)
def test_a_prompt_is_scored(servers, case):
    ask = {"model": "chat", "prompt": "The sum of 3 and 4 is 7.", "echo": True, "logprobs": 1}
    status, data, _ = servers(case).call("POST", "/v1/completions", {**ask, "max_tokens": 1})
    assert status == 200
    answer = json.loads(data)
    found = answer["choices"][0]["logprobs"]
    count = answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 1
    assert {len(found[key]) for key in found} == {count + 1}
    assert found["token_logprobs"][0] is None
    assert all(chance <= 0 for chance in found["token_logprobs"][1:])
    assert servers(case).call("POST", "/v1/completions", {**ask, "max_tokens": 9})[0] == 400


def test_usage_comes_with_a_stream_when_asked_for(servers):
    stream = Stream(servers(CHAT), CHAT)
    stream.join(60)
    last = json.loads(stream.events[-2])
    pieces = [json.loads(event) for event in stream.events[:-2]]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] >= len(pieces)
    assert pieces[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_client_that_leaves_stops_its_decoding(fresh):
    server = fresh(CHAT)
    before = server.metric('lockgate_tokens_total{kind="completion"}')
    warm = server.metric("lockgate_requests_total{")
    sockets = []
    for seed in range(STREAMS):
        body = {"model": "chat", "prompt": "x", "max_tokens": 230, "stream": True}
        data = json.dumps({**body, "temperature": 2, "seed": seed}).encode()
        client = socket.create_connection(("127.0.0.1", server.port))
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        client.sendall(head.encode() + data)
        sockets.append(client)
    for client in sockets:
        client.close()
    counted = 'lockgate_requests_total{code="'
    deadline = time.monotonic() + 20
    while server.metric(counted) < STREAMS + warm and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.05)  # the decoding thread drops them within one round
    assert server.metric("lockgate_requests_running") == 0
    assert server.metric('lockgate_tokens_total{kind="completion"}') - before < STREAMS * 230 / 2


def test_a_full_queue_answers_503_with_retry_after(fresh):
    case = Case(runtime="onnx", folder="chat-v3", options={"slots": 1, "queue": 1})
    server = fresh(case)
    streams = [Stream(server, case, seed) for seed in range(24)]
    for stream in streams:
        stream.join(60)
    refused = [stream for stream in streams if b"overloaded" in stream.text]
    assert refused
    assert all(b"[DONE]" in stream.text for stream in streams if stream not in refused)
    assert server.metric('lockgate_requests_total{code="503"') == len(refused)


CHAT_PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
HOSTILE = {
    "no json": (CHAT_PATH, b"{", 400),
    "not utf-8": (CHAT_PATH, b'{"model": "\xff"}', 400),
    "deep": (CHAT_PATH, b"[" * 200_000, 400),
    "long number": (CHAT_PATH, b'{"model": ' + b"9" * 10_000 + b"}", 400),
    "nan": (CHAT_PATH, b'{"model": "chat", "temperature": NaN}', 400),
    "a list": (CHAT_PATH, b"[1]", 400),
    "no model": (CHAT_PATH, {"messages": HELLO}, 400),
    "other model": (CHAT_PATH, {"model": "other", "messages": HELLO}, 404),
    "no messages": (CHAT_PATH, {"model": "chat"}, 400),
    "messages of numbers": (CHAT_PATH, {"model": "chat", "messages": [1]}, 400),
    "strange role": (CHAT_PATH, {"model": "chat", "messages": [{"role": {}, "content": ""}]}, 400),
    "picture": (
        CHAT_PATH,
        {"model": "chat", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
    ),
    "half a surrogate": (CHAT_PATH, b'{"model": "chat", "messages": [{"role": "user",'
        b'"content": "\\ud800"}]}', 400),
    "nul": ("/v1/completions", {"model": "chat", "prompt": "a\0b"}, 400),
    "negative": (CHAT_PATH, {"model": "chat", "messages": HELLO, "max_tokens": -1}, 400),
    "zero": (CHAT_PATH, {"model": "chat", "messages": HELLO, "max_tokens": 0}, 400),
    "true": (CHAT_PATH, {"model": "chat", "messages": HELLO, "max_tokens": True}, 400),
    "overflow": (CHAT_PATH, b'{"model": "chat", "messages": [], "temperature": 1e999}', 400),
    "huge seed": (CHAT_PATH, {"model": "chat", "messages": HELLO, "seed": 10**30}, 400),
    "many answers": (CHAT_PATH, {"model": "chat", "messages": HELLO, "n": 2}, 400),
    "tools": (CHAT_PATH, {"model": "chat", "messages": HELLO, "tools": [{}]}, 400),
    "stream options alone": (
        CHAT_PATH, {"model": "chat", "messages": HELLO, "stream_options": {}}, 400
    ),
    "too long": (
        CHAT_PATH,
        {"model": "chat", "messages": [{"role": "user", "content": "no " * 400}]},
        400,
    ),
    "too much": ("/v1/completions", {"model": "chat", "prompt": "a", "max_tokens": 10**6}, 400),
    "no such token": ("/v1/completions", {"model": "chat", "prompt": [10**6]}, 400),
    "empty prompt": ("/v1/completions", {"model": "chat", "prompt": ""}, 400),
    "two prompts": ("/v1/completions", {"model": "chat", "prompt": ["a", "b"]}, 400),
    "large": ("/v1/completions", b" " * (5 * 1024 * 1024), 413),
    "elsewhere": ("/v1/nothing", {}, 404),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_chat_requests_get_a_clear_4xx_in_openai_shape(servers, name):
    path, body, expected = HOSTILE[name]
    server = servers(CHAT)
    status, data, _ = server.call("POST", path, body)
    assert status == expected, data
    error = json.loads(data)["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert server.call("GET", "/health")[0] == 200


def rows(*values):
    data = [value for row in values for value in row]
    shape = [len(values), len(values[0]) if values else 0]
    return {"inputs": [{"name": "features", "shape": shape, "datatype": "FP32", "data": data}]}


GOOD = [40.0, 30, 0.2, 5, 0.3, 0, 60, 40, 10, 24]


def changed(**parts):
    body = rows(GOOD)
    body["inputs"][0].update(parts)
    return body


HOSTILE_ROWS = {
    "no json": (b"nan", 400),
    "no inputs": ({}, 400),
    "inputs of numbers": ({"inputs": [1]}, 400),
    "empty": ({"inputs": []}, 400),
    "other name": (changed(name="other"), 400),
    "name of a list": (changed(name=[]), 400),
    "twice": ({"inputs": rows(GOOD)["inputs"] * 2}, 400),
    "other type": (changed(datatype="INT64"), 400),
    "type of a list": (changed(datatype=[]), 400),
    "other width": (rows(GOOD[:3]), 400),
    "other rank": (changed(shape=[10]), 400),
    "negative": (changed(shape=[-1, 10]), 400),
    "shape too large": (changed(shape=[2**31 - 1, 10]), 400),
    "text": (changed(data=["a"] * 10), 400),
    "bool": (changed(data=[True] * 10), 400),
    "too few": (changed(data=[1]), 400),
    "data is none": (changed(data=None), 400),
    "too large": (changed(data=[1e300] * 10), 400),
    "a large whole number": (changed(data=[10**400] * 10), 400),
    "deep": (b'{"inputs": ' + b"[" * 100_000, 400),
    "output of a list": ({**rows(GOOD), "outputs": [{"name": []}]}, 400),
    "unknown output": ({**rows(GOOD), "outputs": [{"name": "other"}]}, 400),
}


@pytest.mark.parametrize("name", HOSTILE_ROWS)
def test_bad_tensors_get_a_clear_400(servers, name):
    body, expected = HOSTILE_ROWS[name]
    status, data, _ = servers(CREDIT).call("POST", "/v2/models/acme/credit/infer", body)
    assert status == expected, data
    assert json.loads(data)["error"]


def test_predictive_answers_in_the_open_inference_protocol(servers):
    server = servers(CREDIT)
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/credit/ready"):
        assert server.call("GET", path)[0] == 200
    about = json.loads(server.call("GET", "/v2/models/acme/credit")[1])
    assert about["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 10]}]
    body = {**rows(GOOD, GOOD), "id": "7"}
    status, data, _ = server.call("POST", "/v2/models/acme/credit/infer", body)
    answer = json.loads(data)
    assert (status, answer["id"], answer["model_version"]) == (200, "7", "v1")
    assert answer["outputs"][0]["shape"] == [2, 1]
    assert all(0 < score < 1 for score in answer["outputs"][0]["data"])
    strange = json.dumps({**rows(GOOD), "id": "\ud800", "outputs": []}).encode()
    assert server.call("POST", "/v2/models/credit/versions/v1/infer", strange)[0] == 200
    assert server.call("POST", "/v2/models/credit/versions/v9/infer", body)[0] == 404
    assert server.call("POST", "/v2/models/other/infer", body)[0] == 404
    assert server.call("GET", "/v2/models/acme/credit/infer")[0] == 405


def test_a_score_that_is_no_number_is_a_fault_of_the_model(servers):
    body = rows([None, *GOOD[1:]])
    status, data, _ = servers(CREDIT).call("POST", "/v2/models/acme/credit/infer", body)
    assert status == 500
    assert "not a number" in json.loads(data)["error"]
