"""The directions that hold the most of a Gram matrix's trace, as near as the trace needs them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.linalg.leading import filtered, ritz
from magmerge.linalg.spectral import eigen

MARGIN = 16
"""Directions beyond the first ones, at least, that are iterated on."""
FEW = 4
"""A block of more than this part of all directions is found by a decomposition as fast."""
START = 3
"""Plain multiplications before the first look."""
DEGREE, RANGE = 8, 33.0
"""Highest degree of the Chebyshev filter between two looks, and the logarithm of what it may be at
the largest Ritz value against the last: beyond that rounding loses the weaker directions."""
LOOKS = 4
"""Looks after which it is left as it is."""
MISSING = 1e-4
"""Share of what the directions do not hold that may be held by better ones, as estimated."""
AIM = 20.0
"""How far below the root of that a filter aims: the estimate before it is a coarse one."""


def near_space(product: Float[Tensor, "n n"], count: int) -> tuple[Float[Tensor, "n count"], float]:
    """`count` orthonormal directions whose Ritz values have nearly the greatest sum there is, and
    how much more others may hold, as a share of the trace that these do not hold.

    With residuals r_i and Ritz values t_i of a block whose last is t_b, that is to first order
    sum_i |r_i|^2 / (t_i - t_b). It is brought below MISSING by Chebyshev filters on a random block
    of a fixed seed, if LOOKS are enough. Where the block is a large part of all directions, all
    eigenvectors are computed.
    """
    block = count + max(MARGIN, count // 4)
    if FEW * block > len(product):
        return eigen(product)[1][:, :count], 0.0
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(product), block, generator=generator).to(product)
    for _ in range(START):
        vectors = product @ vectors
        size = float(vectors.norm())
        if size == 0:
            return vectors[:, :count], math.inf
        vectors /= size
    trace, missing = float(product.diagonal().double().sum()), math.inf
    for look in range(LOOKS):
        values, vectors, residuals = ritz(product, vectors)
        # Nothing is left over, or rounding decides what.
        if float(values[-1]) <= torch.finfo(values.dtype).eps * float(values[0]):
            return vectors[:, :count], math.inf
        rest = trace - float(values[:count].double().sum())
        more = float((residuals[:count].square() / (values[:count] - values[-1])).sum())
        missing = more / rest if rest > 0 else math.inf
        if missing <= MISSING or look == LOOKS - 1:
            break
        degree = _degree(values, count, missing)
        vectors = filtered(product, vectors, values, degree)
    return vectors[:, :count], missing


def _degree(values: Float[Tensor, "b"], count: int, missing: float) -> int:
    """Of the filter that brings what is missing below MISSING, as far as rounding lets it."""
    largest, least = (_growth(float(values[place] / values[-1])) for place in (0, count - 1))
    enough = math.acosh(max(1.0, AIM * (missing / MISSING) ** 0.5)) / least
    return max(1, min(math.ceil(min(DEGREE, enough)), int(RANGE / largest)))


def _growth(ratio: float) -> float:
    """What one more degree adds to a Chebyshev polynomial's logarithm, at so many times its end."""
    return math.acosh(max(2 * ratio - 1, 1 + 1e-6))
