"""DELLA: drop entries at random, small ones more often than large ones, then merge."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from magmerge.core.parameters import Density, Lambda, Seeds, Start, Weights
from magmerge.core.registry import register_method
from magmerge.core.types import Cut
from magmerge.methods.combine import Normalize, Vote, elected_merge, scaled_sum
from magmerge.methods.sparsify import Epsilon, Rescale, check_chances, dropped_by_rank


def cut(*, rescale: str = "inverse", **_: object) -> Cut:
    """Ranks are those of a row; mergekit's rescaling is that of a whole tensor."""
    return "whole" if rescale == "l1" else "rows"


@register_method(
    "della",
    source="DELLA, arXiv:2406.11617, sec. 3",
    random=True,
    cut=cut,
    workspace=(1, 9),
    faithful=False,
    check=check_chances,
)
def della(
    deltas: Float[Tensor, "K *shape"],
    *,
    density: Density = 0.5,
    epsilon: Epsilon = 0.15,
    lambda_: Lambda = 1.0,
    vote: Vote = "plain",
    normalize: Normalize = True,
    rescale: Rescale = "inverse",
    weights: Weights = None,
    seeds: Seeds = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """Drop entries by rank, divide the rest by their chance to stay, elect and merge as TIES.

    In a row of m entries, the one of rank r by magnitude (from 1, the smallest; among equals the
    first is smaller) stays with probability density - epsilon + 2 epsilon (r-1) / (m-1): on average
    with `density`. Rows are those of the tensor flattened behind its first axis; a vector is one
    row. density +- epsilon must lie within (0, 1), else ParameterError; with density 1 nothing is
    dropped. The paper tunes both; these are mergekit's epsilon, and half of the entries.
    `seeds` holds one seed per expert; without them the draws are those of seed 0.
    """
    sparse = dropped_by_rank(deltas, density, epsilon, rescale, seeds, start)
    return elected_merge(sparse, weights, vote, normalize).mul_(lambda_)


@register_method(
    "della_linear",
    source="DELLA, arXiv:2406.11617, sec. 3, without the election",
    random=True,
    cut=cut,
    workspace=(1, 9),
    faithful=False,
    check=check_chances,
)
def della_linear(
    deltas: Float[Tensor, "K *shape"],
    *,
    density: Density = 0.5,
    epsilon: Epsilon = 0.15,
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Rescale = "inverse",
    weights: Weights = None,
    seeds: Seeds = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """Drop entries by rank as DELLA, divide the rest by their chance to stay, add up.

    lambda sum_k w_k D_k of what stays; `normalize` divides by the sum of the weights.
    """
    sparse = dropped_by_rank(deltas, density, epsilon, rescale, seeds, start)
    return scaled_sum(sparse, weights, lambda_, normalize)
