"""ONNX graphs for the credit models, written node by node."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from demo_models.credit_data import FEATURES

_ML = "ai.onnx.ml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes and constants of a graph from `features` (n, 10) to `score` (n, 1)."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def constant(self, name: str, value: Any) -> str:
        """Adds a constant and returns its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node of ONNX's own operators and returns its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def ml(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node of `ai.onnx.ml` and returns its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=_ML, **attributes))
        return output

    def impute(self, value: str, fills: Any) -> str:
        """Replaces NaN by one fill per column."""
        fills = [float(fill) for fill in fills]
        return self.ml(
            "Imputer", [value], "imputed", imputed_value_floats=fills, replaced_value_float=np.nan
        )

    def linear(self, value: str, output: str, weights: Any, bias: Any) -> str:
        """Returns `value @ weights + bias`."""
        by = self.constant(f"{output}_weights", np.asarray(weights, np.float32).reshape(-1, 1))
        plus = self.constant(f"{output}_bias", np.asarray(bias, np.float32).reshape(1, 1))
        return self.node("Gemm", [value, by, plus], output)

    def trees(self, value: str, output: str, trees: list[Any], scale: float, base: float) -> str:
        """Returns `base` + `scale` × the sum of scikit-learn's regression trees."""
        return self.ml(
            "TreeEnsembleRegressor",
            [value],
            output,
            n_targets=1,
            aggregate_function="SUM",
            base_values=[float(base)],
            **_tree_attributes(trees, scale),
        )

    def save(self, folder: Path, score: str, about: str) -> None:
        """Checks the graph and writes `model.onnx`; `score` is the log-odds."""
        self.node("Sigmoid", [score], "score")
        graph = helper.make_graph(
            self.nodes,
            "credit",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(FEATURES)])],
            [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_ML, 3)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9, doc_string=about)
        helper.set_model_props(model, {"features": ",".join(FEATURES)})
        onnx.checker.check_model(model, full_check=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))


def _tree_attributes(trees: list[Any], scale: float) -> dict[str, list[Any]]:
    """Flattens scikit-learn trees (`x <= threshold` goes left) into the operator's lists."""
    names = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    found: dict[str, list[Any]] = {f"nodes_{name}": [] for name in names}
    leaves: dict[str, list[Any]] = {
        f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")
    }
    for tree_id, tree in enumerate(trees):
        for node_id in range(tree.node_count):
            leaf = tree.children_left[node_id] < 0
            row = (
                tree_id,
                node_id,
                0 if leaf else int(tree.feature[node_id]),
                0.0 if leaf else _threshold(tree.threshold[node_id]),
                "LEAF" if leaf else "BRANCH_LEQ",
                0 if leaf else int(tree.children_left[node_id]),
                0 if leaf else int(tree.children_right[node_id]),
            )
            for name, value in zip(names, row, strict=True):
                found[f"nodes_{name}"].append(value)
            if leaf:
                weight = scale * float(tree.value[node_id].ravel()[0])
                for name, value in zip(leaves, (tree_id, node_id, 0, weight), strict=True):
                    leaves[name].append(value)
    return {**found, **leaves}


def _threshold(value: float) -> float:
    """Returns the largest float32 that is not above `value`: what `x <= value` means for them."""
    near = np.float32(value)
    return float(near if near <= value else np.nextafter(near, np.float32(-np.inf)))
