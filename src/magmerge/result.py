"""What a merge or calibration returns, and how it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from magmerge import dtypes
from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.layout import lay_out
from magmerge.checkpoints.writer import Sink
from magmerge.models import Sources
from magmerge.publishing import Filled, Target, write
from magmerge.recipe import Recipe
from magmerge.types import LayerRecord, Plan, Uncovered


@dataclass(frozen=True, slots=True)
class Result:
    """A finished merge or calibration.

    `records` say what was done to each layer; `path` is where it was written, None if it is in
    memory only. `uncovered`: layers that a calibration could not measure, and left as merged.
    """

    recipe: Recipe
    plan: Plan
    records: tuple[LayerRecord, ...]
    warnings: tuple[str, ...]
    path: Path | None
    sources: Sources
    donor: Path | None
    tensors: Mapping[str, Tensor] | None
    uncovered: tuple[Uncovered, ...] = ()

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors of the result by name, in the order of the model; read from disk if there."""
        names = [step.spec.name for step in self.plan.steps]
        if self.tensors is not None:
            return {name: self.tensors[name] for name in names}
        assert self.path is not None
        checkpoint = open_checkpoint(self.path)
        return {name: checkpoint.read(name) for name in names}

    def save(
        self, out: str | Path, *, overwrite: bool = False, shard_size: str | int = "5GB"
    ) -> Path:
        """Write the result as a checkpoint folder, or as one file if `out` ends in .safetensors."""
        target = Target.at(out, self.sources, overwrite=overwrite, donor=self.donor)
        size = dtypes.parse_size(shard_size)
        steps, shards = lay_out(
            self.plan.steps,
            None if target.single else size,
            target.weights,
            target.metadata(self.recipe),
        )
        disk = sum(shard.size for shard in shards)
        plan = replace(self.plan, steps=tuple(steps), shards=tuple(shards), disk=disk)
        tensors = self.state_dict()

        def fill(sink: Sink) -> Filled:
            for step in plan.steps:
                sink.write(step, 0, tensors[step.spec.name])
            return Filled(self.records, self.warnings, self.uncovered)

        write(target, plan, self.recipe, self.sources, self.donor, fill, threads=1)
        return target.path

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else f"at {self.path}"
        steps = [self.recipe.method or "calibration", *(c.method for c in self.recipe.calibrate)]
        return f"<Result of {' + '.join(steps)}: {len(self.plan.steps)} tensors {where}>"
