"""Rows of a layer: norms, scales and angles that neither underflow nor depend on blocks"""

from __future__ import annotations

import math
from collections.abc import Sequence

from magmerge.core.lazy import Float, Tensor, torch

LEAST = 1e-20
"""A sum of float32 squares below which some of them may have been lost."""


def as_rows(tensor: Float[Tensor, "rows *rest"]) -> Float[Tensor, "rows columns"]:
    """`tensor` with everything behind its first dimension flattened: a kernel becomes a row."""
    return tensor.reshape(tensor.shape[0], -1)


def row_norms(
    rows: Float[Tensor, "*batch rows columns"], order: int = 2
) -> Float[Tensor, "*batch rows"]:
    """Norm of each row, Euclidean or of another order, without underflow: |s x| = s |x|."""
    scale = row_scale(rows)
    norms: Tensor = torch.linalg.vector_norm(rows / scale.unsqueeze(-1), order, dim=-1)
    return norms * scale


def row_scale(rows: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows"]:
    """A power of two near each row's greatest magnitude, 1 for a row of zeros.

    Dividing by it is exact, and lets squares of tiny entries neither underflow nor overflow.
    """
    if rows.shape[-1] == 0:
        return rows.new_ones(rows.shape[:-1])
    # The bounds keep both the power and its reciprocal within float32.
    greatest, exponent = torch.frexp(rows.abs().amax(dim=-1))
    return torch.ldexp(torch.ones_like(greatest), exponent.clamp(min=-125, max=126))


def pairwise_cosines(deltas: Float[Tensor, "K rows *rest"]) -> Float[Tensor, "paired"]:
    """Mean cosine between the same row of different task vectors, for each row, in float64.

    Rows of zeros have no direction; a row with fewer than two directions is left out.
    """
    directions = torch.zeros_like(as_rows(deltas[0]))
    counted = torch.zeros(deltas.shape[1], dtype=deltas.dtype, device=deltas.device)
    for delta in map(as_rows, deltas):
        scale = row_scale(delta).unsqueeze(-1)
        scaled = delta / scale
        norm = torch.linalg.vector_norm(scaled, dim=-1)
        alive = norm > 0
        directions += scaled / torch.where(alive, norm, 1.0).unsqueeze(-1)
        counted += alive
    # |sum of K unit vectors|^2 = K + the sum of all cosines of ordered pairs.
    pairs = counted * (counted - 1)
    total = directions.square().sum(dim=-1) - counted
    paired = pairs > 0
    return (total[paired] / pairs[paired]).double().cpu()


def mean_of(values: Sequence[float]) -> float | None:
    """The mean, rounded once, whatever the order; None of nothing."""
    return math.fsum(values) / len(values) if values else None


def squares(tensor: Float[Tensor, "*shape"], grain: int) -> list[float]:
    """The sum of squares of every `grain` entries; in float64 where float32 has no room for it."""
    sums = []
    for part in torch.split(tensor.reshape(-1), grain):
        total = float(torch.dot(part, part))
        if not LEAST < total < math.inf:
            wide = part.double()
            total = float(torch.dot(wide, wide))
        sums.append(total)
    return sums
