"""The Open Inference Protocol (v2) over onnxruntime: predictive models, typed tensors in JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lockgate.core.errors import UsageError
from lockgate.fleet.runtimes.serve.exchange import (
    Exchange,
    Refused,
    busy,
    encode_json,
    fault,
    read_json,
)
from lockgate.fleet.runtimes.serve.metrics import Metrics

_BODY_LIMIT = 32 * 1024 * 1024
_KINDS = {
    "tensor(bool)": ("BOOL", "bool"),
    "tensor(uint8)": ("UINT8", "uint8"),
    "tensor(uint16)": ("UINT16", "uint16"),
    "tensor(uint32)": ("UINT32", "uint32"),
    "tensor(uint64)": ("UINT64", "uint64"),
    "tensor(int8)": ("INT8", "int8"),
    "tensor(int16)": ("INT16", "int16"),
    "tensor(int32)": ("INT32", "int32"),
    "tensor(int64)": ("INT64", "int64"),
    "tensor(float16)": ("FP16", "float16"),
    "tensor(float)": ("FP32", "float32"),
    "tensor(double)": ("FP64", "float64"),
    "tensor(string)": ("BYTES", "object"),
}
_MODEL_PREFIX = "/v2/models/"


class OnnxModel:
    """A loaded `model.onnx`; `infer` may be called from several threads."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UsageError(
                f"onnxruntime can't load {folder / 'model.onnx'}: {error}",
                hint="check the file with onnx.checker",
            ) from error
        self.inputs: Mapping[str, Any] = {i.name: i for i in self._session.get_inputs()}
        self.outputs: Mapping[str, Any] = {i.name: i for i in self._session.get_outputs()}
        for item in (*self.inputs.values(), *self.outputs.values()):
            if item.type not in _KINDS:
                raise UsageError(
                    f"the model's {item.name!r} is {item.type}, which has no tensor type here",
                    hint="export the model with plain tensors (no ZipMap, no sequences)",
                )

    def warm(self) -> None:
        """Runs once on zeros, so that the first caller does not pay for it."""
        feed = {
            name: np.zeros([_size(size) or 1 for size in item.shape], _KINDS[item.type][1])
            for name, item in self.inputs.items()
            if item.type != "tensor(string)"
        }
        if len(feed) == len(self.inputs):
            self._session.run(None, feed)

    def infer(self, body: Mapping[str, object]) -> list[dict[str, object]]:
        """Returns the outputs asked for; Refused 400 for bad tensors, 500 for a bad answer."""
        feed = {}
        for tensor in objects(body, "inputs"):
            name, array = self._read(tensor)
            if name in feed:
                raise Refused(400, f"the input {name!r} is there twice")
            feed[name] = array
        missing = sorted(set(self.inputs) - set(feed))
        if missing:
            raise Refused(400, f"the input {missing[0]!r} is missing")
        return self.run(body, feed)

    def run(self, body: Mapping[str, object], feed: Mapping[str, Any]) -> list[dict[str, object]]:
        """Returns the outputs that `body` asks for, computed from the arrays in `feed`."""
        wanted = self._wanted(body)
        try:
            arrays = self._session.run(wanted, feed)
        except Exception as error:
            raise fault(f"the model failed: {error}") from error
        return [
            _write(name, _KINDS[self.outputs[name].type][0], array)
            for name, array in zip(wanted, arrays, strict=True)
        ]

    def describe(self, items: Mapping[str, Any]) -> list[dict[str, object]]:
        """Returns names, types and shapes; a size that may vary is -1."""
        return [
            {
                "name": name,
                "datatype": _KINDS[item.type][0],
                "shape": [_size(size) or -1 for size in item.shape],
            }
            for name, item in items.items()
        ]

    def _wanted(self, body: Mapping[str, object]) -> list[str]:
        if not body.get("outputs"):
            return list(self.outputs)
        wanted = [str(tensor.get("name")) for tensor in objects(body, "outputs")]
        unknown = [name for name in wanted if name not in self.outputs]
        if unknown:
            raise Refused(400, f"the model has no output {unknown[0]!r}")
        return list(dict.fromkeys(wanted))

    def _read(self, tensor: Mapping[str, object]) -> tuple[str, Any]:
        name = tensor.get("name")
        if not isinstance(name, str) or name not in self.inputs:
            raise Refused(400, f"the model has no input {name!r}; it has {', '.join(self.inputs)}")
        item = self.inputs[name]
        kind, dtype = _KINDS[item.type]
        if tensor.get("datatype") != kind:
            raise Refused(400, f"{name}: datatype is {tensor.get('datatype')!r}, must be {kind}")
        shape = _shape(name, tensor.get("shape"), item.shape)
        flat = list(flat_values(tensor.get("data"), name))
        if len(flat) != int(np.prod(shape, dtype=object)):
            raise Refused(400, f"{name}: {len(flat)} values do not fill the shape {list(shape)}")
        return name, _array(name, kind, dtype, flat).reshape(shape)


def _size(size: object) -> int | None:
    return size if isinstance(size, int) and size > 0 else None


def objects(body: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    """Returns the tensors listed under `key`; raises Refused for anything else."""
    value = body.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Refused(400, f"{key!r} must be a list of tensors")
    return value


def _shape(name: str, given: object, wanted: Sequence[object]) -> tuple[int, ...]:
    if not isinstance(given, list) or not all(type(n) is int and 0 < n < 2**31 for n in given):
        raise Refused(400, f"{name}: shape must be a list of positive whole numbers")
    sizes = [_size(size) for size in wanted]
    fits = len(given) == len(sizes) and all(
        size in (None, have) for size, have in zip(sizes, given, strict=True)
    )
    if not fits:
        raise Refused(400, f"{name}: shape {given} does not fit {[s or -1 for s in sizes]}")
    return tuple(given)


def flat_values(data: object, name: str) -> Iterator[object]:
    """Yields the values of a flat or nested list, row by row."""
    if not isinstance(data, list):
        raise Refused(400, f"{name}: data must be a list")
    stack = [iter(data)]
    while stack:
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            yield value
        else:
            stack.pop()


def _array(name: str, kind: str, dtype: str, flat: list[object]) -> Any:
    """Returns the values as an array; null is a missing value (NaN), in FP tensors only."""
    allowed: tuple[type, ...] = (int,)
    if kind == "BOOL":
        allowed = (bool,)
    elif kind == "BYTES":
        allowed = (str,)
    elif kind.startswith("FP"):
        allowed = (int, float, type(None))
    for value in flat:
        if type(value) not in allowed or (kind == "BYTES" and not is_text(value)):
            raise Refused(400, f"{name}: {value!r:.40} is not a value of {kind}")
    try:
        if kind.startswith("FP"):
            with np.errstate(over="ignore"):
                array = np.array(flat, dtype=np.float64).astype(dtype)
            if np.isinf(array).any():
                raise Refused(400, f"{name}: a value is too large for {kind}")
            return array
        return np.array(flat, dtype=dtype)
    except OverflowError as error:
        raise Refused(400, f"{name}: a value is too large for {kind}") from error


def is_text(value: object) -> bool:
    """Says whether UTF-8 can hold `value`: half a surrogate pair can't."""
    return not any("\ud800" <= char <= "\udfff" for char in str(value))


def _write(name: str, kind: str, array: Any) -> dict[str, object]:
    if kind.startswith("FP") and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0]) if array.ndim else 0
        raise fault(f"the model's output {name!r} is not a number in row {row}")
    return {
        "name": name,
        "datatype": kind,
        "shape": list(array.shape),
        "data": array.reshape(-1).tolist(),
    }


class Predictive(Protocol):
    """What the service needs of a loaded model."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]

    def warm(self) -> None:
        """Runs once, so that the first caller does not pay for it."""
        ...

    def infer(self, body: Mapping[str, object]) -> list[dict[str, object]]:
        """Returns the outputs asked for; raises Refused."""
        ...

    def describe(self, items: Mapping[str, Any]) -> list[dict[str, object]]:
        """Returns names, types and shapes of inputs or outputs."""
        ...


class InferService:
    """Serves one predictive model under the name `model` (its last part alone will do)."""

    def __init__(
        self,
        model: Predictive,
        metrics: Metrics,
        *,
        name: str,
        version: str,
        slots: int,
        queue: int,
    ) -> None:
        self._onnx = model
        self._metrics = metrics
        self._name = name
        self._version = version
        self._slots = slots
        self._room = slots + queue
        self._inside = 0
        self._pool = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="infer")
        metrics.watch(lambda: min(self._inside, slots), lambda: max(0, self._inside - slots))

    def open(self) -> None:
        """Runs the model once."""
        self._onnx.warm()

    def close(self) -> None:
        """Lets the threads go."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def route(self, path: str) -> tuple[str, str] | None:
        """Returns the route's name and its method, None when there is none."""
        if path in ("/v2", "/v2/health/live", "/v2/health/ready"):
            return path, "GET"
        if not path.startswith(_MODEL_PREFIX):
            return None
        for end, method in (("/ready", "GET"), ("/infer", "POST")):
            if path.endswith(end):
                return _MODEL_PREFIX + "{model}" + end, method
        return _MODEL_PREFIX + "{model}", "GET"

    def error(self, refused: Refused) -> Mapping[str, object]:
        """Returns an error in the protocol's shape."""
        return {"error": refused.message}

    async def serve(self, route: str, exchange: Exchange, began: float) -> None:
        """Answers one request; `began` is the monotonic time of its arrival."""
        if route == "/v2":
            about = {"name": "lockgate-onnx", "version": "2", "extensions": []}
            await exchange.reply(200, about)
        elif route.startswith("/v2/health/"):
            await exchange.reply(200, {route.rpartition("/")[2]: True})
        else:
            self._check_name(exchange.path)
            await self._about_model(route, exchange, began)

    async def _about_model(self, route: str, exchange: Exchange, began: float) -> None:
        if route.endswith("/infer"):
            answer = await self._infer(await exchange.body(_BODY_LIMIT))
            self._metrics.first_token.observe(time.monotonic() - began)
            await exchange.reply_bytes(200, answer, "application/json")
        elif route.endswith("/ready"):
            await exchange.reply(200, {"name": self._name, "ready": True})
        else:
            await exchange.reply(200, self._metadata())

    def _check_name(self, path: str) -> None:
        name = path.removeprefix(_MODEL_PREFIX).removesuffix("/infer").removesuffix("/ready")
        name, _, version = name.partition("/versions/")
        if name not in (self._name, self._name.rpartition("/")[2]):
            raise Refused(404, f"the model {name!r} is not served here; {self._name!r} is")
        if version and version != self._version:
            raise Refused(404, f"version {version!r} is not served here; {self._version!r} is")

    def _metadata(self) -> dict[str, object]:
        return {
            "name": self._name,
            "versions": [self._version],
            "platform": "onnx_onnxv1",
            "inputs": self._onnx.describe(self._onnx.inputs),
            "outputs": self._onnx.describe(self._onnx.outputs),
        }

    async def _infer(self, data: bytes) -> bytes:
        if self._inside >= self._room:
            raise busy(f"{self._room} requests are inside already; try again shortly")
        self._inside += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._work, data)
        finally:
            self._inside -= 1

    def _work(self, data: bytes) -> bytes:
        """Returns the answer to a body; all of it in a thread, because both may be large."""
        body = read_json(data)
        head: dict[str, object] = {"model_name": self._name, "model_version": self._version}
        if isinstance(body.get("id"), str):
            head["id"] = body["id"]
        return encode_json({**head, "outputs": self._onnx.infer(body)})
