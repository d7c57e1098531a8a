"""One look of the engine at many open releases; ledger and samples in SQLite, the rest in memory.

python tests/bench/bench_engine.py [RELEASES ...]; prints seconds a tick, idle and with new samples.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lockgate.analysis.judge import SequentialJudge
from lockgate.core.clock import SystemClock
from lockgate.core.digests import digest_of
from lockgate.core.events import VersionPublished
from lockgate.core.traffic import Sample
from lockgate.fleet.memory import MemoryFleet
from lockgate.gateway.memory import MemoryGateway
from lockgate.ledger.sqlite import SqliteLedger
from lockgate.observe.docket import Docket
from lockgate.observe.sqlite import SqliteSamples
from lockgate.registry.service import Registry
from lockgate.release.act import Ports
from lockgate.release.commands import Commands
from lockgate.release.loop import Engine, Tools
from lockgate.release.spec import check_spec
from lockgate.store.blobs.memory import MemoryBlobs
from lockgate.store.packs import PackStore

CHECKS = [
    {"signal": "error_rate", "worse_by_at_most": "50%", "floor": "1%"},
    {"signal": "latency_mean", "worse_by_at_most": "10%"},
    {"signal": "latency_p95", "worse_by_at_most": "20%"},
]


class Place:
    """A data center of `count` models, each with a release at its first step."""

    def __init__(self, folder: Path, count: int) -> None:
        self.clock = SystemClock()
        self.samples = SqliteSamples(folder / "samples.db")
        self.ledger = SqliteLedger(folder / "ledger.db")
        self.gateway = MemoryGateway()
        registry = Registry(self.ledger, PackStore(MemoryBlobs()), self.clock)
        tools = Tools(
            ledger=self.ledger, leases=self.ledger, registry=registry, clock=self.clock,
            docket=Docket(self.samples, self.samples, SequentialJudge()),
        )  # fmt: skip
        ports = Ports(fleet=MemoryFleet(self.clock.now), gateway=self.gateway)
        self.engine = Engine(tools, ports, holder="bench")
        self.commands = Commands(self.ledger, registry, self.engine.book, self.clock)
        self.models = [f"acme/model-{i}" for i in range(count)]
        self.draw = np.random.default_rng(1)
        self._fill()

    def _fill(self) -> None:
        for model in self.models:
            for number in (1, 2):
                event = VersionPublished(
                    model=model, number=number, digest=digest_of(f"{model} {number}".encode()),
                    bytes_total=1, bytes_new=1, artifacts=1, tensors=1,
                )  # fmt: skip
                self.ledger.append(f"model/{model}", number - 1, [event], actor="b", at=1.0)
        for version in ("v1", "v2"):
            for model in self.models:
                spec = {"model": model, "version": version, "checks": CHECKS,
                        "strategy": {"canary": [10, 100], "bake": "30d"}}  # fmt: skip
                self.commands.open(check_spec(spec), actor="bench")
            self.engine.tick()
            time.sleep(1.0)
        self.engine.tick()

    def traffic(self, each: int) -> None:
        """Records `each` requests of every route."""
        rows = []
        now = self.clock.now()
        for model in self.models:
            route = f"{model}@local"
            view = self.gateway.view().routes[route] if each and len(self.models) < 50 else None
            revision = view.revision if view else 1
            new, old = (digest_of(f"{model} {n}".encode()) for n in (2, 1))
            took = self.draw.lognormal(-2, 0.5, each)
            arms = self.draw.random(each) < 0.1
            rows += [
                Sample(at=now + i / each, route=route, version=new if arms[i] else old,
                       propensity=0.1 if arms[i] else 0.9, revision=revision, status=200,
                       duration_s=float(took[i]), first_body_s=0.01)
                for i in range(each)
            ]  # fmt: skip
        self.samples.record(rows)

    def tick(self) -> float:
        """Returns the seconds of one look, a second after the last."""
        time.sleep(1.0)
        start = time.perf_counter()
        self.engine.tick()
        return time.perf_counter() - start


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] or [10, 100, 1000]
    print("releases   idle tick   tick with 20 new requests each   a release")
    for count in sizes:
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder), count)
            idle = sorted(place.tick() for _ in range(5))[2]
            busy = []
            for _ in range(5):
                place.traffic(20)
                busy.append(place.tick())
            middle = sorted(busy)[2]
            print(f"{count:>8,}   {idle:8.3f} s  {middle:8.3f} s"
                  f"   {1e3 * middle / count:24.2f} ms", flush=True)  # fmt: skip
            place.samples.close()
            place.ledger.close()


if __name__ == "__main__":
    main()
