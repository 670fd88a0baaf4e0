"""Looking at checkpoints: what one holds, and how two differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.checkpoints.loader import Model, open_stored
from magmerge.core import dtypes
from magmerge.core.errors import StructureError
from magmerge.core.filters import matches, patterns
from magmerge.core.lazy import Tabular, torch
from magmerge.core.machine import Machine, Progress, hub_read
from magmerge.core.models import Checkpoint
from magmerge.core.types import Kind, TensorSpec
from magmerge.engine.executors import local


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint. `size` is in bytes; `tied_to` names the tensor it shares."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    size: int
    tied_to: str | None


@dataclass(frozen=True, slots=True)
class CheckpointInfo(Tabular):
    """What a checkpoint holds, from its headers. Sizes are in bytes."""

    tabled: ClassVar[str] = "magmerge.engine.result_table:checkpoint_table"
    source: str
    files: tuple[str, ...]
    tensors: tuple[TensorInfo, ...]
    parameters: int
    size: int


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How tensor b differs from tensor a: Euclidean norms, |b - a| / |a|, and cosine of a and b.

    `relative` is infinite where a is zero and b is not, and `cosine` None where either is zero.
    """

    name: str
    norm_a: float
    norm_b: float
    difference: float
    relative: float
    cosine: float | None


def inspect(model: Model) -> CheckpointInfo:
    """What a model holds: every tensor's shape, dtype, kind and size, from headers alone."""
    with hub_read("ranges"):
        checkpoint = open_stored(model)
    kinds = kinds_of(checkpoint, read_model_config(checkpoint))
    tensors = tuple(
        TensorInfo(
            name,
            spec.shape,
            spec.dtype,
            kinds[name],
            dtypes.nbytes(spec),
            checkpoint.ties.get(name),
        )
        for name, spec in checkpoint.specs.items()
    )
    own = [tensor for tensor in tensors if tensor.tied_to is None]
    return CheckpointInfo(
        checkpoint.source,
        tuple(file.name for file in checkpoint.files),
        tensors,
        sum(math.prod(tensor.shape) for tensor in own),
        sum(tensor.size for tensor in own),
    )


def diff(
    a: Model,
    b: Model,
    *,
    ignore: Iterable[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[TensorDifference, ...]:
    """How each tensor of `b` differs from that of `a`; StructureError where names or shapes do."""
    first, second, ignored = open_checkpoint(a), open_checkpoint(b), patterns(ignore)
    mine = {n: s for n, s in first.specs.items() if not matches(n, ignored)}
    theirs = {n: s for n, s in second.specs.items() if not matches(n, ignored)}
    _check_alike(first, second, mine, theirs)
    machine = Machine(threads, progress=progress)
    jobs = (partial(_difference, first, second, name) for name in mine)
    done = machine.counter("comparing", len(mine))
    return tuple(local.run(local.single(jobs), machine, done=done))


def _check_alike(
    first: Checkpoint,
    second: Checkpoint,
    mine: dict[str, TensorSpec],
    theirs: dict[str, TensorSpec],
) -> None:
    faults = [f"{name} is missing from {second.source}" for name in mine if name not in theirs]
    faults += [f"{name} is missing from {first.source}" for name in theirs if name not in mine]
    faults += [
        f"{name} has shape {list(spec.shape)} in {first.source}, "
        f"{list(theirs[name].shape)} in {second.source}"
        for name, spec in mine.items()
        if name in theirs and theirs[name].shape != spec.shape
    ]
    if faults:
        raise StructureError(faults, remedy="leave them out of the comparison with --ignore")


def _difference(first: Checkpoint, second: Checkpoint, name: str) -> TensorDifference:
    a, b = first.read(name).double().reshape(-1), second.read(name).double().reshape(-1)
    norm_a, norm_b = float(torch.linalg.vector_norm(a)), float(torch.linalg.vector_norm(b))
    distance = float(torch.linalg.vector_norm(b - a))
    relative = distance / norm_a if norm_a else (math.inf if distance else 0.0)
    cosine = float((a / norm_a) @ (b / norm_b)) if norm_a and norm_b else None
    return TensorDifference(name, norm_a, norm_b, distance, relative, cosine)
