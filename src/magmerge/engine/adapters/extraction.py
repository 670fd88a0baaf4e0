"""A model's or a merge's task vectors as an adapter's factors, and the norm of what is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.checkpoints.adapters.base_names import WEIGHT
from magmerge.checkpoints.adapters.nouns import ModuleKind
from magmerge.checkpoints.output.writer import MemorySink, stored_bytes
from magmerge.core.dtypes import torch_dtype
from magmerge.core.pieces import cut, stretches
from magmerge.core.types import Piece, Step
from magmerge.engine.adapters.module_merge import as_factors, put_factors
from magmerge.engine.executors.local import Job, Task
from magmerge.engine.layer import record_of
from magmerge.engine.memory import bytes_of, cut_for
from magmerge.engine.stages import Stages
from magmerge.engine.step_method import Keywords
from magmerge.engine.steps import Bench, Outcome, merged_step, surveyed, treated
from magmerge.linalg.best_rank import relative_error, scratch


@dataclass(frozen=True, slots=True)
class ExtractedModule:
    """One module of an extracted adapter.

    `name` is the module's in the base, `shape` its weight's as stored there. `norm` is that of its
    task vector, `error` what the stored factors miss of it, relative to that (Frobenius).
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    norm: float
    error: float


@dataclass(frozen=True, slots=True)
class LostTensor:
    """A tensor that differs from the base's and is not in the adapter: its task vector's norm, and
    the reason.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    reason: str


def bytes_of_truncation(step: Step, stages: Stages, experts: int, pieces: Sequence[Piece]) -> int:
    """What making the factors of one layer's whole task vector takes at most."""
    assert stages.truncation is not None
    entries, width = math.prod(step.spec.shape), 8 if step.wide else 4
    matrix = (step.spec.shape[0], math.prod(step.spec.shape[1:]))
    cutting = scratch(matrix, stages.truncation.most(step.spec.shape))
    return entries * width + max(bytes_of(step, stages, experts, pieces), cutting)


def run_extraction(bench: Bench, step: Step) -> Task[Outcome]:
    """One layer's task vector, merged or taken, as the factors of an adapter; or what is lost."""
    if step.action == "lose":
        # These pieces are always the same ones, so that their sums are.
        parts = stretches(cut(step.spec.shape, "other", "entries"))
        lost = merged_step(bench.work, step)
        survey = yield from surveyed(bench, lost)
        squares = yield [Job(0, partial(_squares, bench, lost, survey, part)) for part in parts]
        norm = math.sqrt(math.fsum(squares))
        name, shape = step.spec.name, step.spec.shape
        return Outcome(module=LostTensor(name, shape, norm, step.reason) if norm else None)
    survey = yield from surveyed(bench, step)
    pieces = cut_for(step, bench.work.stages, bench.work.plan.piece)
    experts = len(bench.work.models.experts)
    size = bytes_of_truncation(step, bench.work.stages, experts, pieces)
    done = yield [Job(size, partial(_truncated, bench, step, survey, pieces))]
    return done[0]  # type: ignore[no-any-return]


def _squares(bench: Bench, step: Step, survey: Keywords | None, pieces: Sequence[Piece]) -> float:
    """Of the task vector's entries in these pieces, added in float64."""
    return math.fsum(
        float(treated(bench, step, survey, piece).delta.double().square().sum()) for piece in pieces
    )


def _truncated(
    bench: Bench, step: Step, survey: Keywords | None, pieces: Sequence[Piece]
) -> Outcome:
    """The factors of one layer's whole task vector, as they are stored."""
    stages, kept = bench.work.stages, MemorySink()
    tallies, exact = [], replace(step.spec, dtype="F64" if step.wide else "F32")
    for piece in pieces:
        done = treated(bench, step, survey, piece)
        kept.write(replace(step, spec=exact), piece.start, stored_bytes(done.delta))
        tallies.append(done.tally)
    kind = module_kind(step)
    matrix = as_adapted(kept.tensors[step.spec.name], step, kind)
    if not bool(matrix.any()):
        return Outcome()
    assert stages.truncation is not None
    up, down, _ = as_factors(matrix, stages.truncation, min(matrix.shape))
    kernel = step.spec.shape[1:] if kind == "convolution" else matrix.shape[1:]
    put_factors(bench, step, up, down.reshape(len(down), *kernel))
    dtype = torch_dtype(step.spec.dtype)
    norm = float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    error = relative_error(matrix, up.to(dtype), down.to(dtype))
    name = step.spec.name.removesuffix(WEIGHT)
    module = ExtractedModule(name, step.spec.shape, up.shape[1], norm, error)
    record = None if bench.work.job.takes else record_of(step, stages.treatment, tallies)
    return Outcome(record, module)


def module_kind(step: Step) -> ModuleKind:
    """The kind of module that this tensor is the weight of."""
    if step.kind == "embedding":
        return "embedding"
    return "convolution" if len(step.spec.shape) > 2 else "linear"


def as_adapted(
    delta: Float[Tensor, "*shape"], step: Step, kind: ModuleKind
) -> Float[Tensor, "out columns"]:
    """The task vector as an adapter's up times down: [out, in], a kernel's places with `in`.

    PEFT turns over what it adds to GPT-2's Conv1D, stored as [in, out], and to an embedding.
    """
    matrix = delta.flatten(1)
    return matrix.T if kind == "embedding" or step.kind == "transposed" else matrix
