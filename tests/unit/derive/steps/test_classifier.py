"""A text classifier: trained, exported, quantized, and served with texts by the light runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for needed in ("torch", "transformers", "onnxscript"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

from lockgate.core.errors import UsageError  # noqa: E402
from lockgate.derive.steps.convert import ConvertOnnx  # noqa: E402
from lockgate.derive.steps.quantize import Quantize  # noqa: E402
from lockgate.fleet.runtimes.serve.exchange import Refused  # noqa: E402
from lockgate.fleet.runtimes.serve.tensors.oip import OnnxModel, Predictive  # noqa: E402
from lockgate.fleet.runtimes.serve.tensors.texts import with_texts  # noqa: E402

from . import encoder  # noqa: E402
from .bench import Run, digest  # noqa: E402

TEXTS = ["my order number 3 was lovely", "the parcel number 5 was broken", "awful"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.train(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run(tmp_path_factory.mktemp("exported"))(ConvertOnnx(), {"base": trained})


@pytest.fixture(scope="module")
def served(exported: Path) -> Predictive:
    return with_texts(OnnxModel(exported, threads=1), exported)


def tensor(texts: list[Any], **about: Any) -> dict[str, Any]:
    told = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts, **about}
    return {"inputs": [told], "outputs": [{"name": "probabilities"}]}


def chances(model: Predictive, texts: list[str]) -> Any:
    (said,) = model.infer(tensor(texts))
    return np.array(said["data"]).reshape(said["shape"])


def truth(folder: Path, texts: list[str]) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        given = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        given.pop("token_type_ids", None)
        return model(**given).logits.softmax(-1).numpy()


def test_texts_get_the_chances_that_transformers_gives(trained: Path, served: Predictive) -> None:
    texts = [*TEXTS, "word " * 100]  # longer than the model: cut off in the same place
    found = chances(served, texts)
    np.testing.assert_allclose(found, truth(trained, texts), atol=1e-5)
    assert found.argmax(axis=1)[:3].tolist() == [1, 0, 0]  # bad, good


def test_an_export_is_the_same_again_and_names_no_path(
    trained: Path, exported: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path;"
        "from lockgate.derive.steps.converting.classifier import build;"
        "print(build(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(trained), str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    again = Path(done.stdout.strip().splitlines()[-1]) / "model.onnx"
    data = again.read_bytes()
    assert data == (exported / "model.onnx").read_bytes()
    assert b"site-packages" not in data
    assert b".py" not in data


def test_quantized_it_is_smaller_and_says_nearly_the_same(
    exported: Path, served: Predictive, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    small = run(Quantize(), {"base": exported}, kind="onnx-int8")
    assert run.metrics["bytes_after"] < 0.75 * run.metrics["bytes_before"]
    model = with_texts(OnnxModel(small, threads=1), small)
    texts = [row["text"] for row in encoder.rows(60)]
    one, other = chances(served, texts), chances(model, texts)
    assert (one.argmax(axis=1) == other.argmax(axis=1)).mean() > 0.95
    assert np.abs(one - other).mean() < 0.05
    again = Run(tmp_path / "again")(Quantize(), {"base": exported}, kind="onnx-int8")
    assert digest(again) == digest(small)


def test_callers_may_bring_tokens_of_their_own(served: Predictive) -> None:
    assert list(served.inputs) == ["text", "input_ids", "attention_mask"]
    given = [
        {"name": name, "shape": [1, 4], "datatype": "INT64", "data": data}
        for name, data in (("input_ids", [2, 5, 6, 3]), ("attention_mask", [1, 1, 1, 1]))
    ]
    assert {said["name"] for said in served.infer({"inputs": given})} == {"logits", "probabilities"}
    with pytest.raises(Refused, match="only input"):
        served.infer({"inputs": [*tensor(["x"])["inputs"], *given]})


@pytest.mark.parametrize(
    "body",
    [
        tensor([]),
        tensor(["x"], datatype="FP32"),
        tensor(["x"], shape=[2]),
        tensor([1]),
        tensor(["\ud800"]),
        tensor(["x"] * 1025),
        tensor(["x"], data="x"),
        {"inputs": [{"name": "text"}]},
    ],
)
def test_what_is_no_text_is_refused(served: Predictive, body: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        served.infer(body)
    assert refused.value.status == 400


def test_without_tokenizers_tensors_still_work_and_texts_say_why_not(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    model = with_texts(OnnxModel(exported, threads=1), exported)
    model.warm()
    with pytest.raises(Refused, match=r"lockgate\[text\]"):
        model.infer(tensor(["x"]))


def test_a_broken_tokenizer_is_told_before_anything_is_served(
    exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(exported, folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="can't be read"):
        with_texts(OnnxModel(folder, threads=1), folder)


def test_precision_is_for_language_models(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="converted to fp32"):
        Run(tmp_path)(ConvertOnnx(), {"base": trained}, precision="int4")


def test_a_classifier_without_weights_is_refused(tmp_path: Path) -> None:
    base = encoder.write_base(tmp_path / "base")
    with pytest.raises(UsageError):
        Run(tmp_path)(ConvertOnnx(), {"base": base})


@pytest.fixture
def process(exported: Path) -> Iterator[str]:
    """The light runtime as a process, as the fleet starts it."""
    import socket
    import time

    import httpx2

    from lockgate.core.traffic import Endpoint
    from lockgate.fleet.api import Job
    from lockgate.fleet.runtimes.choose import choose

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = Job(folder=exported, model="acme/texts", version="v1", options={},
              endpoint=Endpoint(host="127.0.0.1", port=port))  # fmt: skip
    launch = choose(exported).launch(job)
    server = subprocess.Popen(launch.argv)
    try:
        for _ in range(300):
            try:
                if httpx2.get(f"http://127.0.0.1:{port}{launch.ready.path}").status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v2/models/texts"
    finally:
        server.terminate()
        server.wait(30)


def test_it_is_chosen_by_its_files_and_answers_over_http(process: str) -> None:
    import httpx2

    told = httpx2.get(process).json()
    assert told["inputs"][0] == {"name": "text", "datatype": "BYTES", "shape": [-1]}
    said = httpx2.post(f"{process}/infer", json=tensor(TEXTS)).json()
    assert said["outputs"][0]["shape"] == [3, 2]
    assert httpx2.post(f"{process}/infer", json=tensor([7])).status_code == 400
    assert json.loads(json.dumps(said))["model_name"] == "acme/texts"
