"""The leading eigenvectors of a Gram matrix by filtered subspace iteration"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

MARGIN = 16
START = 3
"""Plain multiplications with the Gram matrix before the first look."""
DEGREE = 12
"""Highest degree of one Chebyshev filter; higher ones would lose the weaker directions."""
BUDGET = 18
"""Multiplications, after the first look, that cost about as much as a full decomposition."""
RESIDUAL = 4e-6
"""Share of other directions, on average, that may be left in the wanted ones."""
HOPELESS = 1e-5
"""Such a share that rounding alone leaves, from which on another dtype is needed."""


def leading_eigenvectors(
    product: Float[Tensor, "n n"], count: int
) -> tuple[Float[Tensor, "b"], Float[Tensor, "n b"], float] | None:
    """Singular values and vectors, the first `count` and some more, and the error that is left.

    A random block is multiplied by Chebyshev polynomials of the Gram matrix that are small below
    the block's least Ritz value (Zhou et al. 2006, Self-consistent-field calculations using
    Chebyshev-filtered subspace iteration). None where a full decomposition is not slower: where
    the block would be more than an eighth of all directions, or they differ too little in size.
    The error is infinite where they differ so much that rounding in this dtype hides the last.
    """
    n = len(product)
    block = block_for(count)
    if not worth_iterating(n, count):
        return None
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(n, block, generator=generator, dtype=product.dtype).to(product.device)
    for _ in range(START):
        vectors = product @ vectors
        vectors /= vectors.norm()
    budget = BUDGET
    while True:
        values, vectors, residuals = _ritz(product, vectors)
        gaps = values[:count] - values[-1]
        spacing = torch.finfo(values.dtype).eps * values[0]
        floor = _share(spacing.expand(count) / 8, gaps) if bool(values[-1] > 0) else math.inf
        if floor > HOPELESS:
            return values.clamp(min=0).sqrt(), vectors, math.inf
        remaining = _share(residuals[:count], gaps)
        if remaining < max(RESIDUAL, 2 * floor):
            return values.sqrt(), vectors, remaining
        degree = _degree(float(values[count - 1] / values[-1]), remaining)
        if degree > budget:
            return None
        budget -= min(degree, DEGREE)
        vectors = _filtered(product, vectors, values, min(degree, DEGREE))


def block_for(count: int) -> int:
    """How many directions to iterate on for the first `count`."""
    return count + max(MARGIN, count // 2)


def worth_iterating(directions: int, count: int) -> bool:
    """Whether so few of all directions are wanted that iterations may be faster."""
    return count > 0 and 8 * block_for(count) <= directions


def _share(residuals: Float[Tensor, "k"], gaps: Float[Tensor, "k"]) -> float:
    """Root mean square of residuals over gaps: the sines of the angles to the wanted space."""
    return float((residuals / gaps).square().mean().sqrt())


def _degree(ratio: float, remaining: float) -> int:
    """Of the filter that brings the error from `remaining` to the goal, with some to spare."""
    gain = math.log(4 * max(remaining, RESIDUAL) / RESIDUAL)
    return 1 + math.ceil(gain / math.acosh(max(2 * ratio - 1, 1 + 1e-9)))


def _ritz(
    product: Float[Tensor, "n n"], block: Float[Tensor, "n b"]
) -> tuple[Float[Tensor, "b"], Float[Tensor, "n b"], Float[Tensor, "b"]]:
    """Ritz values, descending, and vectors of the block's span, with the norms of residuals."""
    basis = torch.linalg.qr(block)[0]
    images = product @ basis
    values, turn = torch.linalg.eigh(basis.T @ images)
    values, turn = values.flip(0), turn.flip(1)
    vectors = basis @ turn
    residuals = torch.addcmul(images @ turn, vectors, values, value=-1)
    return values, vectors, torch.linalg.vector_norm(residuals, dim=0)


def _filtered(
    product: Float[Tensor, "n n"],
    vectors: Float[Tensor, "n b"],
    values: Float[Tensor, "b"],
    degree: int,
) -> Float[Tensor, "n b"]:
    """The Chebyshev polynomial of `degree` for [0, least value], about 1 at the top."""
    middle = float(values[-1]) / 2
    first = middle / (float(values[0]) - middle)
    scale, before = first, vectors
    now = torch.addmm(before, product, before, beta=-middle).mul_(first / middle)
    for _ in range(degree - 1):
        following = 1 / (2 / first - scale)
        after = torch.addmm(now, product, now, beta=-middle).mul_(2 * following / middle)
        before, now = now, after.sub_(before, alpha=scale * following)
        scale = following
    return now
