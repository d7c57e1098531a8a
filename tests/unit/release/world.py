"""The memory world: every port in memory, a clock that tests own, and sentences to drive it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lockgate.analysis.judge import SequentialJudge
from lockgate.core.clock import ManualClock
from lockgate.core.digests import digest_of
from lockgate.core.events import VersionPublished, kind_of
from lockgate.core.traffic import Sample, twin_of
from lockgate.fleet.memory import MemoryFleet
from lockgate.gateway.memory import MemoryGateway
from lockgate.ledger.memory import MemoryLedger
from lockgate.observe.docket import Docket
from lockgate.observe.memory import MemorySamples
from lockgate.registry.service import Registry
from lockgate.release.act import Ports
from lockgate.release.commands import Commands
from lockgate.release.loop import Engine, Tools
from lockgate.release.routes import Route
from lockgate.release.spec import check_spec
from lockgate.release.state import Release
from lockgate.store.blobs.memory import MemoryBlobs
from lockgate.store.packs import PackStore

MODEL = "acme/chat"
ROUTE = "acme/chat@local"


class World:
    """A data center in memory. `d(n)` is the digest of version n."""

    def __init__(self, *, start_s: float = 0.0) -> None:
        self.clock = ManualClock()
        self.ledger = MemoryLedger()
        self.fleet = MemoryFleet(self.clock.now, start_s=start_s)
        self.gateway = MemoryGateway()
        self.samples = MemorySamples()
        self.registry = Registry(self.ledger, PackStore(MemoryBlobs()), self.clock)
        for number in range(1, 6):
            self.publish(number)
        self.engine = self.new_engine("one")

    def new_engine(self, holder: str) -> Engine:
        tools = Tools(
            ledger=self.ledger, leases=self.ledger, registry=self.registry,
            docket=Docket(self.samples, self.samples, SequentialJudge()), clock=self.clock,
        )  # fmt: skip
        ports = Ports(fleet=self.fleet, gateway=self.gateway)
        engine = Engine(tools, ports, holder=holder)
        self.commands = Commands(self.ledger, self.registry, engine.book, self.clock)
        return engine

    def publish(self, number: int) -> None:
        event = VersionPublished(
            model=MODEL, number=number, digest=self.d(number), bytes_total=100, bytes_new=1,
            artifacts=1, tensors=1,
        )  # fmt: skip
        self.ledger.append(f"model/{MODEL}", number - 1, [event], actor="ann", at=1.0)

    @staticmethod
    def d(number: int) -> str:
        return digest_of(f"version {number}".encode())

    def open(self, number: int, *, supersede: bool = False, **settings: object) -> str:
        spec: dict[str, object] = {
            "model": MODEL, "version": f"v{number}",
            "strategy": {"canary": [10, 50, 100], "bake": "60s", "min_requests": 30,
                         "give_up_after": "1h"},
            "checks": [{"signal": "error_rate", "worse_by_at_most": "25%", "floor": "1%"},
                       {"signal": "latency_p95", "worse_by_at_most": "20%"}],
            "keep_previous": "300s",
        }  # fmt: skip
        spec.update(settings)
        opened = self.commands.open(check_spec(spec), actor="ann", supersede=supersede)
        assert opened.release is not None
        return opened.release

    def serve(self, number: int) -> str:
        """Brings `number` into service at once."""
        name = self.open(number, strategy={"blue-green": True, "bake": "0s", "min_requests": 0},
                         checks=[])  # fmt: skip
        self.engine.tick()
        assert self.release(name).phase == "promoted"
        return name

    def traffic(
        self, seconds: int, *, rate: int = 10, bad: Mapping[int, str] | None = None
    ) -> None:
        """Sends `rate` requests a second by the split in force and ticks every second.

        `bad`: version number → `errors` or `slow`.
        """
        marks = {self.d(number): how for number, how in (bad or {}).items()}
        for _ in range(seconds):
            self._second(rate, marks)
            self.clock.sleep(1.0)
            self.engine.tick()

    def _second(self, rate: int, marks: Mapping[str, str]) -> None:
        view = self.gateway.view().routes.get(ROUTE)
        if view is None:
            return
        rows: list[Sample] = []
        mirrored = next(iter(view.mirror), None)
        for i in range(rate):
            at = self.clock.now() + i / rate
            version = _pick(view.weights, digest_of(f"{at:.3f}".encode()))
            how = marks.get(version, "")
            noise = int(digest_of(f"n{at:.3f}".encode())[-4:], 16) / 65_536
            rows.append(Sample(
                at=at, route=ROUTE, version=version, propensity=view.weights[version] / 10_000,
                revision=view.revision, first_body_s=0.05, tokens=9,
                duration_s=(0.1 + 0.1 * noise) * (3 if how == "slow" else 1),
                status=500 if how == "errors" and i % 2 else 200, request_id=f"{at:.3f}",
            ))  # fmt: skip
            if mirrored:
                copy = {"version": mirrored, "propensity": 1.0, "mirrored": True}
                rows.append(replace(rows[-1], **copy))
        self.samples.record(rows)

    def ticks(self, count: int, every: float = 1.0) -> None:
        for _ in range(count):
            self.clock.sleep(every)
            self.engine.tick()

    def release(self, name: str) -> Release:
        return self.engine.book().releases[name]

    @property
    def route(self) -> Route:
        return self.engine.book().routes[ROUTE]

    def split(self) -> dict[int, int]:
        """Version number → percent in force."""
        numbers = {self.d(n): n for n in range(1, 6)}
        numbers |= {twin_of(version): -n for version, n in numbers.items()}
        view = self.gateway.view().routes.get(ROUTE)
        return {numbers[v]: w // 100 for v, w in view.weights.items() if w} if view else {}

    def running(self) -> set[int]:
        numbers = {self.d(n): n for n in range(1, 6)}
        return {numbers[replica.version] for replica in self.fleet.replicas()}

    def story(self, name: str) -> list[str]:
        return [kind_of(r.event) for r in self.ledger.read(stream=f"release/{name}")]


def _pick(weights: Mapping[str, int], digest: str) -> str:
    """Returns the version that a point drawn from `digest` falls on."""
    point = int(digest[-8:], 16) % 10_000
    for version, weight in sorted(weights.items()):
        point -= weight
        if point < 0:
            return version
    raise AssertionError(weights)


HISTORIES = Path(__file__).parents[2] / "histories"
