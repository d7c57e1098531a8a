"""A small language model, from a base to a promoted int8 version, and two that are stopped.

python examples/language/case.py [--out FOLDER] [--small]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from data import questions  # noqa: E402
from site_of import Site, lines, table  # noqa: E402

MODEL, DATA = "acme/talk", "acme/questions"
WEIGHTS = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
           "tokenizer_config.json", "chat_template.jinja")  # fmt: skip


def main() -> None:
    """Runs the case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".example-language"))
    parser.add_argument("--small", action="store_true", help="fewer rows, epochs and trials")
    asked = parser.parse_args()
    shutil.rmtree(asked.out, ignore_errors=True)
    began = time.monotonic()
    with Site(asked.out) as site:
        rows = tell(site, small=asked.small)
    table(("version", "how it was made", "kB", "score", "gates", "release"), rows)
    print(f"\n{time.monotonic() - began:.0f} s; all of it is in {asked.out}")


def tell(site: Site, *, small: bool) -> list[list[str]]:
    """Tells the story; returns the rows of its table."""
    prepare(site, small=small)
    site.run("publish", "base", MODEL)
    site.run("release", MODEL, "v1")
    site.run("derive", "pipeline.yaml", "--plan-only")
    site.run("derive", "pipeline.yaml")  # tunes, quantizes, asks the gates
    best = f"v{site.json('show', MODEL, 'candidate')['number']}"
    rows = [["v1", "the base", kilobytes(site, "v1"), score(site, best, of="baseline"),
             "–", "first"]]  # fmt: skip
    with site.callers(asks(), threads=2):
        site.release("release.yaml")
    rows.append([best, "tuned, ONNX, int8", kilobytes(site, best), score(site, best), "passed",
                 "promoted"])  # fmt: skip

    pruned = made(site, "prune", tuned_one(site, best), "method=magnitude", "sparsity=0.7")
    code = site.run("admit", MODEL, pruned, codes=(15,))
    rows.append([pruned, "70 % of weights pruned", kilobytes(site, pruned),
                 score(site, pruned), f"retrain ({code})", "–"])  # fmt: skip

    endless = talkative(site, best)
    site.run("admit", MODEL, endless)
    spec = (site.folder / "release.yaml").read_text().replace("candidate", endless)
    (site.folder / "endless.yaml").write_text(spec)
    with site.callers(asks(), threads=2):
        code = site.release("endless.yaml", codes=(11,))
    rows.append([endless, "does not know when to stop", kilobytes(site, endless),
                 score(site, endless), "passed", f"rolled back ({code})"])  # fmt: skip
    site.run("lineage", MODEL, best)
    return rows


def prepare(site: Site, *, small: bool) -> None:
    """Publishes the data, and puts the example's files into the site's folder."""
    rows = questions(7, 2600 if small else 5000)
    held = 250 if small else 400
    lines(site.folder / "questions" / "heldout" / "test.jsonl", rows[:held])
    lines(site.folder / "questions" / "train.jsonl", rows[held:])
    site.run("publish", "questions", DATA)
    base = site.folder / "base"
    base.mkdir()
    shipped = Path(str(resources.files("lockgate.demo"))) / "models" / "chat-v1"
    for name in WEIGHTS:
        shutil.copy(shipped / name, base / name)
    for name in ("suite.yaml", "gates.yaml", "release.yaml"):
        shutil.copy(HERE / name, site.folder / name)
    text = (HERE / "pipeline.yaml").read_text()
    text = text.replace("EPOCHS", "2" if small else "4").replace("TRIALS", "2" if small else "4")
    (site.folder / "pipeline.yaml").write_text(text)


def made(site: Site, step: str, base: str, *parameters: str) -> str:
    """Runs a step on a version; returns the new one's name."""
    given = [part for parameter in parameters for part in ("--with", parameter)]
    found = site.json("derive", step, "--from", f"base={MODEL}:{base}", *given, "--to", MODEL)
    return str(found["version"])


def tuned_one(site: Site, version: str) -> str:
    """Returns the version with float weights that `version` was exported from."""
    above = site.json("lineage", MODEL, version)["from"]
    return next(f"v{row['number']}" for row in above if row["relation"] == "converted-from")


def talkative(site: Site, version: str) -> str:
    """Publishes a version without the token that ends an answer: it says the same, and goes on."""
    folder = Path("endless")
    site.run("restore", MODEL, version, str(folder))
    file = site.folder / folder / "genai_config.json"
    settings = json.loads(file.read_text())
    settings["model"]["eos_token_id"] = 3
    file.write_text(json.dumps(settings))
    site.run("publish", str(folder), MODEL, "--from", f"derived-from={MODEL}:{version}")
    return f"v{site.json('models', MODEL)['versions'][0]['number']}"


def kilobytes(site: Site, version: str) -> str:
    """Returns a version's size."""
    return f"{site.json('show', MODEL, version)['bytes_total'] / 1000:.0f}"


def score(site: Site, version: str, of: str = "value") -> str:
    """Returns what the evaluation gate measured of a version, or of what it was compared with."""
    for judged in site.json("show", MODEL, version)["judged"]:
        for check in judged["verdict"]["checks"]:
            if check["signal"] == "questions.score" and check[of] is not None:
                return f"{check[of]:.3f}"
    return ""


def asks() -> Any:
    """Returns what makes a caller's next request."""
    rows = questions(8, 200)

    def request(draw: random.Random) -> tuple[str, Any]:
        message = {"role": "user", "content": draw.choice(rows)["question"]}
        return "/v1/chat/completions", {"model": MODEL, "messages": [message], "max_tokens": 48,
                                        "temperature": 0}  # fmt: skip

    return request


if __name__ == "__main__":
    main()
