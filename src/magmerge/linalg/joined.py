"""Singular directions of several matrices side by side, made orthogonal to each other"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.core.journal import listening, note
from magmerge.linalg.leading import Leading
from magmerge.linalg.polar import polar
from magmerge.linalg.spectral import TOLERANCE

ACCEPTED = 7e-5
"""Estimated relative error that orthogonalised bases may have; agreement is promised to 1e-4."""


def orthogonalised(
    find: Callable[[torch.dtype, float], Sequence[Leading]], dtype: torch.dtype
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r"], Float[Tensor, "n r"]]:
    """Triplets of several matrices side by side, U and V each replaced by its polar factor.

    `find` gets a dtype and a tolerance. Where directions of different matrices nearly agree, a
    polar factor multiplies the errors of its input; then the triplets are found again with more
    care: in float64, at last (tolerance zero) by decompositions.
    """
    attempts = [(torch.float64, TOLERANCE), (torch.float64, 0.0)]
    if dtype == torch.float32:
        attempts.insert(0, (dtype, TOLERANCE))
    for precision, tolerance in attempts:
        with listening() as notes:
            found = find(precision, tolerance)
            left = polar(torch.cat([part.left for part in found], dim=1))
            right = polar(torch.cat([part.right for part in found], dim=1))
        worst = max([torch.finfo(precision).eps, *(part.error for part in found)])
        if worst * max(left.sensitivity, right.sensitivity) < ACCEPTED:
            break
    for text in dict.fromkeys(notes):
        note(text)
    values = torch.cat([part.values for part in found])
    return left.factor.to(dtype), values.to(dtype), right.factor.to(dtype)
