"""The leading singular directions of a matrix without its singular value decomposition"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.linalg.spectral import (
    TOLERANCE,
    Triplets,
    above_cut,
    decompose_above_cut,
    eigen,
    gram,
    noise,
    power_of_two,
    rowwise,
    undecided,
)

MARGIN = 16
"""Directions beyond the first ones, at least, that are iterated on: among them float32 results are
sorted out."""
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
UNRESOLVED = 4.0
"""What a symmetric eigensolver neglects between neighbours, in spacings of its largest value."""


def leading(
    matrix: Float[Tensor, "m n"],
    count: int,
    tolerance: float = TOLERANCE,
    whole: float | None = None,
    dtype: torch.dtype | None = None,
) -> Triplets:
    """The first `count` singular triplets, those above RANK_CUT times the largest singular value.

    With `whole`, the cut is that share of it instead: the norm of what `matrix` is the rest of.
    Those that count as zero are left out; the error is an estimate of that of the spaces that U and
    V span. These spaces are what is exact: directions whose singular values (nearly) agree may be
    any basis of theirs, the same one on both sides. In order of preference: eigenvectors of the
    smaller Gram matrix by iteration in float32, all of them in float64, and the decomposition.
    The result is in `dtype` (None: that of `matrix`); with float64 nothing is done in float32.
    """
    if matrix.shape[0] < matrix.shape[1]:
        turned = leading(matrix.T, count, tolerance, whole, dtype)
        return turned._replace(left=turned.right, right=turned.left)
    dtype, scale = dtype or matrix.dtype, power_of_two(matrix)
    if not bool(matrix.any()):
        nothing = matrix[:, :0].to(dtype)
        return Triplets(nothing, nothing[0], matrix.T[:, :0].to(dtype))
    largest = None if whole is None else whole / scale
    triplets: Triplets | None = None
    if dtype == torch.float32 and worth_iterating(matrix.shape[1], count):
        triplets = _by_iteration(matrix / scale, count, tolerance, largest)
    if triplets is None:
        triplets = _by_eigenvectors(matrix, scale, count, tolerance, largest)
    if triplets is None:
        why = "leading singular directions are too ill defined"
        triplets = decompose_above_cut(matrix, scale, largest, why).first(count)
    # Copies, where they are slices: of large matrices each would keep all directions in memory.
    left, values, right = (part.to(dtype, copy=True) for part in triplets[:3])
    return Triplets(left, values * scale, right, triplets.error)


def _by_eigenvectors(
    matrix: Float[Tensor, "m n"],
    scale: float,
    count: int,
    tolerance: float,
    largest: float | None,
) -> Triplets | None:
    """Of A / `scale` in float64, from A^T A = V S^2 V^T, U = A V S^-1; None where its error may
    exceed the tolerance.
    """
    product = gram(matrix, torch.float64, scale)
    mean = float(product.diagonal().mean())
    values, vectors = eigen(product)
    del product
    rank = min(count, above_cut(values, largest))
    if undecided(values[: count + 1], largest):
        return None
    error = leading_error(values, rank, rank, mean, matrix.shape[1])
    if error > tolerance:
        return None
    values, kept = values[:rank], vectors[:, :rank]
    return Triplets(rowwise(matrix, kept / values / scale), values, kept, error)


def _by_iteration(
    unit: Float[Tensor, "m n"], count: int, tolerance: float, largest: float | None
) -> Triplets | None:
    """The same in float32 by iteration. What that finds well is the space of V and some further
    directions. Within it the directions are found again, from the images A V, in float64.
    """
    product, dtype = gram(unit, torch.float32), torch.float32
    started = leading_eigenvectors(product, count)
    if started is None:
        return None
    values, vectors, left_over = started
    mean = float(product.diagonal().double().mean())
    del product
    rank = min(count, above_cut(values, largest))
    if undecided(values[: count + 1], largest):
        return None
    block = min(len(values), rank + max(MARGIN, rank // 4))
    error = left_over + leading_error(values, rank, block, mean, unit.shape[1])
    if error > tolerance:
        return None
    kept = vectors[:, :block]
    images = unit @ kept
    values, turn = eigen(gram(images, torch.float64))
    values, turn = values[:rank], turn[:, :rank]
    return Triplets(images @ (turn / values).to(dtype), values, kept @ turn.to(dtype), error)


def leading_error(
    values: Float[Tensor, "k"], rank: int, block: int, mean: float, directions: int
) -> float:
    """Expected relative error of the first `rank` directions, found within a block of them.

    To first order, noise e_ij in the eigenvectors' basis turns V by e_ij / (s_i^2 - s_j^2) towards
    each direction j that is left out; those that `values` does not list count as its last. A
    solver may also leave neighbours unresolved up to some spacings of the largest s^2. Within the
    block only the rounding of the images A V counts. `mean` is that of all s^2.
    """
    if rank == 0:
        return 0.0
    squares = values.double().square()
    spacing = torch.finfo(values.dtype).eps
    far = _over_gaps(squares[:rank], squares[block:]) ** 2
    if directions > len(values):
        block = min(block, len(values) - 1)
        hidden = directions - len(values)
        far += hidden * _over_gaps(squares[:rank], squares[-1:]) ** 2
    # What an iteration leaves is measured, not guessed.
    solved = directions == len(values)
    turned = spacing * (noise(mean, float(squares[0]), directions) if solved else mean) * far**0.5
    if solved and block < len(squares):
        turned += UNRESOLVED * spacing * float(squares[0] / (squares[rank - 1] - squares[block]))
    near = _over_gaps(values[:rank].double(), values[rank:block].double())
    near += float(values[:rank].double().reciprocal().norm())
    return float((turned + spacing * mean**0.5 * near) / rank**0.5)


def _over_gaps(first: Float[Tensor, "n"], second: Float[Tensor, "k"]) -> float:
    """Root of the sum of 1 / (a - b)^2 over all a of the first and b of the second."""
    return float((first.unsqueeze(1) - second).reciprocal().norm())


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
        values, vectors, residuals = ritz(product, vectors)
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
        vectors = filtered(product, vectors, values, min(degree, DEGREE))


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


def ritz(
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


def filtered(
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
