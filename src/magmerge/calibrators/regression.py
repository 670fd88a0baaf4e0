"""Regression: the task vector that does on each task's inputs what that task's expert does."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.calibrators.wsc import MATRICES
from magmerge.core.registry import register_calibrator
from magmerge.linalg.ridge import ridge_solution
from magmerge.linalg.row_norms import as_rows
from magmerge.linalg.spectral import ROWS, gram, power_of_two

PULL = 2.5e-4
"""The ridge of a layer whose task vectors use all their directions alike; see `pull`."""
Ridge = Annotated[
    Annotated[float, Gt(0)] | Literal["spectrum"],
    Doc("how strongly the merge that it follows is held to; spectrum: by each layer's own spectra"),
]


def scratch(shape: tuple[int, ...], _: int) -> int:
    """In float64 three matrices of columns x columns, and four of the layer's size."""
    columns = math.prod(shape[1:])
    return 8 * (3 * columns**2 + 4 * shape[0] * columns)


def unit_gram(delta: Float[Tensor, "m n"]) -> Float[Tensor, "n n"] | None:
    """D^T D divided by its Frobenius norm, in float64; None for zeros."""
    own = gram(delta, torch.float64, power_of_two(delta))
    size = float(torch.linalg.matrix_norm(own))
    return own.div_(size) if size > 0 else None


def add_product(
    total: Float[Tensor, "m n"],
    delta: Float[Tensor, "m n"],
    other: Float[Tensor, "n n"],
    unit: float,
) -> None:
    """Add D / `unit` times `other` to `total`, by blocks of rows."""
    for part, into in zip(torch.split(delta, ROWS), torch.split(total, ROWS), strict=True):
        into.addmm_(part.double() / unit, other)


def used_share(own: Float[Tensor, "n n"], most: int) -> float:
    """Which share of its `most` directions a task vector uses, from its Gram matrix of norm 1.

    Its stable dimension is tr(G)^2 / |G|^2: `most` where all singular values are alike.
    """
    return min(1.0, float(own.trace()) ** 2 / most)


def pull(shares: list[float]) -> float:
    """The ridge for experts that use these shares of a layer's directions: PULL / mean share^2.

    The Gram matrix of a task vector stands for its task's inputs only in the directions that it
    uses; of those that are left over, the equations know nothing.
    """
    return PULL / (sum(shares) / len(shares)) ** 2


@register_calibrator(
    "regression",
    source="magmerge; the normal equations are those of arXiv:2503.08099",
    acts_on=MATRICES,
    returns="delta",
    gated=False,
    scale_free=False,
    workspace=(0, 2),
    scratch=scratch,
)
def regression(
    deltas: Float[Tensor, "K rows *rest"],
    merged: Float[Tensor, "rows *rest"],
    *,
    ridge: Ridge = "spectrum",
) -> Float[Tensor, "rows *rest"]:
    """The task vector D whose output is nearest each expert's on the inputs that its rows span.

    D minimises sum_k |(D - D_k) G_k^(1/2)|^2 + ridge |D - D_m|^2 with G_k = D_k^T D_k divided by
    its Frobenius norm, which stands for the inputs of task k, and D_m the merge that it follows:
    D = (sum_k D_k G_k + ridge D_m) (sum_k G_k + ridge I)^-1. With ridge "spectrum" it is
    0.00025 / s^2, where s is the mean over the experts of tr(G_k)^2 / min(rows, columns), the share
    of its directions that a task vector uses. Experts of zeros have no say. Computed in float64.
    For [out, in] matrices and [out, rest] convolutions.

    When: as the ground that `regression_samples` stands on. Alone, after `tsv_m`, it was as
    good as `tsv_m` where that was measured; with LoRA experts it changes next to nothing.
    """
    start, unit = as_rows(merged), power_of_two(deltas)
    left = start.new_zeros(start.shape[1], start.shape[1], dtype=torch.float64)
    right = torch.zeros_like(start, dtype=torch.float64)
    shares = []
    for delta in deltas:
        own = unit_gram(as_rows(delta))
        if own is not None:
            shares.append(used_share(own, min(start.shape)))
            left += own
            add_product(right, as_rows(delta), own, unit)
    if not shares:
        return merged.clone()
    held = pull(shares) if ridge == "spectrum" else ridge
    solution = ridge_solution(left, right, start / unit, held)
    return (solution * unit).to(merged.dtype).reshape(merged.shape)
