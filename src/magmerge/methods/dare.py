"""DARE: drop entries at random, rescale the rest, then merge."""

from __future__ import annotations

from typing import Any

from magmerge.core.fused import Fused
from magmerge.core.lazy import Float, Tensor
from magmerge.core.parameters import Lambda, Probability, Seeds, Start, Weights
from magmerge.core.registry import register_method
from magmerge.methods.combine import (
    Normalize,
    Vote,
    check_weights,
    elected_merge,
    expert_weights,
    fused_election,
    fused_sum,
    sum_scale,
    weighted_sum,
)
from magmerge.methods.sparsify import (
    Ratios,
    Rescale,
    drop_factors,
    drop_survey,
    dropped,
    fused_drop,
    kept_factors,
)


def kernel(
    *,
    experts: int,
    lambda_: float,
    weights: Weights,
    normalize: bool,
    vote: str | None = None,
    **drop: Any,
) -> Fused:
    """What compiled kernels do in place of `dare`, and with a vote of `dare_ties`."""
    terms, factors = expert_weights(range(experts), weights), kept_factors(experts, **drop)
    keep = fused_drop(experts, **drop)
    if vote is not None:
        return fused_election(terms, vote, normalize, lambda_, factors=factors, **keep)
    products = [weight * factor for weight, factor in zip(terms, factors, strict=True)]
    return fused_sum(products, sum_scale(terms, lambda_, normalize, weights), **keep)


@register_method(
    "dare",
    source="DARE, arXiv:2311.03099, eqs. 2-4",
    aliases=("dare_linear",),
    random=True,
    cut="entries",
    survey=drop_survey,
    apart=True,
    workspace=(1, 2),
    check=check_weights,
    kernel=kernel,
)
def dare(
    deltas: Float[Tensor, "K *shape"],
    *,
    p: Probability = 0.9,
    rescale: Rescale = "inverse",
    lambda_: Lambda = 1.0,
    weights: Weights = None,
    normalize: Normalize = True,
    seeds: Seeds = None,
    ratios: Ratios = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """Drop each entry with probability p, divide the rest by 1 - p, then average.

    `seeds` holds one seed per expert; without them the draws are those of seed 0.

    When: fully fine-tuned experts whose changes are many and small. The result depends on the
    seed. The mean of what stays is too short for different tasks: calibrate it by `fsc`.
    """
    sparse = dropped(deltas, p, seeds, start)
    factors = drop_factors(deltas, p, rescale, seeds, ratios)
    pairs = zip(expert_weights(deltas, weights), factors, strict=True)
    total = weighted_sum(sparse, [weight * factor for weight, factor in pairs])
    return total.mul_(sum_scale(deltas, lambda_, normalize, weights))


@register_method(
    "dare_ties",
    source="DARE with TIES, arXiv:2311.03099, sec. 4.3",
    random=True,
    cut="entries",
    survey=drop_survey,
    apart=True,
    workspace=(1, 5),
    kernel=kernel,
)
def dare_ties(
    deltas: Float[Tensor, "K *shape"],
    *,
    p: Probability = 0.9,
    rescale: Rescale = "inverse",
    lambda_: Lambda = 1.0,
    vote: Vote = "plain",
    normalize: Normalize = True,
    weights: Weights = None,
    seeds: Seeds = None,
    ratios: Ratios = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """Drop each entry with probability p, divide the rest by 1 - p, then elect and merge as TIES.

    TIES's own trim is left out: at the paper's p = 0.9 the tenth that stays is less than the fifth
    that it would keep.

    When: as `dare`, where experts also pull to both sides. The result depends on the seed.
    """
    sparse = dropped(deltas, p, seeds, start)
    factors = drop_factors(deltas, p, rescale, seeds, ratios)
    for delta, factor in zip(sparse, factors, strict=True):
        delta.mul_(factor)
    return elected_merge(sparse, weights, vote, normalize).mul_(lambda_)
