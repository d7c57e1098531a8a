"""What every step of weights promises: a documented schema, and the same bytes part by part."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lockgate.core.events import Relation
from lockgate.derive.api import Step
from lockgate.derive.steps.convert import Cast, ConvertGguf, ConvertOnnx
from lockgate.derive.steps.merge import Merge, MergeLora
from lockgate.derive.steps.prune import Prune
from lockgate.derive.steps.quantize import Quantize
from lockgate.derive.steps.shard import Shard
from lockgate.derive.steps.weights import reader

from .bench import MODELS, Run, blocks, digest, write_model

STEPS: list[Step] = [
    Cast(), ConvertGguf(), ConvertOnnx(), Merge(), MergeLora(), Prune(), Quantize(), Shard(),
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_says_what_it_takes(step: Step) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]*", step.name)
    assert step.summary.endswith(".")
    assert step.deterministic
    assert all(given.relation in Relation.__args__ for given in step.inputs)
    schema = step.parameters.model_json_schema()
    assert schema["additionalProperties"] is False
    assert step.parameters.model_config["frozen"]
    for name, field in schema["properties"].items():
        assert field.get("description"), name
    with pytest.raises(ValidationError):
        step.parameters(no_such_parameter=1)


def test_names_are_one_each() -> None:
    assert len({step.name for step in STEPS}) == len(STEPS)


@pytest.mark.parametrize(
    ("step", "asked", "where"),
    [
        (Quantize(), {"kind": "int8"}, "quantize.row_chunks"),
        (Quantize(), {"kind": "fp8", "per_tensor": True}, "quantize.row_chunks"),
        (Quantize(), {"kind": "int4", "group_size": 8, "symmetric": False}, "quantize.row_chunks"),
        (Prune(), {"method": "magnitude", "scope": "global"}, "prune.row_chunks"),
        (Prune(), {"method": "n:m"}, "prune.row_chunks"),
        (Prune(), {"method": "structured", "sparsity": 0.4}, "prune.row_chunks"),
        (Prune(), {"method": "structured", "sparsity": 0.4}, "pruning.neurons.row_chunks"),
        (Prune(), {"method": "magnitude"}, "pruning.masks.chunks"),
        (Cast(), {"to": "f16"}, "convert.chunks"),
        (ConvertGguf(), {"kind": "q8_0"}, "converting.gguf_file.row_chunks"),
    ],
)
def test_large_tensors_in_parts_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step, asked: Any, where: str
) -> None:
    if step.name == "convert-gguf":
        pytest.importorskip("gguf", reason="gguf is not installed")
    run = Run(tmp_path)
    whole = digest(run(step, {"base": MODELS / "chat-v1"}, **asked))
    name = where.rpartition(".")[2]
    real = getattr(reader, name)
    calls = []

    def small(*given: Any) -> Any:
        calls.append(given)
        return real(*given, size=300)

    monkeypatch.setattr(f"lockgate.derive.steps.{where}", small)
    assert digest(run(step, {"base": MODELS / "chat-v1"}, **asked)) == whole
    assert calls


def test_defaults_may_be_spelled_out() -> None:
    """A recipe that says everything is the same recipe."""
    for step, asked in ((Merge(), {"method": "slerp"}), (Quantize(), {"kind": "onnx-int8"})):
        made = step.parameters(**asked)
        assert step.parameters(**made.model_dump(mode="json")) == made


@pytest.mark.parametrize("step", [Cast(), Merge(), Prune(), Quantize(), ConvertGguf()])
def test_what_is_quantized_already_is_refused(tmp_path: Path, step: Step) -> None:
    asked: dict[str, Any] = {
        "cast": {"to": "f16"}, "merge": {"method": "linear"}, "prune": {"method": "n:m"},
        "quantize": {"kind": "int8"},
    }.get(step.name, {})  # fmt: skip
    model = write_model(tmp_path / "m", blocks(), quantization_config={"quant_method": "x"})
    with pytest.raises(Exception, match=r"m is quantized already \(x\)"):
        Run(tmp_path)(step, {"base": model, "others": [model]}, **asked)
