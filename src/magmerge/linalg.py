"""Linear algebra and selection on one layer's tensors; pure."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def as_rows(tensor: Float[Tensor, "rows *rest"]) -> Float[Tensor, "rows columns"]:
    """`tensor` with everything behind its first dimension flattened: a kernel becomes a row."""
    return tensor.reshape(tensor.shape[0], -1)


def row_norms(rows: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows"]:
    """Euclidean norm of each row, without underflow: |s x| = s |x| down to the least float."""
    scale = row_scale(rows)
    norms: Tensor = torch.linalg.vector_norm(rows / scale.unsqueeze(-1), dim=-1)
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


def mean_pairwise_cosine(deltas: Float[Tensor, "K rows columns"]) -> float | None:
    """Mean cosine between the same row of different task vectors, over all pairs and rows.

    Rows of zeros have no direction and are left out; None if no pair is left.
    """
    directions = torch.zeros_like(deltas[0])
    counted = torch.zeros(deltas.shape[1], dtype=deltas.dtype, device=deltas.device)
    for delta in deltas:
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
    if not bool(paired.any()):
        return None
    return float((total[paired] / pairs[paired]).mean())


def largest_mask(magnitudes: Float[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """True for exactly the `count` largest entries; among equals, those that come first."""
    flat = magnitudes.reshape(-1)
    if count <= 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    if count >= flat.numel():
        return torch.ones_like(magnitudes, dtype=torch.bool)
    threshold = torch.kthvalue(flat, flat.numel() - count + 1).values
    above = flat > threshold
    quota = count - int(above.sum())
    return mask_from_threshold(magnitudes, threshold, quota)


def mask_from_threshold(
    magnitudes: Float[Tensor, "*shape"], threshold: Float[Tensor, ""], quota: int
) -> Bool[Tensor, "*shape"]:
    """True above `threshold`, and for the first `quota` entries that equal it."""
    flat = magnitudes.reshape(-1)
    mask = flat > threshold
    equal = torch.nonzero(flat == threshold).reshape(-1)
    mask[equal[:quota]] = True
    return mask.reshape(magnitudes.shape)
