"""A student learns from its teacher, is smaller, runs, and is the same wherever it is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from lockgate.core.errors import UsageError  # noqa: E402
from lockgate.derive.api import Advance, Work  # noqa: E402
from lockgate.derive.steps.distil import Distil, DistilParameters, _loss  # noqa: E402

from .test_tune import MODELS, KilledError, digest  # noqa: E402

FAST = {"student": {"num_hidden_layers": 1}, "batch": 16, "learning_rate": 3e-3, "longest": 64,
        "holdout": 0.2, "keep_every": 2}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = (MODELS / "chat-questions.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:120]))
    return folder


def run(
    at: Path, data: Path, hear: Callable[[Advance], None] = lambda _: None, **about: Any
) -> tuple[dict[str, float], Path]:
    for name in ("out", "scratch"):
        (at / name).mkdir(parents=True, exist_ok=True)
    work = Work(
        inputs={"teacher": [MODELS / "chat-v2"], "data": [data]}, out=at / "out",
        scratch=at / "scratch", parameters=DistilParameters(**{**FAST, **about}), seed=1,
        report=hear, log=lambda _: None,
    )  # fmt: skip
    return dict(Distil().run(work)), at / "out"


def test_a_student_is_smaller_learns_and_runs(tmp_path: Path, data: Path) -> None:
    short, _ = run(tmp_path / "short", data, epochs=1)
    metrics, out = run(tmp_path / "long", data, epochs=12)
    assert metrics["weights"] < metrics["teacher_weights"]
    assert metrics["holdout_loss"] < short["holdout_loss"]
    assert metrics["agreement"] > short["agreement"]
    assert metrics["teacher_loss"] == pytest.approx(short["teacher_loss"])
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.config.num_hidden_layers == 1
    assert transformers.AutoTokenizer.from_pretrained(out).pad_token_id is not None


def test_killed_and_begun_again_it_is_the_same(tmp_path: Path, data: Path) -> None:
    whole, out = run(tmp_path / "whole", data, epochs=2)

    def die(advance: Advance) -> None:
        if advance.done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path / "killed", data, die, epochs=2)
    again, resumed = run(tmp_path / "killed", data, epochs=2)
    assert (again, digest(resumed)) == (whole, digest(out))


def test_the_loss_is_the_paper_s() -> None:
    """Against the formula, token by token, for a student and a teacher that are tables."""

    class Table:
        def __init__(self, seed: int) -> None:
            self.logits = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(seed))

        def __call__(self, **_: Any) -> Any:
            return self

    student, teacher = Table(1), Table(2)
    asked = DistilParameters(student={"num_hidden_layers": 1}, temperature=3.0, soft=0.4)
    labels = torch.tensor([[-100, -100, 2, 4]])
    found = _loss(student, teacher, asked, None, None, labels)
    total = 0.0
    for place, wanted in ((1, 2), (2, 4)):
        ours, theirs = (torch.softmax(m.logits[0, place] / 3.0, -1) for m in (student, teacher))
        soft = sum(float(t * torch.log(t / o)) for t, o in zip(theirs, ours, strict=True))
        hard = -float(torch.log(torch.softmax(student.logits[0, place], -1)[wanted]))
        total += (0.4 * 9.0 * soft + 0.6 * hard) / 2
    assert float(found) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "said"),
    [({"layers": 1}, "no 'layers'"), ({"vocab_size": 12}, "same vocabulary"),
     ({"num_attention_heads": "x"}, "no student can be made")],
)  # fmt: skip
def test_students_that_can_t_be(
    tmp_path: Path, data: Path, student: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        run(tmp_path / "a", data, student=student)
