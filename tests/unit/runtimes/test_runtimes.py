"""Choosing a runtime, and the command lines they build."""

import sys

import pytest

from lockgate.core.errors import UsageError
from lockgate.core.traffic import Endpoint
from lockgate.fleet.api import Job, Probe
from lockgate.fleet.runtimes.choose import all_runtimes, choose
from lockgate.fleet.runtimes.command import CommandRuntime
from lockgate.fleet.runtimes.local import OnnxRuntime, TransformersRuntime
from lockgate.fleet.runtimes.serve.__main__ import main
from lockgate.fleet.runtimes.vllm import VllmRuntime

ARGV = ["./serve", "--port={port}", "{folder}"]


def job(folder, **options):
    endpoint = Endpoint(host="127.0.0.1", port=8123)
    return Job(folder=folder, model="acme/chat", version="v2", endpoint=endpoint, options=options)


def made(folder, *names):
    for name in names:
        (folder / name).write_text("{}")
    return folder


def runtimes(*, torch=False, vllm=False):
    return (
        OnnxRuntime(),
        VllmRuntime(installed=lambda: vllm),
        TransformersRuntime(installed=lambda _: torch),
        CommandRuntime(),
    )


WEIGHTS = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize(
    ("names", "installed", "expected"),
    [
        (("genai_config.json", "model.onnx"), {}, "onnx"),
        (("model.onnx",), {}, "onnx"),
        (("genai_config.json", *WEIGHTS), {"vllm": True}, "onnx"),
        (WEIGHTS, {"vllm": True, "torch": True}, "vllm"),
        (WEIGHTS, {"torch": True}, "transformers"),
    ],
)
def test_a_versions_files_choose_its_runtime(tmp_path, names, installed, expected):
    assert choose(made(tmp_path, *names), runtimes=runtimes(**installed)).name == expected


def test_when_none_fits_the_error_has_every_refusal(tmp_path):
    with pytest.raises(UsageError) as caught:
        choose(made(tmp_path, "config.json"), runtimes=runtimes(torch=True))
    assert caught.value.hint
    for part in ("onnx: ", "vllm: vllm is not installed", "transformers: the folder has no *.safe"):
        assert part in caught.value.message


def test_a_text_classifier_is_not_taken_for_a_language_model(tmp_path):
    folder = made(tmp_path, *WEIGHTS)
    (folder / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    with pytest.raises(UsageError, match="convert-onnx"):
        choose(folder, runtimes=runtimes(torch=True))


def test_a_name_wins_and_a_wrong_one_is_told(tmp_path):
    assert choose(tmp_path, "command").name == "command"
    with pytest.raises(UsageError, match="no runtime 'triton'") as caught:
        choose(tmp_path, "triton")
    assert "onnx" in (caught.value.hint or "")
    with pytest.raises(UsageError, match=r"neither genai_config.json nor model.onnx"):
        choose(tmp_path, "onnx")


def test_names_are_unique():
    names = [runtime.name for runtime in all_runtimes()]
    assert names == ["onnx", "vllm", "transformers", "command"]


def test_onnx_launches_our_server(tmp_path):
    folder = made(tmp_path, "genai_config.json")
    launch = OnnxRuntime().launch(job(folder, threads=2, env={"A": "b"}))
    assert launch.argv[:3] == (sys.executable, "-m", "lockgate.fleet.runtimes.serve")
    assert {"--kind=genai", "--model=acme/chat", "--port=8123", "--threads=2"} <= set(launch.argv)
    assert launch.env["OMP_NUM_THREADS"] == "2"
    assert launch.env["A"] == "b"
    assert launch.ready == Probe(path="/health")
    assert launch.warmups[0].path == "/v1/completions"


def test_a_predictive_folder_is_ready_by_its_protocol(tmp_path):
    launch = OnnxRuntime().launch(job(made(tmp_path, "model.onnx")))
    assert launch.ready == Probe(path="/v2/health/ready")
    assert "--kind=predictive" in launch.argv
    assert launch.warmups == ()


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0},
        {"threads": True},
        {"threads": "2"},
        {"slots": 0},
        {"queue": -1},
        {"env": {"A": 1}},
        {"env": {"A=B": "c"}},
        {"env": ["A"]},
        {"argv": ["x"]},
    ],
)
def test_wrong_options_of_onnx_are_refused(tmp_path, options):
    with pytest.raises(UsageError):
        OnnxRuntime().launch(job(made(tmp_path, "model.onnx"), **options))


def test_vllm_builds_its_command_line(tmp_path):
    runtime = VllmRuntime(installed=lambda: True)
    options = {"args": ["--max-model-len", "4096"], "drain_s": 90, "threads": 4}
    launch = runtime.launch(job(made(tmp_path, *WEIGHTS), **options))
    assert launch.argv == (
        *("vllm", "serve", str(tmp_path), "--served-model-name", "acme/chat"),
        *("--host", "127.0.0.1", "--port", "8123", "--shutdown-timeout", "90"),
        *("--max-model-len", "4096"),
    )
    assert launch.ready == Probe(path="/health")
    assert launch.env["OMP_NUM_THREADS"] == "4"
    assert set(runtime.metrics.values()) >= {"lockgate_time_to_first_token_seconds"}


@pytest.mark.parametrize("argument", ["--port", "--port=1", "--host=0.0.0.0", "--shutdown-timeout"])
def test_vllm_refuses_arguments_that_are_ours(tmp_path, argument):
    runtime = VllmRuntime(installed=lambda: True)
    with pytest.raises(UsageError, match="lockgate sets it itself"):
        runtime.launch(job(made(tmp_path, *WEIGHTS), args=[argument]))


def test_vllm_says_when_it_is_not_installed(tmp_path):
    with pytest.raises(UsageError, match="not installed"):
        VllmRuntime(installed=lambda: False).launch(job(made(tmp_path, *WEIGHTS)))


def test_command_fills_placeholders_once_and_keeps_braces(tmp_path):
    folder = tmp_path / "{port}"
    argv = ["./serve", "{folder}", "{host}:{port}", '{{"m": "{model}@{version}"}}', "a b; c"]
    launch = CommandRuntime().launch(job(folder, argv=argv))
    expected = ("./serve", str(folder), "127.0.0.1:8123", '{"m": "acme/chat@v2"}', "a b; c")
    assert launch.argv == expected
    assert launch.ready == Probe(path="/health")


def test_command_takes_a_probe_and_warm_ups(tmp_path):
    warmup = ["/a", {"path": "/b", "body": {"x": 1}}, {"path": "/c", "method": "PUT"}]
    launch = CommandRuntime().launch(job(tmp_path, argv=ARGV, ready="/up", warmup=warmup))
    assert launch.ready == Probe(path="/up")
    assert [(probe.method, probe.path) for probe in launch.warmups] == [
        ("GET", "/a"),
        ("POST", "/b"),
        ("PUT", "/c"),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"argv": []},
        {"argv": "./serve {port}"},
        {"argv": ["", "{port}"]},
        {"argv": ["./serve"]},
        {"argv": [1, "{port}"]},
        {"argv": ["./serve", "{port}", "{home}"]},
        {"argv": ["./serve", "{port}", "{"]},
        {"argv": ["./serve", "{port}", "{folder.name}"]},
        {"argv": ["./serve", "{port}\0"]},
        {"argv": ARGV, "ready": "health"},
        {"argv": ARGV, "ready": "/a b"},
        {"argv": ARGV, "ready": 1},
        {"argv": ARGV, "warmup": 1},
        {"argv": ARGV, "warmup": {"path": "/a", "body": "x"}},
        {"argv": ARGV, "warmup": {"path": "/a", "method": "DELETE"}},
        {"argv": ARGV, "warmup": {"path": "/a", "headers": {}}},
        {"argv": ARGV, "shell": True},
    ],
)
def test_wrong_options_of_command_are_refused(tmp_path, options):
    with pytest.raises(UsageError):
        CommandRuntime().launch(job(tmp_path, **options))


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("genai", "genai_config.json", "{"),
        ("genai", "genai_config.json", "[]"),
        ("genai", "genai_config.json", '{"model": {"context_length": 8, "vocab_size": 8}}'),
        ("predictive", "model.onnx", "no model"),
        ("predictive", "other", ""),
    ],
)
def test_a_broken_folder_ends_the_server_with_a_sentence(tmp_path, capsys, kind, name, content):
    (tmp_path / name).write_text(content)
    code = main([f"--kind={kind}", f"--folder={tmp_path}", "--model=acme/m", "--port=1"])
    assert code == UsageError.exit_code
    assert "can't load" in capsys.readouterr().err
