"""Least squares over several experts at once, held to a start: one Cholesky factorisation"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.linalg.cholesky import cholesky_solution
from magmerge.linalg.spectral import ROWS


def ridge_solution(
    left: Float[Tensor, "n n"],
    right: Float[Tensor, "m n"],
    start: Float[Tensor, "m n"],
    ridge: float,
    *,
    remedy: str = "raise ridge",
) -> Float[Tensor, "m n"]:
    """D = (right + ridge start) (left + ridge I)^-1, in float64; `left` is used up.

    `left` is symmetric with no negative eigenvalue but those of rounding, and `ridge` > 0. By the
    difference to the start, D = start + (right - start left) (left + ridge I)^-1, which is the same
    and leaves the start to its last bits where the equations say nothing. NonFiniteError and, with
    the `remedy`, ParameterError where they cannot be solved.
    """
    change = torch.empty_like(right)
    for into, part, own in zip(
        *(torch.split(matrix, ROWS) for matrix in (change, right, start)), strict=True
    ):
        torch.sub(part, own.double() @ left, out=into)
    left.diagonal().add_(ridge)
    return cholesky_solution(left, change.T, remedy=remedy).T.add_(start)
