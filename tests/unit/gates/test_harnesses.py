"""Tasks of lm-evaluation-harness and Inspect, by the harnesses themselves, on the real runtime."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lockgate
from lockgate.client.caller import Caller
from lockgate.client.elsewhere import Elsewhere
from lockgate.core.errors import SpecError, UsageError
from lockgate.fleet.replica import free_port
from lockgate.gates.admit import Admission, admit, choose, question
from lockgate.gates.api import Asked, Subject
from lockgate.gates.tasks.harness import environment, files_below
from lockgate.gates.tasks.lm_eval import context_of
from lockgate.gates.tasks.specs import read_suite

from .world import BASELINE, CANDIDATE, Room

MODELS = Path(lockgate.__file__).parent / "demo" / "models"
FOLDERS = {CANDIDATE.digest: MODELS / "chat-v2", BASELINE.digest: MODELS / "chat-v1"}
NEEDS_LM_EVAL = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (extra lm-eval)"
)
NEEDS_INSPECT = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None,
    reason="inspect_ai is not installed (extra inspect)",
)
NEEDS_HF = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "accelerate")),
    reason="torch or accelerate is not installed (extra transformers)",
)
CHOOSE = """\
task: demo_sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: !function doc.text
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
SAY = """\
task: demo_say
dataset_path: json
dataset_kwargs: {data_files: {test: say.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: answer
generation_kwargs: {until: ["<|end|>"], max_gen_toks: 40, do_sample: false}
metric_list: [{metric: exact_match}]
"""
FORETELL = """\
task: demo_held
dataset_path: json
dataset_kwargs: {data_files: {test: say.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{prompt}}{{answer}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
SUITE = """\
suite: harness
tasks:
  sums: {kind: lm_eval, include: tasks, task: demo_sums}
"""
INSPECT = """\
from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def answers():
    rows = json_dataset("rows.jsonl", FieldSpec(input="question", target="answer"))
    return Task(dataset=rows, solver=generate(), scorer=includes(ignore_case=True))
"""


def rows_of_tasks() -> tuple[list[Any], list[Any]]:
    """Returns rows with four choices of a number each, and rows with an answer to be said."""
    chosen, said = [], []
    for line in (MODELS / "chat-questions.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = f"<|user|>{row['question']}<|end|><|assistant|>"
        number = re.search(r" (\d+)\.$", row["answer"])
        if row["kind"] in ("sum", "difference") and number and len(chosen) < 60:
            right = int(number[1])
            options = sorted({right, right + 1, right + 10, abs(right - 3)})
            chosen.append({"prompt": prompt + row["answer"][: number.start()],
                           "choices": [f"{one}." for one in options],
                           "label": options.index(right)})  # fmt: skip
        elif len(said) < 30:
            said.append({"prompt": prompt, "answer": row["answer"]})
    return chosen, said


@pytest.fixture
def room(tmp_path: Path) -> Room:
    room = Room(tmp_path)
    (tmp_path / "tasks").mkdir()
    chosen, said = rows_of_tasks()
    room.lines("tasks/sums.jsonl", chosen)
    room.lines("tasks/say.jsonl", said)
    for name, text in (("sums", CHOOSE), ("say", SAY), ("held", FORETELL)):
        room.text(f"tasks/{name}.yaml", text)
    room.text("tasks/doc.py", "def text(doc):\n    return doc['prompt']\n")
    return room


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Serves both versions by the light runtime; gives the address of each digest."""
    processes, urls = [], {}
    for digest, folder in FOLDERS.items():
        port = free_port()
        urls[digest] = f"http://127.0.0.1:{port}"
        processes.append(subprocess.Popen(
            [sys.executable, "-m", "lockgate.fleet.runtimes.serve", "--kind=genai",
             f"--folder={folder}", "--model=acme/x", f"--port={port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ))  # fmt: skip
    try:
        for url in urls.values():
            caller, deadline = Caller(url), time.monotonic() + 60
            while not caller.passes("GET", "/health", None):
                assert time.monotonic() < deadline, "a replica did not start"
                time.sleep(0.1)
            caller.close()
        yield urls
    finally:
        for process in processes:
            process.terminate()
            process.wait(30)


def asking(room: Room, addresses: dict[str, str], **about: Any) -> Asked:
    def serve(subject: Subject) -> Elsewhere:
        return Elsewhere(addresses[subject.digest], subject, lambda: FOLDERS[subject.digest])

    return replace(room.asked(**about), serve=serve)


def judge(room: Room, addresses: dict[str, str], metrics: Any, **about: Any) -> Admission:
    gate = {"evaluation": {"suite": "suite.yaml", "metrics": metrics}}
    return admit(choose([gate]), asking(room, addresses, **about), room.recorded.append)


def by_itself(room: Room, *tasks: str) -> dict[str, Any]:
    """Returns what the harness finds without us: torch, and the weights as they are."""
    out = room.folder / "reference"
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "8",
         "--model_args", f"pretrained={MODELS / 'chat-v2'},dtype=float32", "--include_path", ".",
         "--tasks", ",".join(tasks), "--output_path", str(out)],
        cwd=room.folder / "tasks", check=True, capture_output=True, timeout=300,
        env={**environment(room.folder), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    (file,) = out.rglob("results_*.json")
    return json.loads(file.read_text())["results"]  # type: ignore[no-any-return]


@NEEDS_LM_EVAL
@NEEDS_HF
def test_choices_and_answers_are_what_the_harness_finds_by_itself(
    room: Room, addresses: dict[str, str]
) -> None:
    """Tolerance: one row of 60, one of 30; the runtime has float32, the reference too."""
    room.text("suite.yaml", SUITE + "  say: {kind: lm_eval, include: tasks, task: demo_say}\n"
              "  held: {kind: lm_eval, include: tasks, task: demo_held, limit: 20}\n")  # fmt: skip
    wanted = {"sums.acc": {"at_least": 0.75, "worse_by_at_most": "2%"},
              "sums.acc_norm": {"at_least": 0.5}, "say.exact_match": {"at_least": 0.1},
              "held.word_perplexity": {"at_most": 1e9, "worse_by_at_most": "100%"},
              "held.bits_per_byte": {"at_most": 10}}  # fmt: skip
    found = judge(room, addresses, wanted)
    checks = {check.check: check for check in found.answers[0].verdict.checks}
    value = {check.signal: check.value for check in checks.values()}
    paired = next(check for name, check in checks.items() if name.startswith("sums.acc worse"))
    assert (paired.n, paired.n_baseline, paired.outcome) == (60, 60, "pass"), paired.reason
    assert paired.low is not None
    assert paired.low > 0, "v2 adds better than v1, and pairs prove it"
    likely = next(c for n, c in checks.items() if n.startswith("held.word_perplexity worse"))
    assert likely.baseline is not None
    reference = by_itself(room, "demo_sums", "demo_say")
    for task, metric, row in (("sums", "acc", 1 / 60), ("sums", "acc_norm", 1 / 60),
                              ("say", "exact_match", 1 / 30)):  # fmt: skip
        theirs = reference[f"demo_{task}"][f"{metric},none"]
        assert value[f"{task}.{metric}"] == pytest.approx(theirs, abs=row + 1e-9), (task, metric)


@NEEDS_LM_EVAL
def test_every_file_of_a_task_is_part_of_the_question(room: Room) -> None:
    room.text("suite.yaml", SUITE)
    gate = {"evaluation": {"suite": "suite.yaml", "metrics": {"sums.acc": {"at_least": 0.5}}}}
    (one,) = choose([gate])
    questions = {question(one, room.asked())}
    for name in ("tasks/doc.py", "tasks/sums.jsonl", "tasks/sums.yaml", "tasks/new.txt"):
        (room.folder / name).open("a").write("\n")
        questions.add(question(one, room.asked()))
    assert len(questions) == 5


@NEEDS_LM_EVAL
@pytest.mark.parametrize(
    ("name", "text", "suite", "said"),
    [
        ("doc.py", "raise ValueError('no such thing')", SUITE, "no such thing"),
        ("x.txt", "", SUITE.replace("demo_sums", "demo_missing"), "demo_missing"),
        ("doc.py", "import time\ntime.sleep(600)",
         SUITE.replace("demo_sums}", "demo_sums, timeout: 3s}"), "3 s"),
    ],
)  # fmt: skip
def test_a_harness_that_ends_badly_says_why(
    room: Room, addresses: dict[str, str], name: str, text: str, suite: str, said: str
) -> None:
    room.text(f"tasks/{name}", text)
    room.text("suite.yaml", suite)
    with pytest.raises(UsageError, match=said):
        judge(room, addresses, {"sums.acc": {"at_least": 0.5}}, baseline=None)


@NEEDS_INSPECT
def test_inspect_asks_both_versions_the_same(room: Room, addresses: dict[str, str]) -> None:
    lines = (MODELS / "chat-questions.jsonl").read_text().splitlines()[:60]
    room.text("tasks/rows.jsonl", "\n".join(lines) + "\n")
    room.text("tasks/ask.py", INSPECT)
    room.text("suite.yaml", "suite: harness\ntasks:\n  answers: {kind: inspect, include: tasks, "
              "file: ask.py, task: answers, max_tokens: 40}\n")  # fmt: skip
    wanted = {"answers.includes": {"at_least": 0.7, "worse_by_at_most": "5%"}}
    found = judge(room, addresses, wanted)
    assert found.outcome == "pass", found.reasons
    paired = found.answers[0].verdict.checks[1]
    assert (paired.n, paired.n_baseline) == (60, 60)
    asked = [json.loads(line) for line in lines]
    with_caller = Caller(addresses[CANDIDATE.digest])
    right = sum(row["answer"].lower() in said(with_caller, row["question"]) for row in asked)
    with_caller.close()
    assert found.answers[0].verdict.checks[0].value == pytest.approx(right / 60, abs=1 / 60 + 1e-9)
    room.text("tasks/ask.py", INSPECT.replace("includes(ignore_case=True)", "1 / 0"))
    with pytest.raises(UsageError, match="inspect_ai gave no answer"):
        judge(room, addresses, wanted, baseline=None)


def said(caller: Caller, question: str) -> str:
    body = {"model": "acme/x", "messages": [{"role": "user", "content": question}],
            "temperature": 0, "max_tokens": 40}  # fmt: skip
    answer = caller.post("/v1/chat/completions", body)
    return str(answer["choices"][0]["message"]["content"]).lower()


def test_a_harness_that_is_not_installed_is_named(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.text("suite.yaml", SUITE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="lm_eval is not installed") as caught:
        judge(room, {}, {"sums.acc": {"at_least": 0.5}})
    assert caught.value.hint == "pip install 'lockgate[lm-eval]'"


@pytest.mark.parametrize("include", ["..", ".", "missing", "/etc", "away"])
def test_a_task_is_a_folder_below_the_suites(room: Room, include: str) -> None:
    (room.folder / "s").mkdir()
    (room.folder / "s" / "away").symlink_to(room.folder / "tasks")
    room.text("s/suite.yaml", SUITE.replace("include: tasks", f"include: {include}"))
    gate = {"evaluation": {"suite": "s/suite.yaml", "metrics": {"sums.acc": {"at_least": 0.5}}}}
    with pytest.raises(UsageError, match="no folder"):
        admit(choose([gate]), room.asked(), room.recorded.append)


def test_no_file_of_a_task_leads_out_of_its_folder(room: Room) -> None:
    (room.folder / "tasks" / "__pycache__").mkdir()
    (room.folder / "tasks" / "__pycache__" / "doc.pyc").write_bytes(b"x")
    names = [path.name for path in files_below(room.folder / "tasks")]
    assert names == sorted(["doc.py", "held.yaml", "say.jsonl", "say.yaml", "sums.jsonl",
                            "sums.yaml"])  # fmt: skip
    (room.folder / "secret").write_text("x")
    (room.folder / "tasks" / "link").symlink_to(room.folder / "secret")
    with pytest.raises(UsageError, match="no file of that folder"):
        files_below(room.folder / "tasks")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: lm_eval, include: t, task: 'a,b'", "task"),
        ("kind: lm_eval, include: t, task: --help", "task"),
        ("kind: inspect, include: t, file: a.txt, task: a", "file"),
        ("kind: inspect, include: t, file: a.py, task: 'a b'", "task"),
        ("kind: lm_eval, include: t, task: a, timeout: 0s", "timeout"),
    ],
)
def test_a_harness_gets_no_argument_of_a_strangers_choice(room: Room, text: str, said: str) -> None:
    room.text("suite.yaml", f"suite: s\ntasks:\n  t: {{{text}}}\n")
    with pytest.raises(SpecError, match=said):
        read_suite(room.folder / "suite.yaml")


def test_a_harness_gets_nothing_that_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("LOCKGATE_TOKEN", "secret")
    assert "secret" not in environment(Path("/nowhere")).values()


def test_the_length_of_a_prompt_is_that_of_the_versions_context(tmp_path: Path) -> None:
    assert context_of(MODELS / "chat-v2") == 256
    assert context_of(tmp_path) == 2048
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 4096}}')
    assert context_of(tmp_path) == 4096
