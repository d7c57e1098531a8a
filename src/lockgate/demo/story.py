"""`lockgate demo`: serve, publish better, promote; publish worse, catch, go back. All real."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from lockgate.core.errors import ConflictError, LockgateError, NotFoundError, TemporaryError
from lockgate.core.units import duration, size
from lockgate.demo.load import ChatCaller, CreditCaller, Load, read_lines
from lockgate.demo.report import Story, rows, write_page
from lockgate.registry.environment import build_environment, key_packages
from lockgate.registry.publish import Shelf, publish
from lockgate.registry.service import Details
from lockgate.store.api import Objects

CHAT, CREDIT = "acme/chat", "acme/credit"
_START_S = 60.0
_RELEASE_S = 150.0


class Connection(Shelf, Protocol):
    """A client of the demo's server; the CLI brings it."""

    url: str

    def get(self, path: str, **query: object) -> Any:
        """Returns the JSON at `path`."""
        ...

    def release(self, asked: Mapping[str, object]) -> dict[str, Any]:
        """Opens a release."""
        ...

    def explain(self, release: str) -> dict[str, Any]:
        """Returns everything known of a release now."""
        ...

    def close(self) -> None:
        """Closes the connection."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """How the demo reaches its server: by home folder, and that server's store by connection."""

    connect: Callable[[Path], Connection]
    objects: Callable[[Connection], Objects]


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
        {"signal": "error_rate", "worse_by_at_most": "25%", "floor": "3%"},
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


def run_demo(out: Path, means: Means, *, quick: bool, output: Teller) -> int:
    """Runs the story in `out` and writes its report there; returns 0 when it went as it should.

    Raises ConflictError when `out` has something in it.
    """
    if out.exists() and any(out.iterdir()):
        raise ConflictError(f"{out} is there already", hint="remove it, or take another --out")
    out.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    shipped = resources.files("lockgate.demo").joinpath("models")
    with resources.as_file(shipped) as models, _server(out / ".lockgate", means) as client:
        story = _Run(client, means.objects(client), models, output).tell(quick=quick)
    _conclude(story, out, output, time.time() - begin)
    return 0 if story.went_well else 1


@contextmanager
def _server(home: Path, means: Means) -> Iterator[Connection]:
    """Runs `lockgate serve` over `home`, gives a client of it; drains and stops it at the end."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "serve.out").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lockgate.cli", "--home", str(home), "serve",
             "--port", "0", "--gateway-port", "0"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        client = _connect(home, means, process)
        yield client
        client.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _connect(home: Path, means: Means, process: subprocess.Popen[bytes]) -> Connection:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client = means.connect(home)
            client.get("/status")
        except (NotFoundError, TemporaryError):
            time.sleep(0.1)
        else:
            return client
    said = (home / "serve.out").read_text("utf-8", errors="replace")
    raise LockgateError(f"the demo's server did not start: {said[-500:]}")


class _Run:
    """One telling of the story against a running server."""

    def __init__(self, client: Connection, objects: Objects, models: Path, output: Teller) -> None:
        self._client = client
        self._objects = objects
        self._models = models
        self._output = output
        self._story = Story(gateway=client.get("/status")["gateway"])

    def tell(self, *, quick: bool) -> Story:
        """Runs the story from the first publish to the last answer."""
        say, story = self._output.say, self._story
        say(f"a control plane at {self._client.url}, callers at {story.gateway}")
        for model, name in ((CHAT, "chat"), (CREDIT, "credit")):
            self._publish(self._models / f"{name}-v1", model)
            opened = self._client.release({"model": model, "version": "v1"})
            self._wait([opened["release"]])
        loads = self._loads()
        for load in loads:
            load.start()
        say("steady load: 20 chat requests/s, half of them streams; 30 credit requests/s")
        time.sleep(2 if quick else 5)
        for version in (2, 3):
            self._round(version, bake_s=4 if quick else 7)
        time.sleep(1 if quick else 4)
        story.seen = [seen for load in loads for seen in load.stop()]
        self._collect()
        return story

    def _loads(self) -> list[Load]:
        url = self._story.gateway
        questions = read_lines(self._models / "chat-questions.jsonl")
        applications = read_lines(self._models / "credit-applications.jsonl")
        return [
            Load(ChatCaller(url=url, model=CHAT, questions=questions), rate=20, seed=1),
            Load(CreditCaller(url=url, model=CREDIT, applications=applications), rate=30, seed=2),
        ]

    def _round(self, version: int, *, bake_s: float) -> None:
        """Publishes and releases one version of both models, side by side."""
        names = []
        for model, name in ((CHAT, "chat"), (CREDIT, "credit")):
            self._publish(self._models / f"{name}-v{version}", model)
            asked = spec(model, version, bake_s=bake_s, steps=(20, 50, 100))
            names.append(self._client.release({"spec": asked})["release"])
        self._wait(names)

    def _publish(self, folder: Path, model: str) -> None:
        details = Details(
            environment=build_environment(),
            dependencies=key_packages(),
            labels={"provenance": "lockgate/demo/models/PROVENANCE.json"},
        )
        done = publish(
            folder, model, objects=self._objects, shelf=self._client, details=details, actor="demo"
        )
        found, story = done.version.published, self._story
        story.versions[found.digest] = (model, found.number)
        story.bytes_published += found.bytes_total
        story.bytes_stored += found.bytes_new
        new, total = size(found.bytes_new), size(found.bytes_total)
        self._output.say(f"published {model} v{found.number}: {new} of {total} new")

    def _wait(self, names: Sequence[str]) -> None:
        """Follows releases until all are final, telling each event once."""
        told: dict[str, int] = dict.fromkeys(names, 0)
        deadline = time.monotonic() + _RELEASE_S
        under_way = set(names)
        while under_way and time.monotonic() < deadline:
            for name in sorted(under_way):
                view = self._client.explain(name)
                for event in view["timeline"][told[name] :]:
                    when = event["at"][11:21]
                    self._output.say(f"  {when} {name} {view['model']}: {event['text']}")
                told[name] = len(view["timeline"])
                if view["final"]:
                    self._story.releases.append(view)
                    under_way.discard(name)
            time.sleep(0.2)
        self._story.releases += [self._client.explain(name) for name in sorted(under_way)]

    def _collect(self) -> None:
        """Fetches what the gateway measured, once all is done."""
        story = self._story
        story.releases = [self._client.explain(view["id"]) for view in story.releases]
        for model in (CHAT, CREDIT):
            story.series[model] = self._client.get(f"/series/{model}/local", slot=1.0)
        story.chain = self._client.get("/audit/verify")


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
    command = "lockgate" if shutil.which("lockgate") else sys.argv[0]
    home = f"{command} --home {out / '.lockgate'}"
    output.say(f"look around: {home} serve, and beside it: {home} audit")
    output.value(story.summary(), quiet=page)
