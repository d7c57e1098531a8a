"""Credit scoring, from nothing to a promoted version, and two that are stopped.

python examples/credit/case.py [--out FOLDER] [--small]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from data import applications  # noqa: E402
from site_of import Site, lines, table  # noqa: E402

MODEL, DATA = "acme/credit", "acme/applications"


def main() -> None:
    """Runs the case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".example-credit"))
    parser.add_argument("--small", action="store_true", help="fewer rows and trials")
    asked = parser.parse_args()
    shutil.rmtree(asked.out, ignore_errors=True)
    began = time.monotonic()
    with Site(asked.out) as site:
        rows = tell(site, small=asked.small)
    table(("version", "how it was made", "AUC", "gates", "release"), rows)
    print(f"\n{time.monotonic() - began:.0f} s; all of it is in {asked.out}")


def tell(site: Site, *, small: bool) -> list[list[str]]:
    """Tells the story; returns the rows of its table."""
    prepare(site, small=small)
    first = made(site, "settings={trees: 15, depth: 1}")
    site.run("release", MODEL, first)  # nothing serves yet: there is nothing to compare with
    rows = [[first, "15 stumps", auc(site, first), "–", "first"]]
    with site.callers(asks(site)):
        site.run("derive", "pipeline.yaml", "--plan-only")
        site.run("derive", "pipeline.yaml")  # searches, and asks the gates
        best = f"v{site.json('show', MODEL, 'candidate')['number']}"
        site.release("release.yaml")
        rows.append([best, "found by the search", auc(site, best), "passed", "promoted"])

        worse = made(site, "settings={trees: 60, wrong_labels: 0.4}")
        code = site.run("admit", MODEL, worse, codes=(15,))
        rows.append([worse, "40 % wrong labels", auc(site, worse), f"retrain ({code})", "–"])

        other = made(site, "settings={trees: 150, first_column: 1}")
        site.run("admit", MODEL, other, "--gates", "gates-without-age.yaml",
                 "--baseline", f"{MODEL}:{other}")  # fmt: skip
        spec = (site.folder / "release.yaml").read_text().replace("candidate", other)
        (site.folder / "release-without-age.yaml").write_text(spec)
        code = site.release("release-without-age.yaml", codes=(11,))
        rows.append([other, "expects nine numbers", "", "passed", f"rolled back ({code})"])
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
    for name in ("train.py", "suite.yaml", "gates.yaml", "release.yaml"):
        shutil.copy(HERE / name, site.folder / name)
    text = (HERE / "pipeline.yaml").read_text()
    text = text.replace("PYTHON", json.dumps(sys.executable)).replace(
        "TRIALS", "4" if small else "12"
    )
    (site.folder / "pipeline.yaml").write_text(text)
    for name in ("suite", "gates"):
        text = (HERE / f"{name}.yaml").read_text()
        text = text.replace("suite.yaml", "suite-without-age.yaml")
        text = text.replace("test.jsonl", "test-without-age.jsonl")
        (site.folder / f"{name}-without-age.yaml").write_text(text)


def made(site: Site, settings: str) -> str:
    """Trains a version; returns its name."""
    found: dict[str, Any] = site.json(
        "derive", "command", "--with", "script=train.py", "--with",
        f"interpreter=[{json.dumps(sys.executable)}]", "--with", settings,
        "--from", f"data={DATA}:v1", "--to", MODEL, "--seed", "1",
    )  # fmt: skip
    return str(found["version"])


def auc(site: Site, version: str) -> str:
    """Returns the AUC on rows that training held back."""
    (told,) = site.json("show", MODEL, version)["derived"]
    return f"{told['metrics']['auc']:.3f}"


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
    main()
