"""Gradient boosting → ONNX. A step of lockgate: reads LOCKGATE_INPUT_DATA, fills LOCKGATE_OUT."""

import json
import os
from pathlib import Path

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score


def train(rows: list, settings: dict, seed: int) -> tuple:
    """Returns a model, and its AUC and log loss on a quarter of the rows, which it never saw."""
    x = np.array([row["features"] for row in rows], np.float32)
    x = x[:, settings.get("first_column", 0) :]
    y = np.array([row["label"] for row in rows])
    draw = np.random.default_rng(seed)
    wrong = draw.random(len(y)) < settings.get("wrong_labels", 0.0)
    held = draw.random(len(y)) < 0.25
    taught = np.where(wrong, 1 - y, y)
    model = GradientBoostingClassifier(
        n_estimators=settings.get("trees", 100), max_depth=settings.get("depth", 3),
        learning_rate=settings.get("rate", 0.1), subsample=settings.get("subsample", 1.0),
        random_state=seed,
    )  # fmt: skip
    model.fit(x[~held], taught[~held])
    chances = model.predict_proba(x[held])[:, 1]
    return model, {"auc": roc_auc_score(y[held], chances), "log_loss": log_loss(y[held], chances)}


def save(model: GradientBoostingClassifier, file: Path) -> None:
    """Writes the model as ONNX, its input called `features`."""
    import skl2onnx

    example = np.zeros((1, model.n_features_in_), np.float32)
    graph = skl2onnx.to_onnx(
        model, example, options={id(model): {"zipmap": False}}, target_opset=17, name="credit"
    )
    graph.graph.input[0].name = "features"
    for node in graph.graph.node:
        node.input[:] = ["features" if name == "X" else name for name in node.input]
    file.write_bytes(graph.SerializeToString(deterministic=True))


if __name__ == "__main__":
    data, out = (Path(os.environ[f"LOCKGATE_{name}"]) for name in ("INPUT_DATA", "OUT"))
    applications = [json.loads(line) for line in (data / "train.jsonl").open()]
    made, metrics = train(
        applications,
        json.loads(os.environ["LOCKGATE_PARAMETERS"]),
        int(os.environ["LOCKGATE_SEED"]),
    )
    print(json.dumps({"done": 1, "total": 1, "metrics": metrics}), flush=True)
    save(made, out / "model.onnx")
