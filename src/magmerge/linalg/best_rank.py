"""The best approximation of a matrix by one of low rank, with its error measured"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from magmerge.linalg.leading import block_for, leading
from magmerge.linalg.near_space import near_space
from magmerge.linalg.spectral import Triplets, decompose, eigen, gram, power_of_two, svd

SMALL = 256
"""Directions up to which a decomposition of the matrix is the quicker way."""
WORTH = 3
"""A block of more than this part of all directions is not iterated on."""
NARROW = 20
"""Blocks of how many times less directions than a matrix has are found by its Gram matrix."""
LEAST, STEPS = 2, 64
"""Multiplications with A and its transpose from which on it may be settled, and after which the
decomposition is taken instead."""
OPTIMAL = 1e-3
"""Share of the squared error that more iterations would still take away, as estimated."""
SLOWING = 2.0
"""What is still to come, beyond a geometric series, where the growth slows down."""
SQUARED = 2e-5
"""Least over largest singular value from which on a Gram matrix gives orthonormal vectors."""
SUBTRACTED = 0.1
"""Relative error above which |A|^2 less the squared singular values is precise enough, and so are
directions from a Gram matrix in float32: with so much left for the other directions, no singular
value that is kept is far below the largest."""
LARGE = 0.25
"""Relative error above which that difference tells the error to five digits."""
COARSE = 1e-4
"""Relative error below which float32 iterations no longer see what is left."""
INDEPENDENT = 1e-2
"""Least over largest entry of a Cholesky factor from which on float32 gives a sound basis."""
NOTHING = {torch.float32: 2.0**-22, torch.float64: 2.0**-46}
"""A singular value below this share of the largest is rounding; so is such a relative error."""
CONVERTED = 1 << 20
"""Entries that are converted to float64 at once, to be summed up."""
Start = Callable[[], Tensor]
"""Gives directions [n, k] to begin with."""
FIRST = 16
"""The first rank that is tried for a share of the squared norm."""
ROUNDING = 1e-6
"""What float32 rounding may take from a share of the squared norm."""


def best_rank(matrix: Float[Tensor, "m n"], rank: int, start: Start | None = None) -> Triplets:
    """The nearest matrix of this rank (Eckart and Young 1936), or of a lower one that is as near.

    U and V are orthonormal; the error is |A - U diag(S) V^T| / |A| (Frobenius) of these very
    factors, 0 for a matrix of zeros.

    Where the matrix is narrow and the error large, by way of a float32 Gram matrix (`near_space`);
    else by randomised subspace iteration (Halko, Martinsson and Tropp 2011, arXiv:0909.4061,
    algorithm 4.4) until what more of it would gain, as extrapolated, is below OPTIMAL of the
    squared error, in float64 where the error is small; by a decomposition (in float64, by way of
    the Gram matrix where that is precise enough) where the matrix is small, the rank a large part
    of it, or STEPS are not enough. The error is within 1e-3 of the least possible one, or within
    some spacings of float32. Singular values that are rounding are left out. The random block has
    a fixed seed: equal matrices give equal bits on equal numbers of torch's threads. `matrix` is
    finite, in float32 or float64. `start` gives directions that may be near the leading right
    ones, where there is an iteration: it begins with them and some random ones.
    """
    scale = power_of_two(matrix)
    unit = matrix / scale
    rank, whole = min(rank, *matrix.shape), _norm(unit) ** 2
    if rank <= 0 or not whole:
        nothing = float(whole > 0)
        return Triplets(unit[:, :0], unit.new_empty(0), unit.T[:, :0], nothing)
    triplets = _triplets(unit, rank, start, whole)
    some = int((triplets.values > NOTHING[matrix.dtype] * triplets.values[0]).sum())
    parts = triplets.first(min(rank, some))[:3]
    left, values, right = (part.to(matrix.dtype).contiguous() for part in parts)
    best = Triplets(left, values * scale, right, triplets.error)
    return best if triplets.error > LARGE else _with_error(matrix, best)


def rank_by_energy(matrix: Float[Tensor, "m n"], energy: float, limit: int) -> Triplets:
    """The same at the least rank that holds `energy` of the squared norm, up to `limit`.

    The rank that is tried grows fourfold until it is enough.
    """
    limit = min(limit, *matrix.shape)
    rank = min(FIRST, limit)
    while True:
        if not _iterated(min(matrix.shape), rank):
            rank = limit
        best = best_rank(matrix, rank)
        enough = 1 - best.error**2 >= energy - ROUNDING
        if enough or rank >= limit or len(best.values) < rank:
            break
        rank = min(4 * rank, limit)
    whole = float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    kept = rank_for_energy(best.values, whole, energy)
    if kept == len(best.values):
        return best
    return _with_error(matrix, best.first(kept))


def rank_for_energy(values: Float[Tensor, "r"], whole: float, energy: float) -> int:
    """The least rank whose squared singular values hold the share `energy` of `whole` squared.

    All of them where they hold less. `values` descend; a share that float32 rounding may have
    taken counts as held.
    """
    if whole <= 0:
        return 0
    held = (values.double() / whole).square().cumsum(0)
    return min(len(values), int((held < energy - ROUNDING).sum()) + 1)


def zero_rows(matrix: Float[Tensor, "m n"]) -> Bool[Tensor, "m"]:
    """Which rows are all zeros."""
    zero: Tensor = torch.linalg.vector_norm(matrix, dim=1) == 0
    # Squares of small entries vanish too; this look is the slower one.
    zero[zero.clone()] = ~matrix[zero].any(dim=1)
    return zero


def scratch(shape: tuple[int, int], rank: int) -> int:
    """Bytes that `best_rank` needs at most, beside a float32 matrix of this shape."""
    m, n = shape
    if _iterated(min(m, n), rank):
        # The matrix once more, and in float64; four blocks on either side.
        return 12 * m * n + 4 * 8 * block_for(rank) * (m + n)
    # In float64, with copies of LAPACK's own, both sets of vectors, and its workspace.
    k = min(m, n)
    return 28 * m * n + 8 * k * (m + n + 4 * k)


def relative_error(
    matrix: Float[Tensor, "m n"], left: Float[Tensor, "m r"], right: Float[Tensor, "r n"]
) -> float:
    """|A - L R| / |A| in the Frobenius norm, in float64 by blocks of rows; 0 for A = 0 = L R."""
    scale, rows = power_of_two(matrix), _rows(matrix)
    second = right.double()
    lost = whole = 0.0
    for part, first in zip(torch.split(matrix, rows), torch.split(left, rows), strict=True):
        exact = part.double() / scale
        whole += _squares(exact)
        lost += _squares(exact.addmm_(first.double() / scale, second, alpha=-1))
    if lost == 0:
        return 0.0
    return math.sqrt(lost / whole) if whole > 0 else math.inf


def _norm(unit: Float[Tensor, "m n"]) -> float:
    """|A|; the rows' norms, in A's own format, err independently of each other."""
    return float(torch.linalg.vector_norm(torch.linalg.vector_norm(unit, dim=1).double()))


def _triplets(unit: Float[Tensor, "m n"], rank: int, start: Start | None, whole: float) -> Triplets:
    """At least the first `rank` singular triplets, or all that are not rounding.

    `whole` is |A|^2. Their error is that of the first `rank` where it is above SUBTRACTED.
    """
    directions = min(unit.shape)
    if directions <= SMALL:
        return svd(unit)
    if unit.dtype == torch.float32 and directions <= NARROW * block_for(rank):
        triplets, missing = _by_gram(unit, rank, whole)
        if triplets.error > SUBTRACTED and missing <= OPTIMAL:
            return triplets
        start = triplets.right.clone
    found = _by_iteration(unit, rank, start) if _iterated(directions, rank) else None
    if found is not None:
        return found
    triplets = leading(unit, rank)._replace(error=0.0)
    values = triplets.values
    complete = len(values) == rank or _with_error(unit, triplets).error <= NOTHING[unit.dtype]
    if complete and float(values[-1]) > SQUARED * float(values[0]):
        return triplets
    return decompose(unit, f"of {rank} singular values the last are near rounding")


def _by_gram(unit: Float[Tensor, "m n"], rank: int, whole: float) -> tuple[Triplets, float]:
    """The triplets from directions of the smaller Gram matrix, and from their images in float64;
    and what share of the squared error others may hold.
    """
    if unit.shape[0] < unit.shape[1]:
        (right, values, left, error), missing = _by_gram(unit.T, rank, whole)
        return Triplets(left, values, right, error), missing
    right, missing = near_space(gram(unit, unit.dtype), rank)
    images = unit @ right
    values, turn = eigen(gram(images, torch.float64))
    lost = max(0.0, 1 - _squares(values) / whole)
    left = images @ (turn / values).to(images)
    return Triplets(left, values, right @ turn.to(right), math.sqrt(lost)), missing


def _iterated(directions: int, rank: int) -> bool:
    return directions > SMALL and WORTH * block_for(rank) <= directions


def _by_iteration(unit: Float[Tensor, "m n"], rank: int, start: Start | None) -> Triplets | None:
    """The triplets by subspace iteration, None where it does not settle.

    Where A is of low rank but for little, a block in float32 holds that little only by chance.
    """
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(unit.shape[1], block_for(rank), generator=generator).to(unit)
    if start is not None:
        known = start()[:, :rank].to(unit)
        others = block[:, known.shape[1] :] / len(block) ** 0.5
        block = torch.cat([known, others], dim=1)
    nothing = NOTHING[unit.dtype]
    triplets = _settled(unit, block, rank, nothing)
    if triplets is not None and unit.dtype == torch.float32 and nothing < triplets.error <= COARSE:
        triplets = _settled(unit.double(), triplets.right.double(), rank, nothing)
    return triplets


def _settled(
    unit: Float[Tensor, "m n"], block: Float[Tensor, "n b"], rank: int, nothing: float
) -> Triplets | None:
    """The block's triplets, once more steps would not lessen the error of the first `rank`."""
    whole = sum(_squares(part.double()) for part in torch.split(unit, _rows(unit)))
    before, growth = whole, whole
    for step in range(STEPS):
        basis = _orthonormal(unit @ block)
        block, triangle = torch.linalg.qr(unit.T @ basis)
        turn, values, other = torch.linalg.svd(triangle.T)
        triplets = Triplets(basis @ turn, values, block @ other.T)
        left = _left_over(unit, triplets, rank, whole)
        last, growth = growth, before - left
        settled = step >= LEAST and _to_come(growth, last) <= OPTIMAL * left
        if settled or left <= nothing**2 * whole:
            return triplets._replace(error=math.sqrt(max(left, 0.0) / whole))
        before = left
    return None


def _orthonormal(block: Float[Tensor, "m b"]) -> Float[Tensor, "m b"]:
    """A basis of the block's columns, by a Cholesky factor where they are independent enough."""
    product = gram(block, torch.float64)
    factor, failed = torch.linalg.cholesky_ex(product)
    diagonal = factor.diagonal()
    if int(failed) or float(diagonal.min()) < INDEPENDENT * float(diagonal.max()):
        basis: Tensor = torch.linalg.qr(block)[0]
        return basis
    basis = torch.linalg.solve_triangular(factor.T.to(block), block, upper=True, left=False)
    return basis


def _left_over(unit: Float[Tensor, "m n"], triplets: Triplets, rank: int, whole: float) -> float:
    """|A - U S V^T|^2 of the first `rank` triplets; measured where a difference would cancel."""
    triplets = triplets.first(rank)
    left = whole - _squares(triplets.values.double())
    measured = left <= SUBTRACTED**2 * whole
    return whole * _with_error(unit, triplets).error ** 2 if measured else left


def _with_error(matrix: Float[Tensor, "m n"], triplets: Triplets) -> Triplets:
    """The triplets with the error of their product."""
    left, values, right, _ = triplets
    # Their product rounded to float32 would be other factors than those that are returned.
    error = relative_error(matrix, left.double() * values.double(), right.T)
    return triplets._replace(error=error)


def _to_come(growth: float, before: float) -> float:
    """What all further steps may gain, from the last two gains."""
    if growth <= 0:
        return 0.0
    if growth >= before:
        return math.inf
    return SLOWING * growth * max(1.0, growth / (before - growth))


def _rows(matrix: Float[Tensor, "m n"]) -> int:
    """How many rows are converted to float64 at once."""
    return max(1, CONVERTED // max(1, matrix.shape[1]))


def _squares(tensor: Float[Tensor, "*shape"]) -> float:
    return float(tensor.square().sum())
