"""One tensor's task vector as the factors of an adapter, or why an adapter cannot hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.adapters.nouns import LowRank, ModuleKind, Naming
from magmerge.dtypes import torch_dtype, torch_name
from magmerge.errors import NonFiniteError
from magmerge.faults import matches
from magmerge.linalg.low_rank import best_rank, rank_by_energy, relative_error, scratch
from magmerge.pieces import cut
from magmerge.reading import Reader
from magmerge.types import Piece, Step

WEIGHT = ".weight"
BY_DEFAULT = frozenset({"matrix", "transposed", "convolution"})
"""The kinds of tensor that are adapted unless others are named."""
_VECTOR = "a bias, a norm or another vector, and adapters hold matrices"
_REASONS = {
    "vector": _VECTOR,
    "statistics": _VECTOR,
    "scalar": _VECTOR,
    "experts": "fused experts, and adapters hold modules",
    "other": "a parameter that is no layer of its own",
}
_UNASKED = {
    "embedding": "an embedding, which is adapted only if --target (targets=) names it",
    "head": "an output head, which is adapted only if --target (targets=) names it",
}
_DEPTHWISE = "a convolution of each channel by itself, which PEFT cannot adapt at every rank"


class Rank(NamedTuple):
    """What is asked of each module: a rank, or the share of its squared norm if `rank` is auto."""

    rank: int | Literal["auto"]
    energy: float

    def most(self, shape: tuple[int, ...]) -> int:
        """The rank of a module of this shape at most."""
        limit = min(shape[0], math.prod(shape[1:]))
        return limit if self.rank == "auto" else min(self.rank, limit)


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


class Extracted(NamedTuple):
    """A module's record, its factors in the output's format, and what kind of module it is.

    `turned`: the base stores it as [in, out].
    """

    record: ExtractedModule
    factors: LowRank
    kind: ModuleKind
    turned: bool


def reason_against(
    step: Step, twin: str | None, targets: Sequence[str], naming: Naming
) -> str | None:
    """Why an adapter of these targets does not hold this tensor; None if it does.

    `twin` is the tensor whose memory it shares in the base alone. Only PEFT adapts embeddings, and
    nothing but modules; others have names for the rows of fused projections too.
    """
    name, kind, shape = step.spec.name, step.kind, step.spec.shape
    if twin is not None:
        return f"it shares its memory with {twin} in the base, but not in the model"
    if kind in _REASONS:
        return _REASONS[kind]
    if naming == "peft" and (not name.endswith(WEIGHT) or name == WEIGHT):
        return "a parameter that is no module's weight"
    if naming != "peft" and kind == "embedding":
        return "an embedding, which only PEFT's format has a place for"
    if kind == "transposed" and len(shape) != 2:
        return "a transposed convolution, which PEFT has no adapter for"
    if targets:
        chosen = matches(name, targets) or matches(name.removesuffix(WEIGHT), targets)
        return None if chosen else "no --target (targets=) names it"
    if kind == "convolution" and shape[1] == 1 < shape[0]:
        return _DEPTHWISE
    return None if kind in BY_DEFAULT else _UNASKED[kind]


def bytes_of(step: Step, rank: Rank) -> int:
    """What `extracted` needs at most."""
    entries, width = math.prod(step.spec.shape), 8 if step.wide else 4
    reading = entries * (2 * width + 8)
    matrix = (step.spec.shape[0], math.prod(step.spec.shape[1:]))
    return max(reading, entries * width + scratch(matrix, rank.most(step.spec.shape)))


def extracted(reader: Reader, step: Step, rank: Rank, dtype: str) -> Extracted | None:
    """The factors of one tensor's task vector; None where the model has the base's values.

    Raises NonFiniteError for NaN or infinity in either, and for a factor too large for `dtype`.
    """
    kind = module_kind(step)
    (whole,) = cut(step.spec.shape, "other", "whole")
    matrix = as_adapted(_task_vector(reader, step, whole), step, kind)
    found = (
        rank_by_energy(matrix, rank.energy, rank.most(step.spec.shape))
        if rank.rank == "auto"
        else best_rank(matrix, rank.rank)
    )
    if not len(found.values):
        return None
    root = found.values.sqrt()
    up = _cast(found.left * root, step, dtype)
    down = _cast((found.right * root).T, step, dtype)
    record = ExtractedModule(
        step.spec.name.removesuffix(WEIGHT),
        step.spec.shape,
        len(root),
        float(torch.linalg.vector_norm(matrix, dtype=torch.float64)),
        relative_error(matrix, up, down),
    )
    kernel = step.spec.shape[1:] if kind == "convolution" else matrix.shape[1:]
    factors = LowRank(up, down.reshape(len(root), *kernel), 1.0)
    return Extracted(record, factors, kind, step.kind == "transposed")


def squared_norm(reader: Reader, step: Step, pieces: Sequence[Piece]) -> float:
    """Of the task vector's entries in these pieces, added in float64."""
    return math.fsum(
        float(_task_vector(reader, step, piece).double().square().sum()) for piece in pieces
    )


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


def _task_vector(reader: Reader, step: Step, piece: Piece) -> Tensor:
    base = reader.base(step, piece)
    return reader.experts(step, piece, base, "deltas")[0]


def _cast(factor: Tensor, step: Step, dtype: str) -> Tensor:
    """The one cast."""
    cast = factor.to(torch_dtype(dtype)).contiguous()
    if not bool(cast.isfinite().all()):
        raise NonFiniteError(
            f"a factor of its task vector is too large for {torch_name(dtype)}",
            source="the result",
            tensor=step.spec.name,
            remedy="write bfloat16 or float32 with --dtype (dtype=)",
        )
    return cast
