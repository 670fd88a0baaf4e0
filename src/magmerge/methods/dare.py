"""DARE: drop entries at random, rescale the rest, then merge."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from magmerge.core.parameters import Lambda, Probability, Seeds, Start, Weights
from magmerge.core.registry import register_method
from magmerge.core.traits import Survey
from magmerge.linalg.draws import derive_seed, drop
from magmerge.methods.average import (
    Normalize,
    check_weights,
    expert_weights,
    total_weight,
    weighted_sum,
)
from magmerge.methods.rescale import L1Ratios, Ratios, Rescale
from magmerge.methods.survey import surveyed
from magmerge.methods.ties import Vote, elected_merge


def survey(
    *, p: float = 0.9, rescale: str = "inverse", seeds: Seeds = None, **_: object
) -> Survey | None:
    """The sums that the L1 rescaling matches."""
    if rescale != "l1":
        return None
    return L1Ratios(lambda run, start, _: dropped(run, p, seeds, start))


@register_method(
    "dare",
    source="DARE, arXiv:2311.03099, eqs. 2-4",
    aliases=("dare_linear",),
    random=True,
    cut="entries",
    survey=survey,
    workspace=(1, 2),
    check=check_weights,
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
    """
    sparse = dropped(deltas, p, seeds, start)
    factors = _factors(deltas, p, rescale, seeds, ratios)
    given = expert_weights(deltas, weights)
    total = weighted_sum(sparse, [w * f for w, f in zip(given, factors, strict=True)])
    return total.mul_(lambda_ / total_weight(deltas, weights) if normalize else lambda_)


@register_method(
    "dare_ties",
    source="DARE with TIES, arXiv:2311.03099, sec. 4.3",
    random=True,
    cut="entries",
    survey=survey,
    workspace=(1, 5),
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
    """
    sparse = dropped(deltas, p, seeds, start)
    for delta, factor in zip(sparse, _factors(deltas, p, rescale, seeds, ratios), strict=True):
        delta.mul_(factor)
    return elected_merge(sparse, weights, vote, normalize).mul_(lambda_)


def dropped(
    deltas: Float[Tensor, "K *shape"], p: float, seeds: Seeds, start: int = 0
) -> Sequence[Float[Tensor, "*shape"]]:
    """Each D_k with each entry zero with probability p, not rescaled."""
    if seeds is None:
        seeds = [derive_seed(0, "", k) for k in range(len(deltas))]
    return [drop(delta, seed, 1 - p, start) for delta, seed in zip(deltas, seeds, strict=True)]


def _factors(
    deltas: Float[Tensor, "K *shape"], p: float, rescale: str, seeds: Seeds, ratios: Ratios
) -> Sequence[float]:
    """What each expert's remaining entries are multiplied with."""
    if rescale != "l1":
        return [1 / (1 - p) if rescale == "inverse" else 1.0] * len(deltas)
    if ratios is not None:
        return ratios
    found = survey(p=p, rescale=rescale, seeds=seeds)
    assert found is not None
    per_expert: Sequence[float] = surveyed(found, deltas)["ratios"]
    return per_expert
