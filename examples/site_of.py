"""What every example uses: a lockgate of its own in a folder, driven by its command line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2

_HELD = 12


class Site:
    """A server in `folder`; use as a context manager. Everything it prints goes to `serve.log`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def __enter__(self) -> Self:
        log = (self.folder / "serve.log").open("ab")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "lockgate.cli", "serve", "--port", "0", "--gateway-port", "0"],
            cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                self.gateway = json.loads(self._call("status", "--json").stdout)["gateway"]
            except (ValueError, KeyError):
                if time.monotonic() > deadline or self._server.poll() is not None:
                    raise RuntimeError((self.folder / "serve.log").read_text()) from None
                time.sleep(0.3)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._server.terminate()
        self._server.wait(60)

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lockgate.cli", *arguments],
            cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def run(self, *arguments: str, codes: Sequence[int] = (0,)) -> int:
        """Runs `lockgate …`, shows what it says; the exit code must be one of `codes`."""
        print(f"\n$ lockgate {' '.join(arguments)}", flush=True)
        done = self._call(*arguments)
        print(done.stdout + done.stderr, end="", flush=True)
        if done.returncode not in codes:
            raise SystemExit(f"exit code {done.returncode}, expected {codes}")
        return done.returncode

    def release(self, spec: str, *, codes: Sequence[int] = (0,)) -> int:
        """Releases by a spec, and watches to the end: a hold for want of requests is waited out."""
        code = self.run("release", spec, "--watch", codes=(*codes, _HELD))
        while code == _HELD:
            time.sleep(1)
            newest = self.json("releases")[0]["id"]
            code = self.run("watch", newest, codes=(*codes, _HELD))
        return code

    def json(self, *arguments: str, codes: Sequence[int] = (0,)) -> Any:
        """Runs `lockgate … --json`; returns the value."""
        done = self._call(*arguments, "--json")
        if done.returncode not in codes:
            raise SystemExit(f"lockgate {arguments}: {done.returncode}\n{done.stderr}")
        return json.loads(done.stdout)

    @contextmanager
    def callers(
        self, request: Callable[[random.Random], tuple[str, Any]], *, threads: int = 3
    ) -> Iterator[list[int]]:
        """Sends requests (path, body) through the gateway until the end; gives the statuses."""
        statuses: list[int] = []
        stop = threading.Event()

        def call(seed: int) -> None:
            draw = random.Random(seed)
            with httpx2.Client(base_url=self.gateway, timeout=60, trust_env=False) as client:
                while not stop.is_set():
                    path, body = request(draw)
                    try:
                        statuses.append(client.post(path, json=body).status_code)
                    except httpx2.HTTPError:
                        statuses.append(0)
                    time.sleep(0.01)

        workers = [threading.Thread(target=call, args=(seed,)) for seed in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield statuses
        finally:
            stop.set()
            for worker in workers:
                worker.join()


def lines(path: Path, rows: Sequence[Any]) -> None:
    """Writes rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    widths = [max(len(str(row[i])) for row in (head, *rows)) for i in range(len(head))]
    print()
    for row in (head, ["-" * width for width in widths], *rows):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)))
