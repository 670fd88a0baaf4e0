"""WSC: weight-space calibration, from the weights alone."""

from __future__ import annotations

from typing import Annotated, Literal

from typing_extensions import Doc

from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.registry import register_calibrator
from magmerge.core.types import Cut, Kind
from magmerge.linalg.row_norms import as_rows, roots, row_gram, row_scale

Target = Annotated[
    Literal["ellipsoid", "sphere"],
    Doc("ellipsoid for near-orthogonal task vectors; sphere for correlated ones"),
]
Granularity = Annotated[
    Literal["row", "layer"], Doc("one factor for each output row, or one for the layer")
]
MATRICES: frozenset[Kind] = frozenset({"matrix", "transposed", "convolution"})


def assumes_orthogonal(*, target: str = "ellipsoid", **_: object) -> bool:
    """Whether correlated task vectors make the factor too small."""
    return target == "ellipsoid"


def cut_by(*, granularity: str = "row", **_: object) -> Cut:
    """A factor for each row needs no other row."""
    return "rows" if granularity == "row" else "whole"


def kernel(*, target: str, granularity: str) -> str | None:
    """The target, where compiled kernels calibrate by it: row by row."""
    return target if granularity == "row" else None


@register_calibrator(
    "wsc",
    source="MAGIC, arXiv:2512.19320, WSC",
    acts_on=MATRICES,
    near_orthogonal=assumes_orthogonal,
    cut=cut_by,
    rotates=True,
    kernel=kernel,
)
def wsc(
    deltas: Float[Tensor, "K rows *rest"],
    merged: Float[Tensor, "rows *rest"],
    *,
    target: Target = "ellipsoid",
    granularity: Granularity = "row",
) -> Float[Tensor, "..."]:
    """Factor that gives the merged task vector the magnitude that the experts' have.

    Per output row, with d the row of `merged` and a_k that of expert k:
    ellipsoid: c_k = <d, a_k> / |a_k|^2, r = d - sum_k c_k a_k,
    xi = 1 / sqrt(sum_k c_k^2 + |r|^2 / mean_k(|a_k|)^2), which puts d on the ellipsoid whose axes
    are the a_k; sphere: xi = mean_k |a_k| / |d|. Returns xi [rows], or a scalar with granularity
    "layer", which takes the layer as one row. Rows where d or all a_k are zero keep xi = 1.

    When: no samples at all, after `average` or `task_arithmetic` of different tasks. It leaves
    merges that have the right size already as they are.
    """
    rows, axes = as_rows(merged), torch.stack([as_rows(delta) for delta in deltas])
    if granularity == "layer":
        rows, axes = rows.reshape(1, -1), axes.reshape(len(axes), 1, -1)
    size = reach = rows.new_ones(len(rows), dtype=torch.float64)
    if rows.dtype == torch.float64:
        # The squares of float32 numbers fit into float64. Those of others need powers of two for
        # each row, which are put back without rounding.
        size, reach = row_scale(rows), row_scale(axes).amax(dim=0)
        rows, axes = rows / size.unsqueeze(-1), axes / reach.unsqueeze(-1)
    gram = row_gram(rows, axes)
    length, norms = roots(gram[0, 0]), [roots(gram[k, k]) for k in range(1, len(gram))]
    radius = sum(norms[1:], start=norms[0]) / len(norms)
    if target == "sphere":
        factor = radius / torch.where(length > 0, length, 1.0)
    else:
        factor = _ellipsoid(gram, radius)
    factor = torch.where((length > 0) & (radius > 0), factor * (reach / size), 1.0).to(rows.dtype)
    return factor.reshape(()) if granularity == "layer" else factor


def _ellipsoid(
    gram: Float[Tensor, "N N rows"], radius: Float[Tensor, "rows"]
) -> Float[Tensor, "rows"]:
    """The factor of each row, from the inner products of the merged row and the experts'.

    |r|^2 = |d|^2 - 2 sum_k c_k <d, a_k> + sum_jk c_j c_k <a_j, a_k>, in this order.
    """
    experts = range(1, len(gram))
    shares = [gram[0, k] / torch.where(gram[k, k] > 0, gram[k, k], 1.0) for k in experts]
    squares, residual = torch.zeros_like(radius), gram[0, 0].clone()
    for k, share in zip(experts, shares, strict=True):
        residual -= 2 * share * gram[0, k]
    for k, share in zip(experts, shares, strict=True):
        squares += share * share
        residual += share * share * gram[k, k]
        for j in range(1, k):
            residual += 2 * shares[j - 1] * share * gram[j, k]
    length = torch.where(radius > 0, radius, 1.0)
    squares += residual.clamp_(min=0) / (length * length)
    return roots(torch.where(squares > 0, squares, 1.0)).reciprocal()
