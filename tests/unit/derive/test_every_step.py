"""Every step that lockgate brings: killed in its middle it ends with the same bytes, and again."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lockgate
from lockgate.derive.again import reproduce
from lockgate.derive.find import known_steps
from lockgate.derive.recipe import Given
from lockgate.derive.run import Made, derive, make_task
from lockgate.derive.steps.weights.writer import ModelWriter, slot
from lockgate.host.jobs.api import Limits
from lockgate.registry.publish import publish
from lockgate.registry.service import Details

from .home import TRAIN, Home

MODELS = Path(lockgate.__file__).parent / "demo" / "models"
OUT = "acme/out"
TORCH = ("torch", "transformers")
FRACTIONS = (0.45, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A step with inputs that a function makes, and what else it needs."""

    step: str
    inputs: Mapping[str, tuple[Callable[[Path], Path], ...]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.step


def chat(_: Path) -> Path:
    return MODELS / "chat-v1"


def other_chat(_: Path) -> Path:
    return MODELS / "chat-v2"


def questions(folder: Path) -> Path:
    lines = (MODELS / "chat-questions.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:120]))
    return folder


def texts(folder: Path) -> Path:
    rows = [json.dumps({"text": f"The sum of {n} and {n} is {2 * n}."}) for n in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def adapter(folder: Path) -> Path:
    rng = np.random.default_rng(4)
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{at}.lora_A.weight": rng.normal(0, 1, (4, 64)).astype("<f4"),
               f"{at}.lora_B.weight": rng.normal(0, 1, (64, 4)).astype("<f4")}  # fmt: skip
    slots = [slot(name, "F32", value.shape) for name, value in factors.items()]
    with ModelWriter(folder, slots) as writer:
        for name, value in factors.items():
            writer.append(name, value.tobytes())
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none",
             "target_modules": ["q_proj"]}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def csv(folder: Path) -> Path:
    rows = [f"{n},{n * 0.5},name {n % 97},{'yes' if n % 3 else ''}" for n in range(60_000)]
    (folder / "rows.csv").write_text("id,half,name,flag\n" + "\n".join(rows) + "\n")
    return folder


def table(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = list(range(200_000))
    columns = {"id": ids, "name": [f"name {n % 997}" for n in ids], "half": [n / 2 for n in ids]}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    return folder


SLOWLY = "    import time\n    time.sleep(0.3)\n    at += 1\n"
SCRIPT = TRAIN.replace("    at += 1\n", SLOWLY)
FAST = {"epochs": 2, "batch": 16, "longest": 64, "keep_every": 2, "learning_rate": 1e-3}
CASES = (
    Case(step="command", parameters={"script": "train.py"}),
    Case(step="merge", inputs={"base": (chat,), "others": (other_chat,)},
         parameters={"method": "ties", "weights": [0.7]}),
    Case(step="merge-lora", inputs={"base": (chat,), "adapter": (adapter,)}),
    Case(step="prune", inputs={"base": (chat,)},
         parameters={"method": "magnitude", "sparsity": 0.5}),
    Case(step="quantize", inputs={"base": (chat,)}, parameters={"kind": "int4", "group_size": 32}),
    Case(step="quantize", inputs={"base": (chat,), "calibration": (texts,)},
         parameters={"kind": "int4", "group_size": 32}, needs=TORCH, name="gptq"),
    Case(step="quantize", inputs={"base": (chat,)}, parameters={"kind": "onnx-int8"},
         needs=("onnx",), name="onnx-int8"),
    Case(step="cast", inputs={"base": (chat,)}, parameters={"to": "f16"}),
    Case(step="convert-gguf", inputs={"base": (chat,)}, needs=("gguf",)),
    Case(step="convert-onnx", inputs={"base": (chat,)}, needs=(*TORCH, "onnx_ir")),
    Case(step="shard", inputs={"base": (chat,)}, parameters={"shard_bytes": 64_000}),
    Case(step="tune", inputs={"base": (chat,), "data": (questions,)}, parameters=FAST, needs=TORCH),
    Case(step="distil", inputs={"teacher": (chat,), "data": (questions,)},
         parameters={**FAST, "student": {"num_hidden_layers": 1}}, needs=TORCH),
    Case(step="ingest", inputs={"source": (csv,)}, needs=("pyarrow",)),
    Case(step="clean", inputs={"data": (table,)}, needs=("pyarrow",),
         parameters={"drop_columns": ["half"], "drop_duplicates": ["name"]}),
    Case(step="split", inputs={"data": (table,)}, needs=("pyarrow",)),
)  # fmt: skip
ELSEWHERE = {"snapshot": "needs a server: tests/unit/derive/outside has its kills"}


def test_no_step_is_left_out() -> None:
    own = {name for name, where in known_steps().items() if where.startswith("lockgate.")}
    assert {case.step for case in CASES} | set(ELSEWHERE) == own


class World:
    """A home with the inputs of a case published; gives the task."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.home = Home(folder)
        self.case = case
        self.inputs: dict[str, list[Given]] = {}
        for name, makers in case.inputs.items():
            for number, make in enumerate(makers):
                source = folder / f"given-{name}-{number}"
                source.mkdir(exist_ok=True)
                model = f"acme/{name}{number}"
                done = publish(
                    make(source), model, objects=self.home.store, shelf=self.home.registry,
                    details=Details(), actor="ann",
                )  # fmt: skip
                self.inputs.setdefault(name, []).append(
                    Given(name=name, model=model, number=1, digest=done.version.digest)
                )

    def derive(self) -> Made:
        parameters = dict(self.case.parameters)
        if "script" in parameters:
            parameters["script"] = self.home.script(SCRIPT)
        task = make_task(self.case.step, self.inputs, parameters, to=OUT, seed=3)
        return derive(task, self.home.site, self.home.place)


def killed_after(seconds: float, folder: Path, case: Case) -> bool:
    """Runs the case in a process of its own, SIGKILLed after `seconds`; says whether it was."""
    pid = os.fork()
    if not pid:
        code = 7
        try:
            world = World(folder, case)
            stop = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
            stop.daemon = True
            stop.start()
            world.derive()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)
    return bool(status)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_in_its_middle_a_step_ends_with_the_same_bytes(
    tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in case.needs:
        pytest.importorskip(package, reason=f"{package} is not installed")
    clean = World(tmp_path / "clean", case)
    made = clean.derive()
    wanted = made.version.digest
    monkeypatch.chdir(clean.home.folder)  # a script is known by its name
    again = reproduce(OUT, "v1", clean.home.site, clean.home.place, Limits())
    assert again.version.digest == wanted
    clean.home.close()
    kills = 0
    for number, fraction in enumerate(FRACTIONS):
        folder = tmp_path / str(number)
        kills += killed_after(fraction * made.seconds, folder, case)
        world = World(folder, case)
        assert world.derive().version.digest == wanted
        assert len(world.home.registry.model(OUT).versions) == 1
        assert not any((folder / "derive").glob("*/job.json"))
        world.home.close()
    assert kills
