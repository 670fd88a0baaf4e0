"""KnOTS: TIES in the coordinates of the directions that all task vectors share."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Lambda, Share
from magmerge.core.registry import register_method
from magmerge.linalg.in_turn import InTurn
from magmerge.linalg.row_norms import as_rows
from magmerge.linalg.selection import kept_count, nth_largest
from magmerge.linalg.spectral import above_cut, eigen, gram, power_of_two
from magmerge.methods.matrices import MATRICES, scaled_mean

Density = Annotated[Share, Doc("share of each task vector's coordinates that is kept")]


def scratch(shape: tuple[int, ...], _: int) -> int:
    """Six float64 matrices of rows x rows: the sum of D_k D_k^T, one of them, eigenvectors and room
    to find them. Beside them twelve of the layer's size: a task vector, its coordinates, and what
    the votes add up to.
    """
    rows = shape[0]
    return 6 * 8 * rows**2 + 12 * 8 * rows * math.prod(shape[1:]) if len(shape) > 1 else 0


@register_method(
    "knots",
    source="KnOTS-TIES, arXiv:2410.19735",
    kinds=MATRICES,
    workspace=(0, 0),
    scratch=scratch,
    faithful=False,
    in_turn=True,
)
def knots(
    deltas: Float[Tensor, "K *shape"] | InTurn, *, density: Density = 0.2, lambda_: Lambda = 1.0
) -> Float[Tensor, "*shape"]:
    """TIES of U^T D_k, multiplied back by U: the left singular directions of [D_1 ... D_K].

    With [D_1 ... D_K] = U S [V_1^T ... V_K^T], U^T D_k is S V_k^T. Of each the `density` largest
    entries in magnitude stay, the sign of their sum is elected, and those that have it are
    averaged, as in `ties` with scope "tensor". The result is U times that, times lambda. Directions
    whose singular value counts as zero (2^-20 of the largest) are left out. The authors mean it for
    LoRA experts and tune lambda on labels; here it is for all, and lambda is 1 unless it is set.
    In float64. Convolutions are [out, rest] matrices; a vector gets lambda times the mean of its
    task vectors.

    When: LoRA experts. It needs the left singular directions of all of them, which costs more
    than TIES.
    """
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    left, scale = shared_directions(deltas)
    if not left.shape[1]:
        return torch.zeros(deltas.shape[1:], dtype=deltas.dtype, device=left.device)
    # Of the entries that stay: sum and number of the positive ones, then of the negative ones.
    sums = left.new_zeros(2, left.shape[1], math.prod(deltas.shape[2:]))
    counts = torch.zeros_like(sums, dtype=torch.int32)
    for delta in deltas:
        own = left.T @ (as_rows(delta).double() / scale)
        least = nth_largest(own.abs().reshape(-1), kept_count(density, own.numel()))[0]
        for sign, part in enumerate((own, -own)):
            stays = (part >= least) & (part > 0)
            sums[sign] += torch.where(stays, part, 0.0)
            counts[sign] += stays
    positive, negative = sums / counts.clamp(min=1)
    elected = torch.where(sums[0] > sums[1], positive, -negative)
    elected = torch.where(sums[0] == sums[1], 0.0, elected)
    return (left @ elected * (scale * lambda_)).to(deltas.dtype).reshape(deltas.shape[1:])


def shared_directions(
    deltas: Float[Tensor, "K *shape"] | InTurn,
) -> tuple[Float[Tensor, "m r"], float]:
    """The left singular vectors of all task vectors side by side, and the power of two near the
    greatest magnitude in them.
    """
    total, scale = None, 0.0
    for delta in deltas:
        size = power_of_two(delta)
        unit = as_rows(delta) / size
        if total is None:
            total = unit.new_zeros(len(unit), len(unit), dtype=torch.float64)
        if not bool(unit.any()):
            continue
        if size > scale:
            total *= (scale / size) ** 2
            scale = size
        total += gram(unit.T, torch.float64) * (size / scale) ** 2
    assert total is not None, "there is one expert at least"
    values, vectors = eigen(total)
    return vectors[:, : above_cut(values)], scale
