"""What to watch next, from nothing to a promoted version, and two that are stopped.

python examples/recommender/case.py [--out FOLDER] [--small]
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from data import FILMS, LAST, NONE, evenings  # noqa: E402
from site_of import Site, lines, run_case  # noqa: E402

MODEL, DATA = "acme/films", "acme/evenings"


def tell(site: Site, *, small: bool) -> list[list[str]]:
    """Tells the story; returns the rows of its table."""
    prepare(site, small=small)
    first = made(site, "settings={width: 4, epochs: 1}")
    site.run("release", MODEL, first)  # nothing serves yet: there is nothing to compare with
    site.run("derive", "pipeline.yaml", "--plan-only")
    site.run("derive", "pipeline.yaml")  # searches, quantizes, asks the gates
    best = f"v{site.json('show', MODEL, 'candidate')['number']}"
    rows = [row(site, first, "width 4, once through", best, "–", "first")]
    with site.callers(asks()):
        site.release("release.yaml")
        rows.append(row(site, best, "found by the search, int8", best, "passed", "promoted"))

        worse = made(site, "settings={noise: 0.7}")
        code = site.run("admit", MODEL, worse, codes=(15,))
        rows.append(row(site, worse, "70 % of clicks by chance", worse, f"retrain ({code})", "–"))

        forgets = made(site, *likest(site, best, new_callers="forgotten"))
        site.run("admit", MODEL, forgets)
        site.files(HERE, ("release.yaml",), {"candidate": forgets})
        code = site.release("release.yaml", codes=(11,))
        rows.append(row(site, forgets, "divides by films seen", forgets, "passed",
                        f"rolled back ({code})"))  # fmt: skip
    site.run("lineage", MODEL, best)
    return rows


def prepare(site: Site, *, small: bool) -> None:
    """Publishes the data, and puts the example's files into the site's folder."""
    folder = site.folder / "evenings"
    lines(folder / "train.jsonl", evenings(1, 2000 if small else 5000))
    lines(folder / "heldout" / "test.jsonl", evenings(2, 600 if small else 1000))
    about = {"films": FILMS, "last": LAST, "none": NONE}
    (folder / "films.json").write_text(json.dumps(about))
    site.run("publish", "evenings", DATA)
    site.files(HERE, ("train.py", "suite.yaml", "gates.yaml", "release.yaml"))
    site.files(HERE, ("pipeline.yaml",), {"PYTHON": json.dumps(sys.executable),
                                          "TRIALS": 4 if small else 12})  # fmt: skip


def made(site: Site, *parameters: str) -> str:
    """Trains a version; returns its name."""
    python = f"interpreter=[{json.dumps(sys.executable)}]"
    return site.made("command", MODEL, "script=train.py", python, *parameters, data=f"{DATA}:v1")


def likest(site: Site, version: str, **more: object) -> list[str]:
    """Returns the settings that the search found for `version`, and others beside them."""
    float_one = site.above(MODEL, version, "quantized-from")
    (told,) = site.json("show", MODEL, float_one)["derived"]
    return [f"settings={json.dumps({**told['recipe']['parameters']['settings'], **more})}"]


def row(site: Site, version: str, how: str, judged: str, gates: str, release: str) -> list[str]:
    """Returns a row of the table: what the gates found out when `judged` was asked."""
    of = "value" if version == judged else "baseline"
    ndcg = site.measured(MODEL, judged, "next.ndcg_at_10", of=of)
    return [version, how, site.kilobytes(MODEL, version), ndcg, gates, release]


def asks() -> Any:
    """Returns what makes a caller's next request: every fifth one has seen nothing yet."""
    rows = [row["features"] for row in evenings(3, 300)]

    def request(draw: random.Random) -> tuple[str, Any]:
        seen = draw.choice(rows) if draw.random() > 0.2 else [NONE] * LAST
        tensor = {"name": "features", "shape": [1, LAST], "datatype": "INT64", "data": seen}
        return f"/{MODEL}/v2/models/{MODEL}/infer", {"inputs": [tensor]}

    return request


if __name__ == "__main__":
    HEAD = ("version", "how it was made", "kB", "NDCG@10", "gates", "release")
    run_case("recommender", __doc__, HEAD, tell)
