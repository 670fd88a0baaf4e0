"""FeatCal: each layer, as the merge feeds it, is drawn to the experts' features."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, Interval
from typing_extensions import Doc

from magmerge.calibrators.regmean import Sums, cut_by
from magmerge.core.errors import ParameterError
from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.parameters import SolvedWeight, Supplied
from magmerge.core.registry import register_calibrator
from magmerge.core.types import Kind
from magmerge.linalg.cholesky import cholesky_solution
from magmerge.linalg.row_norms import as_rows

Share = Annotated[
    float, Interval(ge=0, le=1), Doc("share of the expert's own inputs in what it is fed")
]
Ridge = Annotated[float, Gt(0), Doc("weight of the merge beside the samples of one task")]
Rho = Annotated[float, Doc("factor on the merged task vector that the ridge draws to")]
Base = Annotated[Tensor | None, Supplied()]
"""The base's weight."""
LAYERS: frozenset[Kind] = frozenset({"matrix", "transposed", "convolution", "vector"})


def both_products(
    merged: Float[Tensor, "tokens n"], expert: Float[Tensor, "tokens n"]
) -> Float[Tensor, "n+1 2*n+1"]:
    """[x, 1]'[x, 1, e] of the merged model's inputs x and the expert's e on the same tokens."""
    one = merged.new_ones(len(merged), 1)
    rows = torch.cat([merged, one], dim=1)
    return rows.T @ torch.cat([rows, expert], dim=1)


def entries(features: int) -> int:
    """How many numbers `both_products` gives for so many features."""
    return (features + 1) * (2 * features + 1)


def bias_by_means(
    deltas: Float[Tensor, "K rows"],
    merged: Float[Tensor, "rows"],
    *,
    sums: Tensor,
    weight: SolvedWeight,
    share: Share = 0.25,
    **_: object,
) -> Float[Tensor, "rows"]:
    """The bias's task vector with which mean outputs are the experts' mean outputs.

    The mean over k of d_k + D_k t_k + W_0 (t_k - m_k) - D m_k, with m_k the mean of what the merged
    model feeds the layer on expert k's samples, and t_k the mean of what the expert is fed.
    """
    n, parts = weight.base.shape[1], []
    for own, bias, delta in zip(sums[:, n].double(), deltas, weight.deltas, strict=True):
        count = own[n]
        if count > 0:
            mean, other = own[:n] / count, own[n + 1 :] / count
            target = mean + share * (other - mean)
            moved = weight.base.double() @ (target - mean) + delta.double() @ target
            parts.append(bias.double() + moved - weight.delta.double() @ mean)
    return torch.stack(parts).mean(0).to(merged) if parts else merged


@register_calibrator(
    "featcal",
    source="FeatCal, arXiv:2605.13030",
    acts_on=LAYERS,
    needs="inputs",
    returns="delta",
    order="forward",
    gather=both_products,
    fed_by="both",
    entries=entries,
    bias=bias_by_means,
    gated=False,
    scale_free=False,
    cut=cut_by,
)
def featcal(
    deltas: Float[Tensor, "K rows *rest"],
    merged: Float[Tensor, "rows *rest"],
    *,
    sums: Sums = None,
    base: Base = None,
    share: Share = 0.25,
    ridge: Ridge = 0.05,
    rho: Rho = 1.0,
) -> Float[Tensor, "rows *rest"]:
    """Ridge regression, in forward order, of the experts' features on what the merge feeds a layer.

    W = (sum_k X_k W_k' + l A')' (sum_k C_k + l I)^-1 with x_k the merged model's inputs on samples
    of task k, t_k = (1 - `share`) x_k + `share` e_k, e_k the inputs of expert k's own run,
    C_k = x_k'x_k and X_k = x_k't_k, both divided by |C_k|_F, A = W_0 + `rho` D_m and l the `ridge`.
    A bias follows by means. `sums` are [x, 1]'[x, 1, e]. Computed in float64, in task vectors.

    When: unlabelled samples of each task, and experts that can be run beside the merge.
    """
    if sums is None:
        raise ParameterError(
            "featcal has no products of inputs", remedy="give sums=, or use calibrate()"
        )
    start = as_rows(merged).double()
    n = start.shape[1]
    left, right = ridge * torch.eye(n, dtype=torch.float64), ridge * rho * start.T
    _add_evidence(left, right, sums, deltas, base, share)
    solved = cholesky_solution(left, right, remedy="raise ridge")
    return solved.T.reshape(merged.shape).to(merged)


def _add_evidence(
    left: Float[Tensor, "n n"],
    right: Float[Tensor, "n rows"],
    sums: Float[Tensor, "K n+1 2*n+1"],
    deltas: Float[Tensor, "K rows *rest"],
    base: Float[Tensor, "rows *rest"] | None,
    share: float,
) -> None:
    """Add what the samples tell to both sides of the equations, one expert after the other."""
    n, drift = len(left), torch.zeros_like(left)
    for own, delta in zip(sums, deltas, strict=True):
        square, other = own[:n, :n].double(), own[:n, n + 1 :].double()
        size = torch.linalg.matrix_norm(square)
        if size == 0:
            continue
        moved = other.sub_(square).mul_(share / size)
        square /= size
        left += square
        drift += moved
        right += square.add_(moved) @ as_rows(delta).double().T
    if base is not None:
        right += drift @ as_rows(base).double().T
