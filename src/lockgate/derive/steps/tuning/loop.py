"""A training loop that is the same to the bit wherever it is killed and begun again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import ceil, exp
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError
from lockgate.derive.api import Advance, Work
from lockgate.derive.steps.tuning.rows import Row, batches, padded
from lockgate.derive.steps.tuning.settings import Training
from lockgate.store.durable import sync_folder

Loss = Callable[[Any, Any, Any], Any]
"""(ids, mask, labels) → the loss of a batch, a scalar tensor."""


def settle(seed: int) -> None:
    """Makes torch deterministic, seeded, and as many-threaded as the recipe says."""
    import torch

    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def train(
    work: Work, model: Any, rows: Sequence[Row], held: Sequence[Row], asked: Training,
    loss: Loss, pad: int, measure: Callable[[Sequence[Row]], Mapping[str, float]],
) -> Mapping[str, float]:  # fmt: skip
    """Trains what in `model` wants a gradient; returns the last metrics.

    Keeps its state in `work.scratch` each `keep_every` steps and goes on from there. Raises
    UsageError for no rows, or when the loss is no number any more.
    """
    import torch

    if not rows:
        raise UsageError("there are no rows to learn from", hint="is the share held out too large?")
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learned, lr=asked.learning_rate, weight_decay=asked.weight_decay, foreach=False
    )
    an_epoch = ceil(len(rows) / asked.batch)
    steps = an_epoch * asked.epochs
    file = work.scratch / "state.pt"
    done, total, metrics = _resume(file, learned, optimizer, work)
    model.train()
    while done < steps:
        epoch, within = divmod(done, an_epoch)
        for number, batch in enumerate(batches(rows, asked.batch, work.seed, epoch)):
            if number < within:
                continue
            for group in optimizer.param_groups:
                group["lr"] = asked.rate(done, steps)
            value = loss(*padded(batch, pad))
            if not torch.isfinite(value):
                raise UsageError(
                    f"the loss is {float(value.detach())} at step {done}",
                    hint="a smaller learning_rate",
                )
            value.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0, foreach=False)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total, done = total + float(value.detach()), done + 1
            work.report(Advance(done=done, total=steps))
            if done % asked.keep_every == 0 and done < steps and done % an_epoch:
                _keep(file, done, total, metrics, learned, optimizer)
        metrics = {"loss": total / an_epoch, **_measured(model, held, measure)}
        total = 0.0
        work.report(Advance(done=done, total=steps, metrics=metrics))
        _keep(file, done, total, metrics, learned, optimizer)
    model.eval()
    return {**metrics, "steps": float(steps)}


def _measured(
    model: Any, held: Sequence[Row], measure: Callable[[Sequence[Row]], Mapping[str, float]]
) -> Mapping[str, float]:
    import torch

    if not held:
        return {}
    model.eval()
    with torch.no_grad():
        found = measure(held)
    model.train()
    return found


def mean_loss(rows: Sequence[Row], loss: Loss, pad: int, size: int = 32) -> float:
    """Returns the loss of rows, each batch by its rows."""
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return sum(float(loss(*padded(p, pad))) * len(p) for p in parts) / len(rows)


def perplexity(loss: float) -> float:
    """Returns exp(loss), 1e9 at most."""
    return exp(min(loss, 20.7))


def _resume(
    file: Path, learned: Sequence[Any], optimizer: Any, work: Work
) -> tuple[int, float, Mapping[str, float]]:
    import torch

    if not file.exists():
        return 0, 0.0, {}
    kept = torch.load(file, weights_only=True)
    with torch.no_grad():
        for parameter, value in zip(learned, kept["parameters"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(kept["optimizer"])
    torch.set_rng_state(kept["random"])
    work.log(f"goes on after step {kept['done']}")
    return kept["done"], kept["total"], kept["metrics"]


def _keep(
    file: Path, done: int, total: float, metrics: Mapping[str, float], learned: Sequence[Any],
    optimizer: Any,
) -> None:  # fmt: skip
    import torch

    state = {
        "done": done, "total": total, "metrics": dict(metrics),
        "parameters": [parameter.detach() for parameter in learned],
        "optimizer": optimizer.state_dict(), "random": torch.get_rng_state(),
    }  # fmt: skip
    draft = file.with_suffix(".draft")
    with draft.open("wb") as out:
        torch.save(state, out)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    sync_folder(file.parent)
