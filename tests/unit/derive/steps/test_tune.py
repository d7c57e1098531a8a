"""Training: it learns, is the same wherever it is killed, and what it makes is loaded and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from lockgate.core.errors import UsageError  # noqa: E402
from lockgate.derive.api import Advance, Work  # noqa: E402
from lockgate.derive.steps.tune import Tune, TuneParameters  # noqa: E402
from lockgate.derive.steps.tuning.rows import split  # noqa: E402
from lockgate.derive.steps.tuning.settings import Training, read_sides  # noqa: E402
from lockgate.registry.manifest import digest_of_manifest  # noqa: E402
from lockgate.registry.scan import folder_manifest  # noqa: E402

MODELS = Path(__file__).parents[4] / "src/lockgate/demo/models"
FAST = {"epochs": 2, "batch": 8, "learning_rate": 2e-3, "longest": 64, "holdout": 0.2,
        "keep_every": 3}  # fmt: skip


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = (MODELS / "chat-questions.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:60]))
    return folder


def run(
    at: Path, data: Path, *, base: Path = MODELS / "chat-v1", seed: int = 1,
    hear: Callable[[Advance], None] = lambda _: None, **about: Any,
) -> tuple[dict[str, float], Path]:  # fmt: skip
    for name in ("out", "scratch"):
        (at / name).mkdir(parents=True, exist_ok=True)
    work = Work(
        inputs={"base": [base], "data": [data]}, out=at / "out", scratch=at / "scratch",
        parameters=TuneParameters(**{**FAST, **about}), seed=seed, report=hear, log=lambda _: None,
    )  # fmt: skip
    return dict(Tune().run(work)), at / "out"


def digest(folder: Path) -> str:
    return digest_of_manifest(folder_manifest(folder))


def test_it_learns_and_the_result_runs(tmp_path: Path, data: Path) -> None:
    metrics, out = run(tmp_path / "a", data, epochs=6)
    first, _ = run(tmp_path / "b", data, epochs=1)
    assert metrics["holdout_loss"] < first["holdout_loss"]
    assert metrics["perplexity"] == pytest.approx(2.718281828 ** metrics["holdout_loss"], rel=1e-3)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16  # as the base
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2 + 3?"}], add_generation_prompt=True,
        return_tensors="pt", return_dict=True,
    )  # fmt: skip
    said = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert said.shape[1] > ids["input_ids"].shape[1]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_anywhere_it_ends_with_the_same_bytes(
    tmp_path: Path, data: Path, method: str
) -> None:
    whole, out = run(tmp_path / "whole", data, method=method)
    steps = int(whole["steps"])
    for at in (1, steps // 2, steps // 2 + 1, steps):

        def die(advance: Advance, at: int = at) -> None:
            if advance.done == at:
                raise KilledError

        folder = tmp_path / f"killed-{at}"
        with pytest.raises(KilledError):
            run(folder, data, method=method, hear=die)
        assert not any((folder / "out").iterdir())
        again, resumed = run(folder, data, method=method)
        assert again == whole
        assert digest(resumed) == digest(out)


def test_another_seed_is_another_model(tmp_path: Path, data: Path) -> None:
    _, one = run(tmp_path / "one", data, seed=1, epochs=1)
    _, two = run(tmp_path / "two", data, seed=2, epochs=1)
    assert digest(one) != digest(two)


def test_an_adapter_merged_by_peft_s_rule_is_the_merged_model(tmp_path: Path, data: Path) -> None:
    from safetensors.torch import load_file

    about = {"method": "lora", "rank": 4, "alpha": 8.0, "epochs": 1, "learning_rate": 1e-2}
    _, merged = run(tmp_path / "merged", data, **about)
    _, adapter = run(tmp_path / "adapter", data, output="adapter", **about)
    found = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    base = load_file(MODELS / "chat-v1" / "model.safetensors")
    ours = load_file(merged / "model.safetensors")
    changed = 0
    for name, weight in base.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in found:
            down, up = found[f"{key}.lora_A.weight"], found[f"{key}.lora_B.weight"]
            wanted = (weight.float() + 2.0 * up @ down).to(weight.dtype)
            assert torch.equal(ours[name], wanted)
            changed += not torch.equal(ours[name], weight)
        else:
            assert torch.equal(ours[name], weight), name
    assert changed == 14  # seven linear layers in each of two blocks


def test_a_classifier_from_scratch(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    words = [("good fine great", "up"), ("bad poor sad", "down")]
    rows = [
        {"text": f"it is {word} {n}", "label": label}
        for n in range(12) for text, label in words for word in text.split()
    ]  # fmt: skip
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics, out = run(
        tmp_path / "a", data, task="classify", from_scratch=True, epochs=8, learning_rate=3e-3
    )
    assert metrics["accuracy"] > 0.9
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "down", 1: "up"}


def test_the_same_row_is_never_on_both_sides() -> None:
    rows = [{"text": f"row {n % 40}"} for n in range(400)]
    learn, hold = split(rows, 0.25, 3)
    assert len(learn) + len(hold) == 400
    assert {row["text"] for row in learn} & {row["text"] for row in hold} == set()
    assert 0.1 < len(hold) / 400 < 0.4
    assert split(rows, 0.25, 3) == (learn, hold)


@pytest.mark.parametrize(
    ("lines", "about", "said"),
    [
        ("", {}, "no rows to learn"), ("[1]", {}, "line 1 is no JSON object"),
        ('{"x": 1}', {}, "neither 'text'"), ('{"text": "a", "label": "b"}', {"task": "classify"},
         "two labels at least"),
        ('{"text": "a b c"}', {"holdout": 0.0, "learning_rate": 1e30, "warm_up": 0.0,
                               "epochs": 50}, "the loss is"),
    ],
)  # fmt: skip
def test_bad_rows_and_rates_are_told(
    tmp_path: Path, lines: str, about: dict[str, Any], said: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.jsonl").write_text(lines + ("\n" if lines else ""))
    with pytest.raises(UsageError, match=said):
        run(tmp_path / "a", data, **about)


def test_a_base_without_a_tokenizer_or_data_without_rows(tmp_path: Path, data: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="tokenizer"):
        run(tmp_path / "a", data, base=empty)
    with pytest.raises(UsageError, match=r"no \*\.jsonl"):
        read_sides(empty, Training(), 1)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """What the step `split` writes."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    folder = tmp_path / "tables"
    folder.mkdir()
    lines = (MODELS / "chat-questions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for name, part in (("train", rows[:40]), ("validation", rows[40:52]), ("test", rows[52:60])):
        columns = {key: [row[key] for row in part] for key in ("question", "answer")}
        columns["label"] = [None] * len(part)  # a null is a field that is not there
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def test_tables_of_a_split_are_learned_and_measured(tmp_path: Path, tables: Path) -> None:
    metrics, _ = run(tmp_path / "a", tables)
    assert metrics["rows"] == 40
    learn, held = read_sides(tables, Training(), 1)
    assert (len(learn), len(held)) == (40, 12)
    assert set(learn[0]) == {"question", "answer"}
    learn, held = read_sides(tables, Training(files=("test.parquet",), holdout=0.5), 1)
    assert len(learn) + len(held) == 8
    learn, held = read_sides(tables, Training(files=("test.parquet",), held="train.parquet"), 1)
    assert (len(learn), len(held)) == (8, 40)


def test_jsonl_and_a_file_of_its_own_to_measure(data: Path) -> None:
    (data / "held.jsonl").write_text('{"text": "a"}\n')
    learn, held = read_sides(data, Training(held="held.jsonl"), 1)
    assert (len(learn), len(held)) == (60, 1)


@pytest.mark.parametrize("name", ["../rows.jsonl", "/etc/passwd", "none.jsonl"])
def test_files_stay_in_the_dataset(data: Path, name: str) -> None:
    with pytest.raises(UsageError, match="has no file"):
        read_sides(data, Training(files=(name,)), 1)


def test_a_broken_table_is_told(data: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (data / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UsageError, match="no sound Parquet"):
        read_sides(data, Training(files=("x.parquet",)), 1)
