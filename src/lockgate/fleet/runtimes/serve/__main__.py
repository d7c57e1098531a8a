"""Serves one version folder until SIGTERM, then drains: streams end, the process exits with 0."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from lockgate.core.errors import LockgateError
from lockgate.fleet.runtimes.serve.app import App, Service
from lockgate.fleet.runtimes.serve.metrics import Metrics

_SWITCH_S = 0.0005  # how long the decoding thread may keep the event loop from running


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server; returns the exit code."""
    arguments = _parser().parse_args(argv)
    metrics = Metrics()
    try:
        service = _service(arguments, metrics)
    except LockgateError as error:
        sys.stderr.write(f"{error.message}\n{error.hint or ''}\n")
        return error.exit_code
    sys.setswitchinterval(_SWITCH_S)
    return _run(service, metrics, arguments.host, arguments.port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lockgate.fleet.runtimes.serve", description=__doc__)
    parser.add_argument("--kind", choices=("genai", "predictive", "transformers"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--queue", type=int, default=64)
    return parser


def _service(arguments: argparse.Namespace, metrics: Metrics) -> Service:
    """Loads the model; imports only what its kind needs."""
    name, version = arguments.model, arguments.version
    if arguments.kind == "predictive":
        from lockgate.fleet.runtimes.serve.tensors.oip import InferService, OnnxModel
        from lockgate.fleet.runtimes.serve.tensors.texts import with_texts

        model = with_texts(OnnxModel(arguments.folder, threads=arguments.threads), arguments.folder)
        slots, queue = arguments.slots, arguments.queue
        return InferService(model, metrics, name=name, version=version, slots=slots, queue=queue)
    from lockgate.fleet.runtimes.serve.backends import load
    from lockgate.fleet.runtimes.serve.chat import ChatService
    from lockgate.fleet.runtimes.serve.engine import Engine

    backend = load(arguments.kind, arguments.folder, threads=arguments.threads)
    engine = Engine(backend, slots=arguments.slots, queue=arguments.queue)
    return ChatService(engine, metrics, model=name, version=version)


def _run(service: Service, metrics: Metrics, host: str, port: int) -> int:
    import uvicorn

    def listen_for_signals() -> None:
        """Replaces uvicorn's handlers, which would end streams' connections too early."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: tasks.append(loop.create_task(stop())))

    async def stop() -> None:
        await app.drain()
        server.should_exit = True

    tasks: list[asyncio.Task[None]] = []
    app = App(service, metrics, started=listen_for_signals)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
    )
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main())
