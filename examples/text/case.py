"""Which letter is about what: an encoder from nothing to promoted int8, and two that are stopped.

python examples/text/case.py [--out FOLDER] [--small]
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from data import letters  # noqa: E402
from encoder import LONGEST, write_encoder  # noqa: E402
from site_of import Site, lines, run_case  # noqa: E402

MODEL, DATA = "acme/letters", "acme/mail"


def tell(site: Site, *, small: bool) -> list[list[str]]:
    """Tells the story; returns the rows of its table."""
    prepare(site, small=small)
    site.made("tune", MODEL, "task=classify", "from_scratch=true", "batch=32", "longest=48",
              f"epochs={5 if small else 6}", "learning_rate=0.002",
              base="acme/encoder:v1", data=f"{DATA}:v1")  # fmt: skip
    first = site.made("convert-onnx", MODEL, base=f"{MODEL}:v1")
    site.run("release", MODEL, first)
    site.run("derive", "pipeline.yaml", "--plan-only")
    site.run("derive", "pipeline.yaml")  # tunes, exports, quantizes, asks the gates
    best = f"v{site.json('show', MODEL, 'candidate')['number']}"
    rows = [row(site, first, "on last year's letters", best, "–", "first")]
    with site.callers(asks()):
        site.release("release.yaml")
        rows.append(row(site, best, "tuned on this year's, int8", best, "passed", "promoted"))

        worse = confused(site)
        code = site.run("admit", MODEL, worse, codes=(15,))
        rows.append(row(site, worse, "faults labelled as praise", worse, f"retrain ({code})", "–"))

        slow = padded(site, best)
        site.run("admit", MODEL, slow)
        site.files(HERE, ("release.yaml",), {"candidate": slow})
        code = site.release("release.yaml", codes=(11,))
        rows.append(row(site, slow, f"pads every text to {LONGEST}", slow, "passed",
                        f"rolled back ({code})"))  # fmt: skip
    site.run("lineage", MODEL, best)
    site.run("admit", MODEL, best, "--card", "card.md")
    return rows


def prepare(site: Site, *, small: bool) -> None:
    """Publishes letters of two years and an encoder without weights; copies the example's files."""
    count = 1200 if small else 3000
    old, new = letters(1, count, new=False), letters(2, count, new=True)
    lines(site.folder / "last-year" / "train.jsonl", old)
    this = site.folder / "this-year"
    lines(this / "train.jsonl", new)
    lines(this / "heldout" / "test.jsonl", letters(3, 500 if small else 1000, new=True))
    wrong = [{**one, "label": "praise"} if one["label"] == "fault" and place % 3 else one
             for place, one in enumerate(new)]  # fmt: skip
    lines(site.folder / "mislabelled" / "train.jsonl", wrong)
    for folder in ("last-year", "this-year", "mislabelled"):
        site.run("publish", folder, DATA)
    write_encoder(site.folder / "encoder", (one["text"] for one in old))
    site.run("publish", "encoder", "acme/encoder")
    site.files(HERE, ("suite.yaml", "gates.yaml", "release.yaml"))
    site.files(HERE, ("pipeline.yaml",), {"EPOCHS": 2 if small else 3, "TRIALS": 3 if small else 6})


def confused(site: Site) -> str:
    """Tunes on letters that somebody labelled wrongly; returns the exported version."""
    tuned = site.made("tune", MODEL, "task=classify", "epochs=2", "batch=32", "longest=48",
                      "learning_rate=0.001", base=f"{MODEL}:v1", data=f"{DATA}:v3")  # fmt: skip
    return site.made("convert-onnx", MODEL, base=f"{MODEL}:{tuned}")


def padded(site: Site, version: str) -> str:
    """Publishes a version whose tokenizer fills every text up: it says the same, slowly."""
    site.run("restore", MODEL, version, "padded")
    file = site.folder / "padded" / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["padding"] = {"strategy": {"Fixed": LONGEST}, "direction": "Right",
                           "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                           "pad_token": "[PAD]"}  # fmt: skip
    file.write_text(json.dumps(settings))
    site.run("publish", "padded", MODEL, "--from", f"derived-from={MODEL}:{version}")
    return f"v{site.json('models', MODEL)['versions'][0]['number']}"


def row(site: Site, version: str, how: str, judged: str, gates: str, release: str) -> list[str]:
    """Returns a row of the table: what the gates found out when `judged` was asked."""
    of = "value" if version == judged else "baseline"
    found = site.measured(MODEL, judged, "mail.macro_f1", of=of)
    return [version, how, site.kilobytes(MODEL, version), found, gates, release]


def asks() -> Any:
    """Returns what makes a caller's next request."""
    rows = [one["text"] for one in letters(4, 300, new=True)]

    def request(draw: random.Random) -> tuple[str, Any]:
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [draw.choice(rows)]}
        wanted = [{"name": "probabilities"}]
        return f"/{MODEL}/v2/models/{MODEL}/infer", {"inputs": [tensor], "outputs": wanted}

    return request


if __name__ == "__main__":
    HEAD = ("version", "how it was made", "kB", "macro F1", "gates", "release")
    run_case("text", __doc__, HEAD, tell)
