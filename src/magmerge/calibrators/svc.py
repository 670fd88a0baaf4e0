"""SVC: singular values of the merge, scaled down along directions that many experts share."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from typing_extensions import Doc

from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.registry import register_calibrator
from magmerge.core.types import Kind
from magmerge.linalg.row_norms import as_rows
from magmerge.linalg.spectral import RANK_CUT, above_cut, eigen, gram, power_of_two

Floor = Annotated[
    float,
    Interval(gt=0, le=1),
    Doc("least share of an expert that a direction of the merge is taken to have"),
]
MATRICES: frozenset[Kind] = frozenset({"matrix", "transposed", "convolution"})


@register_calibrator(
    "svc",
    source="SVC, arXiv:2602.05536",
    acts_on=MATRICES,
    returns="delta",
    workspace=(0, 20),
    scale_free=False,
)
def svc(
    deltas: Float[Tensor, "K rows *rest"],
    merged: Float[Tensor, "rows *rest"],
    *,
    floor: Floor = 0.1,
) -> Float[Tensor, "rows *rest"]:
    """The merged task vector with each singular value divided by the mean share of the experts.

    D = U S V^T is the merge as a matrix [out, rest]. Along its left direction u_r the merge holds
    s_rk = <u_r^T D, u_r^T D_k> / |u_r^T D_k|^2 of expert k; where experts share a direction a sum
    holds more than one of each. S_r is multiplied by K / sum_k max(`floor`, s_rk), U and V stay.
    The floor is the authors', and absolute: where it takes part, the result depends on the merge's
    lambda. An expert that has nothing along u_r (2^-20 of its norm) counts as the floor. In
    float64, by the smaller Gram matrix of D.

    When: after `task_arithmetic`, without samples. On LoRA adapters not after methods that make
    directions orthogonal, such as `tsv_m`.
    """
    matrix = as_rows(merged)
    scale = power_of_two(matrix)
    exact = matrix.double() / scale
    left = left_directions(exact)
    if not left.shape[1]:
        return merged.clone()
    own = left.T @ exact
    total = own.new_zeros(len(own))
    for delta in deltas:
        size = power_of_two(delta)
        expert = as_rows(delta).double() / size
        along = left.T @ expert
        squares = along.square().sum(1)
        there = squares > (RANK_CUT * torch.linalg.vector_norm(expert)).square()
        share = (own * along).sum(1) / torch.where(there, squares, 1.0) * (scale / size)
        total += torch.where(there, share, 0.0).clamp(min=floor)
    found = (left * (len(deltas) / total * scale)) @ own
    return found.to(merged.dtype).reshape(merged.shape)


def left_directions(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m r"]:
    """The left singular vectors whose singular value does not count as zero, largest first."""
    rows, columns = matrix.shape
    values, vectors = eigen(gram(matrix.T if rows < columns else matrix, torch.float64))
    rank = above_cut(values)
    kept = vectors[:, :rank]
    return kept if rows < columns else matrix @ kept / values[:rank]
