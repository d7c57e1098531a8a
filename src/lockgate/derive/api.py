"""The port of steps: a step takes folders and parameters, fills a folder that becomes a version.

A step knows nothing of stores, ledgers or servers: it reads folders, writes one, and says how far
it is. It runs in a process of its own, may be killed at any moment, and is then run again with the
same `scratch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lockgate.core.events import Relation

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What a step takes under `name`, and the lineage edge that it leaves.

    `many`: several versions, in order; otherwise one. `required`: a step does not start without it.
    """

    name: str
    relation: Relation
    required: bool = True
    many: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """How far a step is: `done` of `total` (0: not known), in `unit`; numbers worth a look."""

    done: float
    total: float
    unit: str = "steps"
    metrics: Metrics | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One run of a step.

    `inputs`: folders to read, by the input's name; nothing in them may be changed. `out`: a folder,
    empty at the start, that becomes the version. `scratch`: a folder that outlives a killed run, so
    that the next one goes on. `parameters`: what the step's own pydantic model made of what was
    asked for. `seed`: the only source of randomness. `report` is cheap; call it often. `log` keeps
    a line for people.
    """

    inputs: Mapping[str, Sequence[Path]]
    out: Path
    scratch: Path
    parameters: Any
    seed: int
    report: Callable[[Advance], None]
    log: Callable[[str], None]

    def one(self, name: str) -> Path:
        """Returns the folder of a required single input."""
        return self.inputs[name][0]

    def maybe(self, name: str) -> Path | None:
        """Returns the folder of an optional single input, None when it was not given."""
        found = self.inputs.get(name, ())
        return found[0] if found else None


class Step(Protocol):
    """A way to make a version from others.

    `name` is what people write. `summary` is one sentence. `inputs` says what it takes.
    `parameters` is a pydantic model: its JSON schema is the step's documentation, its errors name
    every mistake at once. `libraries` are the distributions whose versions are part of the recipe.
    `deterministic`: the same recipe gives the same bytes on the same kind of machine.
    """

    name: str
    summary: str
    inputs: tuple[Input, ...]
    parameters: type[Any]
    libraries: tuple[str, ...]
    deterministic: bool

    def run(self, work: Work) -> Metrics:
        """Fills `work.out`; returns numbers about what was made (sizes in bytes, errors, …).

        Raises UsageError, in a sentence with a hint, for inputs that it can't work on.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What a run looks at beside its inputs.

    `connections`: names of places whose addresses the step's process gets. `pinned`: the parameters
    say so exactly what is there that the same recipe can't mean something else tomorrow; a recipe
    that is not pinned is run each time it is asked for, whatever it gave before.
    """

    connections: tuple[str, ...] = ()
    pinned: bool = True


@runtime_checkable
class LooksOutside(Protocol):
    """A step that takes something from outside, which may change."""

    def outside(self, parameters: Any) -> Outside:
        """Returns what a run with `parameters` looks at."""
        ...
