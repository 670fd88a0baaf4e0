"""Isotropic merging: the sum's singular directions, all with the same singular value."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Lambda
from magmerge.core.registry import register_method
from magmerge.linalg.in_turn import InTurn
from magmerge.linalg.leading import leading
from magmerge.linalg.polar import orthogonalised, polar
from magmerge.linalg.row_norms import as_rows
from magmerge.linalg.spectral import Triplets, decomposition_bytes, summed
from magmerge.methods.matrices import MATRICES, scaled_mean, sides

CommonFraction = Annotated[
    float,
    Interval(ge=0, le=1),
    Doc("share of the directions that are the sum's; each task adds the same number of the rest"),
]


def scratch_of_sum(shape: tuple[int, ...], _: int) -> int:
    """The sum; beside it its decomposition, or its polar factor and what that is a product of."""
    longer, shorter = sides(shape)
    entries = longer * shorter
    products = max(20 * entries, 8 * entries + 32 * shorter**2)
    return 4 * entries + max(decomposition_bytes((longer, shorter)), products)


def scratch_of_each(shape: tuple[int, ...], _: int) -> int:
    """The sum, and all singular vectors in float64; beside them a task vector, in float64 too, and
    what it has outside the common directions as it is found, or is decomposed.
    """
    longer, shorter = sides(shape)
    triplets, entries = 8 * shorter * (longer + shorter), longer * shorter
    decomposition = decomposition_bytes((longer, shorter))
    return triplets + 16 * entries + max(24 * entries, 8 * entries + decomposition)


@register_method(
    "iso_c",
    source="Iso-C, arXiv:2502.04959, alg. 1",
    kinds=MATRICES,
    faithful=False,
    workspace=(0, 0),
    scratch=scratch_of_sum,
    in_turn=True,
)
def iso_c(
    deltas: Float[Tensor, "K *shape"] | InTurn, *, lambda_: Lambda = 1.0
) -> Float[Tensor, "*shape"]:
    """The sum of the task vectors with all its singular values replaced by their mean.

    For a matrix: sum_k D_k = U S V^T gives lambda mean(S) U V^T, the mean over min(M, N) values.
    Directions whose singular value counts as zero (2^-20 of the largest) have no share in U V^T,
    as they are not defined, but do count in the mean. Convolutions are [out, rest] matrices; a
    vector gets lambda times the mean of its task vectors.

    When: fully fine-tuned experts of many tasks. Calibrate it by `fsc` or tune lambda: its size
    is not that of the experts. Not for LoRA adapters, which have few directions.
    """
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    total = as_rows(summed(deltas))
    isometry = polar(total)
    mean = isometry.nuclear / max(1, min(total.shape))
    return (isometry.factor * (lambda_ * mean)).reshape(deltas.shape[1:])


@register_method(
    "iso_cts",
    source="Iso-CTS, arXiv:2502.04959, alg. 2",
    kinds=MATRICES,
    faithful=False,
    workspace=(0, 0),
    scratch=scratch_of_each,
    in_turn=True,
)
def iso_cts(
    deltas: Float[Tensor, "K *shape"] | InTurn,
    *,
    common_fraction: CommonFraction = 0.8,
    lambda_: Lambda = 1.0,
) -> Float[Tensor, "*shape"]:
    """Common directions of the sum, then each task's own, all with the same singular value.

    For a matrix of R = min(M, N) directions: each task gets t = round((R - floor(f R)) / K) of
    them, f being `common_fraction` (half to even, at most floor(R / K)), the sum of the task
    vectors the other c = R - K t. Of the sum the first c singular triplets are taken; of each task
    those first t of D_k - C C^T D_k, C being the sum's c left directions. All left vectors side by
    side are replaced by their polar factor, so are the right ones, and the result is
    lambda s U V^T with s the sum of all these singular values over R. With more experts than spare
    directions t = 0, which is Iso-C. Triplets that count as zero (2^-20 of the sum's largest
    singular value, or of |D_k|) are left out, but count in the mean. Others as in `iso_c`.

    When: as `iso_c`, where tasks differ much from each other.
    """
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    every = sides(deltas.shape[1:])[1]
    common, own = shares(every, len(deltas), common_fraction)
    total = as_rows(summed(deltas))

    def find(dtype: torch.dtype, tolerance: float) -> list[Triplets]:
        shared = leading(total.to(dtype), common, tolerance)
        matrices = (as_rows(delta).to(dtype) for delta in deltas) if own else ()
        return [*(residual(matrix, shared.left, own, tolerance) for matrix in matrices), shared]

    left, values, right = orthogonalised(find, deltas.dtype)
    mean = float(values.double().sum()) / max(1, every)
    return (left @ right.T).mul_(lambda_ * mean).reshape(deltas.shape[1:])


def shares(directions: int, experts: int, fraction: float) -> tuple[int, int]:
    """How many directions are common, and how many each task adds; together all of them."""
    spare = directions - int(directions * fraction)
    own = min(round(spare / experts), directions // experts)
    return directions - experts * own, own


def residual(
    delta: Float[Tensor, "m n"], common: Float[Tensor, "m c"], count: int, tolerance: float
) -> Triplets:
    """The first `count` triplets of what `delta` has outside the `common` left directions.

    The difference has the rounding of all of `delta`, which weighs more where little is left of it.
    """
    whole = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    triplets = leading(delta - common @ (common.T @ delta), count, tolerance, whole)
    if not len(triplets.values):
        return triplets
    inverse = float(triplets.values.double().reciprocal().square().mean().sqrt())
    rounding = 2 * torch.finfo(delta.dtype).eps * whole / min(delta.shape) ** 0.5
    return triplets._replace(error=triplets.error + rounding * inverse)
