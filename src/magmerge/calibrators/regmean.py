"""RegMean: the one weight whose outputs are nearest the experts' on what their layers are fed."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from typing_extensions import Doc

from magmerge.core.errors import ParameterError
from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.parameters import Supplied
from magmerge.core.registry import register_calibrator
from magmerge.core.types import Cut, Kind
from magmerge.linalg.cholesky import cholesky_solution
from magmerge.linalg.row_norms import as_rows

Sums = Annotated[Tensor | None, Supplied()]
"""Sums over the rows that a layer is fed, of each expert's samples: [K, ...]."""
OffDiagonal = Annotated[
    float, Interval(ge=0, le=1), Doc("factor on what two features of the inputs have in common")
]
MATRICES: frozenset[Kind] = frozenset({"matrix", "transposed", "convolution"})
UNSEEN = 1e-9
"""Of the mean square of a feature: how little of it counts as none, so that the merge decides."""
ROUNDING = 2.0**-23
"""Of float32, in which the sums are taken: n times that much of what features have in common is
noise, which may leave fewer tokens than features with a matrix that is not positive definite."""


def products(inputs: Float[Tensor, "tokens n"]) -> Float[Tensor, "n+1 n+1"]:
    """[x, 1]'[x, 1]: the inner products of all features over the tokens, in the last row the sums
    of the features and the number of tokens.
    """
    rows = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    return rows.T @ rows


def cut_by(**_: object) -> Cut:
    """What was solved for while the model ran is known before the layer is cut."""
    return "rows"


def square(features: int) -> int:
    """How many numbers the products of so many features are."""
    return (features + 1) ** 2


def regression(
    deltas: Float[Tensor, "K rows *rest"],
    merged: Float[Tensor, "rows *rest"],
    *,
    sums: Sums = None,
    off_diagonal: OffDiagonal = 0.9,
) -> Float[Tensor, "rows *rest"]:
    """The task vector D of least sum_k |x_k (D - D_k)'|^2, features drawn apart.

    D = (sum_k D_k C_k) (sum_k C_k)^-1, with C_k = x_k'x_k [n, n] of `sums` (`products`) less the
    share 1 - `off_diagonal` of what is off its diagonal. Where no sample has a feature the merge
    stays: a billionth of the mean diagonal draws to it. At most 1 - n eps of `off_diagonal` counts,
    eps = 2^-23: beyond it the sums are rounding. Computed in float64.
    """
    if sums is None:
        raise ParameterError(
            "regmean has no products of inputs",
            remedy="give sums=, or use merge(data=...)",
        )
    left, right = _equations(sums, deltas, off_diagonal)
    unseen = UNSEEN * float(left.diagonal().mean()) or 1.0
    left.diagonal().add_(unseen)
    right.add_(as_rows(merged).double().T, alpha=unseen)
    solved = cholesky_solution(left, right, remedy="lower off_diagonal")
    return solved.T.reshape(merged.shape).to(merged)


def _equations(
    sums: Tensor, deltas: Float[Tensor, "K rows *rest"], off_diagonal: float
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n rows"]]:
    """sum_k C_k and sum_k C_k D_k' of `sums` [K, n + 1, n + 1], one expert after the other."""
    n = sums.shape[1] - 1
    share = min(off_diagonal, 1 - ROUNDING * n)
    left = sums.new_zeros(n, n, dtype=torch.float64)
    right = left.new_zeros(n, deltas.shape[1])
    for own, delta in zip(sums, deltas, strict=True):
        part = own[:n, :n].double()
        diagonal = part.diagonal().clone()
        part *= share
        part.diagonal().add_((1 - share) * diagonal)
        left += part
        right += part @ as_rows(delta).double().T
    return left, right


@register_calibrator(
    "regmean",
    source="RegMean, arXiv:2212.09849",
    acts_on=MATRICES,
    needs="inputs",
    returns="delta",
    order="forward",
    gather=products,
    fed_by="experts",
    entries=square,
    gated=False,
)
def regmean(
    deltas: Float[Tensor, "K rows *rest"],
    merged: Float[Tensor, "rows *rest"],
    *,
    sums: Sums = None,
    off_diagonal: OffDiagonal = 0.9,
) -> Float[Tensor, "rows *rest"]:
    """Least squares over what each expert's own layers are fed on samples of its task.

    `regression` with the inputs of each expert's own run: what an expert's sums are does not depend
    on the merge, nor on other experts.

    When: unlabelled samples of each task, or files of statistics in their place, and linear
    layers.
    """
    return regression(deltas, merged, sums=sums, off_diagonal=off_diagonal)


@register_calibrator(
    "regmean_plusplus",
    source="RegMean++, arXiv:2508.03121",
    acts_on=MATRICES,
    aliases=("regmean++",),
    needs="inputs",
    returns="delta",
    order="forward",
    gather=products,
    entries=square,
    gated=False,
    cut=cut_by,
)
def regmean_plusplus(
    deltas: Float[Tensor, "K rows *rest"],
    merged: Float[Tensor, "rows *rest"],
    *,
    sums: Sums = None,
    off_diagonal: OffDiagonal = 0.9,
) -> Float[Tensor, "rows *rest"]:
    """RegMean from what the merged model feeds its layers, each solved before the next is fed.

    `regression` with the inputs that the merged model, as far as it is solved, feeds a layer on
    samples of each task.

    When: as `regmean`, where layers should be solved for what the merged model feeds them.
    """
    return regression(deltas, merged, sums=sums, off_diagonal=off_diagonal)
