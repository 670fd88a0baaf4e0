"""A checkpoint as it is to safetensors: staged, verified, and named when it is whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from magmerge import dtypes
from magmerge.checkpoints.layout import SUFFIX, lay_out
from magmerge.checkpoints.staging import Staging
from magmerge.checkpoints.target import check_space, check_target
from magmerge.checkpoints.writer import FileSink
from magmerge.errors import CheckpointError, NonFiniteError
from magmerge.models import Checkpoint
from magmerge.run import Progress
from magmerge.types import Plan, Step, TensorSpec

AT_ONCE = 1 << 22
"""Entries that are in memory at once."""


def save_checkpoint(
    out: Path,
    checkpoint: Checkpoint,
    *,
    dtype: str | None = None,
    beside: Mapping[str, bytes],
    file: str,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write all tensors of `checkpoint`: to the file `out` if that ends in .safetensors, else to
    `file` in the folder `out`, with the files `beside`. Gives the path of `out`.

    Tensors that share their memory are each written. Those of floating-point numbers get the dtype
    of the code `dtype` if that is given. Nothing is at `out` before all is written and verified.
    Raises OutputError where `out` is taken or cannot be written, NonFiniteError where a value is
    too large for `dtype`, CheckpointError for a name that safetensors cannot hold.
    """
    single = out.suffix == SUFFIX
    # A link is followed once, here: what is renamed in the end is what it leads to.
    target = out.resolve() if out.is_symlink() or ".." in out.parts else out
    inputs = [*checkpoint.files, *(file.parent for file in checkpoint.files)]
    own = {file, *beside}
    check_target(target, inputs, single=single, overwrite=overwrite, own=own)
    plan = _planned(checkpoint, dtype, target.name if single else file)
    check_space(target, plan.disk + sum(map(len, beside.values())))
    staging = Staging(target, single=single, overwrite=overwrite, own=own)
    with staging, FileSink(plan, staging) as sink:
        for count, step in enumerate(plan.steps, start=1):
            for start in range(0, max(1, math.prod(step.spec.shape)), AT_ONCE):
                stop = min(math.prod(step.spec.shape), start + AT_ONCE)
                part = checkpoint.read_part(step.spec.name, start, stop)
                sink.write(step, start, _cast(part, step.spec, checkpoint.source))
            if progress is not None:
                progress("writing", count, len(plan.steps))
        for settle in sink.settlers():
            settle()
        sink.publish({} if single else beside)
    return target


def _planned(checkpoint: Checkpoint, dtype: str | None, file: str) -> Plan:
    for name in checkpoint.specs:
        if name == "__metadata__" or name != name.encode(errors="replace").decode():
            raise CheckpointError(
                "this cannot be a tensor's name in safetensors",
                source=checkpoint.source,
                tensor=name,
                remedy="rename that tensor",
            )
    specs = [
        dataclasses.replace(spec, dtype=dtype) if dtype and spec.dtype in dtypes.FLOATS else spec
        for spec in checkpoint.specs.values()
    ]
    steps = [Step(spec, "other", "carry", "", False, False, None, 0, 0) for spec in specs]
    placed, shards = lay_out(steps, None, file, {})
    disk = sum(shard.size for shard in shards)
    return Plan("", tuple(placed), tuple(shards), disk, 0, AT_ONCE, 0, (), 0, ())


def _cast(part: Tensor, spec: TensorSpec, source: str) -> Tensor:
    wanted = dtypes.torch_dtype(spec.dtype)
    if part.dtype == wanted:
        return part
    cast = part.to(wanted)
    # Infinity that was there before is kept: attention masks hold it.
    if not torch.equal(cast.isfinite(), part.isfinite()):
        raise NonFiniteError(
            f"a value is too large for {dtypes.torch_name(spec.dtype)}",
            tensor=spec.name,
            source=source,
            remedy="write --dtype float32 or bfloat16 (dtype=)",
        )
    return cast
