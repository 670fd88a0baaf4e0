"""Weight averaging."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import Annotated

from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.errors import ParameterError
from magmerge.core.parameters import Weights
from magmerge.core.registry import register_method

EPSILON = 2.0**-52
Normalize = Annotated[
    bool, Doc("whether to divide by the weights' sum: a mean; without it, their weighted sum")
]


def check_weights(*, weights: Weights = None, normalize: bool = True, **_: object) -> None:
    """ParameterError where the weights have no mean and one is asked for."""
    if weights is not None and normalize:
        total_weight(weights, weights)


@register_method(
    "average",
    source="Model soups, arXiv:2203.05482, eq. 1",
    aliases=("linear",),
    base_free=True,
    cut="entries",
    workspace=(0, 1),
    check=check_weights,
    rotates=True,
)
def average(
    deltas: Float[Tensor, "K *shape"], *, weights: Weights = None, normalize: Normalize = True
) -> Float[Tensor, "*shape"]:
    """Weighted mean of the task vectors: sum_k w_k D_k / sum_k w_k.

    `weights` may be of any sign, but must not add up to zero (ParameterError). With `normalize`
    off it is the weighted sum.
    """
    total = weighted_sum(deltas, weights)
    return total.div_(total_weight(deltas, weights)) if normalize else total


def scaled_sum(
    deltas: Float[Tensor, "K *shape"] | Sequence[Tensor],
    weights: Weights,
    lambda_: float,
    normalize: bool,
) -> Float[Tensor, "*shape"]:
    """lambda sum_k w_k D_k, over sum_k w_k with `normalize`."""
    scale = lambda_ / total_weight(deltas, weights) if normalize else lambda_
    return weighted_sum(deltas, weights).mul_(scale)


def weighted_sum(
    deltas: Float[Tensor, "K *shape"] | Sequence[Tensor], weights: Weights
) -> Float[Tensor, "*shape"]:
    """sum_k w_k D_k, added in the order of the experts."""
    first, *others = expert_weights(deltas, weights)
    total = deltas[0] * first
    for weight, delta in zip(others, deltas[1:], strict=True):
        total.add_(delta, alpha=weight)
    return total


def total_weight(deltas: Sized, weights: Weights) -> float:
    """sum_k w_k; ParameterError where it is zero, for then no mean exists."""
    given = expert_weights(deltas, weights)
    total = math.fsum(given)
    # 0.1 + 0.2 - 0.3 is zero to whoever wrote it.
    if abs(total) <= len(given) * EPSILON * math.fsum(map(abs, given)):
        raise ParameterError(
            "the weights add up to zero, so they have no mean",
            remedy="choose other weights, or normalize=false, which does not divide by their sum",
        )
    return total


def expert_weights(deltas: Sized, weights: Weights) -> list[float]:
    """The K weights, all 1 if none are given; ParameterError where their number is not K."""
    if weights is None:
        return [1.0] * len(deltas)
    if len(weights) != len(deltas):
        raise ParameterError(
            f"{len(weights)} weights for {len(deltas)} experts",
            remedy="give one weight for each expert, in their order",
        )
    return [float(weight) for weight in weights]
