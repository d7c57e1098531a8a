"""A real object store for the tests that are marked `s3`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CEPH = Path(__file__).resolve().parents[2] / "scripts" / "ceph.py"
PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where a bucket is: the one that LOCKGATE_S3_* names, or one of a Ceph made for this run."""
    given = ("ENDPOINT", "REGION", "BUCKET", "ACCESS_KEY", "SECRET_KEY")
    if "LOCKGATE_S3_ENDPOINT" in os.environ:
        yield {name.lower(): os.environ[f"LOCKGATE_S3_{name}"] for name in given}
        return
    if not all(map(shutil.which, PROGRAMS)):
        pytest.skip("no S3 server: radosgw and the other programs of Ceph are not installed")
    folder = tmp_path_factory.mktemp("ceph")
    run = [sys.executable, str(CEPH)]
    made = subprocess.run([*run, "start", str(folder)], capture_output=True, text=True, timeout=240)
    try:
        assert made.returncode == 0, made.stderr
        yield json.loads(made.stdout)
    finally:
        subprocess.run([*run, "stop", str(folder)], check=True, timeout=60)
