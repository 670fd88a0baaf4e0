"""Where a job's result goes: a folder or file that fits what it writes, and each tensor's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from magmerge.checkpoints.donor import (
    companion_files,
    dtype_settings,
    read_companions,
    weights_file,
)
from magmerge.checkpoints.output.layout import INDEX, SUFFIX, lay_out
from magmerge.checkpoints.output.own_files import ADAPTER
from magmerge.checkpoints.output.target import Target, check_outside
from magmerge.core.errors import OutputError
from magmerge.core.lazy import load
from magmerge.core.types import Naming, Shard, Step
from magmerge.engine.job import Job

WEIGHTS = "adapter_model.safetensors"
"""What PEFT calls an adapter's tensors."""
FOLDER: Naming = "peft"
"""The naming whose adapters are folders."""


def named_path(out: str | Path) -> Path:
    """The path of an output; OutputError where it is none, or empty, which Path takes for here."""
    if not isinstance(out, str | Path):
        remedy = "give the path of a folder or a file"
        raise OutputError(f"the output is a {type(out).__name__}", remedy=remedy)
    if str(out) == "" or "\0" in str(out):
        what = "is empty" if str(out) == "" else "holds a NUL"
        raise OutputError(f"the output's name {what}", remedy="name a folder or a file")
    return Path(out)


def target_for(
    job: Job, out: str | Path, *, overwrite: bool = False, resume: bool = False
) -> Target:
    """The target, checked: OutputError where it is taken, is an input, or does not fit."""
    path = named_path(out)
    if job.writes_adapter:
        naming = job.adapter_output.naming or (
            FOLDER if job.models.union is None else job.models.union.naming
        )
        _check_suffix(path, naming)
        single, weights, own = naming != FOLDER, WEIGHTS, ADAPTER
    else:
        single, weights = path.suffix == SUFFIX, weights_file(job.donor)
        parts = _weights_of(job)
        _check_folder(path, parts)
        files = [f"{part}/{name}" for part, name in parts.items()] or [weights]
        indices = [f"{file.removesuffix(SUFFIX)}{INDEX}" for file in files]
        own = frozenset({*files, *indices, *companion_files(job.donor), *job.models.texts})
    target = Target.at(
        path,
        single=single,
        weights=weights,
        own=own,
        inputs=job.input_files,
        overwrite=overwrite,
        resume=resume,
    )
    check_outside(path, job.input_folders)
    return target


def place(
    steps: Sequence[Step],
    job: Job,
    target: Target | None,
    metadata: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[list[Step], list[Shard]]:
    """The steps with shard and offset, and the files: one if the target or the format is one.

    `metadata` are further entries of each part's header.
    """
    single = job.writes_adapter or (target is not None and target.single)
    size = None if single else job.model_output.shard_size
    file = target.weights if target is not None else "model.safetensors"
    if target is not None and metadata:
        paths = load("magmerge.engine.input_record:RecordedPaths")(job, target)
        metadata = {part: paths.header(own, job.recipe) for part, own in metadata.items()}
    return lay_out(steps, size, file, metadata or {}, _weights_of(job))


def _weights_of(job: Job) -> Mapping[str, str]:
    """What the file of each part of a pipeline is called; empty for any other model."""
    return {} if job.writes_adapter else getattr(job.models.layout, "weights", {})


def _check_folder(out: Path, parts: Mapping[str, str]) -> None:
    if parts and out.suffix == SUFFIX:
        part = next(iter(parts))
        raise OutputError(
            "a pipeline is a folder, and this is a file's name",
            source=out,
            remedy="drop the suffix, or write one part alone: give that part's own folder of each "
            f"model, such as BASE/{part}",
        )


def result_texts(job: Job) -> dict[str, bytes]:
    """The files beside a model's tensors: config and tokenizer of its donor, as they will be."""
    settings = {**dtype_settings(job.donor, job.recipe.output.dtype), **job.models.settings}
    return read_companions(companion_files(job.donor), settings, job.models.texts)


def _check_suffix(out: Path, naming: str) -> None:
    if naming == FOLDER and out.suffix == SUFFIX:
        raise OutputError(
            "an adapter for PEFT is a folder, and this is a file's name",
            source=out,
            remedy="drop the suffix, or write a single file with --format kohya (naming=)",
        )
    if naming != FOLDER and out.suffix != SUFFIX:
        raise OutputError(
            f"an adapter named as in {naming} is one file",
            source=out,
            remedy=f"end the name in {SUFFIX}, or write a folder with --format peft (naming=)",
        )
