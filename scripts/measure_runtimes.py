"""Measures one runtime on one of the demo's models: time to ready, memory, speed, exit.

python scripts/measure_runtimes.py onnx chat-v2
python scripts/measure_runtimes.py onnx credit-v2
python scripts/measure_runtimes.py transformers chat-v2
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lockgate
from lockgate.core.traffic import Endpoint
from lockgate.fleet.api import Job, Launch
from lockgate.fleet.runtimes.choose import choose

_MODELS = Path(lockgate.__file__).parent / "demo" / "models"
_ROW = [40.0, 30, 0.2, 5, 0.3, 0, 60, 40, 10, 24]


def main() -> None:
    """Runs one measurement and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runtime")
    parser.add_argument("model", help="a folder of the demo's models, or any path")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each load lasts")
    arguments = parser.parse_args()
    folder = _MODELS / arguments.model
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = Endpoint(host="127.0.0.1", port=port)
    job = Job(folder=folder, model="acme/m", version="v1", endpoint=endpoint)
    launch = choose(folder, arguments.runtime).launch(job)
    began = time.perf_counter()
    process = subprocess.Popen(launch.argv, env={**os.environ, **launch.env})
    try:
        found: dict[str, object] = {"ready_s": round(_ready(process, port, launch, began), 2)}
        found |= _loads(port, arguments.seconds, chat="chat" in arguments.model)
        found |= _memory(process.pid)
        process.send_signal(signal.SIGTERM)
        found["exit_code"] = process.wait(30)
    finally:
        process.kill()
    print(json.dumps(found, indent=2))


def _ready(process: subprocess.Popen[bytes], port: int, launch: Launch, began: float) -> float:
    while process.poll() is None:
        try:
            if _call(http.client.HTTPConnection("127.0.0.1", port), "GET", launch.ready.path, {}):
                return time.perf_counter() - began
        except OSError:
            time.sleep(0.01)
    raise SystemExit(f"the server ended with {process.returncode}")


def _call(connection: http.client.HTTPConnection, method: str, path: str, body: object) -> bool:
    connection.request(method, path, json.dumps(body) if body else None)
    answer = connection.getresponse()
    answer.read()
    return answer.status == 200


def _loads(port: int, seconds: float, *, chat: bool) -> dict[str, object]:
    body: dict[str, object] = {
        "inputs": [{"name": "features", "shape": [1, 10], "datatype": "FP32", "data": _ROW}]
    }
    path = "/v2/models/acme/m/infer"
    if chat:
        path = "/v1/chat/completions"
        question = {"role": "user", "content": "What is 27 + 52?"}
        body = {"model": "acme/m", "messages": [question], "max_tokens": 64, "temperature": 0}
        body["stream"] = True
    found: dict[str, object] = {}
    for clients in (1, 8):
        before = _metrics(port)
        times = _load(port, path, body, clients, seconds)
        about: dict[str, object] = {
            "requests_per_s": round(len(times) / seconds, 1),
            "p50_ms": round(1000 * sorted(times)[len(times) // 2], 2),
            "p95_ms": round(1000 * sorted(times)[int(len(times) * 0.95)], 2),
        }
        found[f"{clients}_clients"] = about | (_tokens(port, before, seconds) if chat else {})
    return found


def _load(port: int, path: str, body: object, clients: int, seconds: float) -> list[float]:
    def one(_: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        times = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            _call(connection, "POST", path, body)
            times.append(time.perf_counter() - began)
        connection.close()
        return times

    with ThreadPoolExecutor(clients) as pool:
        return [spent for times in pool.map(one, range(clients)) for spent in times]


def _metrics(port: int) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def _tokens(port: int, before: dict[str, float], seconds: float) -> dict[str, object]:
    """Returns tokens a second and the mean time between an answer's tokens, by the metrics."""
    after = _metrics(port)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    name = "lockgate_time_per_output_token_seconds"
    mean = grown[f"{name}_sum"] / grown[f"{name}_count"]
    tokens = grown['lockgate_tokens_total{kind="completion"}']
    return {"token_ms": round(1000 * mean, 3), "tokens_per_s": round(tokens / seconds)}


def _memory(pid: int) -> dict[str, object]:
    """Returns resident and address space in MB, the most there was of each."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Vm")}
    return {"rss_mb": sizes["VmHWM"] // 1024, "address_space_mb": sizes["VmPeak"] // 1024}


if __name__ == "__main__":
    main()
