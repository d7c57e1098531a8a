"""Does a Bayesian search find better than chance? On the examples' own objectives, same trials.

python tests/bench/bench_search.py [--quick] [--case NAME …]; prints a table. Each repeat has a seed
of its own, for the search and for the training; all methods get the same. The spaces are those of
the examples' pipelines; the data are fewer, so that a trial takes a second or less. Each trial is
what the example's step trains, in this process. Needs the extras `derive` and `examples`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from math import comb
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml

from lockgate.derive.search.spec import SearchSpec
from lockgate.derive.search.study import Study, Trial

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
METHODS = ("random", "tpe", "gp")
Objective = Callable[[Mapping[str, Any], int], float]


def module(case: str, name: str) -> ModuleType:
    """Returns a module of an example's folder."""
    spec = importlib.util.spec_from_file_location(f"{case}_{name}", EXAMPLES / case / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def settings_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a script's settings: `settings.rate` → `rate`."""
    return {name.removeprefix("settings."): value for name, value in parameters.items()}


def credit() -> Objective:
    """Log loss of gradient boosting."""
    train, rows = module("credit", "train").train, module("credit", "data").applications(20, 900)
    return lambda parameters, seed: train(rows, settings_of(parameters), seed)[1]["log_loss"]


def recommender() -> Objective:
    """Loss of two towers, two epochs."""
    data, train = module("recommender", "data"), module("recommender", "train").train
    rows = data.evenings(1, 700)

    def run(parameters: Mapping[str, Any], seed: int) -> float:
        settings = {**settings_of(parameters), "epochs": 3}
        return float(train(rows, data.FILMS, data.LAST, settings, seed)[1])

    return run


def text() -> Objective:
    """Loss of an encoder after two epochs over some hundred letters."""
    data, encoder = module("text", "data"), module("text", "encoder")
    rows = data.letters(2, 320, new=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-search-")) / "encoder"
    encoder.write_encoder(folder, (row["text"] for row in rows))
    fixed = {"task": "classify", "from_scratch": True, "epochs": 3, "batch": 16, "longest": 48}
    return tuned(folder, rows, fixed)


def language() -> Objective:
    """Loss of the demo's decoder, tuned in full or by adapters for one epoch."""
    from lockgate import demo

    rows = module("language", "data").questions(7, 500)
    fixed = {"epochs": 1, "batch": 32, "longest": 64}
    return tuned(Path(demo.__file__).parent / "models" / "chat-v1", rows, fixed)


def tuned(base: Path, rows: list[dict[str, str]], fixed: Mapping[str, Any]) -> Objective:
    """Returns what the step `tune` ends with on `rows`."""
    from lockgate.derive.api import Work
    from lockgate.derive.steps.tune import Tune, TuneParameters

    def run(parameters: Mapping[str, Any], seed: int) -> float:
        with tempfile.TemporaryDirectory(prefix="bench-search-") as place:
            here = Path(place)
            for name in ("data", "out", "scratch"):
                (here / name).mkdir()
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (here / "data" / "rows.jsonl").write_text(lines)
            asked = TuneParameters(**{**fixed, **parameters, "holdout": 0.25, "keep_every": 10_000})
            work = Work(
                inputs={"base": [base], "data": [here / "data"]}, out=here / "out", seed=seed,
                scratch=here / "scratch", parameters=asked, report=lambda _: None,
                log=lambda _: None,
            )  # fmt: skip
            return float(Tune().run(work)["holdout_loss"])

    return run


CASES: dict[str, Callable[[], Objective]] = {
    "credit": credit, "recommender": recommender, "text": text, "language": language,
}  # fmt: skip


def space(case: str) -> dict[str, Any]:
    """Returns what the example's pipeline searches over, the pruning left out."""
    text = (EXAMPLES / case / "pipeline.yaml").read_text()
    for word in ("TRIALS", "EPOCHS", "PYTHON"):
        text = text.replace(word, "1")
    stages = yaml.safe_load(text)["stages"].values()
    found = next(stage["search"] for stage in stages if "search" in stage)
    return {key: found[key] for key in ("over", "goal")}


def search(spec: SearchSpec, objective: Objective, seed: int) -> list[float]:
    """Returns the best value after each trial."""
    study, best, curve = Study(spec, seed), float("inf"), []
    for _ in range(spec.trials):
        (asked,) = study.ask(1)
        value = objective(asked.parameters, seed)
        trial = Trial(number=asked.number, parameters=asked.parameters, state="done",
                      values=(value,))  # fmt: skip
        study.tell(asked, trial)
        best = min(best, value)
        curve.append(best)
    return curve


def chance(wins: int, losses: int) -> float:
    """Returns how often a coin has as many heads at least (a sign test, one-sided)."""
    n = wins + losses
    return sum(comb(n, k) for k in range(wins, n + 1)) / 2**n


def run(case: str, trials: int, repeats: int) -> None:
    """Prints the rows of one case."""
    objective, began = CASES[case](), time.perf_counter()
    curves: dict[str, np.ndarray] = {}
    for method in METHODS:
        spec = SearchSpec(**space(case), method=method, trials=trials)
        curves[method] = np.array([search(spec, objective, seed) for seed in range(repeats)])
    took = (time.perf_counter() - began) / (len(METHODS) * repeats * trials)
    lowest = min(curve.min() for curve in curves.values())
    for method, curve in curves.items():
        ends, plain = curve[:, -1], curves["random"][:, -1]
        wins, losses = int((ends < plain).sum()), int((ends > plain).sum())
        as_good = [int(np.argmax(row <= r)) + 1 for row, r in zip(curve, plain, strict=True)
                   if (row <= r).any()]  # fmt: skip
        versus = "" if method == "random" else f"{wins} of {repeats} (p {chance(wins, losses):.3f})"
        early = f"{np.median(as_good):.0f}" if len(as_good) * 2 > repeats else "–"
        print(f"| {case} | {method} | {np.median(ends):.4f} | {np.median(ends - lowest):.4f} | "
              f"{versus} | {early} | {took:.2f} |", flush=True)  # fmt: skip


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer trials and repeats")
    parser.add_argument("--case", nargs="*", choices=tuple(CASES), default=tuple(CASES))
    asked = parser.parse_args()
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    trials, repeats = (12, 2) if asked.quick else (30, 10)
    print(f"{trials} trials, {repeats} repeats; loss, lower is better")
    print("| case | method | median best | above the lowest seen | better than random | "
          "trials until as good as random's best | s a trial |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for case in asked.case:
        run(case, trials, repeats)


if __name__ == "__main__":
    sys.exit(main())
