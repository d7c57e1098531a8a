"""What the tests share: a run of `snapshot` in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lockgate.derive.api import Advance, Metrics, Work
from lockgate.derive.steps.data.snapshot import Snapshot, SnapshotParameters

STEP = Snapshot()


class Taking:
    """Runs snapshots over one connection, `there`; `scratch` outlives them as after a kill."""

    def __init__(self, folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCKGATE_CONNECTION_THERE", address)
        self.folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self.said: list[str] = []
        self.reports: list[Advance] = []
        self.metrics: Metrics = {}

    def take(self, kind: str, digest: str | None = None, **of: Any) -> Path:
        """Returns the folder that a snapshot made."""
        out = self.folder / f"out-{len(list(self.folder.iterdir()))}"
        out.mkdir()
        asked = {"of": {"kind": kind, "connection": "there", **of}, "digest": digest}
        work = Work(
            inputs={}, out=out, scratch=self.scratch, seed=0, report=self.reports.append,
            log=self.said.append, parameters=SnapshotParameters.model_validate(asked),
        )  # fmt: skip
        self.metrics = STEP.run(work)
        return out


def about(folder: Path) -> dict[str, Any]:
    """Returns what a snapshot says of itself."""
    found: dict[str, Any] = json.loads((folder / "snapshot.json").read_text("utf-8"))
    return found
