"""Linear algebra and selection on one layer's tensors; pure."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK = 1 << 20
"""Entries that are looked at together, where a whole tensor's temporaries would be too large."""
HALF = 16
HALF_BINS = 1 << HALF


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


def mean_pairwise_cosine(deltas: Float[Tensor, "K rows *rest"]) -> float | None:
    """Mean cosine between the same row of different task vectors, over all pairs and rows.

    Rows of zeros have no direction and are left out; None if no pair is left.
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
    if not bool(paired.any()):
        return None
    return float((total[paired] / pairs[paired]).mean())


def largest_mask(magnitudes: Float[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """True for exactly the `count` largest entries; among equals, those that come first."""
    if count <= 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    if count >= magnitudes.numel():
        return torch.ones_like(magnitudes, dtype=torch.bool)
    return mask_from_threshold(magnitudes, *threshold_of(magnitudes, count))


def kept_count(density: float, entries: int) -> int:
    """ceil(density * entries), without the rounding of a density like 0.07 in binary."""
    return math.ceil(Fraction(str(density)) * entries)


def threshold_of(magnitudes: Float[Tensor, "*shape"], count: int) -> tuple[Float[Tensor, ""], int]:
    """The `count`-th largest magnitude, and how many entries equal to it are among the largest.

    Exact and without a sort: the bit pattern of a non-negative float32 orders as the float does,
    so the upper halves of all patterns are counted, then the lower halves in the bin that holds
    the threshold.
    """
    flat = magnitudes.reshape(-1)
    if flat.dtype != torch.float32:
        threshold = torch.kthvalue(flat, flat.numel() - count + 1).values
        return threshold, count - int((flat > threshold).sum())
    upper, lower = (torch.zeros(HALF_BINS, dtype=torch.int64, device=flat.device) for _ in "ul")
    for chunk in torch.split(flat, CHUNK):
        upper += torch.bincount(magnitude_bits(chunk) >> HALF, minlength=HALF_BINS)
    high, rank = bin_of_rank(upper, count)
    for chunk in torch.split(flat, CHUNK):
        lower += torch.bincount(lower_halves(magnitude_bits(chunk), high), minlength=HALF_BINS)
    low, quota = bin_of_rank(lower, rank)
    return float_of_bits(high, low).to(flat.device), quota


def magnitude_bits(values: Float[Tensor, "entries"]) -> Int[Tensor, "entries"]:
    """The bit patterns of float32 magnitudes, as integers of the same order."""
    return values.abs().view(torch.int32)


def lower_halves(bits: Int[Tensor, "entries"], high: int) -> Int[Tensor, "found"]:
    """The lower halves of those patterns whose upper half is `high`."""
    return bits[(bits >> HALF) == high] & (HALF_BINS - 1)


def float_of_bits(high: int, low: int) -> Float[Tensor, ""]:
    """The float32 whose bit pattern has these halves."""
    return torch.tensor((high << HALF) | low, dtype=torch.int32).view(torch.float32)


def bin_of_rank(counts: Int[Tensor, "bins"], rank: int) -> tuple[int, int]:
    """The bin of the `rank`-th largest entry (from 1), and its rank within that bin."""
    above = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(above, rank))
    before = int(above[index - 1]) if index else 0
    return len(counts) - 1 - index, rank - before


def mask_from_threshold(
    magnitudes: Float[Tensor, "*shape"], threshold: Float[Tensor, ""], quota: int
) -> Bool[Tensor, "*shape"]:
    """True above `threshold`, and for the first `quota` entries that equal it."""
    flat = magnitudes.reshape(-1)
    mask = flat > threshold
    for start in range(0, flat.numel(), CHUNK):
        if quota <= 0:
            break
        equal = torch.nonzero(flat[start : start + CHUNK] == threshold).reshape(-1)[:quota]
        mask[start : start + CHUNK][equal] = True
        quota -= len(equal)
    return mask.reshape(magnitudes.shape)


def norm(tensor: Float[Tensor, "*shape"]) -> float:
    """Euclidean norm of all entries, summed in float64 by blocks of a fixed size."""
    squares = [
        float(part.double().square().sum()) for part in torch.split(tensor.reshape(-1), CHUNK)
    ]
    return math.sqrt(math.fsum(squares))
