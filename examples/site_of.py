"""What every example uses: a lockgate of its own in a folder, driven by its command line."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    def made(self, step: str, model: str, *parameters: str, seed: int = 1, **inputs: str) -> str:
        """Runs a step with `parameters` (key=value) on `inputs`; returns the version's name."""
        given = [part for parameter in parameters for part in ("--with", parameter)]
        taken = [part for key, value in inputs.items() for part in ("--from", f"{key}={value}")]
        made = ("--to", model, "--seed", str(seed), "--threads", "1")  # models this small gain none
        found = self.json("derive", step, *taken, *given, *made)
        return str(found["version"])

    def measured(self, model: str, version: str, signal: str, *, of: str = "value") -> str:
        """Returns what a gate measured of a version, or (`baseline`) of what serves."""
        for judged in self.json("show", model, version)["judged"]:
            for check in judged["verdict"]["checks"]:
                if check["signal"] == signal and check[of] is not None:
                    return f"{check[of]:.3f}"
        return ""

    def kilobytes(self, model: str, version: str) -> str:
        """Returns a version's size."""
        return f"{self.json('show', model, version)['bytes_total'] / 1000:.0f}"

    def above(self, model: str, version: str, relation: str) -> str:
        """Returns the version that `version` came from in this way."""
        rows = self.json("lineage", model, version)["from"]
        return next(f"v{row['number']}" for row in rows if row["relation"] == relation)

    def files(
        self, source: Path, names: Sequence[str], words: Mapping[str, object] | None = None
    ) -> None:
        """Copies files of an example into the folder, some words in them replaced."""
        for name in names:
            text = (source / name).read_text()
            for word, value in (words or {}).items():
                text = text.replace(word, str(value))
            (self.folder / name).write_text(text)

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


Tell = Callable[..., list[list[str]]]


def run_case(name: str, about: str | None, head: Sequence[str], tell: Tell) -> None:
    """Runs an example in an empty folder, from the command line: `tell(site, small=…)` → rows."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, default=Path(f".example-{name}"))
    parser.add_argument("--small", action="store_true", help="fewer rows, epochs and trials")
    asked = parser.parse_args()
    shutil.rmtree(asked.out, ignore_errors=True)
    began = time.monotonic()
    with Site(asked.out) as site:
        rows = tell(site, small=asked.small)
    table(head, rows)
    print(f"\n{time.monotonic() - began:.0f} s; all of it is in {asked.out}")


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
