"""Task arithmetic."""

from __future__ import annotations

from magmerge.core.fused import Fused
from magmerge.core.lazy import Float, Tensor
from magmerge.core.parameters import Lambda, Weights
from magmerge.core.registry import register_method
from magmerge.methods.combine import (
    Normalize,
    check_weights,
    expert_weights,
    fused_sum,
    scaled_sum,
    sum_scale,
)


def kernel(*, experts: int, lambda_: float, weights: Weights, normalize: bool) -> Fused:
    """What compiled kernels do in place of `task_arithmetic`."""
    terms = expert_weights(range(experts), weights)
    return fused_sum(terms, sum_scale(terms, lambda_, normalize, weights))


@register_method(
    "task_arithmetic",
    source="Task arithmetic, arXiv:2212.04089, sec. 2",
    cut="entries",
    workspace=(0, 1),
    check=check_weights,
    rotates=True,
    kernel=kernel,
)
def task_arithmetic(
    deltas: Float[Tensor, "K *shape"],
    *,
    lambda_: Lambda = 0.3,
    weights: Weights = None,
    normalize: Normalize = False,
) -> Float[Tensor, "*shape"]:
    """Scaled sum of the task vectors: lambda sum_k w_k D_k.

    When: a plain start for experts of different tasks, and to add or subtract what one model
    learnt. The right lambda depends on the experts: tune it, or let a calibration find the
    size.
    """
    return scaled_sum(deltas, weights, lambda_, normalize)
