"""TIES: trim, elect a sign, merge what agrees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Density, Lambda, Start, Thresholds, Weights
from magmerge.core.registry import register_method
from magmerge.core.traits import Survey
from magmerge.linalg.selection import kept_count, largest
from magmerge.methods.average import Normalize, expert_weights
from magmerge.methods.radix import RadixThreshold
from magmerge.methods.survey import surveyed
from magmerge.methods.threshold import LayerThreshold, magnitudes

Scope = Annotated[
    Literal["tensor", "model"], Doc("whether the density holds in each tensor or in the model")
]
Vote = Annotated[
    Literal["plain", "weighted"],
    Doc("plain: the sign of the sum; weighted: of the weighted sum, plus where it is zero"),
]


def survey(
    *,
    entries: int,
    unchanged: int = 0,
    density: float = 0.2,
    scope: str = "model",
    **_: object,
) -> Survey | None:
    """Each expert's threshold, in the layer or in the whole model."""
    if density == 1:
        return None
    if scope == "model":
        # What no expert changes is part of the model too, though it is not looked at.
        return RadixThreshold(lambda seen: [kept_count(density, seen + unchanged)], magnitudes)
    return LayerThreshold(entries, [kept_count(density, entries)])


@register_method(
    "ties",
    source="TIES-Merging, arXiv:2306.01708, alg. 1",
    survey=survey,
    cut="entries",
    workspace=(1, 5),
)
def ties(
    deltas: Float[Tensor, "K *shape"],
    *,
    density: Density = 0.2,
    lambda_: Lambda = 1.0,
    scope: Scope = "model",
    vote: Vote = "plain",
    normalize: Normalize = True,
    weights: Weights = None,
    thresholds: Thresholds = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """Keep the largest entries, elect the sign of their sum, average those that agree with it.

    Of each D_k the `density` largest in magnitude stay (ceil(density n) of n; among equals the
    first). The elected sign is that of sum_k D_k; where that sum is zero the result is zero.
    The result is lambda times the weighted mean of the entries that stay and have that sign, or
    with `normalize` off their weighted sum. With scope "model" the density holds in the whole
    task vector, not in each tensor; a single tensor is then its own whole model.
    """
    trimmed = trim(deltas, density, scope, thresholds, start)
    return elected_merge(trimmed, weights, vote, normalize).mul_(lambda_)


def trim(
    deltas: Float[Tensor, "K *shape"],
    density: float,
    scope: str = "tensor",
    thresholds: Thresholds = None,
    start: int = 0,
) -> Sequence[Float[Tensor, "*shape"]]:
    """Each D_k with all but its largest entries set to zero."""
    if thresholds is None:
        found = survey(entries=deltas[0].numel(), density=density, scope=scope)
        if found is None:
            return list(deltas)
        thresholds = surveyed(found, deltas)["thresholds"]
    (per_expert,) = thresholds
    return [largest(d, t, start) for d, t in zip(deltas, per_expert, strict=True)]


Stack = Sequence[Tensor] | Float[Tensor, "K *shape"]

Election = Callable[[Stack, Sequence[float]], Tensor]


def plain_election(trimmed: Stack, weights: Sequence[float]) -> Float[Tensor, "*shape"]:
    """The sign of the sum, as the paper has it; a negative weight turns its task vector round."""
    total = trimmed[0] * math.copysign(1.0, weights[0])
    for weight, delta in zip(weights[1:], trimmed[1:], strict=True):
        total.add_(delta, alpha=math.copysign(1.0, weight))
    return total.sign_()


def weighted_election(trimmed: Stack, weights: Sequence[float]) -> Float[Tensor, "*shape"]:
    """The sign of the weighted sum, and plus where that is zero, as mergekit has it."""
    total = torch.zeros_like(trimmed[0])
    for weight, delta in zip(weights, trimmed, strict=True):
        total.add_(delta, alpha=weight)
    return total.sign_().add_(0.5).sign_()


ELECTIONS: dict[str, Election] = {"plain": plain_election, "weighted": weighted_election}


def elected_merge(
    sparse: Stack, weights: Weights, vote: str, normalize: bool
) -> Float[Tensor, "*shape"]:
    """Elect signs by `vote`, then the mean of what agrees, or its sum without `normalize`."""
    merge = elect_and_average if normalize else elect_and_sum
    return merge(sparse, expert_weights(sparse, weights), ELECTIONS[vote])


def elect_and_average(
    trimmed: Stack,
    weights: Sequence[float],
    elect: Election = plain_election,
) -> Float[Tensor, "*shape"]:
    """The weighted mean of the entries whose sign is the elected one.

    An expert of negative weight counts with its task vector turned round.
    """
    elected = elect(trimmed, weights)
    total = _agreeing(trimmed[0], weights[0], elected)
    share = total.sign().mul_(abs(weights[0]))
    total.mul_(abs(weights[0]))
    for weight, delta in zip(weights[1:], trimmed[1:], strict=True):
        agreeing = _agreeing(delta, weight, elected)
        total.add_(agreeing, alpha=abs(weight))
        share.add_(agreeing.sign_(), alpha=abs(weight))
    # Where nobody agrees the total is zero, whatever it is divided by.
    least = min((abs(weight) for weight in weights if weight), default=1.0)
    return total.mul_(elected).div_(share.clamp_(min=least))


def elect_and_sum(
    trimmed: Stack,
    weights: Sequence[float],
    elect: Election = plain_election,
) -> Float[Tensor, "*shape"]:
    """The weighted sum of the entries whose sign is the elected one."""
    elected = elect(trimmed, weights)
    total = torch.zeros_like(elected)
    for weight, delta in zip(weights, trimmed, strict=True):
        total.add_(_agreeing(delta, weight, elected), alpha=abs(weight))
    return total.mul_(elected)


def _agreeing(delta: Tensor, weight: float, elected: Tensor) -> Tensor:
    """The size of each entry that has the elected sign, and zero for the others."""
    agreeing = torch.mul(delta, elected)
    return agreeing.clamp_(min=0) if weight >= 0 else agreeing.neg_().clamp_(min=0)
