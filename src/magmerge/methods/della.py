"""DELLA: drop entries at random, small ones more often than large ones, then merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.errors import ParameterError
from magmerge.core.parameters import Density, Lambda, Seeds, Start, Weights
from magmerge.core.registry import register_method
from magmerge.core.types import Cut
from magmerge.linalg.draws import derive_seed, uniforms
from magmerge.linalg.ranks import by_rank
from magmerge.methods.average import Normalize, scaled_sum
from magmerge.methods.rescale import L1Ratios, Rescale
from magmerge.methods.survey import surveyed
from magmerge.methods.ties import Vote, elected_merge

Epsilon = Annotated[
    float,
    Interval(ge=0, lt=0.5),
    Doc("how far the chance to stay is from `density` at the ends of a row's ranks"),
]


def cut(*, rescale: str = "inverse", **_: object) -> Cut:
    """Ranks are those of a row; mergekit's rescaling is that of a whole tensor."""
    return "whole" if rescale == "l1" else "rows"


def check_density(*, density: float, epsilon: float, **_: object) -> None:
    """ParameterError unless every chance to stay is within (0, 1), or nothing is dropped."""
    if density == 1:
        return
    if not (density - epsilon > 0 and density + epsilon < 1):
        raise ParameterError(
            f"density {density} +- epsilon {epsilon} is not within (0, 1)",
            remedy=f"choose an epsilon below {min(density, 1 - density):g}, or another density",
        )


@register_method(
    "della",
    source="DELLA, arXiv:2406.11617, sec. 3",
    random=True,
    cut=cut,
    workspace=(1, 9),
    faithful=False,
    check=check_density,
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
    sparse = sampled(deltas, density, epsilon, rescale, seeds, start)
    return elected_merge(sparse, weights, vote, normalize).mul_(lambda_)


@register_method(
    "della_linear",
    source="DELLA, arXiv:2406.11617, sec. 3, without the election",
    random=True,
    cut=cut,
    workspace=(1, 9),
    faithful=False,
    check=check_density,
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
    sparse = sampled(deltas, density, epsilon, rescale, seeds, start)
    return scaled_sum(sparse, weights, lambda_, normalize)


def sampled(
    deltas: Float[Tensor, "K *shape"],
    density: float,
    epsilon: float,
    rescale: str,
    seeds: Seeds,
    start: int = 0,
) -> Sequence[Float[Tensor, "*shape"]]:
    """What stays of each D_k, rescaled."""
    if density == 1 or deltas[0].numel() == 0:
        return list(deltas)
    check_density(density=density, epsilon=epsilon)
    if seeds is None:
        seeds = [derive_seed(0, "", k) for k in range(len(deltas))]
    kept = [
        _sample(delta, density, epsilon, rescale == "inverse", seed, start)
        for delta, seed in zip(deltas, seeds, strict=True)
    ]
    if rescale == "l1":
        flat = [one.reshape(-1) for one in kept]
        survey = L1Ratios(lambda run, at, _: [one[at : at + run.shape[1]] for one in flat])
        for one, ratio in zip(kept, surveyed(survey, deltas)["ratios"], strict=True):
            one.mul_(ratio)
    return kept


def _sample(
    delta: Float[Tensor, "*shape"],
    density: float,
    epsilon: float,
    divide: bool,
    seed: int,
    start: int,
) -> Float[Tensor, "*shape"]:
    """D_k with entries dropped by rank; what stays is divided by its chance to if `divide`."""
    rows = delta.reshape(len(delta), -1) if delta.ndim > 1 else delta.reshape(1, -1)
    chances = by_rank(rows, chances_by_rank(rows.shape[1], density, epsilon))
    draws = uniforms(seed, rows.shape, start).to(chances)
    # 1 where the draw is below the chance, else 0.
    kept = draws.neg_().add_(chances).sign_().clamp_(min=0).mul_(rows)
    if divide:
        kept.div_(chances)
    return kept.reshape(delta.shape)


def chances_by_rank(count: int, density: float, epsilon: float) -> Float[Tensor, "count"]:
    """The chance to stay of each rank, from the smallest entry to the largest."""
    if count == 1:
        return torch.full((1,), density, dtype=torch.float64)
    steps = torch.arange(count, dtype=torch.float64) / (count - 1)
    return density - epsilon + 2 * epsilon * steps
