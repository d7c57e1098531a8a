"""The step `distil`: a smaller student learns what its teacher says (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError
from lockgate.derive.api import Input, Metrics, Work
from lockgate.derive.steps.tune import load_tokenizer, save_model
from lockgate.derive.steps.tuning.loop import settle, train
from lockgate.derive.steps.tuning.rows import Row, encode, padded
from lockgate.derive.steps.tuning.settings import DistilParameters, read_sides

_IGNORED = -100


class Distil:
    """Knowledge distillation of language models."""

    name = "distil"
    summary = "Train a smaller student on a dataset and on what its teacher says of it."
    inputs: tuple[Input, ...] = (
        Input(name="teacher", relation="distilled-from"),
        Input(name="data", relation="trained-on"),
    )
    parameters = DistilParameters
    libraries: tuple[str, ...] = ("torch", "transformers", "tokenizers", "safetensors")
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes the student's folder. Rows are as for `tune`.

        Metrics: `holdout_loss` of the student and `teacher_loss` on the same rows, `agreement` (the
        share of tokens for which both say the same), `weights` and `teacher_weights`.
        """
        asked: DistilParameters = work.parameters
        settle(work.seed)
        folder = work.one("teacher")
        tokenizer = load_tokenizer(folder)
        learn, hold = (
            encode(part, tokenizer, asked.longest)
            for part in read_sides(work.one("data"), asked, work.seed)
        )
        teacher, student = _models(folder, asked)
        pad = tokenizer.pad_token_id or 0
        counts = [sum(p.numel() for p in model.parameters()) for model in (student, teacher)]
        work.log(f"{len(learn)} rows; {counts[0]:,} weights learn from {counts[1]:,}")

        def loss(ids: Any, mask: Any, labels: Any) -> Any:
            return _loss(student, teacher, asked, ids, mask, labels)

        def measure(held: Sequence[Row]) -> Mapping[str, float]:
            return _measure(student, teacher, held, pad)

        metrics = train(work, student, learn, hold, asked, loss, pad, measure)
        save_model(student, folder, work.out)
        return {**metrics, "weights": float(counts[0]), "teacher_weights": float(counts[1])}


def _models(folder: Path, asked: DistilParameters) -> tuple[Any, Any]:
    """Returns the teacher, frozen, and the student."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        teacher: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"the teacher can't be loaded: {error}") from error
    teacher.eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    unknown = [name for name in asked.student if not hasattr(config, name)]
    if unknown:
        raise UsageError(
            f"the teacher's config has no {unknown[0]!r}", hint="num_hidden_layers for one"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **asked.student)
        student: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (
        ValueError, TypeError, RuntimeError, ZeroDivisionError, StrictDataclassError,
    ) as error:  # fmt: skip
        raise UsageError(f"no student can be made with {dict(asked.student)}: {error}") from error
    if student.config.vocab_size != teacher.config.vocab_size:
        raise UsageError("student and teacher need the same vocabulary")
    if asked.from_teacher:
        known = teacher.state_dict()
        with torch.no_grad():
            for name, value in student.state_dict().items():
                if name in known and known[name].shape == value.shape:
                    value.copy_(known[name])
    return teacher, student


def _loss(student: Any, teacher: Any, asked: DistilParameters, ids: Any, mask: Any, labels: Any) \
        -> Any:  # fmt: skip
    """Returns soft · T² · KL(teacher ‖ student) + (1 − soft) · cross-entropy, a token's mean."""
    import torch
    from torch.nn import functional

    said = student(input_ids=ids, attention_mask=mask).logits[:, :-1]
    wanted = labels[:, 1:]
    learned = wanted != _IGNORED
    with torch.no_grad():
        taught = teacher(input_ids=ids, attention_mask=mask).logits[:, :-1][learned]
    ours, heat = said[learned], asked.temperature
    soft = functional.kl_div(
        functional.log_softmax(ours / heat, -1), functional.log_softmax(taught / heat, -1),
        log_target=True, reduction="batchmean",
    )  # fmt: skip
    hard = functional.cross_entropy(ours, wanted[learned])
    return asked.soft * heat**2 * soft + (1 - asked.soft) * hard


def _measure(student: Any, teacher: Any, rows: Sequence[Row], pad: int) -> dict[str, float]:
    from torch.nn import functional

    lost, taught, same, count = 0.0, 0.0, 0, 0
    for begin in range(0, len(rows), 32):
        ids, mask, labels = padded(rows[begin : begin + 32], pad)
        learned = labels[:, 1:] != _IGNORED
        wanted = labels[:, 1:][learned]
        one, other = (
            model(input_ids=ids, attention_mask=mask).logits[:, :-1][learned]
            for model in (student, teacher)
        )
        lost += float(functional.cross_entropy(one, wanted, reduction="sum"))
        taught += float(functional.cross_entropy(other, wanted, reduction="sum"))
        same += int((one.argmax(-1) == other.argmax(-1)).sum())
        count += len(wanted)
    return {"holdout_loss": lost / count, "teacher_loss": taught / count, "agreement": same / count}
