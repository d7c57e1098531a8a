"""Fewer trees, as good. A step of lockgate with two inputs: LOCKGATE_INPUT_BASE and _DATA.

Boosting adds trees in order, so the first k of them are a model too. Keeps the smallest k whose log
loss, on the quarter of the rows that training held back, is at most `worse` above that of all.
"""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime


def first_trees(model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """Returns the model with its first `count` trees."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    (node,) = (n for n in small.graph.node if n.op_type == "TreeEnsembleClassifier")
    parts = {attribute.name: attribute for attribute in node.attribute}
    for kind in ("nodes", "class"):
        kept = [i for i, tree in enumerate(parts[f"{kind}_treeids"].ints) if tree < count]
        for name, part in parts.items():
            if name.startswith(f"{kind}_"):
                for values in (part.ints, part.floats, part.strings):
                    if values:
                        chosen = [values[i] for i in kept]
                        del values[:]
                        values.extend(chosen)
    return small


def trees(model: onnx.ModelProto) -> int:
    """Returns how many trees there are."""
    (node,) = (n for n in model.graph.node if n.op_type == "TreeEnsembleClassifier")
    return max(next(a for a in node.attribute if a.name == "class_treeids").ints) + 1


def log_loss(model: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> float:
    """Returns the mean of -ln(chance of what was true)."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    chances = session.run(["probabilities"], {"features": x})[0]
    return float(-np.log(np.clip(chances[np.arange(len(y)), y], 1e-7, 1)).mean())


base, data, out = (
    Path(os.environ[f"LOCKGATE_{name}"]) for name in ("INPUT_BASE", "INPUT_DATA", "OUT")
)
worse = json.loads(os.environ["LOCKGATE_PARAMETERS"]).get("worse", 0.005)
rows = [json.loads(line) for line in (data / "train.jsonl").open()]
held = np.random.default_rng(int(os.environ["LOCKGATE_SEED"])).random((2, len(rows)))[1] < 0.25
x = np.array([row["features"] for row in rows], np.float32)[held]
y = np.array([row["label"] for row in rows])[held]

whole = onnx.load(str(base / "model.onnx"))
limit = log_loss(whole, x, y) * (1 + worse)
low, high = 1, trees(whole)
while low < high:  # the loss falls with trees until it is near its end: a search by halves will do
    middle = (low + high) // 2
    if log_loss(first_trees(whole, middle), x, y) <= limit:
        high = middle
    else:
        low = middle + 1
small = first_trees(whole, high)
told = {"trees_before": trees(whole), "trees": high, "log_loss": log_loss(small, x, y)}
print(json.dumps({"done": 1, "total": 1, "metrics": told}), flush=True)
(out / "model.onnx").write_bytes(small.SerializeToString(deterministic=True))
