"""Weight averaging."""

from __future__ import annotations

from magmerge.core.fused import Fused
from magmerge.core.lazy import Float, Tensor
from magmerge.core.parameters import Weights
from magmerge.core.registry import register_method
from magmerge.methods.combine import (
    Normalize,
    check_weights,
    expert_weights,
    total_weight,
    weighted_sum,
)


def kernel(*, experts: int, weights: Weights, normalize: bool) -> Fused:
    """What compiled kernels do in place of `average`."""
    terms = expert_weights(range(experts), weights)
    if not normalize:
        return Fused(terms)
    return Fused(terms, scaling="divide", scale=total_weight(terms, terms))


@register_method(
    "average",
    source="Model soups, arXiv:2203.05482, eq. 1",
    aliases=("linear",),
    base_free=True,
    cut="entries",
    workspace=(0, 1),
    check=check_weights,
    rotates=True,
    kernel=kernel,
)
def average(
    deltas: Float[Tensor, "K *shape"], *, weights: Weights = None, normalize: Normalize = True
) -> Float[Tensor, "*shape"]:
    """Weighted mean of the task vectors: sum_k w_k D_k / sum_k w_k.

    `weights` may be of any sign, but must not add up to zero (ParameterError). With `normalize`
    off it is the weighted sum.

    When: models of one task that were tuned from one base (a model soup), or a first look. Of
    experts of different tasks the mean is too short: calibrate it, or take `task_arithmetic`.
    """
    total = weighted_sum(deltas, weights)
    return total.div_(total_weight(deltas, weights)) if normalize else total
