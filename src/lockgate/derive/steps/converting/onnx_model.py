"""ONNX for onnxruntime-genai, by the builder that it brings (`onnxruntime_genai.models.builder`).

Needs torch, transformers and onnx-ir. The builder loads the whole model; it runs no code that the
folder brings, and looks nothing up elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

from lockgate.core.errors import UsageError

MADE = ("*.onnx", "*.onnx.data", "genai_config.json")


def build(source: Path, scratch: Path, precision: str) -> Path:
    """Returns a folder in scratch with the ONNX model of the transformers folder `source`.

    `precision` is fp32, fp16 or int4, for CPUs. Raises UsageError without the libraries, and for a
    model that the builder does not know.
    """
    try:
        import torch  # noqa: F401 (the builder needs it; say so before it is asked)
        from onnxruntime_genai.models.builder import create_model, parse_extra_options
    except ImportError as error:
        raise UsageError(
            f"building ONNX needs {error.name}, which is not installed",
            hint="pip install torch transformers onnx-ir",
        ) from error
    here = scratch / "built"
    shutil.rmtree(here, ignore_errors=True)
    common = ("", str(source), str(here), precision, "cpu", str(scratch / "cache"))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            create_model(*common, **parse_extra_options(*common, ["hf_token=false"]))
    except Exception as error:
        raise UsageError(
            f"onnxruntime-genai can't build this model: {str(error)[:200]}",
            hint="its documentation lists the architectures that it knows",
        ) from error
    return here
