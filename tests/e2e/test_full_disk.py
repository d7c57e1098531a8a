"""A full disk under a running server: callers notice nothing, and it still stops cleanly."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .calls import Callers, credit_callers
from .conftest import CREDIT, Site

pytestmark = pytest.mark.e2e


def fill(path: Path) -> None:
    """Writes to `path` until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))


def test_a_server_on_a_full_disk_serves_and_stops_cleanly(tmp_path: Path) -> None:
    made = Site(tmp_path)
    made.home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(made.home)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        made.start()
        made.serve_first(CREDIT, "credit")
        with Callers(made.address, credit_callers(2), pause_s=0.01) as callers:
            callers.wait_for(50)
            with pytest.raises(OSError, match="space"):
                fill(made.home / "ballast")
            made.run("alias", CREDIT, "champion", "v1", code=21)
            assert "is the disk full" in made.said
            callers.wait_for(len(callers.calls) + 100)
        assert callers.failed == []
        made.stop()
        assert made.pids("envoy") == made.pids("replica") == []
        (made.home / "ballast").unlink()
        made.start()
        made.run("audit", "--verify")
        made.stop()
    finally:
        subprocess.run(["umount", "-l", str(made.home)], check=True)
