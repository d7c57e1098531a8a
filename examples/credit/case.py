"""Credit scoring, from nothing to a promoted version, and two that are stopped.

python examples/credit/case.py [--out FOLDER] [--small]
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from data import applications  # noqa: E402
from site_of import Site, lines, run_case  # noqa: E402

MODEL, DATA = "acme/credit", "acme/applications"


def tell(site: Site, *, small: bool) -> list[list[str]]:
    """Tells the story; returns the rows of its table."""
    prepare(site, small=small)
    first = made(site, "settings={trees: 15, depth: 1}")
    site.run("release", MODEL, first)  # nothing serves yet: there is nothing to compare with
    rows: list[list[str]] = []
    with site.callers(asks(site)):
        site.run("derive", "pipeline.yaml", "--plan-only")
        site.run("derive", "pipeline.yaml")  # searches, and asks the gates
        best = f"v{site.json('show', MODEL, 'candidate')['number']}"
        site.release("release.yaml")
        rows.append(row(site, first, "15 stumps", best, "–", "first"))
        rows.append(row(site, best, "found by the search, fewer trees", best, "passed", "promoted"))

        worse = made(site, "settings={trees: 60, wrong_labels: 0.4}")
        code = site.run("admit", MODEL, worse, codes=(15,))
        rows.append(row(site, worse, "40 % wrong labels", worse, f"retrain ({code})", "–"))

        other = made(site, "settings={trees: 150, first_column: 1}")
        site.run("admit", MODEL, other, "--gates", "gates-without-age.yaml",
                 "--baseline", f"{MODEL}:{other}")  # fmt: skip
        spec = (site.folder / "release.yaml").read_text().replace("candidate", other)
        (site.folder / "release-without-age.yaml").write_text(spec)
        code = site.release("release-without-age.yaml", codes=(11,))
        rows.append(row(site, other, "expects nine numbers", other, "passed",
                        f"rolled back ({code})"))  # fmt: skip
    site.run("lineage", MODEL, best)
    site.run("admit", MODEL, best, "--card", "card.md")
    return rows


def prepare(site: Site, *, small: bool) -> None:
    """Publishes the data, and puts the example's files into the site's folder."""
    folder = site.folder / "applications"
    rows = applications(20, 1500 if small else 6000)
    cut = len(rows) // 3
    lines(folder / "test.jsonl", rows[:cut])
    lines(folder / "train.jsonl", rows[cut:])
    lines(folder / "test-without-age.jsonl",
          [{**row, "features": row["features"][1:]} for row in rows[:cut]])  # fmt: skip
    site.run("publish", "applications", DATA)
    site.files(HERE, ("train.py", "shrink.py", "suite.yaml", "gates.yaml", "release.yaml"))
    site.files(HERE, ("pipeline.yaml",), {"PYTHON": json.dumps(sys.executable),
                                        "TRIALS": 4 if small else 12})  # fmt: skip
    for name in ("suite", "gates"):
        text = (HERE / f"{name}.yaml").read_text()
        text = text.replace("suite.yaml", "suite-without-age.yaml")
        text = text.replace("test.jsonl", "test-without-age.jsonl")
        (site.folder / f"{name}-without-age.yaml").write_text(text)


def made(site: Site, settings: str) -> str:
    """Trains a version; returns its name."""
    python = f"interpreter=[{json.dumps(sys.executable)}]"
    return site.made("command", MODEL, "script=train.py", python, settings, data=f"{DATA}:v1")


def row(site: Site, version: str, how: str, judged: str, gates: str, release: str) -> list[str]:
    """Returns a row of the table: what the gates found out when `judged` was asked."""
    of = "value" if version == judged else "baseline"
    found = site.measured(MODEL, judged, "applications.auc", of=of)
    return [version, how, site.kilobytes(MODEL, version), found, gates, release]


def asks(site: Site) -> Any:
    """Returns what makes a caller's next request."""
    text = (site.folder / "applications" / "test.jsonl").read_text()
    rows = [json.loads(line)["features"] for line in text.splitlines()]

    def request(draw: random.Random) -> tuple[str, Any]:
        tensor = {
            "name": "features",
            "shape": [1, 10],
            "datatype": "FP32",
            "data": draw.choice(rows),
        }
        return f"/{MODEL}/v2/models/{MODEL}/infer", {"inputs": [tensor]}

    return request


if __name__ == "__main__":
    HEAD = ("version", "how it was made", "kB", "AUC", "gates", "release")
    run_case("credit", __doc__, HEAD, tell)
