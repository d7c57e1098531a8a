"""Feeds the readers of model files with broken files: `fuzz_formats.py gguf --seconds 600`.

What may happen: spans in order, in bounds and apart, or a LockgateError; within a second of the
processor's time and a bounded memory. With atheris (`pip install atheris`) mutation is guided by
coverage; without it a mutator of our own keeps what gave a new outcome. Real files of torch, onnx,
gguf and safetensors are the seeds where these are installed, besides those written by hand.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests/unit/store/formats")]

NAMES = {
    "safetensors": "m.safetensors",
    "gguf": "m.gguf",
    "onnx": "sub/m.onnx",
    "torchzip": "m.pt",
    "pickle": "m.pt",  # the input is the pickle inside a sound archive
}
SECONDS_PER_INPUT = 1.0
MEMORY = 1 << 30
MAX_LENGTH = 32 * 1024
STORAGES = {"0": bytes(48), "1": bytes(12), "2": bytes(12), "3": bytes(12)}
NUMBERS = (0, 1, 7, 8, 31, 32, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1)


def seeds_by_hand(target: str) -> Iterator[bytes]:
    """Yields small files that need no library."""
    import writers as w

    if target == "safetensors":
        header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        yield struct.pack("<Q", len(text)) + text + bytes(24)
    elif target == "gguf":
        pairs = [("general.alignment", 4, struct.pack("<I", 32)), ("t", 8, w.text("x"))]
        pairs.append(("n", 9, w.array(9, [w.array(8, [w.text("a"), w.text("b")])])))
        tensors = [("w", [4, 2], 0, 0), ("q", [64, 1], 8, 32)]
        yield w.gguf(tensors, bytes(100), pairs)
        yield w.gguf(tensors, bytes(100), version=2)
    elif target == "onnx":
        yield w.onnx(
            w.tensor_proto("a", [2, 3], 1, bytes(24)),
            w.tensor_proto("b", [4], 7, location="m.data", offset="64", length="32"),
            nodes=[w.field(5, w.field(5, w.tensor_proto("", [], 7, bytes(8))))],
        )
    elif target == "torchzip":
        yield w.two_layers()
    elif target == "pickle":
        a = w.rebuilt(w.Storage("FloatStorage", "0", 12), [3, 4], [4, 1])
        b = w.rebuilt(w.Storage("HalfStorage", "1", 6), [3], [1], 2)
        yield w.pickled({"a": a, "b": {"c": b, "n": (1, None, True, 2.5, "x" * 40)}})


def seeds_by_library(target: str) -> Iterator[bytes]:
    """Yields small files that the format's own library wrote; nothing where it is absent."""
    makers: dict[str, Callable[[Path], Iterator[bytes]]] = {
        "safetensors": _by_safetensors,
        "gguf": _by_gguf,
        "onnx": _by_onnx,
        "torchzip": _by_torch,
        "pickle": _by_pickle,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield from makers[target](Path(folder))
        except ImportError as error:
            print(f"no seeds of the library: {error}", file=sys.stderr)


def _by_safetensors(folder: Path) -> Iterator[bytes]:
    import numpy as np
    from safetensors.numpy import save

    yield save({"a": np.ones((2, 3), np.float16), "b": np.zeros(0, np.int8), "c": np.array(1)})


def _by_gguf(folder: Path) -> Iterator[bytes]:
    import gguf
    import numpy as np

    path = folder / "m.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_array("tokens", ["a", "bc"])
    writer.add_array("scores", [1.0, 2.0])
    writer.add_custom_alignment(64)
    writer.add_tensor("w", np.ones((3, 5), np.float32))
    kind = gguf.GGMLQuantizationType.Q4_0
    blocks = gguf.quants.quantize(np.ones((2, 64), np.float32), kind)
    writer.add_tensor("q", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    yield path.read_bytes()


def _by_onnx(folder: Path) -> Iterator[bytes]:
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    inner = helper.make_graph([], "then", [], [], [numpy_helper.from_array(np.ones(2), "i")])
    value = numpy_helper.from_array(np.ones(2, np.int64))
    nodes = [
        helper.make_node("Constant", [], ["k"], value=value),
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], [weight]))
    yield model.SerializeToString()
    onnx.save(model, folder / "e.onnx", save_as_external_data=True, size_threshold=0)
    yield (folder / "e.onnx").read_bytes()


def _by_torch(folder: Path) -> Iterator[bytes]:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    state = model.state_dict()
    for value, protocol in ((state, 2), (state, 5), (model, 2), ({"v": torch.ones(4, 3).t()}, 4)):
        out = io.BytesIO()
        torch.save(value, out, pickle_protocol=protocol)
        yield out.getvalue()


def _by_pickle(folder: Path) -> Iterator[bytes]:
    for data in _by_torch(folder):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            yield archive.read(name)


def run_one(target: str, data: bytes) -> str:
    """Reads `data` as a file of the target's format; returns the outcome, raises for a finding."""
    from lockgate.core.errors import LockgateError
    from lockgate.store.formats.api import named_elsewhere, tensors_of

    if target == "pickle":
        from writers import checkpoint

        data = checkpoint(data, STORAGES)
    before = time.process_time()
    try:
        spans = tensors_of(io.BytesIO(data), len(data), NAMES[target], {})
        outcome = f"{len(spans)} spans"
        _check(spans, len(data))
        for path, found in named_elsewhere(io.BytesIO(data), len(data), NAMES[target]).items():
            assert path.startswith("sub/"), path
            assert not {"", ".", ".."} & set(path.split("/")), path
            _check(tensors_of(io.BytesIO(bytes(9)), 99, path, {path: found}), 99)
            outcome += f", {len(found)} elsewhere"
    except LockgateError as error:
        outcome = re.sub(r"\d+|'.*'|\".*\"", "", error.message)[:80] if error.hint else ""
    assert outcome, "an error has no hint"
    used = time.process_time() - before
    assert used < SECONDS_PER_INPUT, f"{used:.2f} s"
    return outcome


def _check(spans: tuple[Any, ...], size: int) -> None:
    at = 0
    for span in spans:
        assert at <= span.begin <= span.end <= size, (at, span, size)
        assert all(isinstance(n, int) and n >= 0 for n in span.shape), span
        assert span.dtype, span
        span.name.encode("utf-8")
        at = span.end


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Returns `data` after a few random changes, some with bytes of `other`."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at, length = rng.randrange(len(out) + 1), rng.choice((1, 2, 4, 8))
        match rng.randrange(8):
            case 0 | 1 if at < len(out):
                out[at] = rng.randrange(256)
            case 2 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 3:
                number = rng.choice(NUMBERS) & ((1 << 8 * length) - 1)
                out[at : at + length] = number.to_bytes(length, "little")
            case 4:
                begin = rng.randrange(len(other) + 1)
                out[at : at + rng.randrange(64)] = other[begin : begin + rng.randrange(64)]
            case 5:
                del out[at : at + rng.randrange(1, 64)]
            case 6:
                out[at:at] = out[at : at + rng.randrange(1, 64)] * rng.choice((1, 1, 2, 100))
            case 7 if rng.random() < 0.2:
                del out[at:]
    return bytes(out[:MAX_LENGTH])


def plainly(target: str, seeds: list[bytes], seconds: float, seed: int) -> None:
    """Fuzzes without atheris; writes what breaks the oracle to a file and ends with its error."""
    rng = random.Random(seed)
    pool, outcomes = list(seeds), {run_one(target, data) for data in seeds}
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(rng.choice(pool), rng.choice(pool), rng)
        try:
            outcome = run_one(target, data)
        except BaseException:
            Path(f"finding-{target}.bin").write_bytes(data)
            raise
        count += 1
        if outcome not in outcomes and len(pool) < 500:
            outcomes.add(outcome)
            pool.append(data)
    print(f"{target}: {count} executions, {len(outcomes)} different outcomes, no finding")


def guided(target: str, corpus: Path, seconds: float, seed: int) -> None:
    """Fuzzes with atheris, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["lockgate.store.formats"]):
        import lockgate.store.formats.api  # noqa: F401
    options = ["-print_final_stats=1", f"-max_len={MAX_LENGTH}", f"-seed={seed}", "-timeout=20"]
    options += [f"-max_total_time={int(seconds)}", f"-artifact_prefix=finding-{target}-"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: run_one(target, data) and None)
    atheris.Fuzz()


def bound_memory() -> None:
    """Lets this process grow by no more than MEMORY bytes."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def main() -> None:
    """Reads the arguments and fuzzes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--input", type=Path, help="run this one file only")
    parser.add_argument("--write-seeds", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write_seeds:  # in a process of its own: libraries as large as torch stay out of here
        found = [*seeds_by_hand(given.target), *seeds_by_library(given.target)]
        for number, data in enumerate(found):
            (given.write_seeds / f"seed-{number}").write_bytes(data)
        return
    if given.input:
        print(run_one(given.target, given.input.read_bytes()))
        return
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))
    subprocess.run([sys.executable, __file__, given.target, "--write-seeds", corpus], check=True)
    try:
        import atheris  # noqa: F401
    except ImportError:
        given.plain = True
    seeds = [file.read_bytes() for file in sorted(corpus.iterdir())]
    for data in seeds:
        print(f"seed of {len(data)} bytes: {run_one(given.target, data)}")
    if not given.plain:
        for name in [name for name in sys.modules if name.startswith("lockgate.")]:
            del sys.modules[name]  # to be imported again, instrumented
    bound_memory()
    if given.plain:
        plainly(given.target, seeds, given.seconds, given.seed)
    else:
        guided(given.target, corpus, given.seconds, given.seed)


if __name__ == "__main__":
    main()
