"""The runtimes whose server is ours: `onnx` (light, no torch) and `transformers`."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lockgate.core.errors import UsageError
from lockgate.fleet.api import Job, Launch, Probe
from lockgate.fleet.runtimes.options import (
    check_names,
    environment,
    thread_environment,
    whole,
)

_OPTIONS = ("env", "queue", "slots", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntime:
    """Serves `genai_config.json` folders (OpenAI API) and `model.onnx` folders (OIP v2)."""

    name: str = "onnx"

    def refuses(self, folder: Path) -> str | None:
        """Returns None when it can serve `folder`, else the reason."""
        if (folder / "genai_config.json").is_file() or (folder / "model.onnx").is_file():
            return None
        return "the folder has neither genai_config.json nor model.onnx"

    def launch(self, job: Job) -> Launch:
        """Returns how to run it; raises UsageError for a wrong option or folder."""
        kind = "genai" if (job.folder / "genai_config.json").is_file() else "predictive"
        return _launch(self.name, self.refuses(job.folder), job, kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersRuntime:
    """Serves a folder of safetensors over the OpenAI API, where torch is installed.

    `installed` says whether a module can be imported.
    """

    name: str = "transformers"
    installed: Callable[[str], bool] = lambda module: importlib.util.find_spec(module) is not None

    def refuses(self, folder: Path) -> str | None:
        """Returns None when it can serve `folder`, else the reason."""
        for module in ("torch", "transformers"):
            if not self.installed(module):
                return f"{module} is not installed (the extra 'transformers' brings it)"
        if not (folder / "config.json").is_file():
            return "the folder has no config.json"
        if not any(folder.glob("*.safetensors")):
            return "the folder has no *.safetensors"
        if _classifies(folder):
            return "it is a text classifier; convert-onnx makes one that the runtime onnx serves"
        if not (folder / "tokenizer.json").is_file() and not any(folder.glob("tokenizer*")):
            return "the folder has no tokenizer"
        return None

    def launch(self, job: Job) -> Launch:
        """Returns how to run it; raises UsageError for a wrong option or folder."""
        return _launch(self.name, self.refuses(job.folder), job, "transformers")


def _classifies(folder: Path) -> bool:
    """Says whether a folder's config.json is that of a classifier of texts."""
    try:
        names = json.loads((folder / "config.json").read_text("utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return isinstance(names, list) and any(
        str(name).endswith("ForSequenceClassification") for name in names
    )


def _launch(runtime: str, refusal: str | None, job: Job, kind: str) -> Launch:
    if refusal:
        raise UsageError(
            f"the runtime {runtime!r} can't serve {job.model} {job.version}: {refusal}",
            hint="name another runtime, or leave it out and let the version's files decide",
        )
    check_names(job.options, _OPTIONS, runtime=runtime)
    threads = whole(job.options, "threads", 1, low=1, high=256)
    numbers = {
        "port": job.endpoint.port,
        "threads": threads,
        "slots": whole(
            job.options, "slots", threads if kind == "predictive" else 8, low=1, high=512
        ),
        "queue": whole(job.options, "queue", 64, low=0, high=100_000),
    }
    names = {
        "kind": kind,
        "folder": str(job.folder),
        "model": job.model,
        "version": job.version,
        "host": job.endpoint.host,
    }
    pairs = [f"--{key}={value}" for key, value in {**names, **numbers}.items()]
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return Launch(
        argv=(sys.executable, "-m", "lockgate.fleet.runtimes.serve", *pairs),
        ready=Probe(path="/v2/health/ready" if kind == "predictive" else "/health"),
        env={**thread_environment(threads), **quiet, **environment(job.options)},
        warmups=() if kind == "predictive" else (completion_warmup(job.model),),
    )


def completion_warmup(model: str) -> Probe:
    """Returns the request that makes a language model generate its first tokens."""
    body = {"model": model, "prompt": "Hello", "max_tokens": 4, "temperature": 0}
    return Probe(path="/v1/completions", method="POST", body=body)
