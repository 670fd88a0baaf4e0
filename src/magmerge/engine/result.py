"""What a run gives: the tensors, an account of what was done, and the way to a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.output.provenance import Account
from magmerge.checkpoints.output.target import Target
from magmerge.checkpoints.output.writer import FileSink, Sink, stored_bytes
from magmerge.core import dtypes
from magmerge.core.lazy import Tabular, Tensor, load
from magmerge.core.recipe import ModelOutput, Recipe
from magmerge.core.types import LayerRecord, Plan, Step, Uncovered
from magmerge.engine.job import Job
from magmerge.engine.notes import config_notes, warn
from magmerge.engine.outputs import place, result_texts, target_for
from magmerge.engine.publish import Files, Report, origin, publish


@dataclass(frozen=True, slots=True, repr=False)
class Result(Tabular):
    """A finished merge, calibration or conversion.

    `records` say what was done to each layer; `path` is where it was written, None if it is in
    memory only. `uncovered`: layers that a calibration could not measure, and left as merged.
    """

    tabled: ClassVar[str] = "magmerge.engine.result_table:result_table"
    job: Job
    plan: Plan
    account: Account
    path: Path | None = None
    tensors: Mapping[str, Tensor] | None = None
    report: Report = field(default=lambda *_: {})

    @property
    def recipe(self) -> Recipe:
        """What was done, as data, every parameter written out."""
        return self.job.recipe

    @property
    def records(self) -> tuple[LayerRecord, ...]:
        """What was done to each layer."""
        return tuple(self.account.records)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its reader should know."""
        return self.account.warnings

    @property
    def uncovered(self) -> tuple[Uncovered, ...]:
        """Layers that a calibration could not measure."""
        return self.account.uncovered

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors of the result by name, in the order of the model; read from disk if there."""
        names = list(dict.fromkeys(step.spec.name for step in self.plan.steps))
        if self.tensors is not None:
            return {name: self.tensors[name] for name in names}
        assert self.path is not None
        checkpoint = open_checkpoint(self.path)
        return {name: checkpoint.read(name) for name in names}

    def save(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        shard_size: str | int | None = None,
    ) -> Path:
        """Write the result: a model as a folder, or as one file if `out` ends in .safetensors; an
        adapter as its naming has it. Shards are those of the recipe, unless a size is given.
        """
        job = self.job
        if shard_size is not None:
            output = _resized(job, shard_size)
            job = replace(job, recipe=job.recipe.model_copy(update={"output": output}))
        target = target_for(job, out, overwrite=overwrite)
        load("magmerge.engine.load_faults:check_loads")(job, target)
        files, tensors = self.files(job, target)
        told = load("magmerge.engine.origins:licence_notes")(job)
        notes = (*config_notes(job, target), *told)
        warn(notes)

        def fill(sink: FileSink) -> Account:
            write_all(files.steps, tensors, sink)
            return replace(self.account, warnings=(*notes, *self.account.warnings))

        publish(job, files, target, fill, self.report)
        return target.path

    def files(self, job: Job, target: Target) -> tuple[Files, Mapping[str, Tensor]]:
        """The files of the result at a target, and its tensors by the keys of their steps."""
        tensors = self.state_dict()
        files = model_files(job, whole_steps(self.plan), target)
        return files, {step.key: tensors[step.spec.name] for step in files.steps}

    def __str__(self) -> str:
        verdict = self.account.extra.get("verdict", {}).get("text")
        return f"{self!r}\n{verdict}" if verdict else repr(self)

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else f"at {self.path}"
        first = self.recipe.method or ("calibration" if self.recipe.merged else "one model")
        stages = [first, *(c.method for c in self.recipe.calibrate)]
        count = len({step.tensor_key for step in self.plan.steps})
        return f"<Result of {' + '.join(stages)}: {count} tensors {where}>"


def whole_steps(plan: Plan) -> list[Step]:
    """A step for each tensor, also where several had its rows."""
    steps = {step.spec.name: step for step in plan.steps}
    return [replace(step, spec=step.tensor, whole=None, first=0) for step in steps.values()]


def model_files(job: Job, steps: list[Step], target: Target) -> Files:
    """A model's files: its shards, and config and tokenizer of its donor."""
    header = {"": origin(job)} if target.single else {}
    placed, shards = place(steps, job, target, header)
    if target.single:
        return Files(placed, shards)
    return Files(placed, shards, result_texts(job))


def write_all(steps: Any, tensors: Mapping[str, Tensor], sink: Sink) -> None:
    """Give finished tensors to a sink, whole."""
    for step in steps:
        sink.write(step, 0, stored_bytes(tensors[step.key]))


def _resized(job: Job, shard_size: str | int) -> object:
    """The recipe's output with another size of its files; an adapter has one file."""
    size = dtypes.parse_size(shard_size)
    output = job.recipe.output
    if not isinstance(output, ModelOutput):
        return output
    return output.model_copy(update={"shard_size": size})
