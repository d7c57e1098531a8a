"""Trains the demo's models and writes them, with their provenance, into the package.

    pip install -e '.[train]'
    python scripts/train_demo_models.py            # all, about five minutes on one core
    python scripts/train_demo_models.py --only credit

Everything comes from one seed. The same machine and library versions give the same files; another
processor may round differently and give slightly other weights. What was made, how and how good
it is stands in `PROVENANCE.json` next to the models.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent
_OUT = _ROOT.parent / "src" / "lockgate" / "demo" / "models"
_LIMIT = 3_000_000  # bytes; the models ship in the wheel
_LIBRARIES = (
    *("torch", "transformers", "tokenizers", "safetensors", "onnx", "onnx-ir"),
    *("onnxruntime", "onnxruntime-genai", "scikit-learn", "numpy"),
)


def main() -> None:
    """Builds what was asked for and writes the provenance."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("chat", "credit"))
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--out", type=Path, default=_OUT)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    models = _old(out) if arguments.only else {}
    for family in ("chat", "credit"):
        if arguments.only in (None, family):
            for old in out.glob(f"{family}-v*"):
                shutil.rmtree(old)
            models |= _build(family, out, arguments.seed)
    _write_provenance(out, models, arguments.seed)


def _build(family: str, out: Path, seed: int) -> dict[str, Any]:
    if family == "credit":
        from demo_models import credit

        return credit.build(out, seed + 20)
    import torch
    from demo_models import chat

    torch.set_num_threads(1)  # the order of additions must not depend on the machine's load
    torch.use_deterministic_algorithms(True)
    return chat.build(out, seed)


def _old(out: Path) -> dict[str, Any]:
    path = out / "PROVENANCE.json"
    models: dict[str, Any] = json.loads(path.read_text())["models"] if path.exists() else {}
    return models


def _write_provenance(out: Path, models: dict[str, Any], seed: int) -> None:
    for name, about in models.items():
        about["files"] = {
            path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted((out / name).iterdir())
        }
    provenance = {
        "seed": seed,
        "made_by": "scripts/train_demo_models.py",
        "scripts_sha256": _scripts_digest(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "data": "synthetic; made by the scripts, no outside data and no pretrained weights",
        "times": "token_ms and row_ms are of one core of the machine that built them",
        "models": {name: models[name] for name in sorted(models)},
    }
    (out / "PROVENANCE.json").write_text(json.dumps(provenance, indent=2) + "\n")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{total} bytes in {out}")
    if total > _LIMIT:
        raise SystemExit(f"the models have {total} bytes, more than {_LIMIT}")


def _scripts_digest() -> str:
    """Returns the SHA-256 of this script and its helpers, names included."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__), *(_ROOT / "demo_models").glob("*.py"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
