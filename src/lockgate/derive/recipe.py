"""The recipe of a derived version: all that decides its bytes, and a digest that is its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lockgate.core import canonical
from lockgate.core.digests import Digest, digest_of
from lockgate.derive.api import Step

FORMAT = "lockgate/recipe@1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A version that a step takes under `name`."""

    name: str
    model: str
    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.model}:v{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is run on what. `code` is the digest of the step's source, `libraries` name → version.

    `threads` is how many a step may use: sums of floats depend on it.
    """

    step: str
    code: str
    parameters: Mapping[str, Any]
    seed: int
    threads: int
    libraries: Mapping[str, str]
    inputs: tuple[Given, ...]

    def body(self) -> dict[str, Any]:
        """Returns the JSON value that is recorded; versions by digest, not by name."""
        return {
            "format": FORMAT,
            "step": self.step,
            "code": self.code,
            "parameters": dict(self.parameters),
            "seed": self.seed,
            "threads": self.threads,
            "libraries": dict(self.libraries),
            "inputs": [[given.name, given.digest] for given in self.inputs],
        }

    @property
    def digest(self) -> Digest:
        """The recipe's name."""
        return digest_of(canonical.encode(self.body()))


def make_recipe(
    step: Step,
    parameters: Mapping[str, Any],
    inputs: Sequence[Given],
    *,
    seed: int,
    threads: int,
    script: str | None = None,
) -> Recipe:
    """Returns the recipe of `step`; `parameters` are what is not a default.

    `script`: a file of code that the step runs.
    """
    return Recipe(
        step=step.name,
        code=code_digest(step, script),
        parameters=parameters,
        seed=seed,
        threads=threads,
        libraries=dict(_libraries(step)),
        inputs=tuple(inputs),
    )


def _libraries(step: Step) -> Iterator[tuple[str, str]]:
    """Yields what is installed of a step's libraries; it says itself what it can't do without."""
    for name in sorted(step.libraries):
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "absent"


def code_digest(step: Step, script: str | None = None) -> Digest:
    """Returns the digest of the code that a step runs.

    That is its module, what that imports of its own package, and the file `script`.
    """
    texts = {name: path.read_bytes() for name, path in sorted(_sources(type(step).__module__))}
    if script is not None and Path(script).is_file():
        texts["script"] = Path(script).read_bytes()
    listed = {name: digest_of(text) for name, text in texts.items()}
    return digest_of(canonical.encode(listed))


def _sources(module: str) -> Iterator[tuple[str, Path]]:
    """Yields a module and, transitively, what it imports from the package that it lies in."""
    package = module.rpartition(".")[0]
    waiting, seen = [module], {module}
    while waiting:
        name = waiting.pop()
        try:
            spec = find_spec(name)
        except ModuleNotFoundError:  # a name in a module, not a module
            continue
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue
        path = Path(spec.origin)
        yield name, path
        for found in _imported(path):
            if package and found.startswith(package + ".") and found not in seen:
                seen.add(found)
                waiting.append(found)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
