"""Polar factors without a singular value decomposition, of one matrix or of bases side by side"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.core.journal import listening, note
from magmerge.linalg.deflation import LARGE, Deflated, deflate
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

SINGLE = 256
"""Columns from which on float32 saves enough time to be tried."""

ACCEPTED = 7e-5
"""Estimated relative error that orthogonalised bases may have; agreement is promised to 1e-4."""


class Polar(NamedTuple):
    """The partial isometry U V^T over the singular values that are not zero, and their sum.

    `sensitivity`: by what a relative change of the matrix, of no particular direction, is expected
    to be multiplied in the factor.
    """

    factor: Tensor
    nuclear: float
    sensitivity: float


def polar(matrix: Float[Tensor, "m n"]) -> Polar:
    """U V^T and sum S of the singular value decomposition U S V^T of `matrix`.

    Only singular values above RANK_CUT times the largest take part: the directions of the others
    are not defined. In order of preference: A (A^T A)^(-1/2) by eigenvectors in float32 (of a large
    matrix beside its dominant directions), the same in float64, and the decomposition.
    """
    if matrix.shape[0] < matrix.shape[1]:
        turned = polar(matrix.T)
        return turned._replace(factor=turned.factor.T)
    scale = power_of_two(matrix)
    if not bool(matrix.any()):
        return Polar(torch.zeros_like(matrix), 0.0, 0.0)
    result: Polar | None = None
    if matrix.dtype == torch.float32 and matrix.shape[1] >= SINGLE:
        result = _by_eigenvectors(matrix, scale, torch.float32)
    result = result or _by_eigenvectors(matrix, scale, torch.float64)
    result = result or _by_decomposition(matrix, scale)
    return result._replace(nuclear=result.nuclear * scale)


def _by_eigenvectors(
    matrix: Float[Tensor, "m n"], scale: float, dtype: torch.dtype
) -> Polar | None:
    """A V S^-1 V^T of A / `scale` from A^T A = V S^2 V^T; None where its error may exceed the
    tolerance.
    """
    product = gram(matrix, dtype, scale)
    if dtype == torch.float32 and not _well_conditioned(product):
        return None
    if dtype == torch.float32 and len(product) >= LARGE:
        apart = deflate(matrix / scale, product)
        if apart is not None:
            return _by_deflation(apart)
    values, vectors = eigen(product)
    del product
    rank = above_cut(values)
    if undecided(values) or polar_error(values, rank) > TOLERANCE:
        return None
    kept = vectors[:, :rank]
    root = (kept / values[:rank]) @ kept.T
    del vectors, kept
    single = torch.finfo(torch.float32).eps * float(
        values.norm() * values[:rank].reciprocal().norm() / rank**0.5 / len(values) ** 0.5
    )
    if matrix.dtype == torch.float32 and single < TOLERANCE / 2:
        factor = (matrix / scale) @ root.float()
    else:
        factor = rowwise(matrix, root.double() / scale)
    nuclear = float(values[:rank].double().sum())
    return Polar(factor, nuclear, sensitivity(values, rank, len(matrix)))


def _by_deflation(apart: Deflated) -> Polar | None:
    """The polar factor U V^T of the dominant directions and that of the rest, in float32."""
    count, rest = len(apart.values), apart.rest
    values, vectors = eigen(gram(rest, torch.float32))
    # The last are what rounding leaves of the dominant directions.
    rank, dominant = len(values) - count, apart.values
    every = torch.cat([dominant, values[:rank].double()])
    if undecided(every) or above_cut(every) < len(every):
        return None
    # To first order as in `polar_error`, each direction's residual along the least of the rest.
    coupled = (apart.residuals / dominant).norm() / every[-1] / len(every) ** 0.5
    error = polar_error(values, rank) + 2 * float(coupled)
    single = torch.finfo(torch.float32).eps * float(
        every.norm() * every.reciprocal().norm() / len(every)
    )
    if error > TOLERANCE or single > TOLERANCE / 2:
        return None
    kept = vectors[:, :rank]
    factor = rest @ ((kept / values[:rank]) @ kept.T)
    factor.addmm_(apart.left.float(), apart.right.float().T)
    return Polar(factor, float(every.sum()), sensitivity(every, len(every), len(rest)))


def polar_error(values: Float[Tensor, "n"], rank: int) -> float:
    """Expected relative error of A V S^-1 V^T, if the Gram matrix is as noisy as rounding makes it.

    To first order, noise e_ij in the eigenvectors' basis moves the polar factor by
    e_ij / (s_j (s_i + s_j)) at the directions i (any) and j (kept).
    """
    exact = values.double()
    weights = exact[:rank] * (exact.unsqueeze(1) + exact[:rank])
    total = float(weights.reciprocal().square().sum())
    size = noise(float(exact.square().mean()), float(exact[0]) ** 2, len(values))
    return float(torch.finfo(values.dtype).eps * size * (total / rank) ** 0.5)


def sensitivity(values: Float[Tensor, "n"], rank: int, rows: int) -> float:
    """Root mean square of |dP| / |P| over |dA| / |A| for random dA, P being the polar factor of A.

    dP_ij = (e_ij - e_ji) / (s_i + s_j) within the range of A, e_ij / s_j from outside it.
    """
    kept = values[:rank].double()
    if rank == 0:
        return 0.0
    poles = kept.reciprocal().square()
    within = 2 * (kept.unsqueeze(1) + kept).reciprocal().square().sum() - poles.sum() / 2
    outside = (rows - rank) * poles.sum()
    return float(((within + outside) / rank * kept.square().sum() / rank / rows).sqrt())


def _well_conditioned(product: Float[Tensor, "n n"]) -> bool:
    """A cheap look, by the diagonal of a Cholesky factor, at whether float32 may do."""
    factor, failed = torch.linalg.cholesky_ex(product)
    diagonal = factor.diagonal()
    return not bool(failed) and float(diagonal.min()) > 0.01 * float(diagonal.max())


def _by_decomposition(matrix: Float[Tensor, "m n"], scale: float) -> Polar:
    why = "a polar factor is too ill conditioned for its Gram matrix"
    left, values, right, _ = decompose_above_cut(matrix, scale, None, why)
    factor = (left @ right.T).to(matrix.dtype)
    return Polar(factor, float(values.sum()), sensitivity(values, len(values), len(matrix)))


def orthogonalised(
    find: Callable[[torch.dtype, float], list[Triplets]], dtype: torch.dtype
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r"], Float[Tensor, "n r"]]:
    """Triplets of several matrices side by side, U and V each replaced by its polar factor.

    `find` gets a dtype and a tolerance. Where directions of different matrices nearly agree, a
    polar factor multiplies the errors of its input; then the triplets are found again with more
    care: in float64, at last (tolerance zero) by decompositions.
    """
    attempts: list[tuple[torch.dtype, float, float | None]]
    attempts = [(torch.float64, TOLERANCE, ACCEPTED), (torch.float64, 0.0, None)]
    if dtype == torch.float32:
        attempts.insert(0, (dtype, TOLERANCE, ACCEPTED))
    for precision, tolerance, accepted in attempts:
        with listening() as notes:
            triplets = _side_by_side(find(precision, tolerance), precision, accepted)
        if triplets is not None:
            break
    assert triplets is not None
    for text in dict.fromkeys(notes):
        note(text)
    left, values, right, _ = triplets
    return left.to(dtype), values.to(dtype), right.to(dtype)


def _side_by_side(
    triplets: list[Triplets], precision: torch.dtype, accepted: float | None
) -> Triplets | None:
    """The triplets as one, U and V made orthogonal; None where the error may exceed `accepted`, if
    that is not None.

    The list is emptied, so that large vectors are in memory once.
    """
    error = max([torch.finfo(precision).eps, *(part.error for part in triplets)])
    values = torch.cat([part.values for part in triplets])
    sides = [
        torch.cat([part.left for part in triplets], dim=1),
        torch.cat([part.right for part in triplets], dim=1),
    ]
    triplets.clear()
    # The lesser side first: where it is refused the other need not be found.
    for side in sorted(range(2), key=lambda side: len(sides[side])):
        factor, _, times = polar(sides[side])
        sides[side] = factor
        if accepted is not None and not error * times < accepted:
            return None
    return Triplets(sides[0], values, sides[1], error)
