"""TIES: trim, elect a sign, merge what agrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.linalg import kept_count, largest_mask, mask_from_threshold
from magmerge.methods.average import expert_weights
from magmerge.methods.threshold import ModelThreshold
from magmerge.registry import register_method
from magmerge.types import Density, Lambda, Supplied, Survey, Weights

Scope = Annotated[
    Literal["tensor", "model"], Doc("whether the density holds in each tensor or in the model")
]


def survey(
    *, experts: int, density: float = 0.2, scope: str = "tensor", **_: object
) -> Survey | None:
    """The whole-model threshold, where the scope asks for one."""
    return ModelThreshold(experts, density) if scope == "model" else None


@register_method(
    "ties", source="TIES-Merging, arXiv:2306.01708, alg. 1", survey=survey, workspace=(1, 6)
)
def ties(
    deltas: Float[Tensor, "K *shape"],
    *,
    density: Density = 0.2,
    lambda_: Lambda = 1.0,
    scope: Scope = "tensor",  # noqa: ARG001 - survey() reads it
    weights: Weights = None,
    thresholds: Annotated[Sequence[tuple[Tensor, int]] | None, Supplied()] = None,
) -> Float[Tensor, "*shape"]:
    """Keep the largest entries, elect the sign of their sum, average those that agree with it.

    Of each D_k the `density` largest in magnitude stay (ceil(density n) of n; among equals the
    first). The elected sign is that of sum_k w_k D_k; where that sum is zero the result is zero.
    The result is lambda times the weighted mean of the entries that stay and have that sign.
    With scope "model" the density holds in the whole task vector, not in each tensor: pass the
    `thresholds` that `survey` finds; a single tensor without them is its own whole model.
    """
    trimmed = trim(deltas, density) if thresholds is None else cut(deltas, thresholds)
    return elect_and_average(trimmed, expert_weights(deltas, weights)) * lambda_


def trim(deltas: Float[Tensor, "K *shape"], density: float) -> Float[Tensor, "K *shape"]:
    """Each D_k with all but its ceil(density n) largest entries set to zero."""
    count = kept_count(density, deltas[0].numel())
    trimmed = torch.zeros_like(deltas)
    for delta, out in zip(deltas, trimmed, strict=True):
        torch.where(largest_mask(delta.abs(), count), delta, out, out=out)
    return trimmed


def cut(
    deltas: Float[Tensor, "K *shape"], thresholds: Sequence[tuple[Tensor, int]]
) -> Float[Tensor, "K *shape"]:
    """Each D_k above its threshold, with the first `quota` entries that equal it."""
    trimmed = torch.zeros_like(deltas)
    for delta, out, (threshold, quota) in zip(deltas, trimmed, thresholds, strict=True):
        mask = mask_from_threshold(delta.abs().to(threshold.dtype), threshold, quota)
        torch.where(mask, delta, out, out=out)
    return trimmed


def elect_and_average(
    trimmed: Float[Tensor, "K *shape"], weights: Sequence[float]
) -> Float[Tensor, "*shape"]:
    """The weighted mean of the entries w_k D_k whose sign is that of their sum.

    An expert of negative weight counts with its task vector turned round.
    """
    mass = torch.zeros_like(trimmed[0])
    for weight, delta in zip(weights, trimmed, strict=True):
        mass.add_(delta, alpha=weight)
    elected = mass.sign_()
    total, share = torch.zeros_like(mass), torch.zeros_like(mass)
    for weight, delta in zip(weights, trimmed, strict=True):
        agrees = (delta.sign() * math.copysign(1.0, weight) == elected) & (elected != 0)
        total.add_(torch.where(agrees, delta, 0.0), alpha=weight)
        share.add_(agrees, alpha=abs(weight))
    alone = share == 0
    return total.div_(share.masked_fill_(alone, 1.0)).masked_fill_(alone, 0.0)
