"""What a folder that is published may be like: tensors of stored versions, the likeliest first.

Tensors are found by name, across renamed files and other shards; a tensor of a new name by its
type, shape and place among those like it. What is really alike is then tried on the bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lockgate.core.digests import Digest
from lockgate.registry.catalog import Model, Version
from lockgate.registry.manifest import Manifest
from lockgate.store.api import Grid, Source

if TYPE_CHECKING:  # what reads folders is heavy, and who answers for them has none
    from lockgate.registry.scan import FolderPlan

_MOST = 4
_ALIKE = 2
_OWN = 20
_ENDINGS = ("_scale", ".scale", ".weight_scale", "_scales", ".scales", ".absmax", ".qweight")
Shapes = Mapping[tuple[str, tuple[int, ...]], int]


def candidates(
    models: Mapping[str, Model], model: str, parents: Iterable[str]
) -> Iterator[Version]:
    """Yields the versions worth a look, the likeliest first.

    Declared parents, the model's own last and aliased ones, the newest of every other model.
    """
    seen: set[str] = set()
    declared = set(parents)
    own = models.get(model, Model(name=model))
    ordered = [v for m in models.values() for v in m.versions if v.digest in declared]
    ordered += reversed(own.versions[-_OWN:])
    ordered += [v for v in own.versions if v.number in set(own.aliases.values())]
    ordered += [m.versions[-1] for m in models.values() if m.versions]
    for version in ordered:
        if version.digest not in seen:
            seen.add(version.digest)
            yield version


def score(shapes: Shapes, manifest: Manifest) -> float:
    """Returns how much of a folder's bytes is in tensors of a type and shape that are here too."""
    found = manifest_shapes(manifest)
    total = sum(count * _bytes(key) for key, count in shapes.items())
    both = sum(min(count, found.get(key, 0)) * _bytes(key) for key, count in shapes.items())
    by_shape: defaultdict[tuple[int, ...], int] = defaultdict(int)
    for (_, shape), count in found.items():
        by_shape[shape] += count
    loose = sum(min(count, by_shape.get(key[1], 0)) * _bytes(key) for key, count in shapes.items())
    return (0.75 * both + 0.25 * loose) / total if total else 0.0


def _bytes(key: tuple[str, tuple[int, ...]]) -> int:
    grid = Grid(dtype=key[0], shape=key[1])
    return max(grid.rows * grid.row_bytes, 1)


def folder_shapes(plan: FolderPlan) -> Shapes:
    """Returns how many tensors of each type and shape a folder has."""
    found: defaultdict[tuple[str, tuple[int, ...]], int] = defaultdict(int)
    for file in plan.files:
        for run in file.runs:
            if run.grid is not None:
                found[run.grid.dtype, run.grid.shape] += 1
    return dict(found)


def manifest_shapes(manifest: Manifest) -> Shapes:
    """Returns how many tensors of each type and shape a version has."""
    found: defaultdict[tuple[str, tuple[int, ...]], int] = defaultdict(int)
    for artifact in manifest.artifacts:
        for piece in artifact.pieces:
            if piece.tensor is not None and piece.tensor.part == 0:
                found[piece.tensor.dtype, piece.tensor.shape] += 1
    return dict(found)


class Bases:
    """The tensors of some manifests, the likeliest manifest first, to be asked for by name."""

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self.known: dict[Digest, int] = {}
        self._named: defaultdict[str, list[Source]] = defaultdict(list)
        self._shaped: defaultdict[tuple[str, tuple[int, ...]], list[Source]] = defaultdict(list)
        self._asked: defaultdict[tuple[str, tuple[int, ...]], int] = defaultdict(int)
        for manifest in manifests:
            self.known |= manifest.objects()
            for name, source in _sources(manifest):
                self._named[name].append(source)
                self._shaped[source.grid.dtype, source.grid.shape].append(source)

    def like(self, name: str, grid: Grid) -> tuple[Source, ...]:
        """Returns the stored tensors that a tensor of that name, type and shape may be made from.

        Ask once for each tensor, in the order of the files: those of unknown names are matched by
        their place.
        """
        key = (grid.dtype, grid.shape)
        place = self._asked[key]
        self._asked[key] += 1
        found = list(self._named.get(name, ()))
        for ending in _ENDINGS:
            if name.endswith(ending):
                stem = name[: -len(ending)]
                found += [*self._named.get(stem, ()), *self._named.get(stem + ".weight", ())]
        same = [source for source in found if source.grid == grid]
        if not found:
            shaped = self._shaped.get(key, [])
            same = shaped[place : place + 1] + shaped[:place][-1:] + shaped[place + 1 : place + 2]
        others = [source for source in found if source.grid != grid]
        return (*same[:_ALIKE], *others[:_MOST])


def _sources(manifest: Manifest) -> Iterator[tuple[str, Source]]:
    for artifact in manifest.artifacts:
        name = ""
        grid: Grid | None = None
        pieces: list[tuple[Digest, int]] = []
        for piece in artifact.pieces:
            tensor = piece.tensor
            if grid is not None and (tensor is None or tensor.part == 0):
                yield name, Source(grid=grid, pieces=tuple(pieces))
                grid, pieces = None, []
            if tensor is not None:
                name, grid = tensor.name, Grid(dtype=tensor.dtype, shape=tensor.shape)
                pieces.append((Digest(piece.digest), piece.size))
        if grid is not None:
            yield name, Source(grid=grid, pieces=tuple(pieces))
