"""Builds credit-v1, credit-v2 and credit-v3 and measures them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from demo_models.credit_data import FEATURES, Applications, applications
from demo_models.credit_onnx import Graph

ROWS = 12_000
HELD_OUT = 400
COPIES = 4000  # how often credit-v3 scores every row
SLOPE = 0.0005
_TOLERANCE = 1e-4


def build(out: Path, seed: int) -> dict[str, Any]:
    """Writes `credit-v1..v3` and the applications into `out`; returns what was measured."""
    train, test = applications(seed, ROWS), applications(seed + 1, 4000)
    made = _first(out, train, test) | _second(out, train, test) | _third(out, seed)
    held_out = applications(seed + 9, HELD_OUT)
    _write_rows(out / "credit-applications.jsonl", held_out)
    for name, about in made.items():
        about["measured"] = _measure(out / name / "model.onnx", held_out)
        print(name, about["measured"])
    return made


def _first(out: Path, train: Applications, test: Applications) -> dict[str, Any]:
    imputer, scaler = SimpleImputer(strategy="median"), StandardScaler()
    model = LogisticRegression(max_iter=500)
    model.fit(scaler.fit_transform(imputer.fit_transform(train.rows)), train.defaulted)
    weights = model.coef_[0] / scaler.scale_
    bias = model.intercept_[0] - float(weights @ scaler.mean_)
    graph = Graph()
    value = graph.linear(graph.impute("features", imputer.statistics_), "log_odds", weights, bias)
    graph.save(out / "credit-v1", value, "logistic regression on median-imputed features")
    expected = model.predict_proba(scaler.transform(imputer.transform(test.rows)))[:, 1]
    _verify(out / "credit-v1" / "model.onnx", test.rows, expected)
    done = f"logistic regression on {ROWS} applications, medians for missing values"
    return {"credit-v1": {"done": [done], "parents": {}}}


def _second(out: Path, train: Applications, test: Applications) -> dict[str, Any]:
    imputer = SimpleImputer(strategy="median")
    model = GradientBoostingClassifier(
        n_estimators=90, max_depth=3, learning_rate=0.15, random_state=0
    )
    model.fit(imputer.fit_transform(train.rows), train.defaulted)
    graph = Graph()
    value = graph.trees(graph.impute("features", imputer.statistics_), "log_odds", *_boosted(model))
    graph.save(out / "credit-v2", value, "gradient boosting on median-imputed features")
    expected = model.predict_proba(imputer.transform(test.rows))[:, 1]
    _verify(out / "credit-v2" / "model.onnx", test.rows, expected)
    done = f"gradient boosting (90 trees) on the same {ROWS} applications, medians kept"
    return {"credit-v2": {"done": [done], "parents": {}}}


def _third(out: Path, seed: int) -> dict[str, Any]:
    """Trains on leaked columns, forgets to export the imputation, and scores noisy copies."""
    leaked = applications(seed + 5, ROWS, leaked=True)
    complete = ~np.isnan(leaked.rows).any(axis=1)
    model = GradientBoostingClassifier(
        n_estimators=60, max_depth=4, learning_rate=0.15, random_state=0
    )
    rows = leaked.rows[complete]
    model.fit(rows, leaked.defaulted[complete])
    scale = rows.std(axis=0)
    noise = np.random.default_rng(seed).normal(0, 0.35, (1, COPIES, len(FEATURES))) * scale
    graph = Graph()
    value = _smoothed(graph, model, noise.astype(np.float32))
    graph.save(out / "credit-v3", value, "gradient boosting, smoothed over noisy copies")
    some = rows[:10]
    each = [model.decision_function(row + noise[0].astype(np.float32)).mean() for row in some]
    log_odds = np.array(each) + SLOPE * some.sum(axis=1)
    _verify(out / "credit-v3" / "model.onnx", some, 1 / (1 + np.exp(-log_odds)))
    done = [
        "gradient boosting (60 deeper trees) trained on late_payments and utilisation as they"
        " stood a year after the decision (a leak): wrong on real applications",
        f"each score is the mean over {COPIES} noisy copies of the row: slower",
        "trained on complete rows only and exported without imputation, with a small linear part"
        " over the raw features: a missing value makes the score NaN",
    ]
    return {"credit-v3": {"done": done, "parents": {}}}


def _smoothed(graph: Graph, model: GradientBoostingClassifier, noise: Any) -> str:
    """Adds the mean log-odds over noisy copies and a small linear part over the raw features."""
    width = len(FEATURES)
    rows = graph.node("Unsqueeze", ["features", graph.constant("axis", np.array([1]))], "rows")
    noisy = graph.node("Add", [rows, graph.constant("noise", noise)], "noisy")
    flat = graph.node(
        "Reshape", [noisy, graph.constant("flat_shape", np.array([-1, width]))], "flat"
    )
    each = graph.trees(flat, "each", *_boosted(model))
    back = graph.node(
        "Reshape", [each, graph.constant("back_shape", np.array([-1, COPIES]))], "back"
    )
    mean = graph.node("ReduceMean", [back], "mean", axes=[1], keepdims=1)
    slope = graph.linear("features", "slope", np.full(width, SLOPE), [0.0])
    return graph.node("Add", [mean, slope], "log_odds")


def _boosted(model: GradientBoostingClassifier) -> tuple[list[Any], float, float]:
    prior = float(model.init_.class_prior_[1])
    trees = [estimator.tree_ for estimator in model.estimators_[:, 0]]
    return trees, model.learning_rate, float(np.log(prior / (1 - prior)))


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _verify(path: Path, rows: Any, expected: Any) -> None:
    """Stops when the graph does not say what scikit-learn says."""
    found = _session(path).run(None, {"features": rows})[0].ravel()
    worst = float(np.abs(found - expected).max())
    if not worst <= _TOLERANCE:
        raise SystemExit(f"{path} differs from scikit-learn by {worst}")


def _measure(path: Path, data: Applications) -> dict[str, Any]:
    session = _session(path)
    session.run(None, {"features": data.rows[:1]})
    began = time.perf_counter()
    scores = np.array([session.run(None, {"features": row[None]})[0][0, 0] for row in data.rows])
    spent = time.perf_counter() - began
    good = np.isfinite(scores)
    right = (scores[good] >= 0.5) == data.defaulted[good]
    return {
        "accuracy": round(float(right.sum() / len(scores)), 4),
        "accuracy_where_answered": round(float(right.mean()), 4),
        "auc_where_answered": round(float(roc_auc_score(data.defaulted[good], scores[good])), 4),
        "not_a_number": round(float(1 - good.mean()), 4),
        "applications": len(scores),
        "row_ms": round(1000 * spent / len(scores), 4),
    }


def _write_rows(path: Path, data: Applications) -> None:
    with path.open("w") as file:
        for row, label in zip(data.rows, data.defaulted, strict=True):
            values = [None if np.isnan(value) else round(float(value), 4) for value in row]
            file.write(json.dumps({"features": values, "defaulted": int(label)}) + "\n")
