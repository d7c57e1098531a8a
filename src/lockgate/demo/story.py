"""`lockgate demo`: serve, publish better, promote; publish worse, catch, go back. All real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from lockgate.client.client import Client, RemoteObjects, connect
from lockgate.core.errors import ConflictError, LockgateError, NotFoundError, TemporaryError
from lockgate.core.units import duration, size
from lockgate.demo.load import ChatCaller, CreditCaller, Load, read_lines
from lockgate.demo.report import Story, rows, write_page
from lockgate.registry.environment import build_environment, key_packages
from lockgate.registry.publish import publish
from lockgate.registry.service import Details

CHAT, CREDIT = "acme/chat", "acme/credit"
_START_S = 60.0
_RELEASE_S = 150.0


class Teller(Protocol):
    """Where the story is told; the CLI's `Output` is one."""

    def say(self, text: str, *, style: str | None = None) -> None:
        """Says a line."""
        ...

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Shows a table."""
        ...

    def value(self, value: object, *, quiet: object = None) -> None:
        """Gives the result as a value."""
        ...


def spec(model: str, version: int, *, bake_s: float, steps: Sequence[float]) -> dict[str, Any]:
    """Returns the demo's release spec for a model's version."""
    checks: list[dict[str, str]] = [
        {"signal": "error_rate", "worse_by_at_most": "25%", "floor": "1%"},
        {"signal": "latency_p50", "worse_by_at_most": "50%"},
    ]
    return {
        "model": model,
        "version": f"v{version}",
        "strategy": {"canary": list(steps), "bake": bake_s, "min_requests": 12,
                     "give_up_after": "90s"},
        "bucket": "2s",
        "checks": checks,
        "keep_previous": "10m",
        "alias": "champion",
    }  # fmt: skip


def run_demo(out: Path, *, quick: bool, output: Teller) -> int:
    """Runs the story in `out` and writes its report there; returns 0 when it went as it should.

    Raises ConflictError when `out` has something in it.
    """
    if out.exists() and any(out.iterdir()):
        raise ConflictError(f"{out} is there already", hint="remove it, or take another --out")
    out.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    shipped = resources.files("lockgate.demo").joinpath("models")
    with resources.as_file(shipped) as models, _server(out / ".lockgate") as client:
        story = _tell(client, models, quick=quick, output=output)
    _conclude(story, out, output, time.time() - begin)
    return 0 if story.went_well else 1


@contextmanager
def _server(home: Path) -> Iterator[Client]:
    """Runs `lockgate serve` over `home`, gives a client of it; drains and stops it at the end."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "serve.out").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lockgate.cli", "--home", str(home), "serve",
             "--port", "0", "--gateway-port", "0"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        with _connect(home, process) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _connect(home: Path, process: subprocess.Popen[bytes]) -> Client:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client = connect(home, actor=os.environ.get("USER") or "demo")
            client.get("/status")
        except (NotFoundError, TemporaryError):
            time.sleep(0.1)
        else:
            return client
    said = (home / "serve.out").read_text("utf-8", errors="replace")
    raise LockgateError(f"the demo's server did not start: {said[-500:]}")


def _tell(client: Client, models: Path, *, quick: bool, output: Teller) -> Story:
    gateway = client.get("/status")["gateway"]
    story = Story(gateway=gateway)
    output.say(f"a control plane at {client.url}, callers at {gateway}")
    for model, name in ((CHAT, "chat"), (CREDIT, "credit")):
        _publish(client, models / f"{name}-v1", model, story, output)
        opened = client.release({"model": model, "version": "v1"})
        _wait(client, [opened["release"]], story, output)
    loads = _loads(gateway, models)
    for load in loads:
        load.start()
    output.say("steady load: 20 chat requests/s, half of them streams; 30 credit requests/s")
    time.sleep(2 if quick else 5)
    for version in (2, 3):
        _round(client, models, version, story, output, quick=quick)
    time.sleep(1 if quick else 4)
    story.seen = [seen for load in loads for seen in load.stop()]
    _collect(client, story)
    return story


def _loads(gateway: str, models: Path) -> list[Load]:
    questions = read_lines(models / "chat-questions.jsonl")
    applications = read_lines(models / "credit-applications.jsonl")
    return [
        Load(ChatCaller(url=gateway, model=CHAT, questions=questions), rate=20, seed=1),
        Load(CreditCaller(url=gateway, model=CREDIT, applications=applications), rate=30, seed=2),
    ]


def _round(
    client: Client, models: Path, version: int, story: Story, output: Teller, *, quick: bool
) -> None:
    """Publishes and releases one version of both models, side by side."""
    names = []
    for model, name in ((CHAT, "chat"), (CREDIT, "credit")):
        _publish(client, models / f"{name}-v{version}", model, story, output)
        asked = spec(model, version, bake_s=4 if quick else 7, steps=(10, 50, 100))
        names.append(client.release({"spec": asked})["release"])
    _wait(client, names, story, output)


def _publish(client: Client, folder: Path, model: str, story: Story, output: Teller) -> None:
    details = Details(
        environment=build_environment(),
        dependencies=key_packages(),
        labels={"provenance": "lockgate/demo/models/PROVENANCE.json"},
    )
    objects = RemoteObjects(client)
    done = publish(folder, model, objects=objects, shelf=client, details=details, actor="demo")
    found = done.version.published
    story.versions[found.digest] = (model, found.number)
    story.bytes_published += found.bytes_total
    story.bytes_stored += found.bytes_new
    new, total = size(found.bytes_new), size(found.bytes_total)
    output.say(f"published {model} v{found.number}: {new} of {total} new")


def _wait(client: Client, names: Sequence[str], story: Story, output: Teller) -> None:
    """Follows releases until all are final, telling each event once."""
    told: dict[str, int] = dict.fromkeys(names, 0)
    deadline = time.monotonic() + _RELEASE_S
    open_names = set(names)
    while open_names and time.monotonic() < deadline:
        for name in sorted(open_names):
            view = client.explain(name)
            for event in view["timeline"][told[name] :]:
                output.say(f"  {event['at'][11:21]} {name} {view['model']}: {event['text']}")
            told[name] = len(view["timeline"])
            if view["final"]:
                story.releases.append(view)
                open_names.discard(name)
        time.sleep(0.2)
    for name in sorted(open_names):
        story.releases.append(client.explain(name))


def _collect(client: Client, story: Story) -> None:
    """Fetches what the gateway measured, once all is done."""
    story.releases = [client.explain(view["id"]) for view in story.releases]
    for model in (CHAT, CREDIT):
        story.series[model] = client.get(f"/series/{model}/local", slot=1.0)
    story.chain = client.get("/audit/verify")


def _conclude(story: Story, out: Path, output: Teller, seconds: float) -> None:
    page = write_page(story, out / "report.html")
    versions, releases, notes = rows(story)
    output.say("")
    output.table(*versions)
    output.say("")
    output.table(*releases)
    output.say("")
    for note in notes:
        output.say(note)
    output.say(f"all of it took {duration(seconds)}; the picture is {page}")
    output.say(f"look around: lockgate --home {out / '.lockgate'} serve")
    output.value(story.summary(), quiet=page)
