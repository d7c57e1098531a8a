"""Gradient boosting → ONNX. A step of lockgate: reads LOCKGATE_INPUT_DATA, fills LOCKGATE_OUT."""

import json
import os
from pathlib import Path

import numpy as np
import skl2onnx
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score

data, out = (Path(os.environ[f"LOCKGATE_{name}"]) for name in ("INPUT_DATA", "OUT"))
settings = json.loads(os.environ["LOCKGATE_PARAMETERS"])
seed = int(os.environ["LOCKGATE_SEED"])

rows = [json.loads(line) for line in (data / "train.jsonl").open()]
x = np.array([row["features"] for row in rows], np.float32)[:, settings.get("first_column", 0) :]
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
metrics = {"auc": roc_auc_score(y[held], chances), "log_loss": log_loss(y[held], chances)}
print(json.dumps({"done": 1, "total": 1, "metrics": metrics}), flush=True)

graph = skl2onnx.to_onnx(
    model, x[:1], options={id(model): {"zipmap": False}}, target_opset=17, name="credit"
)
graph.graph.input[0].name = "features"
for node in graph.graph.node:
    node.input[:] = ["features" if name == "X" else name for name in node.input]
(out / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))
