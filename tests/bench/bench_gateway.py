"""What the gateway costs: the same requests straight to a replica and through Envoy, interleaved.

Run it as `python tests/bench/bench_gateway.py`. It prints medians over rounds; no time is asserted.
Both sides use the same closed-loop client (8 connections), so ratios inside one run are what to
trust: on shared cores the absolute numbers move.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lockgate.core.traffic import Endpoint
from lockgate.gateway.api import RouteSpec
from lockgate.gateway.envoy import EnvoyGateway, EnvoyOptions

REPLICA = Path(__file__).parents[1] / "unit" / "gateway" / "replica.py"
ROUTE, SECONDS, ROUNDS, FLIPS = "acme/chat@local", 1.0, 5, 40
BODY = b'{"model": "acme/chat"}'


async def client(port, path, until, times):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY
    while (start := time.perf_counter()) < until:
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        size = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(size)
        times.append(time.perf_counter() - start)
    writer.close()


def measure(port, path, connections=8):
    """Returns (requests/s, median ms, 99th percentile ms, requests)."""

    async def all_of_them():
        until = time.perf_counter() + SECONDS
        times = []
        await asyncio.gather(*(client(port, path, until, times) for _ in range(connections)))
        return times

    times = sorted(asyncio.run(all_of_them()))
    return (
        len(times) / SECONDS,
        1e3 * statistics.median(times),
        1e3 * times[int(len(times) * 0.99)],
        len(times),
    )


def flips(gateway):
    """Returns the times of `FLIPS` full weight changes, in ms, until acknowledged."""
    took = []
    for number in range(FLIPS):
        share = 10_000 * (number % 2)
        start = time.perf_counter()
        weights = {"a": 10_000 - share, "b": share}
        gateway.set_route(RouteSpec(name=ROUTE, model="acme/chat", weights=weights, baseline="a"))
        took.append(1e3 * (time.perf_counter() - start))
    return sorted(took)


def bench(mode, tokens, endpoint, home):
    rows = []
    gateway = EnvoyGateway(
        state_dir=home / "s",
        run_dir=home / "r",
        sink=rows.extend,
        mode=mode,
        options=EnvoyOptions(token_metadata=tokens),
    )
    try:
        for version in ("a", "b"):
            gateway.set_pool(ROUTE, version, [endpoint])
        took = flips(gateway)
        port = int(gateway.address.rpartition(":")[2])
        pairs = [
            (measure(endpoint.port, "/v1/completions"), measure(port, "/v1/completions"))
            for _ in range(ROUNDS)
        ]
    finally:
        gateway.close(stop=True)
    direct, through = (
        [statistics.median(pair[side][column] for pair in pairs) for column in range(3)]
        for side in (0, 1)
    )
    ratio = statistics.median(pair[1][0] / pair[0][0] for pair in pairs)
    print(f"{mode}, tokens {'on' if tokens else 'off'}")
    for name, (rate, middle, high) in (("direct", direct), ("gateway", through)):
        print(f"  {name:8} {rate:8.0f} req/s   p50 {middle:6.2f} ms   p99 {high:6.2f} ms")
    sent = sum(pair[1][3] for pair in pairs)
    print(f"  rate through the gateway / direct: {ratio:.2f}")
    print(f"  rows delivered: {len(rows)} of {sent} requests")
    print(
        f"  weight change acknowledged: median {took[FLIPS // 2]:.1f} ms, worst {took[-1]:.1f} ms"
    )


def main():
    process = subprocess.Popen([sys.executable, str(REPLICA), "a"], stdout=subprocess.PIPE)
    try:
        endpoint = Endpoint(host="127.0.0.1", port=int(process.stdout.readline()))
        for mode, tokens in (("ads", True), ("ads", False), ("files", True)):
            with tempfile.TemporaryDirectory() as home:
                bench(mode, tokens, endpoint, Path(home))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
