"""What the tests of datasets share: a run of a step on a folder, and its rows read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lockgate.derive.api import Advance, Metrics, Step, Work

WHY = "tables need pyarrow (pip install 'lockgate[data]')"


class Room:
    """A folder with raw files; each run has a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "raw"
        self.raw.mkdir()
        self.count = 0
        self.said: list[str] = []
        self.reports: list[Advance] = []
        self.metrics: Metrics = {}

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def run(
        self, step: Step, inputs: Mapping[str, Path | Sequence[Path]] | None = None, seed: int = 7,
        **asked: Any,
    ) -> Path:  # fmt: skip
        self.count += 1
        out, scratch = self.root / f"out-{self.count}", self.root / f"scratch-{self.count}"
        out.mkdir()
        scratch.mkdir()
        given = {"source": self.raw} if inputs is None else inputs
        work = Work(
            inputs={name: [p] if isinstance(p, Path) else list(p) for name, p in given.items()},
            out=out, scratch=scratch, parameters=step.parameters.model_validate(asked), seed=seed,
            report=self.reports.append, log=self.said.append,
        )  # fmt: skip
        self.metrics = step.run(work)
        return out


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a folder's `rows.parquet`, or of a Parquet file."""
    pq = pytest.importorskip("pyarrow.parquet", reason=WHY)
    found: list[dict[str, Any]] = pq.read_table(
        path / "rows.parquet" if path.is_dir() else path
    ).to_pylist()
    return found


def profile_of(folder: Path) -> dict[str, Any]:
    """Returns a folder's profile; refuses what is not JSON, such as NaN."""

    def refuse(word: str) -> float:
        raise AssertionError(word)

    found: dict[str, Any] = json.loads(
        (folder / "profile.json").read_text("utf-8"), parse_constant=refuse
    )
    return found
