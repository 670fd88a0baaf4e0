"""Many task vectors to one: the weighted sum or mean of all entries, or of those that agree."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from magmerge.core.errors import ParameterError
from magmerge.core.fused import Fused
from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.parameters import Weights

EPSILON = 2.0**-52
Normalize = Annotated[
    bool, Doc("whether to divide by the weights' sum: a mean; without it, their weighted sum")
]
Vote = Annotated[
    Literal["plain", "weighted"],
    Doc("plain: the sign of the sum; weighted: of the weighted sum, plus where it is zero"),
]
Stack = Float[Tensor, "K *shape"] | Sequence[Tensor]
"""The task vectors of K experts."""


def one_for_each(value: float | Sequence[float], experts: int, name: str) -> list[float]:
    """The value of each expert; ParameterError where there is a list of another length."""
    if not isinstance(value, Sequence):
        return [value] * experts
    if len(value) != experts:
        raise ParameterError(
            f"{len(value)} {name} for {experts} experts",
            remedy=f"give one {name.removesuffix('s')} for each expert, in their order",
        )
    return [float(entry) for entry in value]


def expert_weights(deltas: Sized, weights: Weights) -> list[float]:
    """The K weights, all 1 if none are given; ParameterError where their number is not K."""
    return one_for_each(1.0 if weights is None else weights, len(deltas), "weights")


def total_weight(deltas: Sized, weights: Weights) -> float:
    """sum_k w_k; ParameterError where it is zero, for then no mean exists."""
    terms = expert_weights(deltas, weights)
    try:
        total, size = math.fsum(terms), math.fsum(map(abs, terms))
    except OverflowError as error:
        problem = "the weights add up to more than a number can be"
        raise ParameterError(problem, remedy="give smaller weights") from error
    # 0.1 + 0.2 - 0.3 is zero to whoever wrote it.
    if abs(total) <= len(terms) * EPSILON * size:
        raise ParameterError(
            "the weights add up to zero, so they have no mean",
            remedy="choose other weights, or normalize=false, which does not divide by their sum",
        )
    return total


def check_weights(*, weights: Weights = None, normalize: bool = True, **_: object) -> None:
    """ParameterError where the weights have no mean and one is asked for."""
    if weights is not None and normalize:
        total_weight(weights, weights)


def weighted_sum(deltas: Stack, weights: Weights) -> Float[Tensor, "*shape"]:
    """sum_k w_k D_k, added in the order of the experts."""
    first, *others = expert_weights(deltas, weights)
    total = deltas[0] * first
    for weight, delta in zip(others, deltas[1:], strict=True):
        total.add_(delta, alpha=weight)
    return total


def scaled_sum(
    deltas: Stack, weights: Weights, lambda_: float, normalize: bool
) -> Float[Tensor, "*shape"]:
    """lambda sum_k w_k D_k, over sum_k w_k with `normalize`."""
    return weighted_sum(deltas, weights).mul_(sum_scale(deltas, lambda_, normalize, weights))


def sum_scale(deltas: Sized, lambda_: float, normalize: bool, weights: Weights) -> float:
    """What the weighted sum is multiplied with: lambda, over sum_k w_k with `normalize`."""
    return lambda_ / total_weight(deltas, weights) if normalize else lambda_


def elected_merge(
    deltas: Stack, weights: Weights, vote: str, normalize: bool
) -> Float[Tensor, "*shape"]:
    """The weighted mean, or sum, of the entries that have the elected sign; zero where none has.

    An expert of negative weight counts with its task vector turned round.
    """
    shares = expert_weights(deltas, weights)
    signs = elected_signs(deltas, shares, vote)
    if not normalize:
        total = torch.zeros_like(signs)
        for weight, delta in zip(shares, deltas, strict=True):
            total.add_(_agreement(delta, weight, signs), alpha=abs(weight))
        return total.mul_(signs)
    total = _agreement(deltas[0], shares[0], signs)
    share = total.sign().mul_(abs(shares[0]))
    total.mul_(abs(shares[0]))
    for weight, delta in zip(shares[1:], deltas[1:], strict=True):
        part = _agreement(delta, weight, signs)
        total.add_(part, alpha=abs(weight))
        share.add_(part.sign_(), alpha=abs(weight))
    # Where nobody agrees the total is zero, whatever it is divided by.
    least = min((abs(weight) for weight in shares if weight), default=1.0)
    return total.mul_(signs).div_(share.clamp_(min=least))


def fused_sum(weights: Sequence[float], scale: float, **keep: Any) -> Fused:
    """`scaled_sum` as compiled kernels do it, of what `keep` says stays."""
    return Fused(weights, scaling="multiply", scale=scale, **keep)


def fused_election(
    weights: Sequence[float], vote: str, normalize: bool, lambda_: float, **keep: Any
) -> Fused:
    """lambda times `elected_merge` as compiled kernels do it, of what `keep` says stays."""
    combine: Any = vote
    return Fused(
        weights, combine=combine, mean=normalize, scaling="multiply", scale=lambda_, **keep
    )


def elected_signs(deltas: Stack, weights: Sequence[float], vote: str) -> Float[Tensor, "*shape"]:
    """The sign of the sum, as TIES' paper has it; "weighted": as mergekit has it.

    mergekit's is that of the weighted sum, and plus where that is zero. In the plain sum a negative
    weight turns its task vector round, and an expert of weight zero has no vote.
    """
    if vote == "weighted":
        return weighted_sum(deltas, weights).sign_().add_(0.5).sign_()
    return weighted_sum(deltas, [math.copysign(bool(weight), weight) for weight in weights]).sign_()


def _agreement(delta: Tensor, weight: float, signs: Tensor) -> Tensor:
    """The size of each entry that has the elected sign, and zero for the others."""
    product = torch.mul(delta, signs)
    return product.clamp_(min=0) if weight >= 0 else product.neg_().clamp_(min=0)
