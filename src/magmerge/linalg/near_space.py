"""The directions that hold the most of a Gram matrix's trace, as near as the trace needs them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.linalg.leading import filtered, ritz
from magmerge.linalg.spectral import eigen

MARGIN = 16
"""Directions beyond the first ones, at least, that are iterated on."""
FEW = 5
"""A block of more than this part of all directions is found by a decomposition as fast."""
START = 2
"""Plain multiplications before the first look."""
DEGREE = 4
"""Of the Chebyshev filter between two looks; higher ones would lose the weaker directions."""
LOOKS = 4
"""Looks after which all eigenvectors are taken instead."""
MISSING = 1e-4
"""Share of what the directions do not hold that may be held by better ones, as estimated."""


def near_space(product: Float[Tensor, "n n"], count: int) -> Float[Tensor, "n count"]:
    """`count` orthonormal directions whose Ritz values have nearly the greatest sum there is.

    With residuals r_i and Ritz values t_i of a block whose last is t_b, better directions hold
    about sum_i |r_i|^2 / (t_i - t_b) more (to first order, and nearly no less than that): it is
    brought below MISSING of the trace that is not held, by Chebyshev filters on a random block.
    Where the block is a large part of all directions, or LOOKS are not enough, all eigenvectors
    are computed. The block has a fixed seed.
    """
    n = len(product)
    block = count + max(MARGIN, count // 4)
    if FEW * block <= n:
        vectors = _filtered_block(product, count, block)
        if vectors is not None:
            return vectors
    return eigen(product)[1][:, :count]


def _filtered_block(
    product: Float[Tensor, "n n"], count: int, block: int
) -> Float[Tensor, "n count"] | None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(product), block, generator=generator).to(product)
    for _ in range(START):
        vectors = product @ vectors
        vectors /= vectors.norm()
    trace = float(product.diagonal().double().sum())
    for look in range(LOOKS):
        values, vectors, residuals = ritz(product, vectors)
        # Nothing is left over, or rounding decides what.
        if float(values[-1]) <= torch.finfo(values.dtype).eps * float(values[0]):
            return None
        rest = trace - float(values[:count].double().sum())
        missing = float((residuals[:count].square() / (values[:count] - values[-1])).sum())
        if missing <= MISSING * rest:
            return vectors[:, :count]
        if look < LOOKS - 1:
            vectors = filtered(product, vectors, values, DEGREE)
    return None
