"""Which runtime serves a version: the one that is named, or the first that its files fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lockgate.core.errors import UsageError
from lockgate.fleet.api import Runtime
from lockgate.fleet.runtimes.command import CommandRuntime
from lockgate.fleet.runtimes.local import OnnxRuntime, TransformersRuntime
from lockgate.fleet.runtimes.vllm import VllmRuntime


def all_runtimes() -> tuple[Runtime, ...]:
    """Returns every runtime, the preferred first; `command` is last and never chosen by files.

    A folder that was exported for onnxruntime gets it: somebody took that step on purpose.
    """
    return (OnnxRuntime(), VllmRuntime(), TransformersRuntime(), CommandRuntime())


def choose(
    folder: Path, name: str | None = None, *, runtimes: Sequence[Runtime] | None = None
) -> Runtime:
    """Returns the runtime called `name`, or the first one that does not refuse `folder`.

    Raises UsageError when there is no such runtime, when the named one refuses, or when all do:
    then with every refusal.
    """
    known = tuple(all_runtimes() if runtimes is None else runtimes)
    if name is not None:
        return _named(folder, name, known)
    refusals = []
    for runtime in known:
        if runtime.name == "command":
            continue
        refusal = runtime.refuses(folder)
        if refusal is None:
            return runtime
        refusals.append(f"{runtime.name}: {refusal}")
    raise UsageError(
        f"no runtime serves {folder.name!r}: " + "; ".join(refusals),
        hint="export it for one of them, or name the runtime 'command' with an argv",
    )


def _named(folder: Path, name: str, known: Sequence[Runtime]) -> Runtime:
    found = next((runtime for runtime in known if runtime.name == name), None)
    if found is None:
        names = ", ".join(runtime.name for runtime in known)
        raise UsageError(f"there is no runtime {name!r}", hint=f"the runtimes are {names}")
    refusal = found.refuses(folder)
    if refusal is not None:
        raise UsageError(
            f"the runtime {name!r} can't serve {folder.name!r}: {refusal}",
            hint="leave the runtime out and let the version's files decide",
        )
    return found
