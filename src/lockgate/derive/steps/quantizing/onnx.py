"""Dynamic int8 quantization of ONNX files, by onnxruntime's own quantizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError
from lockgate.derive.api import Advance, Metrics, Work

_LARGE = 1 << 30  # protobuf ends at 2 GB: from here on weights go into a file beside
_BESIDE = ("*.onnx.data", "*.onnx_data", "*.safetensors", "*.safetensors.index.json")


def quantize_onnx(work: Work, *, keep_other_weights: bool) -> Metrics:
    """Writes base's folder with int8 weights in every .onnx file, activations quantized as it runs.

    Returns bytes before and after. Raises UsageError for a folder without ONNX, for a model without
    a product to quantize, and without the `onnx` package.
    """
    base = work.one("base")
    models = sorted(path for path in base.rglob("*.onnx") if path.is_file())
    if not models:
        raise UsageError(
            f"the input {base.name} has no .onnx file",
            hint="choose int8, int4 or fp8 for a folder of safetensors",
        )
    here = _copy_of(work, base)
    before = _size(base)
    done = 0
    for number, path in enumerate(models):
        name = path.relative_to(base)
        done += _quantize(here / name, work.out / name)
        work.report(Advance(done=number + 1, total=len(models), unit="files"))
    if not done:
        raise UsageError(
            "the ONNX model has no matrix product with fixed weights to quantize",
            hint="trees and models quantized already gain nothing; keep it as it is",
        )
    _copy_rest(work, base, keep_other_weights)
    shutil.rmtree(here)
    after = _size(work.out)
    return {"bytes_before": before, "bytes_after": after, "nodes": done, "models": len(models)}


def _copy_of(work: Work, base: Path) -> Path:
    """Copies the ONNX files into scratch: the quantizer writes beside the model that it reads."""
    here = work.scratch / "onnx"
    shutil.rmtree(here, ignore_errors=True)
    for form in ("*.onnx", "*.onnx.data", "*.onnx_data"):
        for path in sorted(base.rglob(form)):
            to = here / path.relative_to(base)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
    return here


def _quantize(source: Path, to: Path) -> int:
    """Quantizes one file; returns how many products are of integers now that were not."""
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise UsageError(
            f"quantizing ONNX needs {error.name}, which is not installed", hint="pip install onnx"
        ) from error
    to.parent.mkdir(parents=True, exist_ok=True)
    large = _size(source.parent) > _LARGE
    try:
        before = _products(onnx.load(str(source), load_external_data=False))
        quantize_dynamic(source, to, weight_type=QuantType.QInt8, use_external_data_format=large)
        return _products(onnx.load(str(to), load_external_data=False)) - before
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"onnxruntime can't quantize {source.name}: {str(error)[:200]}",
            hint="is its external data whole, and beside it?",
        ) from error


def _products(model: Any) -> int:
    return sum(node.op_type in ("MatMulInteger", "ConvInteger") for node in model.graph.node)


def _copy_rest(work: Work, base: Path, keep_other_weights: bool) -> None:
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base)
        stale = any(path.match(form) for form in _BESIDE)
        if not path.is_file() or path.suffix == ".onnx" or (stale and not keep_other_weights):
            continue
        (work.out / name).parent.mkdir(parents=True, exist_ok=True)
        if not (work.out / name).exists():
            shutil.copyfile(path, work.out / name)


def _size(folder: Path) -> int:
    """Returns the bytes of a folder's ONNX files and their data."""
    forms = ("*.onnx", "*.onnx.data", "*.onnx_data")
    return sum(path.stat().st_size for form in forms for path in folder.rglob(form))
