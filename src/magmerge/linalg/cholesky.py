"""Equations with a symmetric positive definite matrix, solved, or refused in words"""

from __future__ import annotations

from magmerge.core.errors import NonFiniteError, ParameterError
from magmerge.core.lazy import Float, Tensor, torch
from magmerge.linalg.finite import count_of_bad, is_finite


def cholesky_solution(
    left: Float[Tensor, "n n"], right: Float[Tensor, "n m"], *, remedy: str
) -> Float[Tensor, "n m"]:
    """X with left X = right, where `left` is symmetric and positive definite.

    NonFiniteError where either holds NaN or infinity. ParameterError with the `remedy` where `left`
    is not positive definite, as rounding leaves a matrix whose ridge is below it.
    """
    for side in (left, right):
        if not is_finite(side):
            raise NonFiniteError(
                f"the equations that this layer is solved from hold {count_of_bad(side)}",
                remedy="look for NaN and infinity in the samples, in what the models make of them, "
                "and in the weights",
            )
    factor, failed = torch.linalg.cholesky_ex(left)
    if int(failed):
        raise ParameterError(
            "the equations that this layer is solved from have no one solution: some directions "
            "are nothing but rounding",
            remedy=remedy,
        )
    return torch.cholesky_solve(right, factor)
