"""What the tests of steps share: a run of a step, made-up models, and the demo's real ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lockgate
from lockgate.derive.api import Advance, Metrics, Step, Work
from lockgate.derive.steps.weights.floats import narrow
from lockgate.derive.steps.weights.reader import open_model, values
from lockgate.derive.steps.weights.writer import ModelWriter, slot

MODELS = Path(lockgate.__file__).parent / "demo" / "models"
Values = np.ndarray


class Run:
    """One run of a step into a folder of its own; what it said, reported and made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0
        self.said: list[str] = []
        self.reports: list[Advance] = []
        self.metrics: Metrics = {}
        self.out = root

    def __call__(
        self, step: Step, inputs: Mapping[str, Path | Sequence[Path]], seed: int = 7, **asked: Any
    ) -> Path:
        self.count += 1
        self.out = self.root / f"out-{self.count}"
        scratch = self.root / f"scratch-{self.count}"
        self.out.mkdir(parents=True)
        scratch.mkdir()
        given = {
            name: (found,) if isinstance(found, Path) else tuple(found)
            for name, found in inputs.items()
        }
        self.metrics = step.run(
            Work(
                inputs=given,
                out=self.out,
                scratch=scratch,
                parameters=step.parameters(**asked),
                seed=seed,
                report=self.reports.append,
                log=self.said.append,
            )
        )
        return self.out


def digest(folder: Path) -> str:
    """Of every file's name and bytes."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def write_model(
    folder: Path, tensors: Mapping[str, Values], dtype: str = "F32", **config: Any
) -> Path:
    """A folder with these tensors as `dtype`, and a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    slots = [slot(name, dtype, value.shape) for name, value in tensors.items()]
    with ModelWriter(folder, slots) as writer:
        for name, value in tensors.items():
            writer.append(name, narrow(value.astype(np.float32), dtype))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def read(folder: Path) -> dict[str, Values]:
    """Every float tensor as float32."""
    model = open_model(folder)
    return {
        name: values(tensor).reshape(tensor.shape).copy() for name, tensor in model.tensors.items()
    }


def blocks(layers: int = 2, width: int = 16, neurons: int = 24, seed: int = 1) -> dict[str, Values]:
    """Random weights of a small llama."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (20, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (20, width),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name in "qkvo":
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (width, width)
        shapes[f"{at}.mlp.gate_proj.weight"] = (neurons, width)
        shapes[f"{at}.mlp.up_proj.weight"] = (neurons, width)
        shapes[f"{at}.mlp.down_proj.weight"] = (width, neurons)
    return {name: rng.normal(0, 0.05, shape).astype("<f4") for name, shape in shapes.items()}


def transformers() -> Any:
    """The library, or a skip that names what is missing; one thread, for busy machines."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.set_num_threads(1)
    return pytest.importorskip("transformers", reason="transformers is not installed")


def logits(folder: Path, **loading: Any) -> Values:
    """What a chat model answers to the demo's last questions: float32 [tokens, words]."""
    library = transformers()
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **loading)
    model.eval()
    words = library.AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.no_grad():
        for line in (MODELS / "chat-questions.jsonl").read_text().splitlines()[-8:]:
            row = json.loads(line)
            text = f"<|start|><|user|>{row['question']}<|end|><|assistant|>{row['answer']}<|end|>"
            tokens = words(text, return_tensors="pt")["input_ids"]
            found.append(model(input_ids=tokens).logits[0].float().numpy())
    return np.concatenate(found)


def apart(left: Values, right: Values) -> float:
    """The relative distance ‖left - right‖ / ‖right‖."""
    return float(np.linalg.norm(left - right) / np.linalg.norm(right))
