"""A small language model, from a base to a promoted int8 version, and two that are stopped.

python examples/language/case.py [--out FOLDER] [--small]
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from data import questions  # noqa: E402
from site_of import Site, lines, run_case  # noqa: E402

MODEL, DATA = "acme/talk", "acme/questions"
WEIGHTS = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
           "tokenizer_config.json", "chat_template.jinja")  # fmt: skip


def tell(site: Site, *, small: bool) -> list[list[str]]:
    """Tells the story; returns the rows of its table."""
    prepare(site, small=small)
    site.run("publish", "base", MODEL)
    site.run("release", MODEL, "v1")
    site.run("derive", "pipeline.yaml", "--plan-only")
    site.run("derive", "pipeline.yaml")  # tunes, quantizes, asks the gates
    best = f"v{site.json('show', MODEL, 'candidate')['number']}"
    rows = [row(site, "v1", "the base", best, "–", "first")]
    with site.callers(asks(), threads=2):
        site.release("release.yaml")
    rows.append(row(site, best, "tuned, ONNX, int8", best, "passed", "promoted"))

    tuned = site.above(MODEL, site.above(MODEL, best, "quantized-from"), "converted-from")
    int4 = site.made("quantize", MODEL, "kind=int4", "group_size=32", base=f"{MODEL}:{tuned}")
    code = site.run("admit", MODEL, int4, codes=(0, 12, 15))
    said = {0: "passed", 12: "held (12)", 15: "retrain (15)"}[code]
    rows.append(row(site, int4, "tuned, int4 by groups of 32", int4, said, "–"))

    pruned = site.made("prune", MODEL, "method=magnitude", "sparsity=0.7", base=f"{MODEL}:{tuned}")
    code = site.run("admit", MODEL, pruned, codes=(15,))
    rows.append(row(site, pruned, "70 % of weights pruned", pruned, f"retrain ({code})", "–"))

    endless = talkative(site, best)
    site.run("admit", MODEL, endless)
    site.files(HERE, ("release.yaml",), {"candidate": endless})
    with site.callers(asks(), threads=2):
        code = site.release("release.yaml", codes=(11,))
    rows.append(row(site, endless, "does not know when to stop", endless, "passed",
                    f"rolled back ({code})"))  # fmt: skip
    site.run("lineage", MODEL, best)
    return rows


def row(site: Site, version: str, made: str, judged: str, gates: str, release: str) -> list[str]:
    """Returns a row of the table: what the gates found out when `judged` was asked."""
    of = "value" if version == judged else "baseline"
    score = site.measured(MODEL, judged, "questions.score", of=of)
    perplexity = site.measured(MODEL, judged, "answers.perplexity", of=of)
    return [version, made, site.kilobytes(MODEL, version), score, perplexity, gates, release]


def prepare(site: Site, *, small: bool) -> None:
    """Publishes the data, and puts the example's files into the site's folder."""
    rows = questions(7, 2600 if small else 5000)
    held = 250 if small else 400
    lines(site.folder / "questions" / "heldout" / "test.jsonl", [told(row) for row in rows[:held]])
    lines(site.folder / "questions" / "train.jsonl", rows[held:])
    site.run("publish", "questions", DATA)
    base = site.folder / "base"
    base.mkdir()
    shipped = Path(str(resources.files("lockgate.demo"))) / "models" / "chat-v1"
    for name in WEIGHTS:
        shutil.copy(shipped / name, base / name)
    site.files(HERE, ("suite.yaml", "gates.yaml", "release.yaml"))
    site.files(HERE, ("pipeline.yaml",), {"EPOCHS": 2 if small else 4, "TRIALS": 2 if small else 4})


def told(row: dict[str, str]) -> dict[str, str]:
    """Returns a row with its question and answer as the model's chat template has them."""
    return {**row, "before": f"<|start|><|user|>{row['question']}<|end|><|assistant|>",
            "text": f"{row['answer']}<|end|>"}  # fmt: skip


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


def asks() -> Any:
    """Returns what makes a caller's next request."""
    rows = questions(8, 200)

    def request(draw: random.Random) -> tuple[str, Any]:
        message = {"role": "user", "content": draw.choice(rows)["question"]}
        return "/v1/chat/completions", {"model": MODEL, "messages": [message], "max_tokens": 48,
                                        "temperature": 0}  # fmt: skip

    return request


if __name__ == "__main__":
    HEAD = ("version", "how it was made", "kB", "score", "perplexity", "gates", "release")
    run_case("language", __doc__, HEAD, tell)
