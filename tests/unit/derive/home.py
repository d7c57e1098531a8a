"""A registry in a folder and a place to derive in, as a client beside a server has them."""

from __future__ import annotations

import json
from pathlib import Path

from lockgate.core.clock import SystemClock
from lockgate.derive.local import RegistryVersions
from lockgate.derive.run import Site
from lockgate.derive.work import Heard, Workplace
from lockgate.host.jobs.api import Jobs
from lockgate.host.jobs.local import LocalJobs
from lockgate.ledger.sqlite import SqliteLedger
from lockgate.registry.publish import publish
from lockgate.registry.restore import restore, verify
from lockgate.registry.service import Details, Registry
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.packs import PackStore

MODEL = "acme/sums"
TRAIN = """
import json, os, pathlib, sys
scratch, out = (pathlib.Path(os.environ["LOCKGATE_" + n]) for n in ("SCRATCH", "OUT"))
settings = json.loads(os.environ["LOCKGATE_PARAMETERS"])
state = scratch / "state.json"
total, at = json.loads(state.read_text()) if state.exists() else (0, 0)
base = os.environ.get("LOCKGATE_INPUT_BASE")
start = json.loads((pathlib.Path(base) / "sum.json").read_text()) if base else 0
while at < settings.get("epochs", 3):
    at += 1
    total += at
    tmp = scratch / "tmp.json"
    tmp.write_text(json.dumps([total, at]))
    tmp.replace(state)
    print(json.dumps({"done": at, "total": 3, "metrics": {"loss": 1 / at}}), flush=True)
    (scratch / "epochs.log").open("a").write(f"{at}\\n")
(out / "sum.json").write_text(json.dumps(start + total))
"""


class Home:
    """Everything over one folder; open it anew after a kill."""

    def __init__(self, folder: Path, jobs: Jobs | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ledger = SqliteLedger(folder / "ledger.db")
        self.store = PackStore(LocalBlobs(folder / "store"))
        self.registry = Registry(self.ledger, self.store, SystemClock())
        self.heard: list[Heard] = []
        self.site = Site(
            versions=RegistryVersions(self.registry, actor="ann"), shelf=self.registry,
            objects=self.store, actor="ann",
        )  # fmt: skip
        self.place = Workplace(
            folder=folder / "derive", jobs=jobs or LocalJobs(), objects=self.store,
            hear=self.heard.append,
        )  # fmt: skip

    def publish(self, model: str = MODEL, **files: object) -> str:
        """Publishes a folder of JSON files; returns its digest."""
        source = self.folder / "source"
        source.mkdir(exist_ok=True)
        for name, value in files.items():
            (source / f"{name}.json").write_text(json.dumps(value))
        done = publish(source, model, objects=self.store, shelf=self.registry,
                       details=Details(), actor="ann")  # fmt: skip
        return done.version.digest

    def read(self, model: str, version: str, name: str = "sum.json") -> object:
        """Returns what a version's file says; every byte of the version is checked."""
        manifest = self.registry.manifest(self.registry.version(model, version).digest)
        assert verify(manifest, self.store) == []
        folder = (
            self.folder
            / f"read-{version[:16].replace(':', '-')}-{len(list(self.folder.iterdir()))}"
        )
        restore(manifest, folder, self.store)
        return json.loads((folder / name).read_text())

    def script(self, text: str = TRAIN, name: str = "train.py") -> str:
        """Writes a script; returns its path."""
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def close(self) -> None:
        """Lets go of files."""
        self.store.close()
        self.ledger.close()
