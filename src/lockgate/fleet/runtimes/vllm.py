"""The runtime `vllm`: a process of `vllm serve`, and its metrics under our names."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lockgate.core.errors import UsageError
from lockgate.fleet.api import Job, Launch, Probe
from lockgate.fleet.runtimes.local import completion_warmup
from lockgate.fleet.runtimes.options import check_names, environment, texts, whole

_OPTIONS = ("args", "drain_s", "env", "threads")
_OURS = ("--host", "--port", "--served-model-name", "--shutdown-timeout", "--model", "--uds")


def _installed() -> bool:
    return shutil.which("vllm") is not None and importlib.util.find_spec("vllm") is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmRuntime:
    """Serves a folder of safetensors with vLLM, where that is installed.

    `installed` says whether it is.
    """

    name: str = "vllm"
    installed: Callable[[], bool] = _installed

    @property
    def metrics(self) -> Mapping[str, str]:
        """Our name for each of vLLM's metrics that we use, in the same units."""
        return {
            "vllm:request_success_total": "lockgate_requests_total",
            "vllm:e2e_request_latency_seconds": "lockgate_request_duration_seconds",
            "vllm:time_to_first_token_seconds": "lockgate_time_to_first_token_seconds",
            "vllm:request_time_per_output_token_seconds": "lockgate_time_per_output_token_seconds",
            "vllm:prompt_tokens_total": 'lockgate_tokens_total{kind="prompt"}',
            "vllm:generation_tokens_total": 'lockgate_tokens_total{kind="completion"}',
            "vllm:num_requests_running": "lockgate_requests_running",
            "vllm:num_requests_waiting": "lockgate_requests_waiting",
        }

    def refuses(self, folder: Path) -> str | None:
        """Returns None when it can serve `folder`, else the reason."""
        if not self.installed():
            return "vllm is not installed in this environment (`vllm` is not on the path)"
        if not (folder / "config.json").is_file():
            return "the folder has no config.json"
        if not any(folder.glob("*.safetensors")):
            return "the folder has no *.safetensors"
        return None

    def launch(self, job: Job) -> Launch:
        """Returns how to run it; raises UsageError for a wrong option or folder.

        Options: `args` (more arguments for `vllm serve`), `drain_s` (seconds that SIGTERM gives
        to running streams), `env`, `threads` (OMP_NUM_THREADS, for the CPU build).
        """
        refusal = self.refuses(job.folder)
        if refusal:
            raise UsageError(
                f"the runtime 'vllm' can't serve {job.model} {job.version}: {refusal}",
                hint="install vLLM on the node, or name another runtime",
            )
        check_names(job.options, _OPTIONS, runtime=self.name)
        drain = whole(job.options, "drain_s", 60, low=0, high=86_400)
        fixed = {
            "--served-model-name": job.model,
            "--host": job.endpoint.host,
            "--port": str(job.endpoint.port),
            "--shutdown-timeout": str(drain),
        }
        return Launch(
            argv=(
                *("vllm", "serve", str(job.folder)),
                *(part for pair in fixed.items() for part in pair),
                *_more(job.options),
            ),
            ready=Probe(path="/health"),
            env={**_environment(job.options), **environment(job.options)},
            warmups=(completion_warmup(job.model),),
        )


def _environment(options: Mapping[str, object]) -> dict[str, str]:
    base = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if "threads" in options:
        base["OMP_NUM_THREADS"] = str(whole(options, "threads", 1, low=1, high=1024))
    return base


def _more(options: Mapping[str, object]) -> tuple[str, ...]:
    more = texts(options, "args")
    for argument in more:
        if argument.partition("=")[0] in _OURS:
            raise UsageError(
                f"{argument.partition('=')[0]!r} can't be in 'args': lockgate sets it itself"
            )
    return more
