"""Weight averaging."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.errors import ParameterError
from magmerge.registry import register_method
from magmerge.types import Weights


@register_method(
    "average",
    source="Model soups, arXiv:2203.05482, eq. 1",
    aliases=("linear",),
    base_free=True,
)
def average(
    deltas: Float[Tensor, "K *shape"], *, weights: Weights = None
) -> Float[Tensor, "*shape"]:
    """Weighted mean of the task vectors: sum_k w_k D_k / sum_k w_k.

    `weights` may be of any sign, but must not add up to zero (ParameterError).
    """
    return weighted_sum(deltas, weights) / total_weight(deltas, weights)


def weighted_sum(deltas: Float[Tensor, "K *shape"], weights: Weights) -> Float[Tensor, "*shape"]:
    """sum_k w_k D_k, added in the order of the experts."""
    total = torch.zeros_like(deltas[0])
    for weight, delta in zip(expert_weights(deltas, weights), deltas, strict=True):
        total.add_(delta, alpha=weight)
    return total


def total_weight(deltas: Float[Tensor, "K *shape"], weights: Weights) -> float:
    """sum_k w_k; ParameterError where it is zero, for then no mean exists."""
    total = sum(expert_weights(deltas, weights))
    if total == 0:
        raise ParameterError(
            "the weights add up to zero, so they have no mean",
            remedy="choose other weights, or task_arithmetic, which does not divide by their sum",
        )
    return total


def expert_weights(deltas: Float[Tensor, "K *shape"], weights: Weights) -> list[float]:
    """The K weights, all 1 if none are given; ParameterError where their number is not K."""
    if weights is None:
        return [1.0] * len(deltas)
    if len(weights) != len(deltas):
        raise ParameterError(
            f"{len(weights)} weights for {len(deltas)} experts",
            remedy="give one weight for each expert, in their order",
        )
    return [float(weight) for weight in weights]
