"""ONNX for text classifiers, by torch's exporter: token ids in, logits and probabilities out.

Needs torch, transformers and onnxscript. It runs no code that the folder brings, and looks nothing
up elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError

_END = "ForSequenceClassification"
_LARGE = 1 << 30  # protobuf ends at 2 GB: from here on weights go into a file beside
_OPSET = 18
_NEAR = 1e-3
FILE = "model.onnx"


def is_classifier(config: dict[str, Any]) -> bool:
    """Says whether a model's config.json is that of a classifier of sequences."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(_END) for name in names)


def build(source: Path, scratch: Path) -> Path:
    """Returns a folder in scratch with `model.onnx` of the transformers folder `source`.

    Inputs `input_ids` and `attention_mask`, int64 [batch, tokens]; outputs `logits` and
    `probabilities`, float32 [batch, classes]: softmax, or a sigmoid for each class where the
    config says `multi_label_classification`. Raises UsageError without the libraries, and for a
    model that torch can't export.
    """
    try:
        import onnxscript  # noqa: F401 (torch's exporter needs it; say so before it is asked)
        import torch
        from transformers import AutoModelForSequenceClassification
    except ImportError as error:
        raise UsageError(
            f"building ONNX needs {error.name}, which is not installed",
            hint="pip install 'lockgate[derive]'",
        ) from error
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"the base can't be loaded as a classifier: {error}") from error
    here = scratch / "built"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    try:
        with _quiet():
            _export(torch, model.eval(), here / FILE)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"torch can't export this model: {str(error)[:200]}",
            hint="export it with optimum, and publish what it writes",
        ) from error
    return here


def _export(torch: Any, model: Any, to: Path) -> None:
    several = model.config.problem_type == "multi_label_classification"

    class Classifier(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits, logits.sigmoid() if several else logits.softmax(-1)

    whole = Classifier().eval()
    example = _example(torch, model, 8)
    sizes = {0: "batch", 1: "tokens"}
    program = torch.onnx.export(
        whole, example, dynamo=True, opset_version=_OPSET, verbose=False,
        input_names=["input_ids", "attention_mask"], output_names=["logits", "probabilities"],
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
    )  # fmt: skip
    for item in _everything(program.model):
        item.metadata_props.clear()  # stack traces of the exporter: paths of this machine
        item.doc_string = None
    large = sum(p.numel() * p.element_size() for p in model.parameters()) > _LARGE
    program.save(str(to), external_data=large)
    _check(torch, whole, _example(torch, model, 13), to)


def _example(torch: Any, model: Any, tokens: int) -> tuple[Any, Any]:
    """Returns ids and mask, [2, tokens], the second text shorter; two tensors, never one twice."""
    ids = torch.arange(2 * tokens).reshape(2, tokens) % int(model.config.vocab_size)
    mask = torch.ones_like(ids)
    mask[1, tokens // 2 :] = 0
    return ids, mask


def _check(torch: Any, model: Any, example: tuple[Any, Any], file: Path) -> None:
    """Raises UsageError when onnxruntime gives other logits than torch did."""
    import numpy as np
    import onnxruntime

    names = ("input_ids", "attention_mask")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = {name: value.numpy() for name, value in zip(names, example, strict=True)}
    (found,) = session.run(["logits"], given)
    with torch.inference_mode():
        wanted = model(*example)[0].numpy()
    if not np.allclose(found, wanted, atol=_NEAR, rtol=_NEAR):
        far = float(np.abs(found - wanted).max())
        raise UsageError(
            f"the exported model gives other logits than the base, off by up to {far:.3g}",
            hint="export it with optimum, and publish what it writes",
        )


def _everything(model: Any) -> list[Any]:
    """Returns the model, its graphs and functions, their nodes and values."""
    found = [model, model.graph, *model.functions.values()]
    for graph in (model.graph, *model.functions.values()):
        found.extend((*graph.inputs, *graph.outputs))
        for node in graph.all_nodes():
            found.extend((node, *node.outputs))
    found.extend(model.graph.initializers.values())
    return found


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps what the exporter says about itself out of the step's log."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
