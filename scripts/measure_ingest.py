"""Measures time and peak memory of the step `ingest` on a made-up CSV; not run in CI.

    python scripts/measure_ingest.py [MEGABYTES=300] [--quotes]

Prints one line of JSON: megabytes read, seconds, the process's peak resident MiB (VmHWM).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_RUN = """
import sys
from pathlib import Path
from lockgate.derive.api import Work
from lockgate.derive.steps.data.ingest import Ingest, IngestParameters
raw, out = Path(sys.argv[1]), Path(sys.argv[2])
Ingest().run(Work(inputs={"source": [raw]}, out=out, scratch=out, seed=1, log=lambda _: None,
                  parameters=IngestParameters(), report=lambda _: None))
print(Path("/proc/self/status").read_text())
"""


def make(path: Path, size: int, quote: str) -> None:
    """Writes about `size` bytes of rows: an id, a float, a category, a name, a date, a flag."""
    with path.open("w", encoding="utf-8") as file:
        file.write("id,amount,kind,name,day,paid\n")
        n = 0
        while file.tell() < size:
            file.writelines(
                f"{i},{i * 0.731 % 9973:.3f},kind{i * 7919 % 37},{quote}Person {i * 104729 % 10**9}"
                f" of {i % 977}{quote},2031-{i % 12 + 1:02}-{i % 28 + 1:02},"
                f"{'true' if i % 3 else 'false'}\n"
                for i in range(n, n + 10_000)
            )
            n += 10_000


def main() -> None:
    """Makes the file, runs the step in a process of its own, prints what it took."""
    sizes = [int(word) for word in sys.argv[1:] if word.isdigit()]
    megabytes = sizes[0] if sizes else 300
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder, "raw"), Path(folder, "out")
        raw.mkdir()
        out.mkdir()
        make(raw / "rows.csv", megabytes * 1_000_000, '"' if "--quotes" in sys.argv else "")
        begin = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-c", _RUN, raw, out], capture_output=True, text=True, check=True
        )
        seconds = time.monotonic() - begin
        found = re.search(r"VmHWM:\s+(\d+)", ran.stdout)
        peak = int(found[1]) // 1024 if found else -1
        made = (out / "rows.parquet").stat().st_size // 1_000_000
        told = {"megabytes": megabytes, "seconds": round(seconds, 1), "peak_mib": peak,
                "parquet_megabytes": made}  # fmt: skip
        print(json.dumps(told))


if __name__ == "__main__":
    main()
