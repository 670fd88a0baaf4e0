"""WSC: weight-space calibration, from the weights alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from typing_extensions import Doc

from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.registry import register_calibrator
from magmerge.core.types import Cut, Kind
from magmerge.linalg.row_norms import as_rows, row_norms, row_scale

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


@register_calibrator(
    "wsc",
    source="MAGIC, arXiv:2512.19320, WSC",
    acts_on=MATRICES,
    near_orthogonal=assumes_orthogonal,
    cut=cut_by,
    rotates=True,
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
    """
    if granularity == "layer":
        deltas, merged = deltas.unsqueeze(1), merged.unsqueeze(0)
    rows = as_rows(merged)
    # Powers of two for each row let no square underflow, and are put back without rounding.
    size = row_scale(rows)
    reach = torch.stack([row_scale(as_rows(delta)) for delta in deltas]).amax(dim=0)
    rows = rows / size.unsqueeze(-1)
    norms = torch.stack([row_norms(as_rows(delta) / reach.unsqueeze(-1)) for delta in deltas])
    radius, length = norms.mean(dim=0), row_norms(rows)
    if target == "sphere":
        factor = radius / torch.where(length > 0, length, 1.0)
    else:
        axes = (as_rows(delta) / reach.unsqueeze(-1) for delta in deltas)
        factor = _ellipsoid(rows, axes, norms, radius)
    factor = torch.where((length > 0) & (radius > 0), factor * (reach / size), 1.0)
    return factor.reshape(()) if granularity == "layer" else factor


def _ellipsoid(
    rows: Float[Tensor, "rows columns"],
    axes: Iterable[Tensor],
    norms: Float[Tensor, "K rows"],
    radius: Float[Tensor, "rows"],
) -> Float[Tensor, "rows"]:
    residual = rows.clone()
    squares = torch.zeros_like(radius)
    for axis, norm in zip(axes, norms, strict=True):
        length = torch.where(norm > 0, norm, 1.0)
        direction = axis / length.unsqueeze(-1)
        projection = (rows * direction).sum(dim=-1)
        residual.addcmul_(projection.unsqueeze(-1), direction, value=-1.0)
        squares += (projection / length).square()
    squares += (row_norms(residual) / torch.where(radius > 0, radius, 1.0)).square()
    return torch.where(squares > 0, squares, 1.0).rsqrt()
