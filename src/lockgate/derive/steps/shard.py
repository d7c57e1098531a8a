"""Cuts a model's weights into files of another size; every tensor keeps its bits."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from lockgate.derive.api import Input, Metrics, Work
from lockgate.derive.steps.weights.options import Progress, ShardBytes
from lockgate.derive.steps.weights.reader import open_model, raw_bytes
from lockgate.derive.steps.weights.writer import SHARD_BYTES, ModelWriter, copy_rest, same

_PART = 1 << 24


class ShardParameters(BaseModel):
    """How large the files may be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard_bytes: ShardBytes = SHARD_BYTES


class Shard:
    """Re-shards a folder of safetensors."""

    name = "shard"
    summary = "Cut a model's safetensors into files of at most so many bytes, or join them."
    inputs: tuple[Input, ...] = (Input(name="base", relation="converted-from"),)
    parameters: type[ShardParameters] = ShardParameters
    libraries: tuple[str, ...] = ()
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes the same tensors into other files; returns how many files and bytes.

        Raises UsageError for a folder without safetensors, IntegrityError for a broken file.
        """
        asked: ShardParameters = work.parameters
        model = open_model(work.one("base"))
        progress = Progress(work, model.size)
        slots = [same(tensor) for tensor in model.tensors.values()]
        with ModelWriter(work.out, slots, asked.shard_bytes) as writer:
            for tensor in model.tensors.values():
                for begin in range(0, tensor.size, _PART):
                    part = raw_bytes(tensor, begin, min(begin + _PART, tensor.size))
                    writer.append(tensor.name, part)
                    progress.add(len(part))
        copy_rest(model, work.out, keep_other_weights=True)
        files = len(list(work.out.glob("model*.safetensors")))
        return {"files": files, "tensors": len(slots), "bytes": model.size}
