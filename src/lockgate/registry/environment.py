"""Where a version was made: Python, key packages, hardware. Recorded, never compared."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

_KEY_PACKAGES = (
    "torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai", "numpy",
    "safetensors", "vllm", "scikit-learn", "tokenizers", "accelerate", "peft",
)  # fmt: skip


def build_environment() -> dict[str, str]:
    """Returns what this machine and interpreter are, as text by name."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count() or 0),
        "memory_bytes": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "accelerators": "; ".join(_accelerators()) or "none",
    }


def key_packages() -> tuple[str, ...]:
    """Returns `name==version` of the installed packages that shape a model."""
    return tuple(sorted(_installed()))


def _installed() -> Iterator[str]:
    for name in _KEY_PACKAGES:
        try:
            yield f"{name}=={metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue


def _accelerators() -> Iterator[str]:
    """Yields the NVIDIA GPUs that the driver lists; no driver, no names."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                yield line.removeprefix("Model:").strip()


def source_revision(folder: Path) -> str | None:
    """Returns the git commit that `folder` belongs to (`+dirty` when it differs), if any.

    A folder that merely lies in a checkout, with no file of it tracked there, belongs to none.
    """
    head = _git(folder, "rev-parse", "HEAD")
    if head is None or not _git(folder, "ls-files", "--", "."):
        return None
    return head + ("+dirty" if _git(folder, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
