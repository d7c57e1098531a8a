"""Every example runs, reduced, from nothing to its table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
NEEDS = {
    "credit": ("sklearn", "skl2onnx", "optuna"),
    "recommender": ("torch", "onnxscript", "optuna"),
    "text": ("torch", "transformers", "onnxscript", "optuna"),
    "language": ("torch", "transformers", "compressed_tensors", "optuna"),
}


def test_every_example_is_tested_and_described() -> None:
    folders = {path.name for path in (ROOT / "examples").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(NEEDS)
    for name in NEEDS:
        assert (ROOT / "examples" / name / "README.md").exists()


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_an_example_runs_to_its_end(name: str, tmp_path: Path) -> None:
    for package in NEEDS[name]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name / "case.py"), "--small", "--out",
         str(tmp_path / "case")],
        capture_output=True, text=True, timeout=800, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    table = done.stdout[done.stdout.rindex("version  ") :]
    assert "promoted" in table
    assert "retrain (15)" in table
    assert "rolled back (11)" in table
    assert "Traceback" not in (tmp_path / "case" / "serve.log").read_text()
